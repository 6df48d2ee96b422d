//! Figure 11: memory of the bridge with many calls in flight, and after many calls that nobody answered.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ext_registry_tests::process::{Directory, Server};
use ext_registry_tests::{Bridge, Nats};
use nix::sys::signal::Signal;

use crate::Failure;
use crate::cpu::peak_memory;
use crate::database::Database;
use crate::figure::{Effort, Figure};
use crate::results::{Line, Target, Unit};
use crate::roles::READY;

pub const FIGURE: Figure = Figure {
    number: 11,
    title: "memory of the bridge: 10,000 calls in flight; 200,000 and 1,000,000 calls that nobody answered",
    measure,
};

const IN_FLIGHT: u64 = 10_000;
/// Of a body.
const BYTES: usize = 1024;
const SOME: u64 = 200_000;
const MANY: u64 = 1_000_000;
/// At a time; more would only wait in queues.
const AT_A_TIME: usize = 2_000;
/// How long a call that is in flight to be counted stays so, and how long one that is to end without an answer, in ms.
const LONG: u32 = 20_000;
const SHORT: u32 = 50;
const DEADLINE: Duration = Duration::from_secs(30);

/// A bridge between callers and a service that answers nothing.
struct Bed {
    // In the order in which they are to end.
    bridge: Bridge,
    _mute: Server,
    nats: Nats,
    database: Database,
    _directory: Directory,
}

impl Bed {
    fn start(timeout_ms: u32) -> Result<Self, Failure> {
        let database = Database::start(&[], timeout_ms);
        // Else they would open at once.
        database.run("update extension_health set breaker_mode = 'forced_closed'");
        let nats = Nats::start();
        let directory = Directory::new("bench-", None);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["mute", &nats.url()]);
        let mut mute = Server::start("mute", &mut command, &directory.path().join("mute"), Signal::SIGKILL);
        mute.await_ready(DEADLINE, |server| server.log().contains(READY));
        Ok(Self {
            bridge: Bridge::start_on(&nats, database.cluster(), database.name(), &[]),
            _mute: mute,
            nats,
            database,
            _directory: directory,
        })
    }

    fn flood(&self, calls: u64, in_flight: usize) -> Result<Child, Failure> {
        let [calls, in_flight, bytes] = [calls, in_flight as u64, BYTES as u64].map(|number| number.to_string());
        Ok(Command::new(std::env::current_exe()?)
            .args([
                "flood",
                &self.nats.url(),
                "beamline.bridge.v1.invoke.",
                &calls,
                &in_flight,
                &bytes,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?)
    }

    fn memory(&self) -> Result<f64, Failure> {
        peak_memory(self.bridge.pid()).ok_or_else(|| "no VmHWM for the bridge".into())
    }

    fn metric(&self, series: &str) -> u64 {
        let metrics = self.bridge.metrics();
        let values = metrics.lines().filter(|line| line.starts_with(series));
        values
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>() as u64
    }
}

fn await_number(what: &str, wanted: u64, mut number: impl FnMut() -> Result<u64, Failure>) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let now = number()?;
        if now == wanted {
            return Ok(());
        }
        if start.elapsed() > DEADLINE {
            return Err(format!("{what}: {now}, not {wanted}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn measure(_effort: &Effort) -> Result<Vec<Line>, Failure> {
    let bed = Bed::start(LONG)?;
    let idle = bed.memory()?;
    let mut flood = bed.flood(IN_FLIGHT, IN_FLIGHT as usize)?;
    let all = await_number("calls in flight", IN_FLIGHT, || Ok(bed.metric("ext_bridge_in_flight{")));
    let in_flight = bed.memory()?;
    flood.kill()?;
    flood.wait()?;
    all?;
    drop(bed);

    let bed = Bed::start(SHORT)?;
    let mut flood = bed.flood(MANY, AT_A_TIME)?;
    let mut some = None;
    for line in BufReader::new(flood.stdout.take().expect("a pipe")).lines() {
        let ended: u64 = line?.parse()?;
        if ended == SOME {
            some = Some(bed.memory()?);
        }
        if ended.is_multiple_of(SOME) {
            eprintln!("  {ended} calls have ended without an answer");
        }
    }
    let status = flood.wait()?;
    let (Some(some), true) = (some, status.success()) else {
        return Err(format!("the caller gave up ({status})\n{}", bed.bridge.log()).into());
    };
    let many = bed.memory()?;
    await_number("timeouts that Postgres has counted", MANY, || {
        Ok(bed
            .database
            .number("select sum(failure_count)::bigint from extension_health")? as u64)
    })?;
    await_number("calls left", 0, || Ok(bed.metric("ext_bridge_in_flight{")))?;
    let line = |what: &str, value: f64, target| Line::alone(11, what, Unit::MiB, &[value], target);
    Ok(vec![
        line(
            "bridge, 10,000 calls of 1 KiB in flight",
            in_flight,
            Target::AtMost(64.0),
        ),
        line("  the same before the first call", idle, Target::None),
        line(
            "bridge, 200,000 -> 1,000,000 calls without an answer",
            many - some,
            Target::AtMost(2.0),
        ),
        line("  after 200,000 of them", some, Target::None),
    ])
}
