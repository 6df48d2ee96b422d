//! What writes live state down: a launcher for the server, and one worker for each database that has the extension.

mod flush;
mod launcher;
mod main;

pub use launcher::register as register_launcher;
