//! `ext-bridge`: NATS on one side, the SQL functions of `ext_registry` on the other.
//!
//! While Postgres answers the bridge decides nothing itself: it asks, sends, waits, retries, reports. [`machine`] is that
//! logic without connections; [`serve`] gives it NATS ([`transport`]) and Postgres ([`pg`], [`batch`]), and the last known
//! good [`image`] of the registry for when Postgres does not answer.
#![forbid(unsafe_code)]

mod batch;
mod cli;
mod commands;
mod config;
mod exit;
mod fixtures;
mod image;
mod logging;
mod machine;
mod metrics;
mod pg;
mod serve;
mod tls;
mod transport;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ext-bridge: {error}");
            error.code()
        }
    }
}
