//! The table of targets: versions and instances with live state.
//!
//! A target is found by its key, a hash of (database, registry, extension uid, kind, name); the extension's uid survives a rename and is new for
//! an id that was deleted and created again. An index of four entries per place (linear probing, so nearly always one look) leads from the key
//! to the place; what has no place is told at once, also when the table is full.
//!
//! Places are given out and freed under one lock ([`Shared::claim`], [`Shared::release_if`]); whoever uses a place *pins* it by counting itself
//! as a call under way and then checks the key ([`Shared::pin`]), and a place with a pin is never given to another target. Sessions remember
//! places, so a call looks nothing up. A look-up beside the lock may miss an entry that is just being moved; whoever then claims looks again
//! under the lock.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use ext_registry_core::breaker::State;
use ext_registry_core::ejection::Standing;
use ext_registry_core::target::Target;
use pgrx::pg_sys;
use xxhash_rust::xxh3::Xxh3;

use super::{Held, Shared};
use crate::clock;

/// Kind of a target: a version.
pub const VERSION: u32 = 1;
/// Kind of a target: an instance.
pub const INSTANCE: u32 = 2;

/// A key that is being given out or freed.
const RESERVED: u64 = 1;
/// Entries of the index for each place.
const SPARSENESS: usize = 4;
/// Places looked at for one that can be taken from its target, in one go.
const EFFORT: usize = 8192;
/// A table in which none was found is not looked through again before this.
const PAUSE_US: u64 = 1_000_000;
/// A target untouched for this long may give way.
const IDLE_US: u64 = 10_000_000;

/// One place for a target.
#[repr(C, align(64))]
pub struct Slot {
    key: AtomicU64,
    uid: AtomicU64,
    /// When it was given out, registry time.
    claimed_us: AtomicU64,
    database: AtomicU32,
    registry: AtomicU32,
    kind: AtomicU32,
    name_length: AtomicU32,
    /// Leads on from a freed place.
    next_freed: AtomicU32,
    /// Hash of what the worker last wrote down.
    pub written: AtomicU64,
    /// The live state.
    pub target: Target,
    name: [AtomicU64; 32],
}

impl Slot {
    /// Its key; 0 or 1 if nobody has it.
    pub fn key(&self) -> u64 {
        self.key.load(Acquire)
    }

    /// Whether a target has it.
    pub fn is_used(&self) -> bool {
        self.key() > RESERVED
    }

    /// The database of its target.
    pub fn database(&self) -> u32 {
        self.database.load(Relaxed)
    }

    /// The registry of its target: the oid of its table `extensions`.
    pub fn registry(&self) -> u32 {
        self.registry.load(Relaxed)
    }

    /// When it last saw an outcome, or was given out.
    pub fn touched_us(&self) -> u64 {
        self.target.updated_us().unwrap_or(0).max(self.claimed_us.load(Relaxed))
    }

    /// The extension of its target.
    pub fn uid(&self) -> u64 {
        self.uid.load(Relaxed)
    }

    /// The kind of its target.
    pub fn kind(&self) -> u32 {
        self.kind.load(Relaxed)
    }

    /// The name of its version or instance.
    pub fn name(&self) -> String {
        let bytes: Vec<u8> = self
            .name
            .iter()
            .flat_map(|word| word.load(Relaxed).to_le_bytes())
            .collect();
        String::from_utf8_lossy(&bytes[..(self.name_length.load(Relaxed) as usize).min(bytes.len())]).into_owned()
    }

    fn set_name(&self, name: &str) {
        let bytes = &name.as_bytes()[..name.len().min(256)];
        self.name_length.store(bytes.len() as u32, Relaxed);
        for (word, chunk) in self.name.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Relaxed);
        }
    }

    /// Makes the live state that of a target that has seen nothing.
    fn clear(&self) {
        let target = (&raw const self.target).cast_mut();
        // SAFETY: the key is reserved and nobody has the place pinned, so no other process uses the state; it consists of
        // atomics (interior mutability), for which all zero bytes are a valid value.
        unsafe { target.write_bytes(0, 1) };
        self.written.store(0, Relaxed);
    }
}

/// Entries of the index of a table of so many targets.
pub fn index_size(targets: usize) -> usize {
    (targets * SPARSENESS).next_power_of_two()
}

/// How places are given out.
#[repr(C)]
#[derive(Default)]
pub struct Places {
    /// Places in use.
    pub used: AtomicU32,
    /// Places that have never been given out begin here.
    fresh: AtomicU32,
    /// A freed place plus one; each leads to the next.
    freed: AtomicU32,
    /// Where the search for one to take goes on.
    hand: AtomicU32,
    /// Until when a full table is not looked through again, registry time.
    full_until_us: AtomicU64,
}

/// What identifies a target.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    pub database: u32,
    /// The oid of the table `extensions`: a registry that is dropped and created again starts afresh.
    pub registry: u32,
    pub uid: u64,
    pub kind: u32,
    pub name: &'a str,
}

impl Identity<'_> {
    /// The key of its place.
    pub fn key(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(&self.database.to_le_bytes());
        hasher.update(&self.registry.to_le_bytes());
        hasher.update(&self.uid.to_le_bytes());
        hasher.update(&self.kind.to_le_bytes());
        hasher.update(self.name.as_bytes());
        hasher.digest().max(RESERVED + 1)
    }
}

impl Shared {
    /// Counts one more call under way at a place, if it is still that of this key.
    pub fn pin(&self, place: u32, key: u64) -> Option<&'static Slot> {
        let slot = self.slots.get(place as usize)?;
        slot.target.begin();
        if slot.key.load(SeqCst) == key {
            return Some(slot);
        }
        slot.target.end();
        None
    }

    /// The place of a target, if it has one.
    pub fn find(&self, key: u64) -> Option<u32> {
        self.entries_from(key)
            .map(|at| self.index[at].load(Acquire))
            .take_while(|entry| *entry != 0)
            .map(|entry| entry - 1)
            .find(|place| self.slots[*place as usize].key.load(Acquire) == key)
    }

    /// Where a key's entry may stand in the index, in order.
    fn entries_from(&self, key: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.index.len() - 1;
        // The whole index has free entries: there are four to a place.
        (0..=mask).map(move |step| (key as usize).wrapping_add(step) & mask)
    }

    /// Enters a place under its key. Under the lock.
    fn enter(&self, key: u64, place: u32) {
        if let Some(free) = self.entries_from(key).find(|at| self.index[*at].load(Relaxed) == 0) {
            self.index[free].store(place + 1, Release);
        }
    }

    /// Takes a place's entry out, and closes the gap (Knuth 6.4, algorithm R). Under the lock.
    fn strike(&self, key: u64, place: u32) {
        let mask = self.index.len() - 1;
        let Some(mut gap) = self
            .entries_from(key)
            .take_while(|at| self.index[*at].load(Relaxed) != 0)
            .find(|at| self.index[*at].load(Relaxed) == place + 1)
        else {
            return;
        };
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let entry = self.index[at].load(Relaxed);
            if entry == 0 {
                break;
            }
            let home = self.slots[entry as usize - 1].key() as usize & mask;
            // It may move where the gap lies between its home and itself.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.index[gap].store(entry, Release);
                gap = at;
            }
        }
        self.index[gap].store(0, Release);
    }

    /// Gives a target a place. `restore` puts back what was written down of it; it runs under a lock and must not call Postgres.
    /// `None`: the table is full of targets that are in use or not closed.
    pub fn claim(&self, identity: Identity<'_>, restore: impl FnOnce(&Target)) -> Option<u32> {
        let key = identity.key();
        let now_us = clock::now_us();
        let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
        if let Some(place) = self.find(key) {
            return Some(place);
        }
        let place = self.free_place(now_us)?;
        let slot = &self.slots[place as usize];
        slot.clear();
        slot.uid.store(identity.uid, Relaxed);
        slot.database.store(identity.database, Relaxed);
        slot.registry.store(identity.registry, Relaxed);
        slot.claimed_us.store(now_us, Relaxed);
        slot.kind.store(identity.kind, Relaxed);
        slot.set_name(identity.name);
        restore(&slot.target);
        slot.key.store(key, Release);
        self.enter(key, place);
        self.head.places.used.fetch_add(1, Relaxed);
        Some(place)
    }

    /// A place nobody has, taken from an idle target if need be. Under the lock.
    fn free_place(&self, now_us: u64) -> Option<u32> {
        let places = &self.head.places;
        if let Some(place) = places.freed.load(Relaxed).checked_sub(1) {
            let next = self.slots[place as usize].next_freed.load(Relaxed);
            places.freed.store(next, Relaxed);
            return Some(place);
        }
        let fresh = places.fresh.load(Relaxed);
        if (fresh as usize) < self.slots.len() {
            places.fresh.store(fresh + 1, Relaxed);
            return Some(fresh);
        }
        if now_us < places.full_until_us.load(Relaxed) {
            return None;
        }
        let n = self.slots.len() as u32;
        for _ in 0..self.slots.len().min(EFFORT) {
            let place = places.hand.load(Relaxed) % n;
            places.hand.store((place + 1) % n, Relaxed);
            if self.is_dispensable(&self.slots[place as usize], now_us) && self.reserve(place) {
                return Some(place);
            }
        }
        places.full_until_us.store(now_us + PAUSE_US, Relaxed);
        None
    }

    /// Whether a target may give way: closed, idle, written down.
    fn is_dispensable(&self, slot: &Slot, now_us: u64) -> bool {
        let seen_us = slot.target.updated_us().unwrap_or(0);
        let flushed_us = self
            .database(slot.database())
            .map_or(0, |database| database.flushed_us.load(Relaxed));
        slot.target.breaker.state() == State::Closed
            && slot.target.ejection.standing(now_us) == Standing::Fit
            && slot.touched_us() + IDLE_US < now_us
            && (seen_us == 0 || seen_us < flushed_us)
    }

    /// Takes the key from a place, and its entry from the index, unless somebody has it pinned. Under the lock.
    fn reserve(&self, place: u32) -> bool {
        let slot = &self.slots[place as usize];
        let key = slot.key();
        if key <= RESERVED || slot.key.compare_exchange(key, RESERVED, SeqCst, Relaxed).is_err() {
            return false;
        }
        if slot.target.in_flight() == 0 {
            self.strike(key, place);
            self.head.places.used.fetch_sub(1, Relaxed);
            return true;
        }
        slot.key.store(key, SeqCst);
        false
    }

    /// Frees the places of targets that are gone.
    pub fn release_if(&self, gone: impl Fn(&Slot) -> bool) {
        for (place, slot) in (0u32..).zip(self.slots) {
            if !slot.is_used() || !gone(slot) {
                continue;
            }
            let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
            if self.reserve(place) {
                slot.clear();
                slot.next_freed
                    .store(self.head.places.freed.swap(place + 1, Relaxed), Relaxed);
                slot.key.store(0, Release);
            }
        }
    }
}
