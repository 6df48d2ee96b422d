//! Lines of the result, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use ext_registry_tests::places;
use serde_json::{Value, json};

use crate::rounds::{Sample, greatest, least, median};

/// Foreign load, in cores, from which rates mislead.
const DISTURBED: f64 = 0.15;

/// What values are in, and how many decimals say something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    PerSecond,
    Ns,
    Us,
    Ms,
    MiB,
    Percent,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::Ns => " ns",
            Self::Us => " us",
            Self::Ms => " ms",
            Self::MiB => " MiB",
            Self::Percent => " %",
        }
    }

    fn decimals(self) -> usize {
        match self {
            Self::PerSecond | Self::Us => 0,
            Self::Ns | Self::MiB => 1,
            Self::Ms | Self::Percent => 2,
        }
    }

    fn shown(self, value: f64) -> String {
        format!("{}{}", grouped(value, self.decimals()), self.name())
    }

    /// The value of the luckiest run.
    fn best(self, values: &[f64]) -> f64 {
        match self {
            Self::PerSecond => greatest(values.iter().copied()),
            _ => least(values.iter().copied()),
        }
    }
}

/// How two series become the value that is judged, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// this / other
    Ratio,
    /// this - other
    Difference,
    /// this; the other, if there is one, is there to be looked at
    Alone,
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
}

/// One comparison. Values of the same place in `this` and `other` are of the same round.
#[derive(Debug)]
pub struct Line {
    figure: u8,
    what: String,
    /// Of `this` and `other`.
    unit: Unit,
    this: Vec<f64>,
    other: Vec<f64>,
    compare: Compare,
    target: Target,
    /// CPU time per call in us by process: that of the run that used least. Empty where it was not measured.
    cpu_this: Vec<(&'static str, f64)>,
    cpu_other: Vec<(&'static str, f64)>,
    /// Cores busy with other things, median of all runs. NaN where it was not measured.
    foreign: f64,
}

impl Line {
    /// Rates of two cases, and their ratio.
    pub fn rates(figure: u8, what: &str, this: &[Sample], other: &[Sample], target: Target) -> Self {
        let rate = |sample: &Sample| sample.per_second;
        Self::sampled(figure, what, Unit::PerSecond, Compare::Ratio, this, other, rate, target)
    }

    /// The rate of one case; that of the other tells how fast the machine was.
    pub fn rate(figure: u8, what: &str, this: &[Sample], other: &[Sample], target: Target) -> Self {
        let rate = |sample: &Sample| sample.per_second;
        Self::sampled(figure, what, Unit::PerSecond, Compare::Alone, this, other, rate, target)
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
        Self::sampled(
            figure,
            what,
            Unit::Us,
            Compare::Difference,
            this,
            other,
            latency,
            target,
        )
    }

    /// Two series of anything, a value for each round.
    pub fn compared(
        figure: u8,
        what: &str,
        unit: Unit,
        compare: Compare,
        this: &[f64],
        other: &[f64],
        target: Target,
    ) -> Self {
        assert!(
            this.len() == other.len() || (compare == Compare::Alone && other.is_empty()),
            "{what}: rounds are pairs"
        );
        Self {
            figure,
            what: what.to_owned(),
            unit,
            this: this.to_vec(),
            other: other.to_vec(),
            compare,
            target,
            cpu_this: Vec::new(),
            cpu_other: Vec::new(),
            foreign: f64::NAN,
        }
    }

    /// One series, judged by itself.
    pub fn alone(figure: u8, what: &str, unit: Unit, this: &[f64], target: Target) -> Self {
        Self::compared(figure, what, unit, Compare::Alone, this, &[], target)
    }

    /// With the cores that were busy with other things meanwhile.
    pub fn disturbed_by(mut self, foreign: f64) -> Self {
        self.foreign = foreign;
        self
    }

    #[allow(clippy::too_many_arguments, reason = "called right above only")]
    fn sampled(
        figure: u8,
        what: &str,
        unit: Unit,
        compare: Compare,
        this: &[Sample],
        other: &[Sample],
        value: impl Fn(&Sample) -> f64,
        target: Target,
    ) -> Self {
        let values = |samples: &[Sample]| samples.iter().map(&value).collect::<Vec<f64>>();
        let cheapest = |samples: &[Sample]| {
            let least = samples.iter().min_by(|a, b| a.cpu().total_cmp(&b.cpu()));
            least.map(|sample| sample.cpu_us.clone()).unwrap_or_default()
        };
        Self {
            cpu_this: cheapest(this),
            cpu_other: cheapest(other),
            foreign: median(this.iter().chain(other).map(|sample| sample.foreign)),
            ..Self::compared(figure, what, unit, compare, &values(this), &values(other), target)
        }
    }

    fn combine(&self, this: f64, other: f64) -> f64 {
        match self.compare {
            Compare::Ratio => this / other,
            Compare::Difference => this - other,
            Compare::Alone => this,
        }
    }

    /// The value of each round.
    fn values(&self) -> Vec<f64> {
        match self.compare {
            Compare::Alone => self.this.clone(),
            _ => self
                .this
                .iter()
                .zip(&self.other)
                .map(|(this, other)| self.combine(*this, *other))
                .collect(),
        }
    }

    /// What is judged: the median over the rounds.
    fn value(&self) -> f64 {
        median(self.values())
    }

    /// The value of the best run of each side: highest rate, lowest latency.
    fn best(&self) -> f64 {
        self.combine(self.unit.best(&self.this), self.unit.best(&self.other))
    }

    fn met(&self) -> Option<bool> {
        self.target.met(self.value())
    }

    fn is_disturbed(&self) -> bool {
        self.foreign > DISTURBED
    }

    fn shown(&self, value: f64) -> String {
        match self.compare {
            Compare::Ratio if value.abs() >= 9.95 => format!("{value:.1}"),
            Compare::Ratio => format!("{value:.2}"),
            Compare::Difference if value >= 0.0 => format!("+{}", grouped(value, self.unit.decimals())),
            Compare::Difference | Compare::Alone => grouped(value, self.unit.decimals()),
        }
    }

    fn target_shown(&self) -> String {
        let bound = |bound: f64| {
            if self.compare == Compare::Ratio {
                return format!("{bound:.2}");
            }
            let decimals = if bound.fract() == 0.0 { 0 } else { self.unit.decimals() };
            grouped(bound, decimals) + self.unit.name()
        };
        match self.target {
            Target::AtLeast(least) => format!(">= {}", bound(least)),
            Target::AtMost(most) => format!("<= {}", bound(most)),
            Target::None => String::new(),
        }
    }

    fn cpu_shown(&self) -> String {
        if self.cpu_this.is_empty() {
            return String::new();
        }
        let shown = |cpu: &[(&str, f64)]| {
            let us = cpu.iter().map(|(_, us)| us).sum::<f64>();
            grouped(us, if us < 2.0 { 2 } else { 1 })
        };
        format!("{} / {}", shown(&self.cpu_this), shown(&self.cpu_other))
    }

    fn row(&self) -> [String; 10] {
        let values = self.values();
        let middle = |values: &[f64]| {
            if values.is_empty() {
                return String::new();
            }
            self.unit.shown(median(values.iter().copied()))
        };
        [
            self.figure.to_string(),
            self.what.clone(),
            middle(&self.this),
            middle(&self.other),
            format!(
                "{} [{} .. {}]",
                self.shown(self.value()),
                self.shown(least(values.clone())),
                self.shown(greatest(values))
            ),
            self.shown(self.best()),
            self.target_shown(),
            match self.met() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            }
            .to_owned(),
            self.cpu_shown(),
            if self.foreign.is_nan() {
                String::new()
            } else {
                format!("{:.2}{}", self.foreign, if self.is_disturbed() { " !" } else { "" })
            },
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
            "unit": self.unit.name().trim(),
            "this": median(self.this.clone()),
            "other": median(self.other.clone()),
            "compare": match self.compare {
                Compare::Ratio => "ratio",
                Compare::Difference => "difference",
                Compare::Alone => "alone",
            },
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
        "\nthis, other: medians. ratio: median of the rounds' own ratios (a difference where it has a sign, this alone where the target\n\
         has a unit), the least and the greatest in brackets; this is what is judged. best: from the best run of each side.\n\
         cpu us/call: of all processes that take part (statements: the server alone), this / other, least of the runs.\n\
         foreign: cores busy with other things.\n",
    );
    let disturbed = lines.iter().filter(|line| line.is_disturbed()).count();
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
pub fn json(seconds: u64, rounds: Option<usize>, lines: &[Line]) -> Value {
    json!({
        "machine": machine(),
        "seconds": seconds,
        "rounds": rounds,
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

/// `12345.6` as `12,346`, or with as many decimals as asked for.
fn grouped(value: f64, decimals: usize) -> String {
    let number = format!("{value:.decimals$}");
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
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
            [0.4, 999.0, 1000.0, 1_234_567.0, -123.0].map(|value| grouped(value, 0)),
            ["0", "999", "1,000", "1,234,567", "-123"]
        );
        assert_eq!(grouped(1234.567, 2), "1,234.57");
    }

    #[test]
    fn what_stands_alone_is_judged_by_itself() {
        let line = Line::alone(12, "a line", Unit::MiB, &[35.0, 36.0, 37.0], Target::AtMost(64.0));
        assert_eq!(line.met(), Some(true));
        assert_eq!(
            line.row()[2..8],
            ["36.0 MiB", "", "36.0 [35.0 .. 37.0]", "35.0", "<= 64 MiB", "yes"]
        );
    }
}
