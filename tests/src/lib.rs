//! What the whole-system tests run on: real servers, private to the test, gone when it ends.
//!
//! - [`Postgres`]: a cluster of its own with `ext_registry` preloaded; [`Database`] a fresh database in it
//! - [`Nats`]: a real nats-server
//! - [`Bridge`]: the `ext-bridge` binary, [`Services`]: the reference services it calls
//! - [`Caller`]: somebody who calls; [`Callers`]: many at once, each call accounted for
//! - [`Proxy`]: a way to a server that can be held up or cut, a connection at a time
//! - [`python`]: a virtual environment for services that share no code with ours
//!
//! Everything listens on 127.0.0.1 on a free port. Everything is stopped and removed when its value is dropped, and
//! by the [`reaper`] when the test process ends in any other way. Nothing waits by sleeping for a fixed time: see
//! [`wait`].
//!
//! The binaries come from `make install bridge services`; a test that misses one says so and fails.

pub mod backup;
pub mod bridge;
pub mod caller;
pub mod callers;
pub mod certificates;
pub mod http;
pub mod micro;
pub mod nats;
pub mod pages;
pub mod places;
pub mod plot;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod python;
pub mod reaper;
pub mod registry;
pub mod regress;
pub mod scrape;
pub mod services;
pub mod surroundings;
pub mod upgrade;
pub mod wait;
pub mod whole;

pub use bridge::Bridge;
pub use caller::{Caller, Reply};
pub use callers::Callers;
pub use nats::Nats;
pub use postgres::{Database, Postgres, Session, Shutdown};
pub use proxy::Proxy;
pub use registry::Decision;
pub use scrape::Scrape;
pub use services::Services;
pub use surroundings::Surroundings;
pub use wait::{eventually, wait_until};
