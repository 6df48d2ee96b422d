//! Instructions that the core needs for a call: the same on a busy machine as on a quiet one, so that a change of a few percent
//! shows. Counted by valgrind in a process of this program and compared with `recorded.json`; fails where a count is off.
//!
//! ```text
//! ext_registry_instructions            counts and compares
//! ext_registry_instructions --record   counts and writes recorded.json
//! ```

#[path = "../../../core/benches/scene/mod.rs"]
mod scene;

use std::fs;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use scene::Scene;
use serde_json::{Map, Value, json};

type Failure = Box<dyn std::error::Error>;

/// How often each operation is run in one process.
const TIMES: u64 = 100_000;
/// Processes of which the least counts: what is hashed has another order in each.
const PROCESSES: usize = 4;
/// By how much a count may be off the recorded one, either way.
const TOLERANCE: f64 = 0.03;

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded.json");

type Operation = fn(&mut Scene, u64);

/// What is counted, by name.
const OPERATIONS: [(&str, Operation); 7] = [
    ("decision", |scene, _| look_at(scene.decide())),
    ("ticket", |scene, _| look_at(scene.ticket())),
    ("report", |scene, _| scene.report()),
    ("histogram record", |scene, _| scene.record()),
    ("breaker", |scene, _| scene.breaker(false)),
    ("breaker, failures", |scene, n| scene.breaker(n % 10 == 0)),
    ("weighted choice", |scene, _| look_at(scene.choose())),
];

fn look_at<T>(result: T) {
    let _ = black_box(result);
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [] => compare(false),
        ["--record"] => compare(true),
        [operation, times] => repeat(operation, times),
        _ => Err("usage: bench/instructions/run [--record]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("instructions: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What valgrind looks at.
fn repeat(operation: &str, times: &str) -> Result<(), Failure> {
    let known = OPERATIONS.iter().find(|(name, _)| *name == operation);
    let (_, operation) = known.ok_or("no such operation")?;
    let mut scene = Scene::new();
    for n in 0..times.parse()? {
        operation(&mut scene, black_box(n));
    }
    Ok(())
}

fn compare(record: bool) -> Result<(), Failure> {
    let counted = OPERATIONS
        .iter()
        .map(|(operation, _)| Ok(((*operation).to_owned(), json!(of(operation)?))))
        .collect::<Result<Map<String, Value>, Failure>>()?;
    let made_by = made_by()?;
    if record {
        let text = serde_json::to_string_pretty(&json!({ "made_by": made_by, "instructions": counted }))?;
        fs::write(RECORDED, text + "\n")?;
    }
    let recorded: Value = serde_json::from_str(&fs::read_to_string(RECORDED)?)?;
    let mut off = 0;
    println!("instructions of one call    now  recorded");
    for (operation, now) in &counted {
        let now = now.as_f64().unwrap_or(f64::NAN);
        let then = recorded["instructions"][operation].as_f64().unwrap_or(f64::NAN);
        let change = now / then - 1.0;
        // Nothing recorded is off, too.
        let is_off = change.is_nan() || change.abs() > TOLERANCE;
        off += u32::from(is_off);
        let mark = if is_off { "  OFF" } else { "" };
        println!(
            "{operation:<24} {now:>6.1}    {then:>6.1}  {:+.1} %{mark}",
            100.0 * change
        );
    }
    if recorded["made_by"] != made_by.as_str() {
        let recorded = &recorded["made_by"];
        println!("Recorded with {recorded}, this is {made_by}: not to be compared, record anew.");
    }
    if off > 0 {
        return Err(format!(
            "{off} counts are off by more than {:.0} %; if that is meant: bench/instructions/run --record",
            100.0 * TOLERANCE
        )
        .into());
    }
    Ok(())
}

/// Instructions of one run of an operation, without what a process needs besides.
fn of(operation: &str) -> Result<f64, Failure> {
    let besides = count(operation, 0)?;
    let runs = (0..PROCESSES).map(|_| count(operation, TIMES));
    let least = runs.collect::<Result<Vec<_>, _>>()?.into_iter().min();
    let each = least.unwrap_or(0).saturating_sub(besides) as f64 / TIMES as f64;
    Ok((each * 10.0).round() / 10.0)
}

/// Instructions of a process that runs it so many times.
fn count(operation: &str, times: u64) -> Result<u64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([operation, &times.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind: {error}; it is in the package of that name"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    match collected {
        Some((_, count)) if output.status.success() => Ok(count.trim().parse()?),
        _ => Err(format!("valgrind failed: {said}").into()),
    }
}

/// Compiler and processor: others make other instructions of the same source.
fn made_by() -> Result<String, Failure> {
    let output = Command::new("rustc").arg("--version").output()?;
    let version = String::from_utf8_lossy(&output.stdout);
    Ok(format!("{}, {}", version.trim(), std::env::consts::ARCH))
}
