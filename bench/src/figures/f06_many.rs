//! Figure 6: decisions in batches of 64, ids and contexts as parameters: whole rows as text, and what the bridge asks for, binary.
//!
//! Nobody waits for these calls, but tickets are given back all the same: clients decide together for a moment, which is timed,
//! then report what they decided, which is not. So the table of calls is as full as with that many calls under way, not fuller.

use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::client::{Client, Format, Request, Row, binary_array, text_array};
use crate::cpu::{Snapshot, on_processor};
use crate::database::{CONTEXT, Database, EXTENSIONS};
use crate::figure::{Effort, Figure, ROUNDS};
use crate::results::{Line, Target};
use crate::rounds::{Sample, interleave};

pub const FIGURE: Figure = Figure {
    number: 6,
    title: "ext_select_many of 64, decisions per second: whole rows as text, and the bridge's columns binary",
    measure,
};

const CLIENTS: usize = 4;
const BATCH: usize = 64;
/// Deciding, before reporting.
const TURN: Duration = Duration::from_millis(30);
/// Batches of one client in one turn at most, so that all have room in the table of calls.
const BATCHES: usize = 65_536 / BATCH / CLIENTS;
const WARM_UP: Duration = Duration::from_millis(300);

const TEXT: &str = "text, whole row";
const NARROW_TEXT: &str = "text, ticket alone";
const BINARY: &str = "binary, bridge's columns";
const ONE: &str = "select 1";

/// What the bridge sends.
const BRIDGE: &str = include_str!("../../../bridge/src/queries/decide.sql");

fn measure(effort: &Effort) -> Result<Vec<Line>, Failure> {
    // A timeout that no turn is longer than.
    let mut database = Database::start(&[], 60_000);
    let bridge = BRIDGE.replace("@extschema@", "public");
    let run = |statement: &str, format, ticket_column| {
        let kind = Kind {
            statement: statement.to_owned(),
            format,
            ticket_column: Some(ticket_column),
        };
        move |database: &mut Database| kind.run(database, effort.seconds)
    };
    let one = Kind {
        statement: "select 1".to_owned(),
        format: Format::Text,
        ticket_column: None,
    };
    let rounds = interleave(
        effort.rounds_or(ROUNDS),
        &mut database,
        &[
            (
                TEXT,
                &run("select * from ext_select_many($1, $2, $3)", Format::Text, 12),
            ),
            (
                NARROW_TEXT,
                &run("select ticket from ext_select_many($1, $2, $3)", Format::Text, 0),
            ),
            (BINARY, &run(&bridge, Format::Binary, 11)),
            (ONE, &|database: &mut Database| one.run(database, effort.seconds)),
        ],
    )?;
    let line = |case: &str, target| {
        let indent = if matches!(target, Target::None) { "  " } else { "" };
        let what = format!("{indent}decisions in batches of 64, {case}; select 1");
        Line::rate(6, &what, rounds.of(case), rounds.of(ONE), target)
    };
    Ok(vec![
        line(TEXT, Target::AtLeast(700_000.0)),
        line(NARROW_TEXT, Target::None),
        line(BINARY, Target::AtLeast(1_000_000.0)),
    ])
}

/// What the clients send.
struct Kind {
    statement: String,
    format: Format,
    /// Where the tickets are; `None` is a statement without parameters that decides nothing.
    ticket_column: Option<usize>,
}

/// What one client did.
#[derive(Default)]
struct Done {
    /// In the turns that count.
    decisions: usize,
    cpu: f64,
    /// In all.
    decided: usize,
}

impl Kind {
    fn run(&self, database: &Database, seconds: u64) -> Result<Sample, Failure> {
        let before = database.successes()?;
        let turns = Turns::default();
        let (from, start) = (Snapshot::take(), Instant::now());
        let (timed, done) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let turns = &turns;
                    scope.spawn(move || {
                        let done = self.client(database, number, turns);
                        // The others wait for it at a barrier that they could never pass: let all end here.
                        done.unwrap_or_else(|failure| fail(&failure))
                    })
                })
                .collect();
            let timed = turns.direct(start + WARM_UP, start + WARM_UP + Duration::from_secs(seconds));
            let done: Vec<_> = clients
                .into_iter()
                .map(|client| client.join().expect("it does not panic"))
                .collect();
            (timed, done)
        });
        let usage = from.until(&Snapshot::take(), &[]);
        let mut total = Done::default();
        for done in done {
            total.decisions += done.decisions;
            total.cpu += done.cpu;
            total.decided += done.decided;
        }
        let counted = database.successes()? - before;
        if self.ticket_column.is_some() && counted != total.decided as i64 {
            return Err(format!(
                "{} decisions, of which {counted} were reported and counted",
                total.decided
            )
            .into());
        }
        database.check_health()?;
        Ok(Sample {
            per_second: total.decisions as f64 / timed.as_secs_f64(),
            cpu_us: vec![("postgres", total.cpu * 1e6 / total.decisions as f64)],
            foreign: usage.foreign,
            ..Sample::default()
        })
    }

    fn client(&self, database: &Database, number: usize, turns: &Turns) -> Result<Done, Failure> {
        let mut client = Client::connect(database)?;
        client.prepare("decide", &self.statement)?;
        client.prepare(
            "report",
            "select ext_report_many($1, array_fill('success'::text, $2::integer[]), array_fill(12.3::float8, $2::integer[]),
                array_fill(0, $2::integer[]))",
        )?;
        let requests = self.requests(number);
        let mut done = Done::default();
        let mut tickets: Vec<u64> = Vec::with_capacity(BATCHES * BATCH);
        let backend = client.backend();
        let cpu = || on_processor(backend).ok_or("/proc tells nothing of a session");
        while let Some(turn) = turns.next() {
            let cpu_before = cpu()?;
            let mut rows = 0;
            for batch in 0..BATCHES {
                rows += client.run(&requests[batch % requests.len()], |row| {
                    tickets.extend(self.ticket(&row));
                })?;
                if turn.start.elapsed() >= TURN {
                    break;
                }
            }
            let used = cpu()? - cpu_before;
            turns.done();
            done.decided += rows;
            if turn.counts {
                done.decisions += rows;
                done.cpu += used;
            }
            if self.ticket_column.is_some() {
                give_back(&mut client, &tickets, rows)?;
                tickets.clear();
            }
        }
        Ok(done)
    }

    fn ticket(&self, row: &Row<'_>) -> Option<u64> {
        let bytes = row.column(self.ticket_column?)?;
        match self.format {
            Format::Binary => Some(u64::from_be_bytes(*bytes.first_chunk()?)),
            Format::Text => std::str::from_utf8(bytes).ok()?.parse().ok(),
        }
    }

    /// Batches made beforehand, each of other extensions.
    fn requests(&self, number: usize) -> Vec<Request> {
        if self.ticket_column.is_none() {
            return vec![Request::new("decide", self.format, &[])];
        }
        (0..25)
            .map(|batch| {
                let first = (number * 25 + batch) * BATCH;
                let ids = (first..first + BATCH).map(|n| (n % EXTENSIONS as usize + 1).to_string());
                let (ids, contexts) = match self.format {
                    Format::Text => (text_array(&ids.collect::<Vec<_>>()), text_array(&[CONTEXT; BATCH])),
                    Format::Binary => {
                        // The format of jsonb: a version number, then the text.
                        let context = [b"\x01", CONTEXT.as_bytes()].concat();
                        (
                            binary_array(25, &ids.map(String::into_bytes).collect::<Vec<_>>()),
                            binary_array(3802, &vec![context; BATCH]),
                        )
                    }
                };
                Request::with_nulls("decide", self.format, &[Some(&ids), Some(&contexts), None])
            })
            .collect()
    }
}

/// Reports calls as successful. There must be as many as were decided: only a decision that allows the call has a ticket.
fn give_back(client: &mut Client, tickets: &[u64], decisions: usize) -> Result<(), Failure> {
    if tickets.len() != decisions || tickets.contains(&0) {
        return Err("a decision was refused, or there were not enough tickets".into());
    }
    for tickets in tickets.chunks(1024) {
        let list: Vec<String> = tickets.iter().map(u64::to_string).collect();
        let (list, length) = (format!("{{{}}}", list.join(",")), format!("{{{}}}", tickets.len()));
        let request = Request::new("report", Format::Text, &[list.as_bytes(), length.as_bytes()]);
        client.run(&request, |_| ())?;
    }
    Ok(())
}

/// The turns that the clients take together, directed by one thread beside them.
struct Turns {
    barrier: Barrier,
    /// The next turn; `None`: it is over.
    next: Mutex<Option<Turn>>,
}

#[derive(Clone, Copy)]
struct Turn {
    start: Instant,
    counts: bool,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            barrier: Barrier::new(CLIENTS + 1),
            next: Mutex::new(None),
        }
    }
}

fn fail(failure: &Failure) -> ! {
    eprintln!("bench: {failure}");
    std::process::exit(1)
}

impl Turns {
    /// Lets the clients take turns; those from `begin` to `end` count. Returns how long these took.
    fn direct(&self, begin: Instant, end: Instant) -> Duration {
        let mut timed = Duration::ZERO;
        loop {
            self.barrier.wait();
            let start = Instant::now();
            let turn = (start < end).then_some(Turn {
                start,
                counts: start >= begin,
            });
            *self.next.lock().expect("nobody panics with it") = turn;
            self.barrier.wait();
            let Some(turn) = turn else { return timed };
            self.barrier.wait();
            if turn.counts {
                timed += turn.start.elapsed();
            }
        }
    }

    /// The next turn of a client, when all are ready for it.
    fn next(&self) -> Option<Turn> {
        self.barrier.wait();
        self.barrier.wait();
        *self.next.lock().expect("nobody panics with it")
    }

    /// The client has had its turn; waits until all have.
    fn done(&self) {
        self.barrier.wait();
    }
}
