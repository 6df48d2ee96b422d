//! A pipeline: pre-processors in order, validators side by side, one provider, post-processors in order.
//!
//! Promises: one deadline for the whole; what an extension says never routes and never overwrites who the request is from;
//! what is given up is cancelled.

use std::rc::Rc;

use bytes::Bytes;
use ext_registry_core::policy::{Fallback, Item, OnFail, PolicyDocument, Provider, Sticky};
use ext_registry_core::rendezvous;
use serde_json::{Map, Value as Json, json};

use super::call::{CallSpec, Done, Finished, Parent};
use super::codes::{Code, Failure};
use super::contract::{self, Kind, PROTECTED};
use super::json::Members;
use super::policies::{Found, PolicyKey};
use super::request::{Ids, Request};
use super::slab::Token;
use super::trace::What;
use super::wheel::Timer;
use super::{Client, Due, Machine};
use crate::transport::Headers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Policy,
    Pre(usize),
    Validators,
    Provider,
    Post(usize),
}

impl Stage {
    const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Pre(_) => "pre",
            Self::Validators => "validators",
            Self::Provider => "provider",
            Self::Post(_) => "post",
        }
    }
}

/// Which provider is being tried, and by what rule.
#[derive(Debug, Clone)]
struct Choice {
    id: String,
    reason: &'static str,
    /// Position in the policy's fallbacks whose tries are being made, and how many were.
    fallback: Option<(usize, u32)>,
    /// Providers that failed.
    failed: Vec<String>,
}

/// A pipeline under way.
pub struct Route {
    client: Client,
    ids: Rc<Ids>,
    key: PolicyKey,
    policy: Option<Rc<PolicyDocument>>,
    message: Bytes,
    metadata: Members,
    metadata_text: Bytes,
    context: Bytes,
    facts: Option<Rc<Map<String, Json>>>,
    stage: Stage,
    /// Calls under way: item and call.
    calls: Vec<(usize, Token)>,
    executed: Vec<Json>,
    choice: Option<Choice>,
    deadline_us: u64,
    timer: Timer,
    dry_run: bool,
}

impl Machine {
    /// Begins a pipeline.
    pub(crate) fn begin_route(&mut self, request: Request, client: Client, now: u64) {
        let wanted = request
            .timeout_ms
            .map_or(self.settings.max_call_us, |ms| ms.saturating_mul(1000));
        let deadline_us = now.saturating_add(wanted);
        let key = (
            request.ids.tenant_id.clone().unwrap_or_default(),
            request.ids.policy_id.clone().unwrap_or_default(),
        );
        let token = self.routes.insert(Route {
            client,
            ids: request.ids,
            key: key.clone(),
            policy: None,
            message: request.payload,
            metadata: Members::of(&request.metadata),
            metadata_text: request.metadata,
            context: request.context,
            facts: None,
            stage: Stage::Policy,
            calls: Vec::new(),
            executed: Vec::new(),
            choice: None,
            deadline_us,
            timer: Timer::NEVER,
            dry_run: request.dry_run,
        });
        let timer = self.wheel.set(
            deadline_us.min(now + self.settings.decide_timeout_us),
            Due::Route(token),
        );
        let policy = self.policies.get(&key, token, now);
        if let Some(route) = self.routes.get_mut(token) {
            route.timer = timer;
        }
        if let Some(policy) = policy {
            self.policy_known(token, policy, now);
        }
    }

    /// What the registry said about a policy.
    pub fn on_policy(&mut self, key: &PolicyKey, found: &Found, now: u64) {
        for token in self.policies.found(key, found, now) {
            if self.routes.get(token).is_none_or(|route| route.stage != Stage::Policy) {
                continue;
            }
            let failure = match found {
                Found::Policy(policy) => {
                    self.policy_known(token, Rc::clone(policy), now);
                    continue;
                }
                Found::Nothing => Failure::new(
                    Code::PolicyNotFound,
                    format!("tenant {} has no policy {}", key.0, key.1),
                ),
                Found::Broken(why) => Failure::new(Code::Internal, format!("policy {} cannot be used: {why}", key.1)),
                Found::Unavailable => Failure::new(Code::RegistryUnavailable, "the registry does not answer in time"),
            };
            self.fail_route(token, failure, now);
        }
    }

    fn policy_known(&mut self, token: Token, policy: Rc<PolicyDocument>, now: u64) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        route.policy = Some(policy);
        route.stage = Stage::Pre(0);
        let (timer, deadline) = (route.timer, route.deadline_us);
        self.wheel.cancel(timer);
        let timer = self.wheel.set(deadline, Due::Route(token));
        if let Some(route) = self.routes.get_mut(token) {
            route.timer = timer;
        }
        self.advance(token, now);
    }

    /// A pipeline's timer.
    pub(crate) fn route_due(&mut self, token: Token, now: u64) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        let early = route.stage == Stage::Policy && now < route.deadline_us;
        if early && self.settings.second_opinion {
            let by = (now + self.settings.decide_timeout_us).min(route.deadline_us);
            route.timer = self.wheel.set(by, Due::Route(token));
            self.overdue_policies.push(route.key.clone());
            return;
        }
        let failure = if early {
            self.metrics.refused("registry_unavailable");
            Failure::new(Code::RegistryUnavailable, "the registry does not answer in time")
        } else {
            Failure::new(Code::DeadlineExceeded, "the deadline of the pipeline passed")
                .with("stage", route.stage.name())
        };
        self.fail_route(token, failure, now);
    }

    /// Ends a pipeline with a failure; what is still under way is cancelled.
    pub(crate) fn fail_route(&mut self, token: Token, failure: Failure, now: u64) {
        let Some(route) = self.routes.remove(token) else { return };
        self.wheel.cancel(route.timer);
        for (_, call) in &route.calls {
            self.cancel_call(*call, now);
        }
        self.record_route(&route, Some(&failure), now);
        let failure = failure
            .with("tenant_id", route.key.0.as_str())
            .with("policy_id", route.key.1.as_str());
        self.answer_failure(&route.client, &failure, now);
    }

    fn record_route(&mut self, route: &Route, failure: Option<&Failure>, now: u64) {
        if let Some(span) = route.ids.trace.recorded().filter(|_| !route.dry_run) {
            let provider = route.choice.as_ref().map(|choice| choice.id.clone());
            let times = (route.client.received_us, now);
            self.recorded
                .push(route.ids.span(span, times, What::Route { provider }, failure));
        }
    }

    /// Goes on until a call has to be waited for.
    fn advance(&mut self, token: Token, now: u64) {
        loop {
            let Some(route) = self.routes.get(token) else { return };
            let Some(policy) = route.policy.clone() else { return };
            match route.stage {
                Stage::Policy => return,
                Stage::Pre(i) | Stage::Post(i) => {
                    let (stage, list) = match route.stage {
                        Stage::Pre(_) => (Kind::Pre, &policy.pre),
                        _ => (Kind::Post, &policy.post),
                    };
                    match list.get(i) {
                        None if stage == Kind::Pre => self.set_stage(token, Stage::Validators),
                        None => return self.complete_route(token, now),
                        Some(processor) if !self.applies(token, &processor.item) => self.next_item(token),
                        Some(processor) => return self.start_item(token, i, &processor.item, stage, now),
                    }
                }
                Stage::Validators => {
                    for (i, validator) in policy.validators.iter().enumerate() {
                        if self.applies(token, &validator.item) {
                            self.start_item(token, i, &validator.item, Kind::Validator, now);
                        } else {
                            self.executed(
                                token,
                                json!({"id": validator.item.id, "type": "validator", "status": "skipped"}),
                            );
                        }
                    }
                    // A refused call may have ended the pipeline or this stage already.
                    match self.routes.get(token) {
                        Some(route) if route.stage == Stage::Validators && route.calls.is_empty() => {
                            self.set_stage(token, Stage::Provider);
                        }
                        _ => return,
                    }
                }
                Stage::Provider => {
                    if policy.providers.is_empty() {
                        self.set_stage(token, Stage::Post(0));
                        continue;
                    }
                    let candidates: Vec<&Provider> = policy
                        .providers
                        .iter()
                        .filter(|p| p.weight > 0 && self.applies(token, &p.item))
                        .collect();
                    return if let Some(choice) = self.choose(token, &candidates, policy.sticky.as_ref()) {
                        self.start_provider(token, choice, now);
                    } else {
                        let failure = Failure::new(Code::ExtensionUnavailable, "no provider serves this request");
                        self.fail_route(token, failure.with("stage", "provider"), now);
                    };
                }
            }
        }
    }

    fn set_stage(&mut self, token: Token, stage: Stage) {
        if let Some(route) = self.routes.get_mut(token) {
            route.stage = stage;
        }
    }

    fn next_item(&mut self, token: Token) {
        if let Some(route) = self.routes.get_mut(token) {
            route.stage = match route.stage {
                Stage::Pre(i) => Stage::Pre(i + 1),
                Stage::Post(i) => Stage::Post(i + 1),
                other => other,
            };
        }
    }

    fn executed(&mut self, token: Token, entry: Json) {
        if let Some(route) = self.routes.get_mut(token) {
            route.executed.push(entry);
        }
    }

    /// The request's facts, parsed when the first condition asks for them.
    fn route_facts(&mut self, token: Token) -> Rc<Map<String, Json>> {
        let Some(route) = self.routes.get_mut(token) else {
            return Rc::default();
        };
        let context = &route.context;
        let facts = route
            .facts
            .get_or_insert_with(|| Rc::new(serde_json::from_slice(context).unwrap_or_default()));
        Rc::clone(facts)
    }

    fn applies(&mut self, token: Token, item: &Item) -> bool {
        item.when
            .as_ref()
            .is_none_or(|when| when.matches(&*self.route_facts(token)))
    }

    fn start_item(&mut self, token: Token, index: usize, item: &Item, kind: Kind, now: u64) {
        let Some(route) = self.routes.get(token) else { return };
        let spec = CallSpec {
            extension_id: Rc::from(item.id.as_str()),
            parent: Parent::Route { token, item: index },
            ids: Rc::clone(&route.ids),
            payload: route.message.clone(),
            metadata: route.metadata_text.clone(),
            context: route.context.clone(),
            config: item.config.as_ref().map(|config| json!(config).to_string().into()),
            deadline_us: Some(route.deadline_us),
            timeout_ms: item.timeout_ms,
            retry: item.retry,
            kind: Some(kind),
            dry_run: route.dry_run,
        };
        if let Some(call) = self.start_call(spec, now)
            && let Some(route) = self.routes.get_mut(token)
        {
            route.calls.push((index, call));
        }
    }

    /// A provider by weight; the same one for the same session where the policy wants that.
    fn choose(&mut self, token: Token, candidates: &[&Provider], sticky: Option<&Sticky>) -> Option<Choice> {
        let choice = |provider: &Provider, reason| Choice {
            id: provider.item.id.clone(),
            reason,
            fallback: None,
            failed: Vec::new(),
        };
        if let Some(sticky) = sticky.filter(|s| s.enabled) {
            let facts = self.route_facts(token);
            let session = facts.get(&sticky.session_key).and_then(|v| match v {
                Json::String(text) => Some(text.clone()),
                Json::Number(number) => Some(number.to_string()),
                _ => None,
            });
            if let Some(session) = session {
                let score = |p: &Provider| {
                    rendezvous::score(rendezvous::hash("sticky", &p.item.id, &session), f64::from(p.weight))
                };
                return candidates
                    .iter()
                    .min_by(|a, b| score(a).total_cmp(&score(b)))
                    .map(|p| choice(p, "sticky"));
            }
        }
        let total: u64 = candidates.iter().map(|p| u64::from(p.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = self.random.u64(0..total);
        for provider in candidates {
            let weight = u64::from(provider.weight);
            if drawn < weight {
                return Some(choice(provider, "weighted"));
            }
            drawn -= weight;
        }
        None
    }

    fn start_provider(&mut self, token: Token, choice: Choice, now: u64) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        let Some(policy) = route.policy.clone() else { return };
        let plain = Item {
            id: choice.id.clone(),
            ..Item::default()
        };
        route.choice = Some(choice);
        let item = policy
            .providers
            .iter()
            .map(|p| &p.item)
            .find(|item| item.id == plain.id)
            .unwrap_or(&plain);
        self.start_item(token, 0, item, Kind::Provider, now);
    }

    /// A call of a pipeline has ended.
    pub(crate) fn route_call_done(&mut self, token: Token, item: usize, finished: Finished, now: u64) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        let Some(policy) = route.policy.clone() else { return };
        route.calls.retain(|(index, _)| *index != item);
        let kind = match route.stage {
            Stage::Pre(_) => Kind::Pre,
            Stage::Validators => Kind::Validator,
            Stage::Provider => Kind::Provider,
            Stage::Post(_) => Kind::Post,
            Stage::Policy => return,
        };
        let entry = entry_of(kind, &finished);
        if let Done::Failed(failure) = &finished.done
            && failure.code == Code::DeadlineExceeded
            && now >= route.deadline_us
        {
            let failure = failure.clone().with("stage", route.stage.name());
            self.fail_route(token, failure, now);
            return;
        }
        match kind {
            Kind::Pre | Kind::Post => {
                let list = if kind == Kind::Pre { &policy.pre } else { &policy.post };
                let required = list.get(item).is_some_and(|processor| processor.required);
                self.processor_done(token, kind, required, finished.done, entry, now);
            }
            Kind::Validator => {
                let on_fail = policy
                    .validators
                    .get(item)
                    .map_or(OnFail::Block, |validator| validator.on_fail);
                self.validator_done(token, on_fail, finished, entry, now);
            }
            Kind::Provider => self.provider_done(token, &policy, finished, entry, now),
        }
    }

    fn processor_done(&mut self, token: Token, kind: Kind, required: bool, done: Done, mut entry: Json, now: u64) {
        match done {
            Done::Reply { reply, .. } => {
                self.merge(token, reply.payload, reply.metadata);
            }
            Done::Preview(_) => {}
            Done::Failed(failure) if required => {
                let (code, word) = match kind {
                    Kind::Pre => (Code::PreProcessorFailed, "pre-processor"),
                    _ => (Code::PostProcessorFailed, "post-processor"),
                };
                let failed = Failure {
                    code,
                    message: format!("a required {word} failed: {}", failure.message),
                    ..failure.clone()
                };
                self.fail_route(token, failed.with("cause", failure.code.as_str()), now);
                return;
            }
            Done::Failed(failure) => {
                tracing::warn!(extension_id = %entry["id"], code = failure.code.as_str(), "an optional extension failed");
                entry["error"] = failure.code.as_str().into();
            }
        }
        self.executed(token, entry);
        self.next_item(token);
        self.advance(token, now);
    }

    fn validator_done(&mut self, token: Token, on_fail: OnFail, finished: Finished, mut entry: Json, now: u64) {
        let id = &finished.extension_id;
        let blocked = match finished.done {
            Done::Preview(_) => None,
            Done::Reply { reply, .. } if !reply.rejected => {
                self.merge(token, None, reply.metadata);
                None
            }
            Done::Reply { reply, .. } => {
                let reason = reply.reason.unwrap_or_else(|| "rejected".to_owned());
                let details: Json = reply
                    .details
                    .and_then(|raw| serde_json::from_slice(&raw).ok())
                    .unwrap_or_else(|| json!({}));
                let failure = Failure::new(Code::ValidatorBlocked, format!("{id} rejected the message: {reason}"))
                    .with("extension_id", &**id)
                    .with("reason", reason)
                    .with("details", details);
                Some(failure)
            }
            Done::Failed(failure) => {
                entry["error"] = failure.code.as_str().into();
                let message = format!("validator {id} failed: {}", failure.message);
                let cause = failure.code.as_str();
                Some(
                    Failure {
                        code: Code::ValidatorBlocked,
                        message,
                        ..failure
                    }
                    .with("cause", cause),
                )
            }
        };
        if let Some(failure) = blocked {
            match on_fail {
                OnFail::Block => {
                    self.fail_route(token, failure, now);
                    return;
                }
                OnFail::Warn => {
                    tracing::warn!(extension_id = %id, message = failure.message, "a validator refused, the policy only warns");
                    entry["status"] = "warn".into();
                }
                OnFail::Ignore => entry["status"] = "ignore".into(),
            }
        }
        self.executed(token, entry);
        let done = self.routes.get(token).is_some_and(|route| {
            let ended = |v: &Json| v["type"] == "validator";
            let total = route.policy.as_ref().map_or(0, |policy| policy.validators.len());
            route.executed.iter().filter(|v| ended(v)).count() == total
        });
        if done {
            self.order_validators(token);
            self.set_stage(token, Stage::Provider);
            self.advance(token, now);
        }
    }

    /// Validators end in any order; they are shown in the policy's.
    fn order_validators(&mut self, token: Token) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        let Some(policy) = &route.policy else { return };
        let place = |entry: &Json| policy.validators.iter().position(|v| entry["id"] == v.item.id.as_str());
        let start = route
            .executed
            .iter()
            .position(|e| e["type"] == "validator")
            .unwrap_or(route.executed.len());
        route.executed[start..].sort_by_key(place);
    }

    fn provider_done(&mut self, token: Token, policy: &PolicyDocument, finished: Finished, mut entry: Json, now: u64) {
        match finished.done {
            Done::Preview(_) => {}
            Done::Reply { reply, .. } => {
                self.merge(token, None, reply.metadata);
                if let Some(route) = self.routes.get_mut(token) {
                    if let Some(usage) = reply.usage {
                        route.metadata.set("usage", usage);
                        route.metadata_text = route.metadata.render();
                    }
                    if let Some(output) = reply.output {
                        let mut message = Members::of(&route.message);
                        message.set("payload", output);
                        route.message = message.render();
                    }
                }
            }
            Done::Failed(failure) => {
                entry["error"] = failure.code.as_str().into();
                self.executed(token, entry);
                match self.after_failure(token, policy, &failure) {
                    Some(next) => self.start_provider(token, next, now),
                    None => self.fail_route(token, failure.with("stage", "provider"), now),
                }
                return;
            }
        }
        self.executed(token, entry);
        self.set_stage(token, Stage::Post(0));
        self.advance(token, now);
    }

    /// The next provider to try: the same one again where nothing has run, then the fallback's.
    fn after_failure(&mut self, token: Token, policy: &PolicyDocument, failure: &Failure) -> Option<Choice> {
        let facts = self.route_facts(token);
        let choice = self.routes.get(token)?.choice.clone()?;
        let matches = |fallback: &Fallback| {
            failure_names(failure).into_iter().any(|name| {
                let mut facts = (*facts).clone();
                facts.insert("status".to_owned(), name.into());
                fallback.when.matches(&facts)
            })
        };
        let (index, rule) = policy
            .fallbacks
            .iter()
            .enumerate()
            .find(|(_, f)| f.to != choice.id && !choice.failed.contains(&f.to) && matches(f))?;
        let tries = choice
            .fallback
            .filter(|(i, _)| *i == index)
            .map_or(0, |(_, tries)| tries);
        let nothing_ran = failure
            .details
            .get("reason")
            .is_some_and(|reason| reason == "no_responders");
        if nothing_ran && tries < rule.retry {
            return Some(Choice {
                reason: "retry",
                fallback: Some((index, tries + 1)),
                ..choice
            });
        }
        let mut failed = choice.failed;
        failed.push(choice.id);
        Some(Choice {
            id: rule.to.clone(),
            reason: "fallback",
            fallback: None,
            failed,
        })
    }

    /// Lays what an extension answered over message and metadata.
    fn merge(&mut self, token: Token, payload: Option<Bytes>, metadata: Option<Bytes>) {
        let Some(route) = self.routes.get_mut(token) else {
            return;
        };
        if let Some(payload) = payload {
            if payload.starts_with(b"{") {
                route.message = payload;
            } else {
                let mut message = Members::of(&route.message);
                message.set("payload", payload);
                route.message = message.render();
            }
        }
        if let Some(metadata) = metadata {
            route.metadata.overlay(&metadata, &PROTECTED);
            route.metadata_text = route.metadata.render();
        }
    }

    fn complete_route(&mut self, token: Token, now: u64) {
        let Some(route) = self.routes.remove(token) else { return };
        self.wheel.cancel(route.timer);
        self.record_route(&route, None, now);
        let decision = match &route.choice {
            Some(choice) => json!({"provider_id": choice.id, "reason": choice.reason}),
            None => json!({"provider_id": null, "reason": "no_provider"}),
        };
        let mut body = Vec::with_capacity(route.message.len() + route.metadata_text.len() + 512);
        body.extend_from_slice(b"{\"ok\":true,");
        if route.dry_run {
            body.extend_from_slice(b"\"dry_run\":true,");
        }
        body.extend_from_slice(b"\"message\":");
        body.extend_from_slice(&route.message);
        body.extend_from_slice(b",\"metadata\":");
        body.extend_from_slice(&route.metadata_text);
        body.extend_from_slice(format!(",\"decision\":{decision},\"executed_extensions\":").as_bytes());
        body.extend_from_slice(Json::Array(route.executed).to_string().as_bytes());
        body.push(b'}');
        self.metrics.replies_ok.inc();
        self.answer(&route.client, body.into(), Headers::default(), now);
    }
}

/// A line of `executed_extensions`.
fn entry_of(kind: Kind, finished: &Finished) -> Json {
    let status = match &finished.done {
        Done::Reply {
            reply: contract::Reply { rejected: true, .. },
            ..
        } => "reject",
        Done::Reply { .. } => "ok",
        Done::Preview(_) => "dry_run",
        Done::Failed(_) => "error",
    };
    let (version, instance) = match &finished.done {
        Done::Preview(decision) => (decision.version.clone(), decision.instance_id.clone()),
        _ => (
            (!finished.version.is_empty()).then(|| finished.version.to_string()),
            finished.instance_id.as_deref().map(str::to_owned),
        ),
    };
    json!({
        "id": &*finished.extension_id,
        "type": kind.as_str(),
        "version": version,
        "instance_id": instance,
        "status": status,
        "latency_ms": finished.latency_us as f64 / 1000.0,
        "attempts": finished.sent,
    })
}

/// The names under which a fallback's `when.status` may know a failure.
fn failure_names(failure: &Failure) -> Vec<String> {
    let mut names = vec![failure.code.as_str().to_owned(), failure.code.number().to_string()];
    let reason = failure.details.get("reason").and_then(Json::as_str).unwrap_or_default();
    match failure.code {
        Code::ExtensionTimeout => names.push("timeout".to_owned()),
        Code::ExtensionError => names.push("error".to_owned()),
        _ => {}
    }
    if !reason.is_empty() {
        names.push(reason.to_owned());
    }
    if reason == "extension_circuit_open" {
        names.extend(["circuit_open".to_owned(), "circuit_breaker_open".to_owned()]);
    }
    let service = failure.details.get("service_code").and_then(Json::as_u64);
    if let Some(code) = service {
        names.push(code.to_string());
        if code == 429 {
            names.push("rate_limited".to_owned());
        }
    }
    if service.map_or(failure.code.number() >= 500, |code| (500..600).contains(&code)) {
        names.push("5xx".to_owned());
    }
    names
}
