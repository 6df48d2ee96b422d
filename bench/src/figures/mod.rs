//! The figures that are measured. Each file makes the lines of one.

mod f01_select;
mod f02_size;
mod f03_report;
mod f04_call;
mod f05_plpgsql;
mod f06_many;
mod f07_core;
mod f08_edit;
mod f09_throughput;
mod f10_latency;
mod f12_memory;
mod f14_percentiles;

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
    f02_size::FIGURE,
    f03_report::FIGURE,
    f04_call::FIGURE,
    f05_plpgsql::FIGURE,
    f06_many::FIGURE,
    f07_core::FIGURE,
    f08_edit::FIGURE,
    f09_throughput::FIGURE,
    f10_latency::FIGURE,
    f12_memory::FIGURE,
    f14_percentiles::FIGURE,
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
