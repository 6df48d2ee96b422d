//! Live state in shared memory.
//!
//! One block, made at server start and sized by two settings: a head, a ring of breaker transitions, a table of targets, and the table of calls
//! under way. Everything in it is atomics, and all zero bytes are a valid start, so a reference into it is sound in every process.
//!
//! **Targets.** A target is found by its key, a hash of (database, registry, extension uid, kind, name); the extension's uid survives a rename and is new
//! for an id that was deleted and created again. Places are given out and freed under one lock ([`claim`], [`release_if`]); whoever uses a place
//! *pins* it by counting itself as a call under way and then checks the key ([`Table::pin`]), and a place with a pin is never given to another
//! target. Sessions remember places, so a call looks nothing up.
//!
//! **Locks.** `claim` guards the giving out of places. `apply` is held shared while a batch of reports is applied and exclusively while the
//! worker copies counts, so that a batch number and its counts are written down together. Nothing fallible runs under either.

use std::cell::UnsafeCell;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

use ext_registry_core::breaker::{State, Transition};
use ext_registry_core::target::Target;
use ext_registry_core::tickets::{Entry, Table as Tickets};
use pgrx::pg_sys;
use xxhash_rust::xxh3::Xxh3;

use crate::{clock, guc};

/// Databases that can have the extension at once.
pub const DATABASES: usize = 256;
/// Bridges whose batch numbers are remembered, in all databases together.
pub const REPORTERS: usize = 256;
/// Transitions that wait for the worker.
pub const EVENTS: usize = 4096;
/// Places looked at before the table counts as full around a key.
const REACH: usize = 2048;

/// Kind of a target: a version.
pub const VERSION: u32 = 1;
/// Kind of a target: an instance.
pub const INSTANCE: u32 = 2;

/// A key that is being given out or freed.
const RESERVED: u64 = 1;

/// What is there once.
#[repr(C, align(64))]
pub struct Head {
    /// Tells tickets of this life of the memory from others.
    pub boot: AtomicU64,
    /// Registry time minus the monotonic clock.
    pub anchor_us: AtomicU64,
    /// The launcher's latch.
    pub launcher: AtomicPtr<pg_sys::Latch>,
    /// Reports that found nothing behind their ticket.
    pub stale_reports: AtomicU64,
    /// Decisions for targets without a place.
    pub untracked: AtomicU64,
    /// Decisions without a ticket because the table of calls was full.
    pub ticketless: AtomicU64,
    /// Transitions the worker never saw.
    pub lost_events: AtomicU64,
    /// Places in use.
    pub targets_used: AtomicU32,
    /// When a full table was last warned of, registry time.
    pub warned_us: AtomicU64,
    /// Until when a full table is not looked through again, registry time.
    full_until_us: AtomicU64,
    /// Number of the next transition.
    event_next: AtomicU64,
    /// Databases with the extension.
    pub databases: [Database; DATABASES],
    /// Bridges.
    pub reporters: [Reporter; REPORTERS],
}

/// A database that has, or may have, the extension.
#[repr(C)]
pub struct Database {
    /// Its oid; 0 = free.
    pub oid: AtomicU32,
    /// Its worker's process id; 0 = none.
    pub worker_pid: AtomicI32,
    /// Its worker's latch.
    pub latch: AtomicPtr<pg_sys::Latch>,
    /// When the worker last wrote everything down, registry time.
    pub flushed_us: AtomicU64,
    /// When a worker was last asked for, registry time.
    pub asked_us: AtomicU64,
    /// Sessions in it that may still report.
    pub sessions: AtomicU32,
    /// Whether a command wants it for itself: its worker ends without waiting for sessions.
    pub give_way: AtomicBool,
    /// Whether a session announced it, rather than the launcher on its round.
    pub announced: AtomicBool,
    /// Whether it, or the extension in it, is gone: it keeps this entry until the last of its places is free.
    pub gone: AtomicBool,
    /// The first transition its worker has not written down.
    pub event_cursor: AtomicU64,
}

/// The batches of one bridge.
#[repr(C)]
pub struct Reporter {
    /// Hash of (database, reporter); 0 = free.
    pub key: AtomicU64,
    /// The reporter's uuid.
    pub uuid: [AtomicU64; 2],
    /// The database.
    pub database: AtomicU32,
    /// The last batch applied.
    pub applied: AtomicU64,
    /// The last batch written down.
    pub flushed: AtomicU64,
    /// When it last reported, registry time.
    pub seen_us: AtomicU64,
}

/// A transition on its way to the worker.
#[repr(C)]
pub struct Event {
    /// Its number plus one, stored last; anything else is being written.
    ready: AtomicU64,
    place: AtomicU32,
    key: AtomicU64,
    at_us: AtomicU64,
    /// from, to and reason, a byte each.
    what: AtomicU32,
    failures: AtomicU64,
    requests: AtomicU64,
}

/// A transition as the worker reads it.
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
    /// What the window held.
    pub failures: u64,
    pub requests: u64,
}

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

/// The block, as every process sees it.
#[derive(Clone, Copy)]
pub struct Shared {
    pub head: &'static Head,
    events: &'static [Event],
    /// The keys of the slots once more, side by side: looking for a key touches few cache lines.
    keys: &'static [AtomicU64],
    pub slots: &'static [Slot],
    entries: &'static [Entry],
    locks: [*mut pg_sys::LWLock; 2],
}

struct SharedCell(UnsafeCell<Option<Shared>>);
// SAFETY: Postgres processes have one thread; written once at start-up before any reader.
unsafe impl Sync for SharedCell {}
static SHARED: SharedCell = SharedCell(UnsafeCell::new(None));

/// The block. Exists in every process of a server that preloaded the library, and nothing of the library runs in another.
pub fn get() -> Shared {
    // SAFETY: see SharedCell.
    match unsafe { *SHARED.0.get() } {
        Some(shared) => shared,
        None => crate::errors::raise(
            crate::errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "ext_registry has no shared memory",
            "Add ext_registry to shared_preload_libraries in postgresql.conf and restart Postgres.",
        ),
    }
}

/// Bytes for these capacities: documented in docs/tuning.md.
pub fn size(targets: usize, entries: usize) -> usize {
    size_of::<Head>()
        + EVENTS * size_of::<Event>()
        + targets * (size_of::<Slot>() + size_of::<AtomicU64>())
        + entries * size_of::<Entry>()
        + 256
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

fn capacities() -> (usize, usize) {
    (guc::MAX_TARGETS.get() as usize, guc::MAX_IN_FLIGHT.get() as usize)
}

/// Asks for the memory at the moment Postgres wants to be asked.
pub fn install_hooks() {
    // SAFETY: in _PG_init, in the postmaster's only thread.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster while it sums up shared memory.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let (targets, entries) = capacities();
        pg_sys::RequestAddinShmemSpace(size(targets, entries));
        pg_sys::RequestNamedLWLockTranche(c"ext_registry".as_ptr(), 2);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called once per life of shared memory by the postmaster (with EXEC_BACKEND by each process); AddinShmemInitLock
    // (number 21 of the main array in every supported release) serialises as ShmemInitStruct asks for.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let (targets, entries) = capacities();
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(21)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        let total = size(targets, entries);
        let start = pg_sys::ShmemInitStruct(c"ext_registry".as_ptr(), total, &mut found).cast::<u8>();
        if !found {
            start.write_bytes(0, total);
        }
        let mut at = start.add(start.align_offset(64));
        let mut take = |bytes: usize| {
            let here = at;
            at = at.add(bytes.next_multiple_of(64));
            here
        };
        let head = &*take(size_of::<Head>()).cast::<Head>();
        let events = std::slice::from_raw_parts(take(EVENTS * size_of::<Event>()).cast(), EVENTS);
        let keys = std::slice::from_raw_parts(take(targets * size_of::<AtomicU64>()).cast(), targets);
        let slots = std::slice::from_raw_parts(take(targets * size_of::<Slot>()).cast(), targets);
        let entries = std::slice::from_raw_parts(take(entries * size_of::<Entry>()).cast(), entries);
        if !found {
            head.anchor_us.store(clock::new_anchor_us(), Relaxed);
            // Two starts within a millisecond are not to be had; the tickets of the last 32768 starts differ.
            head.boot.store(clock::wall_us() / 1000, Relaxed);
        }
        clock::set_anchor(head.anchor_us.load(Relaxed));
        let tranche = pg_sys::GetNamedLWLockTranche(c"ext_registry".as_ptr());
        let locks = [&raw mut (*tranche).lock, &raw mut (*tranche.add(1)).lock];
        *SHARED.0.get() = Some(Shared {
            head,
            events,
            keys,
            slots,
            entries,
            locks,
        });
        pg_sys::LWLockRelease(lock);
    }
}

/// Holds one of the locks.
struct Held(*mut pg_sys::LWLock);

impl Held {
    fn new(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> Self {
        // SAFETY: a lock of our own tranche. Nothing fallible runs until it is released.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Self(lock)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: taken in `new` by this process.
        unsafe { pg_sys::LWLockRelease(self.0) };
    }
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
    /// The calls under way.
    pub fn tickets(&self) -> Tickets<'static> {
        Tickets::new(self.entries, self.head.boot.load(Relaxed))
    }

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
        self.reach(key)
            .find(|place| self.keys[*place as usize].load(Acquire) == key)
    }

    /// The places a key may have: the whole table, beginning where its hash points.
    fn reach(&self, key: u64) -> impl Iterator<Item = u32> + use<> {
        let n = self.slots.len();
        let start = ((u128::from(key) * n as u128) >> 64) as usize;
        (0..REACH.min(n)).map(move |step| ((start + step) % n) as u32)
    }

    /// Gives a target a place. `restore` puts back what was written down of it; it runs under a lock and must not call Postgres.
    /// `None`: every place it could have is taken by a target that is in use or not closed.
    pub fn claim(&self, identity: Identity<'_>, restore: impl FnOnce(&Target)) -> Option<u32> {
        let key = identity.key();
        let now_us = clock::now_us();
        let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
        if let Some(place) = self.find(key) {
            return Some(place);
        }
        let free = self
            .reach(key)
            .find(|place| self.keys[*place as usize].load(Relaxed) == 0);
        let place = match free {
            Some(place) => place,
            // A full table is looked through once a second at most, whoever asks.
            None if now_us < self.head.full_until_us.load(Relaxed) => return None,
            None => match self.reach(key).find(|place| self.evict(*place, now_us)) {
                Some(place) => place,
                None => {
                    self.head.full_until_us.store(now_us + 1_000_000, Relaxed);
                    return None;
                }
            },
        };
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
        self.keys[place as usize].store(key, Release);
        self.head.targets_used.fetch_add(1, Relaxed);
        Some(place)
    }

    /// Takes a place from a target that is closed, idle and written down. Leaves it reserved.
    fn evict(&self, place: u32, now_us: u64) -> bool {
        let slot = &self.slots[place as usize];
        let seen_us = slot.target.updated_us().unwrap_or(0);
        let flushed_us = self
            .database(slot.database())
            .map_or(0, |database| database.flushed_us.load(Relaxed));
        let dispensable = slot.target.breaker.state() == State::Closed
            && slot.touched_us() + 10_000_000 < now_us
            && (seen_us == 0 || seen_us < flushed_us);
        dispensable && self.reserve(slot)
    }

    /// Takes the key from a place unless somebody has it pinned.
    fn reserve(&self, slot: &Slot) -> bool {
        let key = slot.key();
        if key <= RESERVED || slot.key.compare_exchange(key, RESERVED, SeqCst, Relaxed).is_err() {
            return false;
        }
        if slot.target.in_flight() == 0 {
            self.head.targets_used.fetch_sub(1, Relaxed);
            return true;
        }
        slot.key.store(key, SeqCst);
        false
    }

    /// Frees the places of targets that are gone.
    pub fn release_if(&self, gone: impl Fn(&Slot) -> bool) {
        for (slot, key) in self
            .slots
            .iter()
            .zip(self.keys)
            .filter(|(slot, _)| slot.is_used() && gone(slot))
        {
            let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
            if self.reserve(slot) {
                slot.clear();
                slot.key.store(0, Release);
                key.store(0, Release);
            }
        }
    }

    /// Applies a batch of reports: not while the worker copies counts.
    pub fn applying<T>(&self, apply: impl FnOnce() -> T) -> T {
        let _held = Held::new(self.locks[1], pg_sys::LWLockMode::LW_SHARED);
        apply()
    }

    /// Copies counts: not while a batch is applied.
    pub fn copying<T>(&self, copy: impl FnOnce() -> T) -> T {
        let _held = Held::new(self.locks[1], pg_sys::LWLockMode::LW_EXCLUSIVE);
        copy()
    }

    /// A database that has announced itself.
    pub fn database(&self, oid: u32) -> Option<&'static Database> {
        self.head
            .databases
            .iter()
            .find(|database| database.oid.load(Relaxed) == oid)
    }

    /// Announces a database, so that the launcher gives it a worker. `None` if there are too many.
    pub fn announce(&self, oid: u32, by_session: bool) -> Option<&'static Database> {
        if let Some(database) = self.database(oid) {
            if by_session && (database.gone.load(Relaxed) || !database.announced.load(Relaxed)) {
                database.gone.store(false, Relaxed);
                database.announced.store(true, Relaxed);
                set_latch(&self.head.launcher);
            }
            return Some(database);
        }
        let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
        let known = self.database(oid).or_else(|| {
            let free = self
                .head
                .databases
                .iter()
                .find(|database| database.oid.load(Relaxed) == 0)?;
            free.event_cursor.store(self.head.event_next.load(Acquire), Relaxed);
            free.flushed_us.store(0, Relaxed);
            free.asked_us.store(0, Relaxed);
            free.announced.store(by_session, Relaxed);
            free.gone.store(false, Relaxed);
            free.give_way.store(false, Relaxed);
            free.sessions.store(0, Relaxed);
            free.oid.store(oid, Release);
            Some(free)
        });
        set_latch(&self.head.launcher);
        known
    }

    /// The batches of a bridge in a database, if it is known.
    pub fn reporter(&self, database: u32, uuid: [u64; 2]) -> Option<&'static Reporter> {
        let key = reporter_key(database, uuid);
        self.head
            .reporters
            .iter()
            .find(|reporter| reporter.key.load(Acquire) == key)
    }

    /// Makes a bridge known whose last batch written down is `seq`. Where there are too many, the one silent for longest gives way.
    pub fn enlist_reporter(&self, database: u32, uuid: [u64; 2], seq: u64, now_us: u64) -> &'static Reporter {
        let key = reporter_key(database, uuid);
        let find = || {
            self.head
                .reporters
                .iter()
                .find(|reporter| reporter.key.load(Acquire) == key)
        };
        let reporter = find().unwrap_or_else(|| {
            let _held = Held::new(self.locks[0], pg_sys::LWLockMode::LW_EXCLUSIVE);
            find().unwrap_or_else(|| {
                let oldest = self
                    .head
                    .reporters
                    .iter()
                    .min_by_key(|reporter| reporter.seen_us.load(Relaxed));
                let place = oldest.unwrap_or(&self.head.reporters[0]);
                place.key.store(0, Release);
                place.applied.store(seq, Relaxed);
                place.flushed.store(seq, Relaxed);
                place.uuid[0].store(uuid[0], Relaxed);
                place.uuid[1].store(uuid[1], Relaxed);
                place.database.store(database, Relaxed);
                place.seen_us.store(now_us, Relaxed);
                place.key.store(key, Release);
                place
            })
        });
        reporter.seen_us.store(now_us, Relaxed);
        reporter
    }

    /// Tells the worker of a transition, and wakes it.
    pub fn push_event(&self, place: u32, at_us: u64, transition: &Transition) {
        let slot = &self.slots[place as usize];
        let number = self.head.event_next.fetch_add(1, AcqRel);
        let event = &self.events[number as usize % EVENTS];
        event.ready.store(0, Release);
        event.place.store(place, Relaxed);
        event.key.store(slot.key(), Relaxed);
        event.at_us.store(at_us, Relaxed);
        let what = u32::from(state_code(transition.from)) << 16
            | u32::from(state_code(transition.to)) << 8
            | u32::from(transition.reason as u8);
        event.what.store(what, Relaxed);
        event.failures.store(transition.tally.failures, Relaxed);
        event.requests.store(transition.tally.requests(), Relaxed);
        event.ready.store(number + 1, Release);
        self.wake_worker(slot.database());
    }

    /// The transitions from `cursor` on, which is moved behind them. Those overwritten before they were read are counted as lost.
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
            read.push(Moved {
                place: event.place.load(Relaxed),
                key: event.key.load(Relaxed),
                at_us: event.at_us.load(Relaxed),
                from: state_name((what >> 16) as u8),
                to: state_name((what >> 8) as u8),
                reason: ext_registry_core::breaker::Reason::from_code(what as u8)
                    .map_or("unknown", |reason| reason.as_str()),
                failures: event.failures.load(Relaxed),
                requests: event.requests.load(Relaxed),
            });
            *cursor += 1;
        }
        read
    }

    /// Wakes the worker of a database.
    pub fn wake_worker(&self, oid: u32) {
        if let Some(database) = self.database(oid) {
            set_latch(&database.latch);
        }
    }
}

fn reporter_key(database: u32, uuid: [u64; 2]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&database.to_le_bytes());
    hasher.update(&uuid[0].to_le_bytes());
    hasher.update(&uuid[1].to_le_bytes());
    hasher.digest().max(1)
}

fn state_code(state: State) -> u8 {
    match state {
        State::Closed => 0,
        State::Open => 1,
        State::HalfOpen => 2,
    }
}

fn state_name(code: u8) -> &'static str {
    match code {
        0 => State::Closed.as_str(),
        1 => State::Open.as_str(),
        _ => State::HalfOpen.as_str(),
    }
}

fn set_latch(latch: &AtomicPtr<pg_sys::Latch>) {
    let latch = latch.load(Acquire);
    if !latch.is_null() {
        // SAFETY: the latch of a PGPROC: in shared memory, at the same address in all processes, never unmapped. If its process is
        // gone, whoever has the PGPROC now wakes once for nothing.
        unsafe { pg_sys::SetLatch(latch) };
    }
}
