//! Figures 9 and 10: calls through the bridge beside calls through a relay without logic.

use std::process::Command;
use std::time::Duration;

use ext_registry_tests::process::{Directory, Server};
use ext_registry_tests::{Bridge, Nats, Postgres, postgres::must_succeed};
use nix::sys::signal::Signal;

use crate::Effort;
use crate::figures::{Figure, Target, cpu_us, least, median};
use crate::load::Measured;

const SERVICE: &str = "bench.service";
const RELAY: &str = "bench.relay";
const BRIDGE: &str = "beamline.bridge.v1.invoke.bench";

struct System {
    bridge: Bridge,
    echo: Server,
    relay: Server,
    cluster: Postgres,
    nats: Nats,
    _directory: Directory,
}

/// One round: what the caller saw, and CPU time of all processes per call in us.
struct Round {
    measured: Measured,
    cpu_us: f64,
}

pub fn measure(effort: Effort, wanted: &dyn Fn(u32) -> bool) -> Vec<Figure> {
    let system = System::start();
    let mut figures = Vec::new();
    if wanted(9) {
        for (in_flight, bound) in [(64, 0.70), (1000, 0.60)] {
            eprintln!("figure 9: {in_flight} in flight");
            let rounds = system.rounds(effort, in_flight);
            let rate = |round: &Round| round.measured.rate;
            figures.push(Figure {
                number: 9,
                name: format!("bridge / relay, {in_flight} in flight"),
                this: median(rounds.iter().map(|(bridge, _)| rate(bridge)).collect()),
                other: median(rounds.iter().map(|(_, relay)| rate(relay)).collect()),
                unit: "/s",
                value: median(
                    rounds
                        .iter()
                        .map(|(bridge, relay)| rate(bridge) / rate(relay))
                        .collect(),
                ),
                value_unit: "x",
                target: Target::AtLeast(bound),
                cpu_us: Some((
                    least(rounds.iter().map(|(bridge, _)| bridge.cpu_us)),
                    least(rounds.iter().map(|(_, relay)| relay.cpu_us)),
                )),
            });
        }
    }
    if wanted(10) {
        eprintln!("figure 10: 1 in flight");
        let rounds = system.rounds(
            Effort {
                rounds: effort.rounds.max(7),
                ..effort
            },
            1,
        );
        let p50 = |round: &Round| round.measured.p50_us;
        figures.push(Figure {
            number: 10,
            name: "bridge over relay, p50, 1 in flight".to_owned(),
            this: median(rounds.iter().map(|(bridge, _)| p50(bridge)).collect()),
            other: median(rounds.iter().map(|(_, relay)| p50(relay)).collect()),
            unit: "us",
            value: median(rounds.iter().map(|(bridge, relay)| p50(bridge) - p50(relay)).collect()),
            value_unit: "us",
            target: Target::AtMost(150.0),
            cpu_us: None,
        });
    }
    figures
}

impl System {
    fn start() -> Self {
        let cluster = Postgres::start(&["shared_buffers = 256MB"]);
        cluster.make_database("bench");
        let register = format!(
            "insert into extensions (id, type, subject, timeout_ms) values ('bench', 'pre', '{SERVICE}', 5000)"
        );
        must_succeed(&cluster.psql("bench", &register));
        let nats = Nats::start();
        let directory = Directory::new("bench-", None);
        let role = |name: &str, subjects: &[&str]| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.arg(name).arg(nats.url()).args(subjects);
            let mut server = Server::start(name, &mut command, &directory.path().join(name), Signal::SIGKILL);
            server.await_ready(Duration::from_secs(10), |server| server.log().contains("ready"));
            server
        };
        let echo = role("echo", &[SERVICE]);
        let relay = role("relay", &[RELAY, SERVICE]);
        let bridge = Bridge::start_on(&nats, &cluster, "bench", &[]);
        Self {
            bridge,
            echo,
            relay,
            cluster,
            nats,
            _directory: directory,
        }
    }

    /// Pairs of rounds through the bridge and through the relay, after one of each to warm up.
    fn rounds(&self, effort: Effort, in_flight: usize) -> Vec<(Round, Round)> {
        for subject in [BRIDGE, RELAY] {
            self.round(effort, subject, in_flight);
        }
        (0..effort.rounds)
            .map(|_| {
                (
                    self.round(effort, BRIDGE, in_flight),
                    self.round(effort, RELAY, in_flight),
                )
            })
            .collect()
    }

    fn round(&self, effort: Effort, subject: &str, in_flight: usize) -> Round {
        let before = self.cpu_us();
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["load", &self.nats.url(), subject, &in_flight.to_string()])
            .arg(effort.length.as_secs_f64().to_string())
            .output()
            .expect("this program can be started");
        must_succeed(&output);
        let cpu_us = self.cpu_us() - before;
        let measured = Measured::from_json(String::from_utf8_lossy(&output.stdout).trim());
        assert_eq!(
            measured.errors,
            0,
            "{subject}: errors among {} calls\n{}",
            measured.calls,
            self.bridge.log()
        );
        // The warm-up's calls are in the CPU time, not in the count.
        let share = 0.9;
        Round {
            cpu_us: cpu_us * share / measured.calls as f64,
            measured,
        }
    }

    /// CPU time so far of all processes that a call passes, the caller's ended ones included.
    fn cpu_us(&self) -> f64 {
        let backends = self.cluster.backends();
        [
            self.bridge.pid(),
            self.echo.pid(),
            self.relay.pid(),
            self.nats.pid(),
            std::process::id(),
            self.cluster.pid(),
        ]
        .into_iter()
        .chain(backends)
        .map(cpu_us)
        .sum()
    }
}
