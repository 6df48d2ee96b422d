//! What writes live state down: a launcher for the server, and one worker for each database that has the extension.

mod flush;
mod giveway;
mod launcher;
mod main;
mod promote;
mod triggers;

pub use giveway::install as install_giveway;
pub use launcher::register as register_launcher;
