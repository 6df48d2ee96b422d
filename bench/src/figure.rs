//! What a figure is, and how much effort goes into measuring it.

use crate::Failure;
use crate::results::Line;

/// A figure, by its number in the list of targets.
pub struct Figure {
    pub number: u8,
    pub title: &'static str,
    pub measure: fn(&Effort) -> Result<Vec<Line>, Failure>,
}

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
    pub fn rounds_or(&self, needed: usize) -> usize {
        self.rounds.unwrap_or(needed)
    }
}

/// Rounds of figures that do not ask for others.
pub const ROUNDS: usize = 5;
