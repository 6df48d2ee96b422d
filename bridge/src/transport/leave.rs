//! Leaving a queue group without losing what the server has already sent.
//!
//! The client's own drain forgets a subscription as soon as it has written UNSUB; what the server had sent until it read that
//! is lost. So a subscription with traffic is left by a number: `UNSUB <sid> <max>` ends it after so many messages, on both
//! sides at the same one. The number is what has come and a bit more than can be on its way; what comes meanwhile is served. It is
//! said once: said again and again it would run ahead of a steady load for ever.

use futures_util::FutureExt;

use super::{Channel, Transport};

/// A step is taken so often, in microseconds: longer than a message is on its way.
const STEP_US: u64 = 25_000;
/// Where nothing has come for so long, nothing is on its way, in microseconds.
const QUIET_US: u64 = 250_000;
/// So many more than came in the last step may come before the end.
const MORE: u64 = 16;

/// How far a subscription is with leaving.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// How many messages had come at the last step.
    seen: u64,
    /// When the last one was seen.
    quiet_us: u64,
    /// The number has been told.
    told: bool,
    /// It is over.
    left: bool,
}

impl Transport {
    /// One step of leaving everything but the inbox; to be called again until it is true. Does not wait.
    pub fn leave(&mut self, now_us: u64) -> bool {
        if !self.connected() {
            return true;
        }
        let first = self.leave_us == 0;
        // Behind a backlog it is not known how many have come.
        if self.backlog || (!first && now_us < self.leave_us) {
            return self.has_left();
        }
        self.leave_us = now_us + STEP_US;
        for subscription in &mut self.subscriptions {
            let (leaving, taken) = (&mut subscription.leaving, subscription.taken);
            if subscription.channel == Channel::Reply || leaving.left {
                continue;
            }
            let counted = matches!(subscription.channel, Channel::Invoke | Channel::Route);
            if counted && first {
                (leaving.seen, leaving.quiet_us) = (taken, now_us);
                continue;
            }
            let came = taken - leaving.seen;
            leaving.seen = taken;
            if came > 0 {
                leaving.quiet_us = now_us;
            }
            if subscription.ended {
                leaving.left = true;
            } else if !counted || now_us.saturating_sub(leaving.quiet_us) >= QUIET_US {
                // With a full queue the next step tries again.
                leaving.left = subscription.subscriber.drain().now_or_never().is_some();
            } else if !leaving.told {
                let told = subscription.subscriber.unsubscribe_after(taken + came + MORE);
                leaving.told = told.now_or_never().is_some();
            }
        }
        self.has_left()
    }

    fn has_left(&self) -> bool {
        self.subscriptions
            .iter()
            .all(|subscription| subscription.channel == Channel::Reply || subscription.leaving.left)
    }
}
