//! What was done, by those who did it, beside what Postgres has counted; and that nothing has grown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ext_registry_tests::{Bridge, Callers, Session, eventually, process};

use crate::faults::Fault;
use crate::service::{Answer, Service};
use crate::sessions::Ledger;
use crate::world::World;
use crate::{INVOKERS, ROUTERS};

const SOON: Duration = Duration::from_mins(1);
/// Before it a bridge is still growing into its buffers: each outage of Postgres is new to it.
const WARM: Duration = Duration::from_mins(2);
/// Four times what it has after ten minutes of faults.
const MOST_MEMORY_KB: i64 = 80 * 1024;
/// Attempts under way at any time.
const IN_FLIGHT: i64 = 2 * INVOKERS as i64 + ROUTERS as i64;
/// What a killed bridge takes with it beside what it has gathered: what is in flight, and two batches of reports.
const BY_BRIDGE: i64 = IN_FLIGHT + 2 * 64;

struct Line {
    what: String,
    done: i64,
    counted: i64,
    least: i64,
    most: i64,
}

impl Line {
    fn is_settled(&self) -> bool {
        (self.least..=self.most).contains(&self.counted)
    }
}

/// See the module.
pub struct Account {
    lines: Vec<Line>,
    outcomes: BTreeMap<String, u64>,
    faults: String,
}

/// History of an extension, by outcome.
async fn history(session: &Session, extension: &str, columns: &str) -> i64 {
    let sql = format!(
        "select coalesce(sum({columns}), 0)::text from extension_metrics where extension_id = $1 and instance_id = ''"
    );
    session.one(&sql, &[&extension]).await.parse().expect("a number")
}

/// Attempts that were sent.
const SENT: &str = "success + error + timeout + invalid_response + caller_error";
/// Those whose caller gave up, with decisions that came too late and were given back.
const CANCELLED: &str = "cancelled";

impl Account {
    /// Waits until everything has been reported and written down, and reads it.
    pub async fn take(
        world: &mut World,
        service: &Service,
        ledger: &Ledger,
        callers: &[Arc<Callers>; 2],
        befallen: &[Fault],
    ) -> Self {
        let session = world.session().await;
        // Whether what was sent twice has been counted once is told by the next decision, so there must be one.
        for bridge in &world.bridges {
            let mut probes = 0;
            eventually(SOON, async || {
                if probes % 200 == 0 {
                    callers[0].invoke("steady").await;
                }
                probes += 1;
                match pending(bridge) {
                    0.0 => Ok(()),
                    left => Err(format!("{left} reports pending\n{}", bridge.log())),
                }
            })
            .await;
        }
        // Live state and history agree once the worker has written.
        let differing = "select coalesce(string_agg(format('%s: %s live, %s in history', h.extension_id,
                                 h.success_count + h.failure_count, m.outcomes), '; '), '')
             from extension_health h
             join (select extension_id, sum(success + error + timeout + no_responders + invalid_response) as outcomes
                   from extension_metrics where instance_id = '' group by 1) m using (extension_id)
             where m.outcomes <> h.success_count + h.failure_count and h.extension_id <> 'edited'";
        eventually(SOON, async || match session.one(differing, &[]).await.as_str() {
            "" => Ok(()),
            differing => Err(differing.to_owned()),
        })
        .await;
        // What bridges took with them lapses.
        let held = "select in_flight_used::text from ext_registry_status()";
        eventually(SOON, async || match session.one(held, &[]).await.as_str() {
            "0" => Ok(()),
            held => Err(format!("{held} calls held")),
        })
        .await;

        let times = |fault: Fault| befallen.iter().filter(|other| **other == fault).count() as i64;
        let (bridges, nats) = (times(Fault::BridgeKilled), times(Fault::NatsKilled));
        let uncounted = bridges * BY_BRIDGE + world.gathered_by_killed + nats * IN_FLIGHT;
        let mut lines = Vec::new();
        let mut line = |what: &str, done: i64, counted: i64, below: i64, above: i64| {
            lines.push(Line {
                what: what.to_owned(),
                done,
                counted,
                least: done - below,
                most: done + above,
            });
        };

        let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
        let mut made = 0;
        for callers in callers {
            callers.each_ended_once();
            made += callers.calls() as i64;
            for (outcome, count) in callers.outcomes() {
                *outcomes.entry(outcome).or_default() += count;
            }
        }
        let of = |code: &str| outcomes.get(code).copied().unwrap_or(0) as i64;
        line(
            "calls made, and answered",
            made,
            made - of("no reply"),
            (bridges + nats) * IN_FLIGHT,
            0,
        );
        line(
            "calls refused for want of a registry",
            0,
            of("registry_unavailable"),
            0,
            0,
        );
        line("attempts that came twice", 0, service.repeated() as i64, 0, 0);

        let good = [Answer::Success, Answer::Twice, Answer::Late];
        let all = [&good[..], &[Answer::Error, Answer::Garbage, Answer::None]].concat();
        let mut came = Vec::new();
        for extension in ["steady", "flaky"] {
            came.push((extension, service.answered(extension, &all)));
        }
        for extension in ["normalize_text", "pii_guard", "mask_pii", "test_provider"] {
            came.push((extension, world.services.served(extension).await as i64));
        }
        for (extension, came) in came {
            let counted = history(&session, extension, SENT).await;
            let cancelled = history(&session, extension, CANCELLED).await;
            // An attempt may have been lost on its way: three for each call.
            line(
                &format!("{extension}: attempts"),
                came,
                counted,
                uncounted + cancelled,
                3 * nats * IN_FLIGHT,
            );
        }
        for extension in ["steady", "flaky"] {
            for (column, answers) in [
                ("success", &good[..]),
                ("error", &[Answer::Error]),
                ("invalid_response", &[Answer::Garbage]),
            ] {
                // Each of them may have come too late, and be a timeout.
                let done = service.answered(extension, answers);
                let counted = history(&session, extension, column).await;
                line(&format!("{extension}: {column}, none twice"), done, counted, done, 0);
            }
        }
        let (least, most) = ledger.bounds();
        let counted = history(&session, "sql", "success").await;
        lines.push(Line {
            what: "sql: acknowledged reports".to_owned(),
            done: ledger.acknowledged(),
            counted,
            least,
            most,
        });

        let mut by_fault: BTreeMap<String, u32> = BTreeMap::new();
        for fault in befallen {
            *by_fault.entry(format!("{fault:?}")).or_default() += 1;
        }
        let faults: Vec<String> = by_fault
            .iter()
            .map(|(fault, count)| format!("{fault} {count}"))
            .collect();
        Self {
            lines,
            outcomes,
            faults: faults.join(", "),
        }
    }

    /// # Panics
    /// Where something is missing, or there twice.
    #[track_caller]
    pub fn settle(&self) {
        let amiss: Vec<&str> = self
            .lines
            .iter()
            .filter(|line| !line.is_settled())
            .map(|line| &*line.what)
            .collect();
        assert!(amiss.is_empty(), "not settled: {amiss:?}\n{self}");
        assert!(self.lines[0].done > 100, "nothing was called");
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "faults: {}", self.faults)?;
        writeln!(f, "calls: {:?}\n", self.outcomes)?;
        writeln!(
            f,
            "{:40} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "", "done", "counted", "difference", "least", "most"
        )?;
        for line in &self.lines {
            writeln!(
                f,
                "{:40} {:>10} {:>10} {:>10} {:>10} {:>10}{}",
                line.what,
                line.done,
                line.counted,
                line.counted - line.done,
                line.least.max(0),
                line.most,
                if line.is_settled() { "" } else { "  NOT SETTLED" }
            )?;
        }
        Ok(())
    }
}

fn pending(bridge: &Bridge) -> f64 {
    let series = bridge.scrape();
    series.by_labels("ext_bridge_reports_pending").values().sum()
}

#[derive(Clone, Copy)]
struct Sample {
    memory_kb: i64,
    files: i64,
    connections: i64,
}

/// What the first bridge, which lives through everything, holds; and the connections that bridges have.
#[derive(Default)]
pub struct Flatness(Vec<Sample>);

impl Flatness {
    pub async fn sample(&mut self, world: &World) {
        let pid = world.bridges[0].pid();
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count() as i64;
        let session = world.session().await;
        let sql = "select count(*)::text from pg_stat_activity where usename = 'bridge'";
        self.0.push(Sample {
            memory_kb: process::anonymous_kb(pid as i32),
            files,
            connections: session.one(sql, &[]).await.parse().expect("a number"),
        });
    }

    /// Median of a quarter of the run.
    fn quarter(&self, quarter: usize, of: impl Fn(&Sample) -> i64) -> i64 {
        let count = self.0.len();
        let mut values: Vec<i64> = self.0[count * (quarter - 1) / 4..count * quarter / 4]
            .iter()
            .map(of)
            .collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    }

    fn rows(&self) -> [Held; 3] {
        [
            Held::new(self, "memory of a bridge, kB", 8 * 1024, |sample| sample.memory_kb),
            Held::new(self, "its open files", 4, |sample| sample.files),
            Held::new(self, "connections of bridges", 2, |sample| sample.connections),
        ]
    }

    /// # Panics
    /// Where the last quarter has more than the second; in a run too short to tell, where it has more than a bridge ever may.
    #[track_caller]
    pub fn settle(&self, ran: Duration) {
        for held in self.rows() {
            let [_, second, _, last] = held.quarters;
            assert!(
                last <= second + held.more || ran < WARM,
                "{} grew: {second}, then {last}",
                held.what
            );
        }
        let most = self.0.iter().map(|sample| sample.memory_kb).max().expect("sampled");
        assert!(most < MOST_MEMORY_KB, "a bridge held {most} kB");
    }
}

/// Something that is held, in each quarter of the run.
struct Held {
    what: &'static str,
    quarters: [i64; 4],
    /// The last quarter may have so many more than the second.
    more: i64,
}

impl Held {
    fn new(samples: &Flatness, what: &'static str, more: i64, of: fn(&Sample) -> i64) -> Self {
        let quarters = [1, 2, 3, 4].map(|quarter| samples.quarter(quarter, of));
        Self { what, quarters, more }
    }
}

impl fmt::Display for Flatness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:40} {:>10} {:>10} {:>10} {:>10}", "median of quarter", 1, 2, 3, 4)?;
        for Held {
            what,
            quarters: [a, b, c, d],
            ..
        } in self.rows()
        {
            writeln!(f, "{what:40} {a:>10} {b:>10} {c:>10} {d:>10}")?;
        }
        Ok(())
    }
}
