//! The decision: (extension, context, live state, now) -> which version, which instance, or why not.
//!
//! One function serves calls, explanations and previews: a [`Witness`] that only watches makes it list every candidate and leaves no trace.
//! What is live comes through [`Live`], so that the host says where it lies.

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use crate::breaker::{Admission, Lease, Mode, Settings, State, Transition};
use crate::compile::{Compiled, Version};
use crate::context::{Context, Value};
use crate::fitness::{Effects, Fitness};
use crate::rendezvous;
use crate::target::{Target, Turn};

mod instance;

/// Where the live state of an extension's targets is. `None`: there is no place for it; the target then has no breaker and no statistics.
pub trait Live {
    /// The version at this place of [`Compiled::targets`].
    fn version(&self, target: usize) -> Option<&Target>;
    /// The instance at this place of [`Compiled::instances`].
    fn instance(&self, place: usize) -> Option<&Target>;
    /// Where the extension's instances stand; `None` while all of them are fit.
    fn fitness(&self, now_us: u64, random: u64, effects: Effects) -> Option<Rc<Fitness>>;
    /// What a version's breaker would say to a decision without effects.
    fn peek(&self, _target: usize, live: &Target, settings: &Settings, now_us: u64) -> Admission {
        live.breaker.peek(settings, now_us)
    }
    /// The turn that a decision without effects goes by.
    fn peek_turn(&self, _target: usize, live: &Target, which: Turn) -> u64 {
        live.next_turn(which)
    }
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a, C: ?Sized> {
    /// The facts of the request.
    pub context: &'a C,
    /// Instances already tried: not chosen while another is eligible.
    pub avoid: &'a [&'a str],
    /// Microseconds since the Unix epoch.
    pub now_us: u64,
    /// A random word.
    pub random: u64,
}

/// Why the answer is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Refused: no such extension.
    ExtensionNotFound,
    /// Refused: it is disabled.
    ExtensionDisabled,
    /// Refused: the tenant is not on its list.
    TenantNotAllowed,
    /// Refused: no version serves this request.
    NoVersion,
    /// Refused: the breakers of all versions that serve it do not let it pass.
    ExtensionCircuitOpen,
    /// Allowed, to find out whether the version has recovered.
    Probe,
    /// Allowed, although no instance is eligible.
    Panic,
    /// Allowed, by the version's own subject: none of its instances may be used.
    NoInstances,
    /// Allowed, by another version than the best match, whose breaker refused.
    FallbackVersion,
    /// Allowed.
    Ok,
}

impl Reason {
    /// The name used in SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExtensionNotFound => "extension_not_found",
            Self::ExtensionDisabled => "extension_disabled",
            Self::TenantNotAllowed => "tenant_not_allowed",
            Self::NoVersion => "no_version",
            Self::ExtensionCircuitOpen => "extension_circuit_open",
            Self::Probe => "probe",
            Self::Panic => "panic",
            Self::NoInstances => "no_instances",
            Self::FallbackVersion => "fallback_version",
            Self::Ok => "ok",
        }
    }

    /// Whether the call may be sent.
    pub const fn is_allowed(self) -> bool {
        matches!(
            self,
            Self::Probe | Self::Panic | Self::NoInstances | Self::FallbackVersion | Self::Ok
        )
    }
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// The version: the one that serves, or the best match where its breaker refused. A place in [`Compiled::versions`].
    pub version: Option<usize>,
    /// The instance, if the version has any. A place in [`Compiled::instances`].
    pub instance: Option<usize>,
    /// When it is worth asking again, in milliseconds (at least 1); only for [`Reason::ExtensionCircuitOpen`].
    pub retry_after_ms: Option<u32>,
    /// The generation of the version's breaker to report with.
    pub generation: u32,
    /// The lease of a probe.
    pub lease: Option<Lease>,
    /// A breaker that became half-open by this decision, as a place in [`Compiled::targets`].
    pub transition: Option<(usize, Transition)>,
}

impl Decision {
    /// A refusal without a version.
    pub const fn refused(reason: Reason) -> Self {
        Self {
            reason,
            version: None,
            instance: None,
            retry_after_ms: None,
            generation: 0,
            lease: None,
            transition: None,
        }
    }
}

/// One line of an explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `lookup`, `tenant`, `version`, `instance` or `decision`.
    pub stage: &'static str,
    /// What was looked at.
    pub candidate: String,
    /// `chosen`, `skipped`, `refused`, `passed`, `not reached`.
    pub verdict: &'static str,
    /// Why.
    pub detail: String,
}

/// Who asks.
pub trait Witness {
    /// Whether it wants to see every candidate, also those behind the one that is chosen.
    const WATCHES: bool;
    /// Whether the decision is meant. If not it has no effects: no probe, no turn, no ejection.
    const EFFECTS: bool;
    /// Takes one finding.
    fn see(&mut self, finding: impl FnOnce() -> Finding);
}

/// A call that will be sent: effects, and no explanation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller;

impl Witness for Caller {
    const WATCHES: bool = false;
    const EFFECTS: bool = true;
    fn see(&mut self, _finding: impl FnOnce() -> Finding) {}
}

/// Explains, and leaves no trace.
#[derive(Debug, Clone, Default)]
pub struct Explainer(pub Vec<Finding>);

impl Witness for Explainer {
    const WATCHES: bool = true;
    const EFFECTS: bool = false;
    fn see(&mut self, finding: impl FnOnce() -> Finding) {
        self.0.push(finding());
    }
}

/// Decides.
pub fn decide<C: Context + ?Sized, L: Live, W: Witness>(
    extension: &Compiled,
    request: &Request<'_, C>,
    live: &L,
    witness: &mut W,
) -> Decision {
    if !extension.enabled {
        witness.see(|| found("lookup", &extension.id, "refused", "extensions.enabled is false"));
        return Decision::refused(Reason::ExtensionDisabled);
    }
    witness.see(|| {
        found(
            "lookup",
            &extension.id,
            "passed",
            format!("{}, enabled", extension.kind.as_str()),
        )
    });
    if let Some(refusal) = refuse_tenant(extension, request.context, witness) {
        return refusal;
    }
    let mut search = Search {
        extension,
        request,
        live,
        refused: None,
        decision: None,
    };
    search.rows(witness);
    let own = extension.own();
    if search.decision.is_none() && search.refused.is_none() {
        if extension.versions[own].enabled {
            search.attempt(own, witness);
        } else {
            witness.see(|| {
                found(
                    "version",
                    &extension.versions[own].name,
                    "skipped",
                    "its row in extension_versions is disabled",
                )
            });
        }
    } else {
        witness.see(|| {
            found(
                "version",
                &extension.versions[own].name,
                "not reached",
                "the row in extensions serves only where no version's rules match",
            )
        });
    }
    let decision = search.finish();
    witness.see(|| {
        let detail = decision
            .retry_after_ms
            .map_or_else(String::new, |ms| format!("retry after {ms} ms"));
        found(
            "decision",
            &extension.id,
            if decision.reason.is_allowed() {
                "allowed"
            } else {
                "refused"
            },
            format!("{} {detail}", decision.reason.as_str()).trim(),
        )
    });
    decision
}

fn found(stage: &'static str, candidate: &str, verdict: &'static str, detail: impl Into<String>) -> Finding {
    Finding {
        stage,
        candidate: candidate.to_owned(),
        verdict,
        detail: detail.into(),
    }
}

fn refuse_tenant<C: Context + ?Sized, W: Witness>(
    extension: &Compiled,
    context: &C,
    witness: &mut W,
) -> Option<Decision> {
    if extension.tenants == crate::model::Tenants::All {
        return None;
    }
    let tenant = match context.get("tenant_id") {
        Some(Value::Str(tenant)) => Some(tenant),
        _ => None,
    };
    let allowed = extension.tenants.allow(tenant.as_deref());
    let name = tenant.as_deref().unwrap_or("(none)");
    witness.see(|| {
        found(
            "tenant",
            name,
            if allowed { "passed" } else { "refused" },
            "metadata.allowed_tenants",
        )
    });
    (!allowed).then(|| Decision::refused(Reason::TenantNotAllowed))
}

/// The refusals met on the way.
#[derive(Debug, Clone, Copy)]
struct Refused {
    best: usize,
    retry_after_us: Option<u64>,
    transition: Option<(usize, Transition)>,
}

/// One pass over the versions.
struct Search<'a, 'r, C: ?Sized, L> {
    extension: &'a Compiled,
    request: &'r Request<'r, C>,
    live: &'a L,
    refused: Option<Refused>,
    decision: Option<Decision>,
}

impl<C: Context + ?Sized, L: Live> Search<'_, '_, C, L> {
    /// Tries the rows of `extension_versions`, level by level of equal specificity.
    fn rows<W: Witness>(&mut self, witness: &mut W) {
        let mut taken = false;
        for level in &self.extension.levels {
            if taken && !W::WATCHES {
                break;
            }
            let all = level.places.clone();
            taken |= match level.candidates(self.request.context) {
                Some(places) if !W::WATCHES => self.level(&places.iter().copied(), all, taken, witness),
                _ => self.level(&all.clone(), all, taken, witness),
            };
        }
    }

    /// Tries the versions of one level. Returns whether the request's search ends here: somebody's share took it, and it was not
    /// refused by all. A refused request goes on to the next matching version.
    ///
    /// `places` are those of `all` that may match, in order.
    fn level<W: Witness>(
        &mut self,
        places: &(impl Iterator<Item = usize> + Clone),
        all: Range<usize>,
        taken: bool,
        witness: &mut W,
    ) -> bool {
        let extension = self.extension;
        let matching = |place: &usize| {
            let version = &extension.versions[*place];
            version.enabled
                && version
                    .rules
                    .as_ref()
                    .is_ok_and(|rules| rules.matches(self.request.context))
        };
        // Nearly always one version matches, or the first has the whole share: nothing to collect then.
        let Some(first) = places.clone().find(matching) else {
            self.explain_mismatches(all, witness);
            return false;
        };
        let whole = extension.versions[first].rollout == 10_000;
        let chosen = if whole {
            Some(first)
        } else {
            self.share(places.clone().filter(matching))
        };
        let mut served = taken;
        if let Some(place) = chosen
            && !served
        {
            served = self.attempt(place, witness);
            if served && !W::WATCHES {
                return true;
            }
        }
        for place in places
            .clone()
            .filter(matching)
            .filter(|place| Some(*place) != chosen || taken)
        {
            let version = &extension.versions[place];
            if served {
                witness.see(|| {
                    found(
                        "version",
                        &version.name,
                        "not reached",
                        "matches, a better match serves",
                    )
                });
            } else if version.rollout < 10_000 {
                witness.see(|| {
                    found(
                        "version",
                        &version.name,
                        "skipped",
                        format!("its share of {} % leaves this key out", percent(version.rollout)),
                    )
                });
            } else {
                served = self.attempt(place, witness);
            }
            if served && !W::WATCHES {
                return true;
            }
        }
        self.explain_mismatches(all, witness);
        served
    }

    fn explain_mismatches<W: Witness>(&self, places: Range<usize>, witness: &mut W) {
        if !W::WATCHES {
            return;
        }
        for version in &self.extension.versions[places] {
            let context = self.request.context;
            match &version.rules {
                _ if !version.enabled => witness.see(|| found("version", &version.name, "skipped", "disabled")),
                Err(error) => witness.see(|| found("version", &version.name, "skipped", error.to_string())),
                Ok(rules) => {
                    if let Some(condition) = rules.first_mismatch(context) {
                        witness.see(|| {
                            found(
                                "version",
                                &version.name,
                                "skipped",
                                format!(
                                    "rule for {} does not match {}",
                                    condition.key(),
                                    show(condition.value(context).as_ref())
                                ),
                            )
                        });
                    }
                }
            }
        }
    }

    /// Whose share a request falls into among versions of equal specificity, from the highest down; `None`: what nobody takes.
    fn share(&self, places: impl Iterator<Item = usize>) -> Option<usize> {
        let mut left = 10_000;
        let mut key: Option<Option<Cow<'_, str>>> = None;
        let mut best: Option<(f64, Option<usize>)> = None;
        let mut consider = |name: &str, place: Option<usize>, weight: u32, key: Option<&str>| {
            if weight == 0 {
                return;
            }
            let hash = key.map_or_else(
                || rendezvous::hash(&self.extension.id, name, &self.request.random.to_string()),
                |key| rendezvous::hash(&self.extension.id, name, key),
            );
            let score = rendezvous::score(hash, f64::from(weight));
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, place));
            }
        };
        for place in places {
            let version = &self.extension.versions[place];
            let share = version.rollout.min(left);
            left -= share;
            // The highest version names the key for its level.
            let key = key.get_or_insert_with(|| self.sticky_key(version.rollout_key.as_deref().unwrap_or("tenant_id")));
            consider(&version.name, Some(place), share, key.as_deref());
        }
        consider("", None, left, key.flatten().as_deref());
        best.and_then(|(_, place)| place)
    }

    fn sticky_key(&self, name: &str) -> Option<Cow<'_, str>> {
        [name, "request_id", "trace_id"].into_iter().find_map(|key| {
            self.request
                .context
                .get(key)?
                .key_text()
                .map(|text| Cow::Owned(text.into_owned()))
        })
    }

    /// Asks one version's breaker, and if it lets pass, chooses an instance. Returns whether the version serves.
    fn attempt<W: Witness>(&mut self, place: usize, witness: &mut W) -> bool {
        let version = &self.extension.versions[place];
        let target = self.live.version(version.target);
        let (admission, generation, transition) = match target {
            None => (Admission::Pass, 0, None),
            Some(target) if !W::EFFECTS => {
                let now = self.request.now_us;
                let admission = self.live.peek(version.target, target, &version.settings, now);
                (admission, 0, None)
            }
            Some(target) => {
                let now = self.request.now_us;
                let admitted = target.breaker.admit(&version.settings, now, now + version.lease_us());
                (
                    admitted.admission,
                    admitted.generation,
                    admitted.transition.map(|t| (version.target, t)),
                )
            }
        };
        let lease = match admission {
            Admission::Pass => None,
            Admission::Probe(lease) => Some(lease),
            Admission::Refused(after) => {
                let state = target.map_or(State::Open, |target| {
                    target.breaker.view(&version.settings, self.request.now_us).state
                });
                witness.see(|| {
                    let detail = after.map_or_else(
                        || "held open by an operator".to_owned(),
                        |us| format!("breaker {}, retry after {} ms", state.as_str(), us / 1000),
                    );
                    found("version", &version.name, "refused", detail)
                });
                let refused = self.refused.get_or_insert(Refused {
                    best: place,
                    retry_after_us: None,
                    transition: None,
                });
                refused.retry_after_us = [refused.retry_after_us, after].into_iter().flatten().min();
                refused.transition = refused.transition.or(transition);
                return false;
            }
        };
        witness.see(|| {
            let breaker = match version.settings.mode {
                _ if lease.is_some() => "half-open, this call would be a probe",
                Mode::Auto => "closed",
                mode => mode.as_str(),
            };
            found(
                "version",
                &version.name,
                "chosen",
                format!("breaker {breaker}; {}", why(version, place == self.extension.own())),
            )
        });
        let (instance, reason) = self.instance(place, target, witness);
        let reason = match reason {
            _ if lease.is_some() => Reason::Probe,
            Reason::Ok if self.refused.is_some() => Reason::FallbackVersion,
            reason => reason,
        };
        let transition = transition.or(self.refused.and_then(|refused| refused.transition));
        self.decision = Some(Decision {
            reason,
            version: Some(place),
            instance,
            retry_after_ms: None,
            generation,
            lease,
            transition,
        });
        true
    }

    fn finish(self) -> Decision {
        if let Some(decision) = self.decision {
            return decision;
        }
        let Some(refused) = self.refused else {
            return Decision::refused(Reason::NoVersion);
        };
        Decision {
            version: Some(refused.best),
            retry_after_ms: refused
                .retry_after_us
                .map(|us| us.div_ceil(1000).clamp(1, u64::from(u32::MAX >> 1)) as u32),
            transition: refused.transition,
            ..Decision::refused(Reason::ExtensionCircuitOpen)
        }
    }
}

fn why(version: &Version, own: bool) -> String {
    if own {
        return "no version's rules match, the row in extensions serves".to_owned();
    }
    let keys = version.specificity();
    let share = if version.rollout < 10_000 {
        format!(", within its share of {} %", percent(version.rollout))
    } else {
        String::new()
    };
    match keys {
        0 => format!("its rules match everything{share}"),
        1 => format!("its rule matches (1 key){share}"),
        n => format!("its rules match ({n} keys){share}"),
    }
}

fn percent(hundredths: u32) -> f64 {
    f64::from(hundredths) / 100.0
}

fn show(value: Option<&Value<'_>>) -> String {
    match value {
        None => "(absent)".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Str(s)) => format!("\"{}\"", crate::ident::shorten(s)),
        Some(Value::Composite) => "(not a scalar)".to_owned(),
    }
}
