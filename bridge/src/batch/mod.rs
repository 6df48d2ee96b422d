//! Questions and reports, many at a time. A batch leaves as soon as fewer than two of its kind are under way; nothing waits
//! for a batch to fill.

pub mod decide;
pub mod gather;
pub mod report;
pub mod side;

/// Most batches of one kind under way.
pub const UNDER_WAY: usize = 2;
