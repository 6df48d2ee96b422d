//! Learning from an outcome: what one report does to the targets of its call. Both hosts report through here.

use crate::breaker::{Lease, Report, Transition};
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

/// What a report caused.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[must_use]
pub struct Settled {
    /// The version's breaker moved.
    pub transition: Option<Transition>,
    /// The instance has become suspect: the extension's instances must be judged anew.
    pub suspect: bool,
}

/// Settles the call behind a ticket. A lapsed call counts in the statistics; it moves no breaker and makes nobody suspect.
pub fn settle(
    version: &Target,
    instance: Option<&Target>,
    taken: &Taken,
    result: Result,
    now_us: u64,
    random: u64,
) -> Settled {
    if !taken.lapsed {
        release(version, instance);
    }
    count(version, instance, result, now_us);
    if taken.lapsed {
        return Settled::default();
    }
    let admitted = (Some(taken.call.generation), taken.call.lease);
    learn(
        version,
        instance,
        admitted,
        taken.call.started_us,
        result,
        now_us,
        random,
    )
}

/// Takes in an outcome that came without a ticket.
pub fn settle_unticketed(
    version: &Target,
    instance: Option<&Target>,
    result: Result,
    now_us: u64,
    random: u64,
) -> Settled {
    count(version, instance, result, now_us);
    learn(version, instance, (None, None), now_us, result, now_us, random)
}

/// Moves the version's breaker and the instance's row of failures.
fn learn(
    version: &Target,
    instance: Option<&Target>,
    (generation, lease): (Option<u32>, Option<Lease>),
    began_us: u64,
    result: Result,
    now_us: u64,
    random: u64,
) -> Settled {
    let settings = version.settings.load();
    let verdict = result.outcome.verdict();
    let report = Report {
        verdict,
        slow: verdict == Verdict::Success && settings.is_slow(result.latency_us),
        generation,
        lease,
    };
    Settled {
        transition: version.breaker.report(&settings, report, now_us, random),
        suspect: instance.is_some_and(|instance| instance.ejection.note(result.outcome, began_us)),
    }
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
