//! Registry time: microseconds since the Unix epoch that never step.
//!
//! It is the monotonic clock plus an offset fixed when shared memory was made, so that stepping the wall clock moves no breaker and no window.
//! What people see is corrected by how far the wall clock has moved since: see [`to_wall_us`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct it is given; the clocks named here always exist on Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// The wall clock, in microseconds since the Unix epoch.
pub fn wall_us() -> u64 {
    read(libc::CLOCK_REALTIME)
}

fn monotonic_us() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Registry time minus the monotonic clock: the same in every process, kept in shared memory and handed down by fork.
static ANCHOR_US: AtomicU64 = AtomicU64::new(0);

/// The difference between the two clocks now: the anchor of registry time where there is none yet.
pub fn new_anchor_us() -> u64 {
    wall_us() - monotonic_us()
}

/// Sets the anchor of this process and of those it forks.
pub fn set_anchor(anchor_us: u64) {
    ANCHOR_US.store(anchor_us, Relaxed);
}

/// Registry time, to the millisecond or so: reading the coarse clock costs 4 ns, the exact one 32.
pub fn now_us() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE) + ANCHOR_US.load(Relaxed)
}

/// How far the wall clock may be from registry time before what people see is corrected: below it lies the jitter of reading two clocks, and
/// the slewing of NTP.
const TOLERANCE_US: i64 = 250_000;

/// A registry time as the wall clock of now would have shown it.
pub fn to_wall_us(registry_us: u64) -> u64 {
    let drift = wall_us() as i64 - (monotonic_us() + ANCHOR_US.load(Relaxed)) as i64;
    if drift.abs() < TOLERANCE_US {
        registry_us
    } else {
        registry_us.saturating_add_signed(drift / 1000 * 1000)
    }
}

/// The wall time at which a minute of registry time began, to the nearest whole minute: the key of its metrics.
pub fn wall_minute_us(minute: u64) -> u64 {
    (to_wall_us(minute * 60_000_000) + 30_000_000) / 60_000_000 * 60_000_000
}

/// Microseconds between the Unix epoch and that of Postgres, 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A wall time as `timestamptz` counts it.
pub fn to_timestamp(wall_us: u64) -> i64 {
    wall_us as i64 - POSTGRES_EPOCH_US
}
