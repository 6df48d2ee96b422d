//! Messages, without the way they come.

#[path = "../../../bridge/src/transport/message.rs"]
mod message;

pub use async_nats::Subject;
pub use message::{Channel, Headers, Inbound, Outbound};
