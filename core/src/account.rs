//! Learning from an outcome: what one report does to the targets of its call. Both hosts report through here.

use crate::breaker::{Report, Transition};
use crate::outcome::{Outcome, Verdict};
use crate::target::Target;
use crate::tickets::Taken;

/// What a report says.
#[derive(Debug, Clone, Copy)]
pub struct Result {
    /// How the attempt ended.
    pub outcome: Outcome,
    /// How long it took (the time waited, for a timeout), in microseconds.
    pub latency_us: u64,
    /// Retries of the whole call; 0 but on its last report.
    pub retries: u32,
}

/// Settles the call behind a ticket. A lapsed call counts in the statistics and moves no breaker.
pub fn settle(
    version: &Target,
    instance: Option<&Target>,
    taken: &Taken,
    result: Result,
    now_us: u64,
    random: u64,
) -> Option<Transition> {
    if !taken.lapsed {
        release(version, instance);
    }
    count(version, instance, result, now_us);
    if taken.lapsed {
        return None;
    }
    let settings = version.settings.load();
    let report = Report {
        verdict: result.outcome.verdict(),
        slow: result.outcome.verdict() == Verdict::Success && settings.is_slow(result.latency_us),
        generation: Some(taken.call.generation),
        lease: taken.call.lease,
    };
    version.breaker.report(&settings, report, now_us, random)
}

/// Takes in an outcome that came without a ticket.
pub fn settle_unticketed(
    version: &Target,
    instance: Option<&Target>,
    result: Result,
    now_us: u64,
    random: u64,
) -> Option<Transition> {
    count(version, instance, result, now_us);
    let settings = version.settings.load();
    let report = Report {
        verdict: result.outcome.verdict(),
        slow: result.outcome.verdict() == Verdict::Success && settings.is_slow(result.latency_us),
        generation: None,
        lease: None,
    };
    version.breaker.report(&settings, report, now_us, random)
}

/// The call is no longer under way.
pub fn release(version: &Target, instance: Option<&Target>) {
    version.end();
    if let Some(instance) = instance {
        instance.end();
    }
}

fn count(version: &Target, instance: Option<&Target>, result: Result, now_us: u64) {
    for target in [Some(version), instance].into_iter().flatten() {
        target.record(result.outcome, result.latency_us, result.retries, now_us);
    }
}
