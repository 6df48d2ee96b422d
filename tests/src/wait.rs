//! Waiting for conditions, never for a fixed time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Blocks until `condition` holds.
///
/// # Panics
/// When it does not within `deadline`; `what` says what was waited for.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}");
        std::thread::sleep(POLL);
    }
}

/// Asks `probe` until it says `Ok`, and returns that. `Err` is what is still amiss.
///
/// # Panics
/// When that does not happen within `deadline`, with the last `Err`.
pub async fn eventually<T, E: Debug>(deadline: Duration, mut probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(amiss) => assert!(start.elapsed() < deadline, "not within {deadline:?}: {amiss:?}"),
        }
        tokio::time::sleep(POLL).await;
    }
}
