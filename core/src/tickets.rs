//! The table of calls under way.
//!
//! Every decision that sends a call gets a *ticket*: boot number, generation and index of an entry that knows the targets, the start, and
//! the lease of a probe. A report gives the ticket back, once: a second one, one from before a restart, and ticket 0 find nothing.
//!
//! An entry whose deadline has passed *lapses*: its lease and its place among the calls under way are free again, while a late report still
//! finds it and counts. Lapsed entries give way when the table is full.
//!
//! Entries are plain atomics: free -> writing -> busy -> (lapsed ->) free, each step a compare-and-swap on one word that also holds the
//! generation. An entry is read before it is freed, so that what was read belongs to the ticket if the swap succeeds.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::breaker::Lease;

/// Most entries a table can have.
pub const MAX_ENTRIES: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
/// Bits of the boot number: the ticket stays positive as a bigint.
pub const BOOT_BITS: u32 = 15;
/// Entries looked at before the table counts as full.
const PROBES: usize = 256;
/// Entries looked at for a free one before a lapsed one is taken.
const PATIENCE: usize = 4;
/// A session stays within this many entries while they are mostly free, so that they stay in its cache.
const NEIGHBOURHOOD: u32 = 128;
/// After this many entries in use in a row it moves elsewhere.
const CROWD: usize = 8;
/// Multiplier and increment of that move. Together with the seven steps before it they make a congruential generator of full period
/// (Hull and Dobell 1962: multiplier 1 mod 4, sum of the increments odd), so that no session is confined to a part of the table.
const JUMP: (u32, u32) = (0x915f_77f5, 0x9e37_79ba);

const FREE: u64 = 0;
const WRITING: u64 = 1;
const BUSY: u64 = 2;
const LAPSED: u64 = 3;

/// The boot number in a ticket: tickets with different ones are from different lives of the memory behind them.
pub const fn boot_of(ticket: u64) -> u64 {
    ticket >> (GENERATION_BITS + INDEX_BITS)
}

/// What an entry knows of its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The version's place in the host's table of targets.
    pub version: u32,
    /// The instance's place, if one was chosen.
    pub instance: Option<u32>,
    /// When it was decided, in microseconds since the Unix epoch.
    pub started_us: u64,
    /// When its lease ends and it lapses.
    pub deadline_us: u64,
    /// The breaker's generation it was admitted in.
    pub generation: u32,
    /// The lease, if it is a probe.
    pub lease: Option<Lease>,
}

/// A call taken back by its ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The call.
    pub call: Call,
    /// It had lapsed: it is no longer among the calls under way, and its lease is void.
    pub lapsed: bool,
}

/// One entry. All zero bytes are a free one.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Entry {
    word: AtomicU64,
    targets: AtomicU64,
    started_us: AtomicU64,
    deadline_us: AtomicU64,
    lease: AtomicU64,
    /// Generation of the breaker, and the lease's slot plus one.
    admission: AtomicU64,
}

impl Entry {
    fn write(&self, call: &Call) {
        let instance = call.instance.map_or(0, |place| u64::from(place) + 1);
        self.targets.store(u64::from(call.version) << 32 | instance, Relaxed);
        self.started_us.store(call.started_us, Relaxed);
        self.deadline_us.store(call.deadline_us, Relaxed);
        self.lease.store(call.lease.map_or(0, |lease| lease.word), Relaxed);
        let slot = call.lease.map_or(0, |lease| u64::from(lease.slot) + 1);
        self.admission.store(u64::from(call.generation) << 32 | slot, Relaxed);
    }

    fn read(&self) -> Call {
        let (targets, admission) = (self.targets.load(Relaxed), self.admission.load(Relaxed));
        let slot = (admission as u32).checked_sub(1);
        Call {
            version: (targets >> 32) as u32,
            instance: (targets as u32).checked_sub(1),
            started_us: self.started_us.load(Relaxed),
            deadline_us: self.deadline_us.load(Relaxed),
            generation: (admission >> 32) as u32,
            lease: slot.map(|slot| Lease {
                slot: slot as u8,
                word: self.lease.load(Relaxed),
            }),
        }
    }
}

/// A table over entries that lie somewhere else.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    entries: &'a [Entry],
    boot: u64,
}

impl<'a> Table<'a> {
    /// A table of at most [`MAX_ENTRIES`] entries. `boot` tells the tickets of one life of the memory from those of another.
    pub fn new(entries: &'a [Entry], boot: u64) -> Self {
        let entries = &entries[..entries.len().min(MAX_ENTRIES)];
        // Never zero, so that no ticket is.
        Self {
            entries,
            boot: (boot & ((1 << BOOT_BITS) - 1)).max(1),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Issues a ticket for a call; 0 if the table is full. Starts to look at `cursor` and moves it on: give each session its own, so
    /// that sessions do not meet. `release` is told of each call that lapses here because its entry is needed.
    pub fn issue(&self, cursor: &mut u32, call: &Call, now_us: u64, mut release: impl FnMut(&Call)) -> u64 {
        if self.entries.is_empty() {
            return 0;
        }
        let mut lapsed = None;
        for looked_at in 1..=PROBES.max(self.entries.len().min(2 * PROBES)) {
            let index = *cursor as usize % self.entries.len();
            let entry = &self.entries[index];
            let word = entry.word.load(Acquire);
            if word & 3 == FREE
                && let Some(ticket) = self.occupy(index, word, call)
            {
                *cursor = *cursor & !(NEIGHBOURHOOD - 1) | cursor.wrapping_add(1) & (NEIGHBOURHOOD - 1);
                return ticket;
            }
            // A call that should have lapsed lapses here; a late report of a lapsed one is worth less than this call's.
            lapse(entry, now_us, &mut release);
            if entry.word.load(Acquire) & 3 == LAPSED {
                lapsed = Some(index);
            }
            if looked_at >= PATIENCE
                && let Some(index) = lapsed.take()
            {
                let word = self.entries[index].word.load(Acquire);
                if word & 3 == LAPSED
                    && let Some(ticket) = self.occupy(index, word, call)
                {
                    *cursor = cursor.wrapping_add(1);
                    return ticket;
                }
            }
            // A small table is looked through one by one; in a large one a crowd is left by a jump.
            *cursor = if looked_at % CROWD == 0 && self.entries.len() > PROBES {
                cursor.wrapping_mul(JUMP.0).wrapping_add(JUMP.1)
            } else {
                cursor.wrapping_add(1)
            };
        }
        0
    }

    /// Writes a call into an entry that was seen free or lapsed. `None` if another session was faster.
    fn occupy(&self, index: usize, word: u64, call: &Call) -> Option<u64> {
        let entry = &self.entries[index];
        let generation = ((word >> 2) + 1) & GENERATION_MASK;
        entry
            .word
            .compare_exchange(word, generation << 2 | WRITING, AcqRel, Relaxed)
            .ok()?;
        entry.write(call);
        entry.word.store(generation << 2 | BUSY, Release);
        Some(self.boot << (GENERATION_BITS + INDEX_BITS) | generation << INDEX_BITS | index as u64)
    }

    /// Gives a ticket back. `None` if there is nothing behind it.
    pub fn take(&self, ticket: u64) -> Option<Taken> {
        if boot_of(ticket) != self.boot {
            return None;
        }
        let entry = self.entries.get((ticket & (MAX_ENTRIES as u64 - 1)) as usize)?;
        let generation = ticket >> INDEX_BITS & GENERATION_MASK;
        loop {
            let word = entry.word.load(Acquire);
            let lapsed = match word & 3 {
                BUSY => false,
                LAPSED => true,
                _ => return None,
            };
            if word >> 2 != generation {
                return None;
            }
            let call = entry.read();
            // A swap that fails may have met the sweep: look again.
            if entry
                .word
                .compare_exchange(word, generation << 2 | FREE, AcqRel, Relaxed)
                .is_ok()
            {
                return Some(Taken { call, lapsed });
            }
        }
    }

    /// Lets every call lapse whose deadline has passed, and tells `release` of each; frees those that lapsed `keep_us` ago.
    /// Returns how many calls are under way.
    pub fn sweep(&self, now_us: u64, keep_us: u64, mut release: impl FnMut(&Call)) -> usize {
        let mut used = 0;
        for entry in self.entries {
            let word = entry.word.load(Acquire);
            match word & 3 {
                BUSY => lapse(entry, now_us, &mut release),
                LAPSED if entry.deadline_us.load(Relaxed) + keep_us < now_us => {
                    let _ = entry.word.compare_exchange(word, word & !3 | FREE, AcqRel, Relaxed);
                }
                _ => {}
            }
            used += usize::from(is_under_way(entry));
        }
        used
    }

    /// How many calls are under way. Lapsed ones do not count: they give way at once.
    pub fn used(&self) -> usize {
        self.entries.iter().filter(|entry| is_under_way(entry)).count()
    }
}

fn is_under_way(entry: &Entry) -> bool {
    matches!(entry.word.load(Relaxed) & 3, WRITING | BUSY)
}

/// Lets a call lapse whose deadline has passed.
fn lapse(entry: &Entry, now_us: u64, release: &mut impl FnMut(&Call)) {
    let word = entry.word.load(Acquire);
    if word & 3 != BUSY || entry.deadline_us.load(Relaxed) >= now_us {
        return;
    }
    let call = entry.read();
    if entry
        .word
        .compare_exchange(word, word & !3 | LAPSED, AcqRel, Relaxed)
        .is_ok()
    {
        release(&call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(version: u32, deadline_us: u64) -> Call {
        Call {
            version,
            instance: Some(7),
            started_us: 5,
            deadline_us,
            generation: 3,
            lease: Some(Lease { slot: 2, word: 99 }),
        }
    }

    fn entries(n: usize) -> Vec<Entry> {
        std::iter::repeat_with(Entry::default).take(n).collect()
    }

    #[test]
    fn a_ticket_is_good_once() {
        let memory = entries(4);
        let table = Table::new(&memory, 9);
        let ticket = table.issue(&mut 0, &call(1, 100), 10, |_| ());
        assert!(ticket > 0 && ticket < 1 << 63);
        assert_eq!(
            table.take(ticket),
            Some(Taken {
                call: call(1, 100),
                lapsed: false
            })
        );
        assert_eq!(table.take(ticket), None);
        assert_eq!(table.take(0), None);
        assert_eq!(Table::new(&memory, 10).take(ticket), None, "another boot");
    }

    #[test]
    fn a_late_report_still_counts_but_holds_nothing() {
        let memory = entries(4);
        let table = Table::new(&memory, 1);
        let ticket = table.issue(&mut 0, &call(1, 100), 10, |_| ());
        let mut released = vec![];
        assert_eq!(table.sweep(100, 1000, |call| released.push(*call)), 1);
        assert_eq!(table.sweep(101, 1000, |call| released.push(*call)), 0);
        assert_eq!(released, [call(1, 100)]);
        assert_eq!(table.sweep(102, 1000, |call| released.push(*call)), 0);
        assert_eq!(released.len(), 1, "released once");
        assert!(table.take(ticket).unwrap().lapsed);
        let ticket = table.issue(&mut 0, &call(1, 100), 10, |_| ());
        table.sweep(200, 50, |_| ());
        assert_eq!(table.sweep(200, 50, |_| ()), 0);
        assert_eq!(table.take(ticket), None);
    }

    #[test]
    fn a_full_table_says_so_until_calls_lapse() {
        let memory = entries(8);
        let table = Table::new(&memory, 1);
        let mut cursor = 3;
        let tickets: Vec<u64> = (0..8)
            .map(|n| table.issue(&mut cursor, &call(n, 100), 10, |_| ()))
            .collect();
        assert!(tickets.iter().all(|t| *t != 0));
        assert_eq!(table.issue(&mut cursor, &call(9, 100), 10, |_| ()), 0);
        let mut released = 0;
        assert_ne!(table.issue(&mut cursor, &call(9, 300), 101, |_| released += 1), 0);
        assert!((1..=PATIENCE).contains(&released), "{released}");
        assert_eq!(tickets.iter().filter(|t| table.take(**t).is_some()).count(), 7);
    }

    #[test]
    fn sessions_together_never_share_an_entry() {
        let memory = entries(64);
        let table = Table::new(&memory, 1);
        std::thread::scope(|scope| {
            for session in 0..8u32 {
                scope.spawn(move || {
                    let mut cursor = session * 8;
                    for n in 0..20_000 {
                        let mine = Call {
                            started_us: n,
                            ..call(session, u64::MAX)
                        };
                        let ticket = table.issue(&mut cursor, &mine, n, |_| ());
                        if ticket != 0 {
                            assert_eq!(table.take(ticket).unwrap().call, mine);
                            assert_eq!(table.take(ticket), None);
                        }
                    }
                });
            }
        });
        assert_eq!(table.used(), 0);
    }

    proptest! {
        #[test]
        fn a_session_can_fill_the_table_from_anywhere(mut cursor in any::<u32>()) {
            let memory = entries(8192);
            let table = Table::new(&memory, 1);
            for n in 0..8192 * 95 / 100 {
                prop_assert_ne!(table.issue(&mut cursor, &call(n, 100), 10, |_| ()), 0, "after {}", n);
            }
        }

        #[test]
        fn any_number_is_a_safe_ticket(ticket in any::<u64>()) {
            let memory = entries(4);
            prop_assert_eq!(Table::new(&memory, 1).take(ticket), None);
        }
    }
}
