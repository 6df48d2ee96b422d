//! Decisions that leave no trace, many in a row: what would these calls get?
//!
//! A [`Rehearsal`] stands before the live state of one extension and keeps private copies of what decisions move: turns and probes taken. So
//! a hundred previewed calls are spread over the instances, and meet a half-open breaker, as a hundred real ones would be.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::breaker::{Admission, Settings};
use crate::decide::{Finding, Live, Witness};
use crate::fitness::{Effects, Fitness};
use crate::target::{Target, Turn};

/// Decides, leaves no trace, and explains nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Previewer;

impl Witness for Previewer {
    const WATCHES: bool = false;
    const EFFECTS: bool = false;
    fn see(&mut self, _finding: impl FnOnce() -> Finding) {}
}

/// What previewed decisions of one extension have moved so far.
#[derive(Debug, Default)]
pub struct Moved {
    turns: RefCell<HashMap<(usize, Turn), u64>>,
    probes: RefCell<HashMap<usize, usize>>,
}

/// Live state, with what has been moved before it.
#[derive(Debug, Clone, Copy)]
pub struct Rehearsal<'a, L> {
    live: &'a L,
    moved: &'a Moved,
}

impl<'a, L: Live> Rehearsal<'a, L> {
    /// Puts `moved` before `live`.
    pub fn new(live: &'a L, moved: &'a Moved) -> Self {
        Self { live, moved }
    }
}

impl<L: Live> Live for Rehearsal<'_, L> {
    fn version(&self, target: usize) -> Option<&Target> {
        self.live.version(target)
    }

    fn instance(&self, place: usize) -> Option<&Target> {
        self.live.instance(place)
    }

    fn fitness(&self, now_us: u64, random: u64, _effects: Effects) -> Option<Rc<Fitness>> {
        self.live.fitness(now_us, random, Effects::Pretend)
    }

    fn peek(&self, target: usize, live: &Target, settings: &Settings, now_us: u64) -> Admission {
        let admission = live.breaker.peek(settings, now_us);
        if let Admission::Probe(_) = admission {
            let mut probes = self.moved.probes.borrow_mut();
            let taken = probes.entry(target).or_default();
            if *taken >= live.breaker.free_probes(settings, now_us) {
                return Admission::Refused(Some(1000));
            }
            *taken += 1;
        }
        admission
    }

    fn peek_turn(&self, target: usize, live: &Target, which: Turn) -> u64 {
        let mut turns = self.moved.turns.borrow_mut();
        let next = turns.entry((target, which)).or_insert_with(|| live.next_turn(which));
        *next += 1;
        *next - 1
    }
}
