//! Figures and how they are shown.

use serde_json::{Value, json};

/// One comparison.
pub struct Figure {
    /// The number it has in the list of targets.
    pub number: u32,
    /// What is measured, and against what.
    pub name: String,
    /// Ours.
    pub this: f64,
    /// What it is compared to.
    pub other: f64,
    /// Of both values: `/s`, `us`, ...
    pub unit: &'static str,
    /// The median over the rounds, each a pair measured right after one another. Not always `this / other`, which are medians too.
    pub value: f64,
    /// What `value` is: `x` for a ratio, otherwise a unit.
    pub value_unit: &'static str,
    pub target: Target,
    /// CPU time of all processes per call, in us, least of the rounds: ours and the other's.
    pub cpu_us: Option<(f64, f64)>,
}

/// What is to be reached.
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    fn met(&self) -> bool {
        match self.target {
            Target::AtLeast(bound) => self.value >= bound,
            Target::AtMost(bound) => self.value <= bound,
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::AtLeast(bound) => format!(">= {bound}"),
            Target::AtMost(bound) => format!("<= {bound}"),
        }
    }
}

/// The table, to standard output.
pub fn print(figures: &[Figure]) {
    let header = [
        "#",
        "figure",
        "this",
        "other",
        "value",
        "target",
        "met",
        "cpu us: this, other",
    ]
    .map(str::to_owned);
    let rows: Vec<[String; 8]> = figures
        .iter()
        .map(|figure| {
            [
                figure.number.to_string(),
                figure.name.clone(),
                format!("{:.0} {}", figure.this, figure.unit),
                format!("{:.0} {}", figure.other, figure.unit),
                format!("{:.2} {}", figure.value, figure.value_unit),
                figure.target(),
                if figure.met() { "yes" } else { "NO" }.to_owned(),
                figure
                    .cpu_us
                    .map_or_else(String::new, |(this, other)| format!("{this:.1}, {other:.1}")),
            ]
        })
        .collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            rows.iter()
                .chain([&header])
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in [&header].into_iter().chain(&rows) {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
}

/// The same for programs.
pub fn to_json(figures: &[Figure]) -> Value {
    figures
        .iter()
        .map(|figure| {
            json!({
                "number": figure.number,
                "name": figure.name,
                "this": figure.this,
                "other": figure.other,
                "unit": figure.unit,
                "value": figure.value,
                "value_unit": figure.value_unit,
                "target": figure.target(),
                "met": figure.met(),
                "cpu_us_this": figure.cpu_us.map(|cpu| cpu.0),
                "cpu_us_other": figure.cpu_us.map(|cpu| cpu.1),
            })
        })
        .collect()
}

/// The middle one; of an even number the lower of the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// The least.
pub fn least(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// CPU time that a process and its children that have ended used so far, in us.
pub fn cpu_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // Fields 14-17 of proc(5): utime, stime, cutime, cstime, in ticks. The name in parentheses may hold blanks.
    let fields = stat.rsplit_once(") ").expect("as in proc(5)").1;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u64>().expect("ticks"))
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).expect("a system setting");
    ticks as f64 * 1e6 / per_second.expect("a system setting") as f64
}
