//! The figures that are measured. Each file makes the lines of one.

mod f01_select;
mod f03_report;
mod f04_call;
mod f09_throughput;
mod f10_latency;

use crate::Failure;
use crate::results::Line;

/// A figure, by its number in the list of targets.
pub struct Figure {
    pub number: u8,
    pub title: &'static str,
    pub measure: fn(&Effort) -> Result<Vec<Line>, Failure>,
}

/// All there are, in the order in which they run.
pub const ALL: &[Figure] = &[
    f01_select::FIGURE,
    f03_report::FIGURE,
    f04_call::FIGURE,
    f09_throughput::FIGURE,
    f10_latency::FIGURE,
];

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// One run of one case.
    pub seconds: u64,
    /// Rounds, where they were asked for.
    pub rounds: Option<usize>,
}

impl Effort {
    /// Rounds to run: those asked for, else as many as the figure needs.
    fn rounds_or(&self, needed: usize) -> usize {
        self.rounds.unwrap_or(needed)
    }
}

/// Rounds of figures that do not ask for others.
const ROUNDS: usize = 5;
