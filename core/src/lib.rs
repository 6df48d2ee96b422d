//! The routing decision of `ext_registry`, pure: no Postgres, no NATS, no clock, no threads, no I/O.
//!
//! A request names an extension and brings a [`context`]. [`decide`] chooses a version by [`rules`] and shares ([`rendezvous`]), skips versions
//! whose [`breaker`] refuses, and chooses an instance ([`balance`]) among those that are fit ([`ejection`], [`fitness`]). The call gets a
//! ticket ([`tickets`]); its [`outcome`] is accounted for by [`account`] in the live state of its [`target`]s: counters, [`window`],
//! [`histogram`], breaker. [`preview`] decides without a trace.
//!
//! Time and randomness are arguments. Configuration ([`model`]) is compiled ([`compile`]) and never changes; live state is plain atomics that
//! may lie in shared memory or on the heap. Postgres is one host of this crate, [`engine`] is the other.
#![forbid(unsafe_code)]

pub mod account;
pub mod balance;
pub mod breaker;
pub mod compile;
pub mod context;
pub mod decide;
pub mod decimal;
pub mod ejection;
pub mod engine;
pub mod fields;
pub mod fitness;
pub mod fixture;
pub mod hdr;
pub mod histogram;
pub mod ident;
mod levels;
pub mod merge;
pub mod model;
pub mod natural;
pub mod operators;
pub mod outcome;
pub mod policy;
pub mod preview;
pub mod reach;
pub mod rendezvous;
pub mod rules;
pub mod scalars;
pub mod target;
pub mod tickets;
pub mod window;
