//! Calls over NATS: a service, a relay and a bridge beside each other, and somebody who calls through one of them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ext_registry_tests::process::{Directory, Server};
use ext_registry_tests::{Bridge, Nats};
use nix::sys::signal::Signal;

use crate::Failure;
use crate::cpu::Snapshot;
use crate::database::Database;
use crate::roles::load::{self, Outcome};
use crate::roles::{READY, RELAY, RELAY_WITH_HEADERS};
use crate::rounds::Sample;

const DEADLINE: Duration = Duration::from_secs(10);

/// Which way calls take to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Bridge,
    Relay,
    RelayWithHeaders,
    /// A pipeline of as many stages through the bridge.
    Pipeline,
    /// As many calls through the relay, one after the other.
    RelaysInSequence,
}

/// Stages of a pipeline (`pipeline.sql`).
const STAGES: u64 = 4;

/// Everything a call passes, running.
pub struct Bus {
    // In the order in which they are to end.
    bridge: Bridge,
    relay: Server,
    relay_with_headers: Server,
    echo: Server,
    nats: Nats,
    database: Database,
    prefix: String,
    _directory: Directory,
}

impl Bus {
    /// A bridge with source `database`, all else as it comes but for `flags`.
    pub fn start(flags: &[&str]) -> Result<Self, Failure> {
        let database = Database::start(&[], 5000);
        database.run_file("pipeline.sql", &[]);
        let nats = Nats::start();
        let directory = Directory::new("bench-", None);
        let role = |name: &str, arguments: &[&str]| -> Result<Server, Failure> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([name, &nats.url()]).args(arguments);
            let log = directory.path().join([&[name], arguments].concat().join(" "));
            let mut server = Server::start(name, &mut command, &log, Signal::SIGKILL);
            server.await_ready(DEADLINE, |server| server.log().contains(READY));
            Ok(server)
        };
        Ok(Self {
            echo: role("echo", &[])?,
            relay: role("relay", &[RELAY])?,
            relay_with_headers: role("relay", &[RELAY_WITH_HEADERS, "--headers"])?,
            bridge: Bridge::start_on(&nats, database.cluster(), database.name(), flags),
            prefix: "beamline.bridge.v1.".to_owned(),
            nats,
            database,
            _directory: directory,
        })
    }

    /// Keeps so many calls in flight for so long, and checks that every one was answered by the service and, on the way
    /// through the bridge, counted.
    pub fn call(&self, way: Way, in_flight: usize, seconds: u64) -> Result<Sample, Failure> {
        let counted = self.counted()?;
        let (outcome, usage) = self.load(way, in_flight, seconds)?;
        if outcome.errors > 0 {
            return Err(format!(
                "{} of {} calls failed\n{}",
                outcome.errors,
                outcome.calls,
                self.bridge.log()
            )
            .into());
        }
        let expected = match way {
            Way::Bridge => outcome.calls,
            Way::Pipeline => outcome.calls * STAGES,
            Way::Relay | Way::RelayWithHeaders | Way::RelaysInSequence => 0,
        };
        self.await_counts(counted, expected)?;
        Ok(Sample {
            per_second: outcome.per_second,
            p50_us: Some(outcome.p50_us),
            p99_us: Some(outcome.p99_us),
            cpu_us: usage.cpu_us(outcome.per_second * usage.elapsed),
            foreign: usage.foreign,
        })
    }

    fn load(&self, way: Way, in_flight: usize, seconds: u64) -> Result<(Outcome, crate::cpu::Usage), Failure> {
        let subject = match way {
            Way::Bridge => format!("{}invoke.", self.prefix),
            Way::Pipeline => format!("{}route", self.prefix),
            Way::Relay | Way::RelaysInSequence => RELAY.to_owned(),
            Way::RelayWithHeaders => RELAY_WITH_HEADERS.to_owned(),
        };
        let steps = if way == Way::RelaysInSequence { STAGES } else { 1 };
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "load",
                &self.nats.url(),
                &subject,
                &in_flight.to_string(),
                &seconds.to_string(),
                "--steps",
                &steps.to_string(),
            ])
            .args((way == Way::Pipeline).then_some("--pipeline"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut before, mut after, mut outcome) = (None, None, None);
        for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
            match line?.as_str() {
                load::BEGIN => before = Some(Snapshot::take()),
                load::END => after = Some(Snapshot::take()),
                json => outcome = Some(serde_json::from_str(json)?),
            }
        }
        // Snapshots know it until it has been waited for.
        let processes = [
            ("nats-server", self.nats.pid()),
            ("echo", self.echo.pid()),
            ("load", child.id()),
            match way {
                Way::Bridge | Way::Pipeline => ("bridge", self.bridge.pid()),
                Way::Relay | Way::RelaysInSequence => ("relay", self.relay.pid()),
                Way::RelayWithHeaders => ("relay", self.relay_with_headers.pid()),
            },
            ("postgres", self.database.cluster().pid()),
        ];
        let status = child.wait()?;
        match (before, after, outcome) {
            (Some(before), Some(after), Some(outcome)) if status.success() => {
                Ok((outcome, before.until(&after, &processes)))
            }
            _ => Err(format!("the caller gave up ({status})").into()),
        }
    }

    /// What Postgres and the bridge's metrics have counted so far.
    fn counted(&self) -> Result<Counted, Failure> {
        self.database.check_health()?;
        Ok(Counted {
            database: self.database.successes()? as u64,
            metrics: self
                .bridge
                .metrics()
                .lines()
                .filter(|line| {
                    line.starts_with("router_extension_invocation_total{") && line.contains("status=\"success\"")
                })
                .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
                .sum::<f64>() as u64,
        })
    }

    /// Reports come after replies: waits for the last ones.
    fn await_counts(&self, before: Counted, calls: u64) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let now = self.counted()?;
            let (database, metrics) = (now.database - before.database, now.metrics - before.metrics);
            if (database, metrics) == (calls, calls) {
                return Ok(());
            }
            if start.elapsed() > DEADLINE || database > calls || metrics > calls {
                return Err(
                    format!("{calls} calls were made, Postgres has counted {database}, the bridge {metrics}").into(),
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[derive(Clone, Copy)]
struct Counted {
    database: u64,
    metrics: u64,
}
