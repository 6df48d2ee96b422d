//! What has happened, on its way to the worker: transitions of breakers, ejections of instances.
//!
//! A ring of atomics. Whoever causes something takes the next number and writes there; the worker of the database reads on from where it was,
//! and what was overwritten before it came is counted as lost.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use ext_registry_core::breaker::{Reason, State, Transition};
use ext_registry_core::ejection::{Cause, Move};

use super::Shared;

/// Events that wait for the worker.
pub const EVENTS: usize = 4096;

/// One of them.
#[repr(C)]
pub struct Event {
    /// Its number plus one, stored last; anything else is being written.
    ready: AtomicU64,
    place: AtomicU32,
    /// from, to and reason, a byte each.
    what: AtomicU32,
    key: AtomicU64,
    at_us: AtomicU64,
    failures: AtomicU64,
    requests: AtomicU64,
}

/// An event as the worker reads it.
pub struct Moved {
    /// The target's place when it happened.
    pub place: u32,
    /// The target's key.
    pub key: u64,
    /// Registry time.
    pub at_us: u64,
    /// Names of the states and of the reason.
    pub from: &'static str,
    pub to: &'static str,
    pub reason: &'static str,
    /// What the window held; for an instance its failures in a row.
    pub failures: u64,
    pub requests: u64,
}

/// States and reasons by their codes.
const STATES: [&str; 5] = ["closed", "open", "half_open", "eligible", "ejected"];
const ELIGIBLE: u8 = 3;
const EJECTED: u8 = 4;
/// Reasons of ejection follow those of breakers.
const EJECTION_REASONS: [(u8, &str); 3] = [
    (101, "consecutive_failures"),
    (102, "no_responders"),
    (103, "ejection_over"),
];

fn state_code(state: State) -> u8 {
    match state {
        State::Closed => 0,
        State::Open => 1,
        State::HalfOpen => 2,
    }
}

fn reason_name(code: u8) -> &'static str {
    let of_ejection = EJECTION_REASONS.iter().find(|(known, _)| *known == code);
    of_ejection
        .map(|(_, name)| *name)
        .or(Reason::from_code(code).map(Reason::as_str))
        .unwrap_or("unknown")
}

impl Shared {
    /// Tells the worker of a breaker's transition, and wakes it.
    pub fn push_transition(&self, place: u32, at_us: u64, transition: &Transition) {
        let what = [
            state_code(transition.from),
            state_code(transition.to),
            transition.reason as u8,
        ];
        let tally = &transition.tally;
        self.push(place, at_us, what, tally.failures, tally.requests());
    }

    /// Tells the worker that an instance was ejected or came back, and wakes it.
    pub fn push_move(&self, place: u32, at_us: u64, moved: &Move) {
        match *moved {
            Move::Ejected { cause, failures, .. } => {
                let reason = match cause {
                    Cause::ConsecutiveFailures => 101,
                    Cause::NoResponders => 102,
                };
                let failures = u64::from(failures);
                self.push(place, at_us, [ELIGIBLE, EJECTED, reason], failures, failures);
            }
            Move::Returned => self.push(place, at_us, [EJECTED, ELIGIBLE, 103], 0, 0),
        }
    }

    fn push(&self, place: u32, at_us: u64, [from, to, reason]: [u8; 3], failures: u64, requests: u64) {
        let slot = &self.slots[place as usize];
        let number = self.head.event_next.fetch_add(1, AcqRel);
        let event = &self.events[number as usize % EVENTS];
        event.ready.store(0, Release);
        event.place.store(place, Relaxed);
        event.key.store(slot.key(), Relaxed);
        event.at_us.store(at_us, Relaxed);
        let what = u32::from(from) << 16 | u32::from(to) << 8 | u32::from(reason);
        event.what.store(what, Relaxed);
        event.failures.store(failures, Relaxed);
        event.requests.store(requests, Relaxed);
        event.ready.store(number + 1, Release);
        self.wake_worker(slot.database());
    }

    /// The events from `cursor` on, which is moved behind them. Those overwritten before they were read are counted as lost.
    pub fn events_since(&self, cursor: &mut u64) -> Vec<Moved> {
        let mut read = Vec::new();
        let next = self.head.event_next.load(Acquire);
        let oldest = next.saturating_sub(EVENTS as u64);
        if *cursor < oldest {
            self.head.lost_events.fetch_add(oldest - *cursor, Relaxed);
            *cursor = oldest;
        }
        while *cursor < next {
            let event = &self.events[*cursor as usize % EVENTS];
            if event.ready.load(Acquire) != *cursor + 1 {
                // Still being written: it comes with the next look.
                break;
            }
            let what = event.what.load(Relaxed);
            let state = |shift: u32| {
                STATES
                    .get((what >> shift) as usize & 0xff)
                    .copied()
                    .unwrap_or("unknown")
            };
            read.push(Moved {
                place: event.place.load(Relaxed),
                key: event.key.load(Relaxed),
                at_us: event.at_us.load(Relaxed),
                from: state(16),
                to: state(8),
                reason: reason_name(what as u8),
                failures: event.failures.load(Relaxed),
                requests: event.requests.load(Relaxed),
            });
            *cursor += 1;
        }
        read
    }
}
