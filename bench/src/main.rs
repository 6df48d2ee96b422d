//! Measures the figures of speed, each beside what it is compared to, in rounds that take turns on one machine: absolute times
//! mean nothing on shared machines, ratios do. Prints one table and writes the same as JSON.
//!
//! - [`figures`]: one file per figure; a new one is a file there and a line in [`figures::ALL`]
//! - [`rounds`]: cases that take turns, and what is kept of each; [`cpu`]: CPU time of processes
//! - [`database`], [`pgbench`], [`client`]: statements; [`bus`]: calls over NATS; [`roles`]: the processes those take
//! - [`results`]: the table and the JSON
//!
//! Nothing is measured unchecked: each run proves that its decisions were allowed and that as many outcomes were counted as
//! calls were made, or the whole ends in an error.

mod bus;
mod client;
mod cpu;
mod database;
mod figure;
mod figures;
mod pgbench;
mod results;
mod roles;
mod rounds;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ext_registry_tests::places;

use crate::figure::Effort;
use crate::figures::ALL;

/// What went wrong, for the one who started the benchmark.
type Failure = Box<dyn std::error::Error>;

/// Measures the figures of speed and prints them beside their targets.
#[derive(Parser)]
#[command(name = "bench/run", max_term_width = 120, disable_help_subcommand = true)]
struct Arguments {
    /// The figures to measure, such as 1,3 [default: all there are]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    figures: Vec<u8>,
    /// How long one run of one case is measured, after a second to warm up
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many rounds; in each, every case has a run [default: 5, figure 10: 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Where the JSON goes [default: target/bench/results.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Lists the figures
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    role: Option<roles::Role>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(role) => role.play(),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.list {
        for figure in ALL {
            println!("{:>2}  {}", figure.number, figure.title);
        }
        return Ok(());
    }
    if let Some(unknown) = arguments.figures.iter().find(|n| ALL.iter().all(|f| f.number != **n)) {
        return Err(format!("there is no figure {unknown} here; --list shows those there are").into());
    }
    let effort = Effort {
        seconds: arguments.seconds,
        rounds: arguments.rounds.map(usize::from),
    };
    let mut lines = Vec::new();
    for figure in ALL {
        if arguments.figures.is_empty() || arguments.figures.contains(&figure.number) {
            eprintln!("figure {}: {}", figure.number, figure.title);
            lines.extend((figure.measure)(&effort).map_err(|failure| format!("figure {}: {failure}", figure.number))?);
        }
    }
    print!("{}", results::table(&lines));
    let path = arguments
        .json
        .clone()
        .unwrap_or_else(|| places::target().join("bench/results.json"));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(
        &path,
        serde_json::to_string_pretty(&results::json(effort.seconds, effort.rounds, &lines))? + "\n",
    )?;
    println!("\nThe same as JSON: {}", path.display());
    Ok(())
}
