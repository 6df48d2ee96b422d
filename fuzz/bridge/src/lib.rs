//! The files of `bridge/` that read what others wrote, without its connections: the bridge is a program and has no library.
//! What they must never do is said in `machine/hostile.rs`, which the bridge's own tests use too.
#![allow(dead_code, missing_docs)]

#[path = "../../../bridge/src/exit.rs"]
mod exit;
#[path = "../../../bridge/src/fixtures.rs"]
mod fixtures;
#[path = "../../../bridge/src/image.rs"]
mod image;
#[path = "../../../bridge/src/machine/mod.rs"]
pub mod machine;
#[path = "../../../bridge/src/metrics.rs"]
pub mod metrics;
pub mod transport;
