//! The bits of a breaker: its state word and the words of its lease slots.

use super::State;

/// 2020-01-01 in milliseconds since the Unix epoch: times in words count from here and last 69 years.
const EPOCH_MS: u64 = 1_577_836_800_000;
/// The state word taken apart: 2 bits state, 2 bits growth, 19 bits generation, 41 bits milliseconds since [`EPOCH_MS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub state: State,
    pub growth: u64,
    pub generation: u32,
    /// Open until; otherwise the time of the transition.
    pub at_ms: u64,
}

const GENERATION_BITS: u32 = 19;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;
const TIME_BITS: u32 = 41;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
pub(super) const DONE: u64 = 1 << (TIME_BITS + GENERATION_BITS);
/// Set in every lease, so that none is zero.
const TAKEN: u64 = 1 << (TIME_BITS + GENERATION_BITS + 1);

pub(super) fn word_ms(now_us: u64) -> u64 {
    (now_us / 1000).saturating_sub(EPOCH_MS) & TIME_MASK
}

impl Word {
    pub fn unpack(word: u64) -> Self {
        Self {
            state: match word >> 62 {
                0 => State::Closed,
                1 => State::Open,
                _ => State::HalfOpen,
            },
            growth: word >> 60 & 3,
            generation: (word >> TIME_BITS) as u32 & GENERATION_MASK,
            at_ms: word & TIME_MASK,
        }
    }

    pub fn pack(self) -> u64 {
        let state = match self.state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        state << 62
            | self.growth << 60
            | u64::from(self.generation & GENERATION_MASK) << TIME_BITS
            | self.at_ms & TIME_MASK
    }

    pub fn next(self, state: State, growth: u64, at_ms: u64) -> Self {
        Self {
            state,
            growth,
            generation: (self.generation + 1) & GENERATION_MASK,
            at_ms,
        }
    }
}

/// A lease slot's word taken apart.
#[derive(Clone, Copy)]
pub(super) struct Slot(pub u64);

impl Slot {
    /// The word of a live lease.
    pub fn live(generation: u32, deadline_ms: u64) -> u64 {
        TAKEN | u64::from(generation & GENERATION_MASK) << TIME_BITS | deadline_ms & TIME_MASK
    }

    pub fn is_of(self, generation: u32) -> bool {
        self.0 != 0 && (self.0 >> TIME_BITS) as u32 & GENERATION_MASK == generation
    }

    pub fn is_done(self) -> bool {
        self.0 & DONE != 0
    }

    pub fn deadline_ms(self) -> u64 {
        self.0 & TIME_MASK
    }

    /// Whether a new probe may take the slot.
    pub fn is_free(self, generation: u32, now_ms: u64) -> bool {
        !self.is_of(generation) || (!self.is_done() && self.deadline_ms() < now_ms)
    }
}
