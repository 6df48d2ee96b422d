//! Who decides, and who is told when that changes.

use std::sync::atomic::Ordering;

use super::super::fallback::Decides;
use super::EventLoop;

/// Changes of the source are logged at once, this many in a row and one more after each such time, in microseconds; those
/// beyond when they have lasted.
const QUIET_US: u64 = 5_000_000;
const CHANGES: u64 = 6;

impl EventLoop {
    /// Notes who decides from now on; says so where it is somebody else.
    pub(super) fn decided_by(&mut self, decides: Decides, now: u64) {
        let before = std::mem::replace(&mut self.decides, decides);
        if decides == before {
            return;
        }
        self.state.decides.store(decides as u8, Ordering::Relaxed);
        if before != Decides::Nobody {
            self.metrics.source.with_label_values(&[before.as_str()]).dec();
        }
        if decides != Decides::Nobody {
            self.metrics.source.with_label_values(&[decides.as_str()]).inc();
        }
        self.changed_us = now;
        if self.quiet_us < now + CHANGES * QUIET_US {
            self.tell_who_decides(now);
        }
    }

    /// Says who decides now.
    pub(super) fn tell_who_decides(&mut self, now: u64) {
        let was = std::mem::replace(&mut self.told, self.decides).as_str();
        self.quiet_us = self.quiet_us.max(now) + QUIET_US;
        let (source, event_loop) = (self.decides.as_str(), self.label.as_str());
        match self.decides {
            Decides::Database => tracing::info!(source, was, event_loop, "Postgres decides"),
            Decides::Fixtures if self.links.is_none() => tracing::info!(source, event_loop, "the fixtures decide"),
            Decides::Image => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Postgres does not answer: the last known good image decides"
                );
            }
            Decides::Fixtures => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Database unavailable, falling back to fixtures"
                );
            }
            Decides::Nobody => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Postgres does not answer, and nothing else may decide"
                );
            }
        }
    }
}
