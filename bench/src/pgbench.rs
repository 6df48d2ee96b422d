//! Runs of pgbench. The first second, or more, warms up: each session compiles the registry for itself.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use ext_registry_tests::places;

use crate::Failure;
use crate::cpu::Snapshot;
use crate::database::{CONTEXT, Database, EXTENSIONS, path};
use crate::rounds::Sample;

const CLIENTS: usize = 4;
const WARM_UP_SECONDS: u64 = 1;

/// What pgbench does in each transaction, and how.
#[derive(Clone)]
pub struct Script {
    file: &'static str,
    protocol: &'static str,
    extensions: u32,
    variables: Vec<(&'static str, i64)>,
    options: &'static str,
    warm_up: u64,
}

/// One run.
pub struct Run {
    pub sample: Sample,
    /// All transactions, those of the warm-up too.
    pub transactions: i64,
}

impl Script {
    /// A script of `bench/pgbench/`, by prepared statements, spread over all extensions.
    pub fn new(file: &'static str) -> Self {
        Self {
            file,
            protocol: "prepared",
            extensions: EXTENSIONS,
            variables: Vec::new(),
            options: "",
            warm_up: WARM_UP_SECONDS,
        }
    }

    /// All clients on one extension.
    pub fn on_one(self) -> Self {
        self.spread_over(1)
    }

    /// Spread over the first so many extensions.
    pub fn spread_over(mut self, extensions: u32) -> Self {
        self.extensions = extensions;
        self
    }

    /// Seconds before what is measured.
    pub fn with_warm_up(mut self, seconds: u64) -> Self {
        self.warm_up = seconds;
        self
    }

    /// Each statement is parsed and planned each time.
    pub fn unprepared(mut self) -> Self {
        self.protocol = "extended";
        self
    }

    /// Settings of the sessions, as in `PGOPTIONS`.
    pub fn with_options(mut self, options: &'static str) -> Self {
        self.options = options;
        self
    }

    pub fn with_variable(mut self, name: &'static str, value: i64) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Clients that a run has.
    pub fn clients() -> i64 {
        CLIENTS as i64
    }

    /// How long a run takes in which `seconds` are measured.
    fn run_seconds(&self, seconds: u64) -> u64 {
        // pgbench may be done before it tells of its last second, so there is one more.
        self.warm_up + seconds + 1
    }

    fn command(&self, database: &Database, seconds: u64) -> Command {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cluster = database.cluster();
        let mut command = Command::new(places::pg_program("pgbench"));
        command
            .args([
                "--no-vacuum",
                "--progress=1",
                "--progress-timestamp",
                "--username=postgres",
            ])
            .arg(format!("--host={}", cluster.socket_directory().display()))
            .arg(format!("--port={}", cluster.port()))
            .arg(format!("--client={CLIENTS}"))
            .arg(format!("--jobs={}", CLIENTS.min(cores)))
            .arg(format!("--protocol={}", self.protocol))
            .arg(format!("--time={}", self.run_seconds(seconds)))
            .arg(format!("--define=extensions={}", self.extensions))
            .arg(format!("--define=context={CONTEXT}"));
        for (name, value) in &self.variables {
            command.arg(format!("--define={name}={value}"));
        }
        command
            .arg(format!(
                "--file={}",
                path(&format!("pgbench/{}.sql", self.file)).display()
            ))
            .arg(database.name())
            .env("PGOPTIONS", self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it, and measures `seconds` of it.
    pub fn run(&self, database: &Database, seconds: u64) -> Result<Run, Failure> {
        let mut child = self.command(database, seconds).spawn()?;
        let mut marks = Vec::new();
        let mut said = String::new();
        for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
            let line = line?;
            match Progress::read(&line) {
                Some(progress) => marks.push((progress, Snapshot::take())),
                None => said.push_str(&(line + "\n")),
            }
        }
        child.stdout.take().expect("a pipe").read_to_string(&mut said)?;
        if !child.wait()?.success() || number(&said, "number of failed transactions: ") != Some(0.0) {
            return Err(said.into());
        }
        let transactions =
            number(&said, "number of transactions actually processed: ").ok_or("pgbench counted nothing")?;

        let (first, last) = (self.warm_up as usize - 1, (self.warm_up + seconds) as usize - 1);
        if marks.len() <= last {
            return Err(format!("pgbench told of {} seconds only: {said}", marks.len()).into());
        }
        let counted: f64 = (first + 1..=last)
            .map(|i| marks[i].0.per_second * (marks[i].0.at - marks[i - 1].0.at))
            .sum();
        let per_second = counted / (marks[last].0.at - marks[first].0.at);
        let usage = marks[first]
            .1
            .until(&marks[last].1, &[("postgres", database.cluster().pid())]);
        Ok(Run {
            sample: Sample {
                per_second,
                cpu_us: usage.cpu_us(per_second * usage.elapsed),
                foreign: usage.foreign,
                ..Sample::default()
            },
            transactions: transactions as i64,
        })
    }
}

/// A line of `--progress --progress-timestamp`: "progress: 1795291715.191 s, 122365.2 tps, lat ...".
struct Progress {
    /// Seconds since the Unix epoch.
    at: f64,
    per_second: f64,
}

impl Progress {
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("progress: ")?.split(", ");
        Some(Self {
            at: fields.next()?.strip_suffix(" s")?.parse().ok()?,
            per_second: fields.next()?.strip_suffix(" tps")?.parse().ok()?,
        })
    }
}

/// The number behind `label`, at the start of a line.
fn number(text: &str, label: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_prints_is_read() {
        let line = "progress: 1795291715.191 s, 122365.2 tps, lat 0.027 ms stddev 0.036, 0 failed";
        let progress = Progress::read(line).expect("a line of progress");
        assert!((progress.at - 1_795_291_715.191).abs() < 1e-3 && (progress.per_second - 122_365.2).abs() < 1e-6);
        assert!(Progress::read("pgbench: error: client 0 aborted").is_none());
        let text = "number of transactions actually processed: 42\nnumber of failed transactions: 0 (0.000%)\n";
        assert_eq!(number(text, "number of transactions actually processed: "), Some(42.0));
        assert_eq!(number(text, "number of failed transactions: "), Some(0.0));
    }
}
