//! Figures 1, 3, 4: statements at psql's distance, by pgbench with prepared statements.

use std::process::Command;

use ext_registry_tests::{Postgres, places, postgres::must_succeed};

use crate::Effort;
use crate::figures::{Figure, Target, cpu_us, least, median};

const CLIENTS: u32 = 4;
const DATABASE: &str = "bench";
/// A tenant of version v2.
const CONTEXT: &str = r#"{"tenant_id": "t2", "policy_id": "default", "environment": "production"}"#;

/// A pgbench script and the extensions it draws from.
#[derive(Clone, Copy)]
struct Script {
    name: &'static str,
    extensions: u32,
}

/// One round: transactions a second, and CPU time of the server per transaction in us.
#[derive(Clone, Copy)]
struct Round {
    rate: f64,
    cpu_us: f64,
}

const SPREAD: u32 = 100;

const fn script(name: &'static str, extensions: u32) -> Script {
    Script { name, extensions }
}

pub fn measure(effort: Effort, wanted: &dyn Fn(u32) -> bool) -> Vec<Figure> {
    // As a server is run: what a commit of the replaced system's statements costs is part of the comparison.
    let cluster = Postgres::start(&[
        "fsync = on",
        "full_page_writes = on",
        "shared_buffers = 256MB",
        "max_wal_size = 4GB",
    ]);
    cluster.make_database(DATABASE);
    for file in ["registry", "replaced"] {
        let sql = std::fs::read_to_string(places::root().join(format!("bench/sql/{file}.sql"))).expect("our own file");
        must_succeed(&cluster.psql(DATABASE, &sql));
    }
    must_succeed(&cluster.psql(DATABASE, "vacuum analyze"));

    let compare = |number, name: &str, this, other, target| {
        eprintln!("figure {number}: {name}");
        compare(&cluster, effort, number, name, this, other, target)
    };
    let (select, one) = (script("select", SPREAD), script("one", SPREAD));
    let (report, constants) = (script("report", SPREAD), script("constants", SPREAD));
    let mut figures = Vec::new();
    if wanted(1) {
        figures.push(compare(
            1,
            "select * from ext_select / select 1",
            select,
            one,
            Target::AtLeast(0.80),
        ));
        figures.push(compare(
            1,
            "select * from ext_select / 13 constants",
            select,
            constants,
            Target::AtLeast(0.90),
        ));
    }
    if wanted(3) {
        figures.push(compare(
            3,
            "ext_report / select 1, spread",
            report,
            one,
            Target::AtLeast(0.90),
        ));
        let hot = script("report", 1);
        figures.push(compare(
            3,
            "ext_report / select 1, one extension",
            hot,
            one,
            Target::AtLeast(0.85),
        ));
    }
    if wanted(4) {
        let (call, replaced) = (script("call", SPREAD), script("replaced_call", SPREAD));
        figures.push(compare(
            4,
            "whole call / 11 statements, spread",
            call,
            replaced,
            Target::AtLeast(12.0),
        ));
        let (call, replaced) = (script("call", 1), script("replaced_call", 1));
        figures.push(compare(
            4,
            "whole call / 11 statements, one",
            call,
            replaced,
            Target::AtLeast(20.0),
        ));
    }
    figures
}

fn compare(
    cluster: &Postgres,
    effort: Effort,
    number: u32,
    name: &str,
    this: Script,
    other: Script,
    target: Target,
) -> Figure {
    // Caches and images warm.
    for script in [this, other] {
        pgbench(cluster, effort, script);
    }
    let rounds: Vec<(Round, Round)> = (0..effort.rounds)
        .map(|_| (pgbench(cluster, effort, this), pgbench(cluster, effort, other)))
        .collect();
    Figure {
        number,
        name: name.to_owned(),
        this: median(rounds.iter().map(|(this, _)| this.rate).collect()),
        other: median(rounds.iter().map(|(_, other)| other.rate).collect()),
        unit: "/s",
        value: median(rounds.iter().map(|(this, other)| this.rate / other.rate).collect()),
        value_unit: "x",
        target,
        cpu_us: Some((
            least(rounds.iter().map(|(this, _)| this.cpu_us)),
            least(rounds.iter().map(|(_, other)| other.cpu_us)),
        )),
    }
}

fn pgbench(cluster: &Postgres, effort: Effort, script: Script) -> Round {
    let before = cpu_us(cluster.pid());
    let output = Command::new(places::pg_program("pgbench"))
        .arg("--no-vacuum")
        .args(["--protocol=prepared", "--username=postgres"])
        .arg(format!("--host={}", cluster.socket_directory().display()))
        .arg(format!("--port={}", cluster.port()))
        .arg(format!("--client={CLIENTS}"))
        .arg(format!("--time={}", effort.length.as_secs()))
        .arg("--define=low=1")
        .arg(format!("--define=high={}", script.extensions))
        .arg(format!("--define=context={CONTEXT}"))
        .arg(format!(
            "--file={}",
            places::root().join(format!("bench/sql/{}.sql", script.name)).display()
        ))
        .arg(DATABASE)
        .output()
        .expect("pgbench can be started");
    must_succeed(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |line: &str| {
        let rest = text
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap_or_else(|| panic!("{line}: {text}"));
        rest.split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    let transactions = number("number of transactions actually processed:");
    assert!(number("number of failed transactions:") == 0.0, "{text}");
    // The backends have ended with pgbench: their time is the postmaster's children's.
    Round {
        rate: number("tps ="),
        cpu_us: (cpu_us(cluster.pid()) - before) / transactions,
    }
}
