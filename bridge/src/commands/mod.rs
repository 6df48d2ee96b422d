//! Commands that are not the daemon.

pub mod check;
pub mod fixtures;
pub mod man;
pub mod request;
