//! The figures of speed, measured side by side with what they are compared to, in interleaved rounds on one machine:
//! absolute times mean nothing on shared machines, ratios do. Prints one table, and writes the same as JSON.

mod bridge;
mod figures;
mod load;
mod postgres;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ext_registry_tests::places;

/// Measures the figures and prints them beside their targets.
#[derive(Parser)]
#[command(max_term_width = 120)]
struct Arguments {
    /// The figures to measure [default: all there are]
    figures: Vec<u32>,
    /// Rounds per figure; what is compared takes turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of a round, in s
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Where the JSON goes [default: target/bench.json]
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// The processes beside the one that measures.
#[derive(Subcommand)]
enum Role {
    /// A service that answers at once
    Echo { url: String, subject: String },
    /// One more request and reply, no logic
    Relay { url: String, subject: String, to: String },
    /// Calls a subject for a while and prints what came of it, as JSON
    Load {
        url: String,
        subject: String,
        in_flight: usize,
        seconds: f64,
    },
}

/// How long and how often.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub length: Duration,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread");
    match arguments.role {
        Some(Role::Echo { url, subject }) => runtime.block_on(load::echo(&url, &subject)),
        Some(Role::Relay { url, subject, to }) => runtime.block_on(load::relay(&url, &subject, &to)),
        Some(Role::Load {
            url,
            subject,
            in_flight,
            seconds,
        }) => {
            let measured = runtime.block_on(load::calls(&url, &subject, in_flight, Duration::from_secs_f64(seconds)));
            println!("{}", measured.to_json());
        }
        None => {
            let effort = Effort {
                rounds: arguments.rounds,
                length: Duration::from_secs(arguments.seconds),
            };
            let wanted = |number: u32| arguments.figures.is_empty() || arguments.figures.contains(&number);
            let mut figures = Vec::new();
            if [1, 3, 4].into_iter().any(wanted) {
                figures.extend(postgres::measure(effort, &wanted));
            }
            if [9, 10].into_iter().any(wanted) {
                figures.extend(bridge::measure(effort, &wanted));
            }
            figures::print(&figures);
            let path = arguments.json.unwrap_or_else(|| places::target().join("bench.json"));
            std::fs::write(&path, figures::to_json(&figures).to_string()).expect("the JSON can be written");
            println!("also in {}", path.display());
        }
    }
}
