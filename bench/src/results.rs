//! Lines of the result, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use ext_registry_tests::places;
use serde_json::{Value, json};

use crate::figures::Effort;
use crate::rounds::{Sample, greatest, least, median};

/// Foreign load, in cores, from which rates mislead.
const DISTURBED: f64 = 0.15;

/// How two series become the value that is judged, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// this / other
    Ratio,
    /// this - other
    Difference,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: the line is there to be understood with the others.
    None,
}

impl Target {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(value >= bound),
            Self::AtMost(bound) => Some(value <= bound),
            Self::None => None,
        }
    }

    fn shown(self, digits: usize) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound:.digits$}"),
            Self::AtMost(bound) => format!("<= {bound:.digits$}"),
            Self::None => String::new(),
        }
    }
}

/// One comparison. Values of the same place in `this` and `other` are of the same round.
#[derive(Debug)]
pub struct Line {
    figure: u8,
    what: String,
    /// Of `this` and `other`.
    unit: &'static str,
    this: Vec<f64>,
    other: Vec<f64>,
    compare: Compare,
    target: Target,
    /// CPU time per call in us by process: that of the run that used least.
    cpu_this: Vec<(&'static str, f64)>,
    cpu_other: Vec<(&'static str, f64)>,
    /// Cores busy with other things, median of all runs.
    foreign: f64,
}

impl Line {
    /// Rates of two cases, and their ratio.
    pub fn rates(figure: u8, what: &str, this: &[Sample], other: &[Sample], target: Target) -> Self {
        Self::new(
            figure,
            what,
            "/s",
            Compare::Ratio,
            this,
            other,
            |sample| sample.per_second,
            target,
        )
    }

    /// Latencies of two cases, and by how much this is above the other.
    pub fn added(
        figure: u8,
        what: &str,
        this: &[Sample],
        other: &[Sample],
        latency_us: impl Fn(&Sample) -> Option<f64>,
        target: Target,
    ) -> Self {
        let latency = |sample: &Sample| latency_us(sample).unwrap_or(f64::NAN);
        Self::new(figure, what, " us", Compare::Difference, this, other, latency, target)
    }

    #[allow(clippy::too_many_arguments, reason = "called right above only")]
    fn new(
        figure: u8,
        what: &str,
        unit: &'static str,
        compare: Compare,
        this: &[Sample],
        other: &[Sample],
        value: impl Fn(&Sample) -> f64,
        target: Target,
    ) -> Self {
        assert_eq!(this.len(), other.len(), "{what}: rounds are pairs");
        let cheapest = |samples: &[Sample]| {
            let least = samples.iter().min_by(|a, b| a.cpu().total_cmp(&b.cpu()));
            least.map(|sample| sample.cpu_us.clone()).unwrap_or_default()
        };
        Self {
            figure,
            what: what.to_owned(),
            unit,
            this: this.iter().map(&value).collect(),
            other: other.iter().map(&value).collect(),
            compare,
            target,
            cpu_this: cheapest(this),
            cpu_other: cheapest(other),
            foreign: median(this.iter().chain(other).map(|sample| sample.foreign)),
        }
    }

    fn combine(&self, this: f64, other: f64) -> f64 {
        match self.compare {
            Compare::Ratio => this / other,
            Compare::Difference => this - other,
        }
    }

    /// The value of each round.
    fn values(&self) -> Vec<f64> {
        self.this
            .iter()
            .zip(&self.other)
            .map(|(this, other)| self.combine(*this, *other))
            .collect()
    }

    /// What is judged: the median over the rounds.
    fn value(&self) -> f64 {
        median(self.values())
    }

    /// The value of the best run of each side: highest rate, lowest latency.
    fn best(&self) -> f64 {
        match self.compare {
            Compare::Ratio => self.combine(greatest(self.this.clone()), greatest(self.other.clone())),
            Compare::Difference => self.combine(least(self.this.clone()), least(self.other.clone())),
        }
    }

    fn met(&self) -> Option<bool> {
        self.target.met(self.value())
    }

    fn shown(&self, value: f64) -> String {
        match self.compare {
            Compare::Ratio if value.abs() >= 9.95 => format!("{value:.1}"),
            Compare::Ratio => format!("{value:.2}"),
            Compare::Difference => format!("{value:+.0}"),
        }
    }

    fn row(&self) -> [String; 10] {
        let values = self.values();
        let total = |cpu: &[(&str, f64)]| cpu.iter().map(|(_, us)| us).sum::<f64>();
        let digits = match self.compare {
            Compare::Ratio => 2,
            Compare::Difference => 0,
        };
        [
            self.figure.to_string(),
            self.what.clone(),
            format!("{}{}", thousands(median(self.this.clone())), self.unit),
            format!("{}{}", thousands(median(self.other.clone())), self.unit),
            format!(
                "{} [{} .. {}]",
                self.shown(self.value()),
                self.shown(least(values.clone())),
                self.shown(greatest(values))
            ),
            self.shown(self.best()),
            self.target.shown(digits),
            match self.met() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            }
            .to_owned(),
            format!("{:.1} / {:.1}", total(&self.cpu_this), total(&self.cpu_other)),
            format!(
                "{:.2}{}",
                self.foreign,
                if self.foreign > DISTURBED { " !" } else { "" }
            ),
        ]
    }

    fn to_json(&self) -> Value {
        let values = self.values();
        let cpu = |cpu: &[(&'static str, f64)]| {
            cpu.iter()
                .map(|(name, us)| ((*name).to_owned(), json!(us)))
                .collect::<serde_json::Map<_, _>>()
        };
        json!({
            "figure": self.figure,
            "what": self.what,
            "unit": self.unit.trim(),
            "this": median(self.this.clone()),
            "other": median(self.other.clone()),
            "compare": match self.compare { Compare::Ratio => "ratio", Compare::Difference => "difference" },
            "value": self.value(),
            "least": least(values.clone()),
            "greatest": greatest(values),
            "best": self.best(),
            "target": match self.target {
                Target::AtLeast(bound) => json!({ "at_least": bound }),
                Target::AtMost(bound) => json!({ "at_most": bound }),
                Target::None => Value::Null,
            },
            "met": self.met(),
            "cpu_us_per_call": { "this": cpu(&self.cpu_this), "other": cpu(&self.cpu_other) },
            "foreign_cores": self.foreign,
            "rounds": { "this": self.this, "other": self.other },
        })
    }
}

/// The table, with what must be known to read it.
pub fn table(lines: &[Line]) -> String {
    let header = [
        "#",
        "figure",
        "this",
        "other",
        "ratio [rounds]",
        "best",
        "target",
        "met",
        "cpu us/call",
        "foreign",
    ]
    .map(str::to_owned);
    let rows: Vec<_> = [header].into_iter().chain(lines.iter().map(Line::row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = format!("\n{}\n\n", machine());
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = widths[column] - cell.chars().count();
            // Numbers stand at the right.
            let (before, after) = if matches!(column, 0 | 2 | 3 | 5 | 8) {
                (gap, 0)
            } else {
                (0, gap)
            };
            let _ = write!(line, "{}{cell}{}  ", " ".repeat(before), " ".repeat(after));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str(
        "\nthis, other: medians. ratio: median of the rounds' own ratios (a difference where the unit is us), the least and the\n\
         greatest in brackets; this is what is judged. best: from the best run of each side. cpu us/call: of all processes that\n\
         take part (statements: the server alone), this / other, least of the runs. foreign: cores busy with other things.\n",
    );
    let disturbed = lines.iter().filter(|line| line.foreign > DISTURBED).count();
    if disturbed > 0 {
        let _ = writeln!(
            text,
            "! {disturbed} of {} lines were measured while others kept more than {DISTURBED} cores busy: repeat them on a quiet machine.",
            lines.len()
        );
    }
    text
}

/// The same for programs.
pub fn json(effort: &Effort, lines: &[Line]) -> Value {
    json!({
        "machine": machine(),
        "seconds": effort.seconds,
        "rounds": effort.rounds,
        "lines": lines.iter().map(Line::to_json).collect::<Vec<_>>(),
    })
}

/// Processors, kernel, servers.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = |program: std::path::PathBuf| {
        let output = Command::new(&program).arg("--version").output();
        output.map_or_else(
            |_| "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    format!(
        "{cores} cores ({model}), Linux {}, {}, {}",
        kernel.trim(),
        version(places::pg_program("postgres")),
        version(places::nats_server())
    )
}

/// `12345.6` as `12,346`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: [f64; 3]) -> Vec<Sample> {
        let sample = |value| Sample {
            per_second: value,
            p50_us: Some(value),
            ..Sample::default()
        };
        values.map(sample).to_vec()
    }

    #[test]
    fn rounds_are_judged_as_pairs() {
        // The second round was disturbed for both.
        let (this, other) = (samples([80.0, 20.0, 90.0]), samples([100.0, 40.0, 100.0]));
        let line = Line::rates(1, "a line", &this, &other, Target::AtLeast(0.8));
        assert!((line.value() - 0.8).abs() < 1e-9);
        assert_eq!(line.met(), Some(true));
        assert!((line.best() - 0.9).abs() < 1e-9);
        let line = Line::added(
            10,
            "a line",
            &this,
            &other,
            |sample| sample.p50_us,
            Target::AtMost(-25.0),
        );
        assert!((line.value() + 20.0).abs() < 1e-9);
        assert_eq!(line.met(), Some(false));
        assert!(table(&[line]).contains("NO"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0.4, 999.0, 1000.0, 1_234_567.0, -123.0].map(thousands),
            ["0", "999", "1,000", "1,234,567", "-123"]
        );
    }
}
