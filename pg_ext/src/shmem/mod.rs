//! Live state in shared memory.
//!
//! One block, made at server start and sized by two settings: a head, the [`events`] that wait for the worker, the table of [`targets`], and the
//! table of calls under way; in the head the [`databases`]. Everything in it is atomics, and all zero bytes are a valid start, so a reference
//! into it is sound in every process.
//!
//! **Suspicions.** Per extension (by a hash of its uid) a count of what may have changed the fitness of its instances. Sessions keep what they
//! worked out until it moves. Its lowest bit is a lock: who holds it judges the extension's instances, see [`Shared::judging`].
//!
//! **Locks.** `claim` guards the giving out of places. `apply` is held shared while a batch of reports is applied and exclusively while the
//! worker copies counts, so that a batch number and its counts are written down together. Nothing fallible runs under either.

use std::cell::UnsafeCell;
use std::sync::atomic::{
    AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use ext_registry_core::tickets::{Entry, Table as Tickets};
use pgrx::pg_sys;

pub use databases::{Database, Reporter};
pub use events::{EVENTS, Moved};
pub use targets::{INSTANCE, Identity, Slot, VERSION};

use crate::{clock, guc};

mod databases;
mod events;
mod targets;

/// Databases that can have the extension at once.
pub const DATABASES: usize = 256;
/// Bridges whose batch numbers are remembered, in all databases together.
pub const REPORTERS: usize = 256;
/// Counts of suspicions; extensions share one by chance.
const SUSPICIONS: usize = 1024;

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
    /// When a full table was last warned of, registry time.
    pub warned_us: AtomicU64,
    /// Places for targets.
    pub places: targets::Places,
    /// Number of the next transition.
    event_next: AtomicU64,
    /// Databases with the extension.
    pub databases: [Database; DATABASES],
    /// Bridges.
    pub reporters: [Reporter; REPORTERS],
    /// See the head of this module.
    suspicions: [AtomicU64; SUSPICIONS],
}

/// The block, as every process sees it.
#[derive(Clone, Copy)]
pub struct Shared {
    pub head: &'static Head,
    events: &'static [events::Event],
    /// From keys to slots.
    index: &'static [AtomicU32],
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
        + EVENTS * size_of::<events::Event>()
        + targets::index_size(targets) * size_of::<AtomicU32>()
        + targets * size_of::<Slot>()
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
        let events = std::slice::from_raw_parts(take(EVENTS * size_of::<events::Event>()).cast(), EVENTS);
        let index = targets::index_size(targets);
        let index = std::slice::from_raw_parts(take(index * size_of::<AtomicU32>()).cast(), index);
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
            index,
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

impl Shared {
    /// The calls under way.
    pub fn tickets(&self) -> Tickets<'static> {
        Tickets::new(self.entries, self.head.boot.load(Relaxed))
    }

    fn suspicions(&self, uid: u64) -> &'static AtomicU64 {
        &self.head.suspicions[uid as usize % SUSPICIONS]
    }

    /// The count of an extension's suspicions.
    pub fn suspicion_count(&self, uid: u64) -> u64 {
        self.suspicions(uid).load(Acquire) & !1
    }

    /// An instance of the extension has become suspect: every session judges anew.
    pub fn suspect(&self, uid: u64) {
        self.suspicions(uid).fetch_add(2, AcqRel);
    }

    /// The right to judge an extension's instances; `None` while somebody else does. Nothing fallible may run until it is dropped.
    pub fn judging(&self, uid: u64) -> Option<Judging> {
        let word = self.suspicions(uid);
        let seen = word.load(Acquire) & !1;
        word.compare_exchange(seen, seen | 1, AcqRel, Relaxed).ok()?;
        Some(Judging {
            word,
            count: seen,
            moved: false,
        })
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
}

/// See [`Shared::judging`].
pub struct Judging {
    word: &'static AtomicU64,
    count: u64,
    /// Whether somebody was ejected or came back: then all others judge anew.
    pub moved: bool,
}

impl Judging {
    /// Ends it. Returns the count at which what was worked out holds.
    pub fn finish(self) -> u64 {
        self.count + 2 * u64::from(self.moved)
    }
}

impl Drop for Judging {
    fn drop(&mut self) {
        if self.moved {
            self.word.fetch_add(1, AcqRel);
        } else {
            self.word.fetch_sub(1, AcqRel);
        }
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
