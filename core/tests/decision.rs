//! The decision over documents: the worked examples of the specification, and properties of shares, instances and fall-through.

#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads better than &json!(..)")]

use std::collections::{HashMap, HashSet};

use ext_registry_core::decide::Reason;
use ext_registry_core::engine::{Engine, EngineDecision};
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::outcome::Outcome;
use ext_registry_core::rules::RuleSet;
use ext_registry_core::target::Turn;
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

const NOW: u64 = 1_800_000_000_000_000;
const SECOND: u64 = 1_000_000;

fn engine(documents: &[Json]) -> Engine {
    let documents: Vec<ExtensionDocument> = documents
        .iter()
        .map(|doc| ExtensionDocument::parse(doc).unwrap())
        .collect();
    Engine::new(&documents, 65_536, 7).unwrap()
}

/// `normalize_text` with these versions and instances.
fn extension(versions: Json, instances: Json) -> Json {
    json!({
        "id": "normalize_text", "type": "pre", "subject": "beamline.ext.pre.normalize_text.v1", "timeout_ms": 100,
        "versions": versions, "instances": instances,
    })
}

fn version(name: &str, rules: Json) -> Json {
    json!({"version": name, "subject": format!("beamline.ext.pre.normalize_text.{name}"), "routing_rules": rules})
}

fn share(name: &str, percent: f64) -> Json {
    json!({"version": name, "subject": format!("s.{name}"), "rollout_percent": percent})
}

fn instance(id: &str, weight: u32, more: Json) -> Json {
    let mut document = json!({"instance_id": id, "subject": "beamline.ext.pre.normalize_text.v1", "weight": weight});
    document
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    document
}

fn facts(context: Json) -> Map<String, Json> {
    context.as_object().unwrap().clone()
}

fn select(engine: &mut Engine, context: Json) -> EngineDecision {
    engine.select("normalize_text", &facts(context), &[], NOW)
}

fn serves(engine: &mut Engine, context: Json) -> String {
    select(engine, context).version.unwrap()
}

fn tenant(name: &str) -> Json {
    json!({"tenant_id": name})
}

/// Opens the breaker of the version that serves this context.
fn break_it(engine: &mut Engine, context: &Json) {
    let calls: Vec<u64> = (0..5).map(|_| select(engine, context.clone()).ticket).collect();
    for ticket in calls {
        assert!(engine.report(ticket, Outcome::Error, 1000, 0, NOW));
    }
}

#[test]
fn a_restricted_version_serves_its_tenants_and_nobody_else() {
    let mut e = engine(&[extension(
        json!([
            version("v1", json!({})),
            version("v2", json!({"tenant_id": ["tenant1", "tenant2"]}))
        ]),
        json!([]),
    )]);
    assert_eq!(serves(&mut e, tenant("tenant1")), "v2");
    assert_eq!(serves(&mut e, tenant("tenant2")), "v2");
    assert_eq!(serves(&mut e, tenant("tenant3")), "v1");
    assert_eq!(serves(&mut e, json!({})), "v1");
}

#[test]
fn of_two_versions_for_everybody_the_higher_serves() {
    let mut e = engine(&[extension(
        json!([version("v10", json!({})), version("v9", json!({}))]),
        json!([]),
    )]);
    assert_eq!(serves(&mut e, json!({})), "v10");
}

#[test]
fn an_empty_list_rolls_back() {
    let mut e = engine(&[extension(
        json!([version("v1", json!({})), version("v2", json!({"tenant_id": []}))]),
        json!([]),
    )]);
    for context in [json!({}), tenant("tenant1"), json!({"tenant_id": null})] {
        assert_eq!(serves(&mut e, context), "v1");
    }
}

#[test]
fn more_keys_win_over_a_higher_version() {
    let mut e = engine(&[extension(
        json!([
            version("v1", json!({"tenant_id": "t", "environment": "prod"})),
            version("v2", json!({"tenant_id": "t"}))
        ]),
        json!([]),
    )]);
    assert_eq!(serves(&mut e, json!({"tenant_id": "t", "environment": "prod"})), "v1");
    assert_eq!(serves(&mut e, tenant("t")), "v2");
}

#[test]
fn where_no_rule_matches_the_row_itself_serves_and_a_canary_does_not_leak() {
    let mut e = engine(&[extension(
        json!([version("v2", json!({"tenant_id": "canary"}))]),
        json!([]),
    )]);
    let decision = select(&mut e, tenant("other"));
    assert_eq!((decision.version.as_deref(), decision.reason), (Some("v1"), Reason::Ok));
    assert_eq!(decision.subject.as_deref(), Some("beamline.ext.pre.normalize_text.v1"));
}

#[test]
fn a_namesake_lends_its_enabled_and_takes_the_place_where_its_rules_match() {
    let row = json!({"version": "v1", "subject": "row.v1", "routing_rules": {"tenant_id": "t"}});
    let mut e = engine(&[extension(json!([row]), json!([]))]);
    assert_eq!(select(&mut e, tenant("t")).subject.as_deref(), Some("row.v1"));
    assert_eq!(
        select(&mut e, tenant("u")).subject.as_deref(),
        Some("beamline.ext.pre.normalize_text.v1")
    );
    let disabled = json!({"version": "v1", "subject": "row.v1", "enabled": false});
    let mut e = engine(&[extension(json!([disabled]), json!([]))]);
    let decision = select(&mut e, json!({}));
    assert_eq!(
        (decision.reason, decision.allowed, decision.ticket),
        (Reason::NoVersion, false, 0)
    );
}

#[test]
fn refusals_before_any_version() {
    let mut e = engine(&[
        json!({"id": "off", "type": "post", "subject": "s", "enabled": false}),
        json!({"id": "listed", "type": "pre", "subject": "s", "metadata": {"allowed_tenants": ["a"]}}),
        json!({"id": "nobody", "type": "pre", "subject": "s", "metadata": {"allowed_tenants": "a"}}),
    ]);
    let mut reason = |id: &str, context: Json| e.select(id, &facts(context), &[], NOW).reason;
    assert_eq!(reason("missing", json!({})), Reason::ExtensionNotFound);
    assert_eq!(reason("off", json!({})), Reason::ExtensionDisabled);
    assert_eq!(reason("listed", tenant("a")), Reason::Ok);
    assert_eq!(reason("listed", tenant("b")), Reason::TenantNotAllowed);
    assert_eq!(reason("listed", json!({})), Reason::TenantNotAllowed);
    assert_eq!(reason("nobody", tenant("a")), Reason::TenantNotAllowed);
}

#[test]
fn an_open_breaker_falls_through_to_the_next_matching_version_only() {
    let mut e = engine(&[extension(
        json!([version("v1", json!({})), version("v2", json!({"tenant_id": "t"}))]),
        json!([]),
    )]);
    break_it(&mut e, &tenant("t"));
    let decision = select(&mut e, tenant("t"));
    assert_eq!(
        (decision.version.as_deref(), decision.reason),
        (Some("v1"), Reason::FallbackVersion)
    );
    assert_eq!(select(&mut e, tenant("u")).reason, Reason::Ok);
    break_it(&mut e, &tenant("u"));
    let refused = select(&mut e, tenant("t"));
    assert_eq!(
        (refused.reason, refused.subject, refused.ticket),
        (Reason::ExtensionCircuitOpen, None, 0)
    );
    assert!(refused.retry_after_ms.unwrap() >= 1);
}

#[test]
fn an_open_breaker_never_falls_through_to_the_row_beneath() {
    let mut e = engine(&[extension(json!([version("v2", json!({}))]), json!([]))]);
    break_it(&mut e, &json!({}));
    assert_eq!(select(&mut e, json!({})).reason, Reason::ExtensionCircuitOpen);
}

#[test]
fn it_recovers_through_probes() {
    let mut e = engine(&[extension(json!([]), json!([]))]);
    break_it(&mut e, &json!({}));
    let later = NOW + 70 * SECOND;
    let probes: Vec<EngineDecision> = (0..5)
        .map(|_| e.select("normalize_text", &facts(json!({})), &[], later))
        .collect();
    assert_eq!(probes.iter().filter(|d| d.reason == Reason::Probe).count(), 3);
    assert_eq!(probes[4].reason, Reason::ExtensionCircuitOpen);
    for probe in &probes[..3] {
        assert!(e.report(probe.ticket, Outcome::Success, 1000, 0, later));
        assert!(
            !e.report(probe.ticket, Outcome::Success, 1000, 0, later),
            "a second report"
        );
    }
    assert_eq!(
        e.select("normalize_text", &facts(json!({})), &[], later).reason,
        Reason::Ok
    );
    let moves: Vec<&str> = e.take_transitions().iter().map(|m| m.transition.to.as_str()).collect();
    assert_eq!(moves, ["open", "half_open", "closed"]);
}

#[test]
fn instances_serve_the_version_they_belong_to() {
    let mut e = engine(&[extension(
        json!([version("v1", json!({})), version("v2", json!({"tenant_id": "t"}))]),
        json!([
            instance("instance-1", 100, json!({})),
            instance("instance-2", 50, json!({}))
        ]),
    )]);
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..300 {
        *counts
            .entry(select(&mut e, json!({})).instance_id.unwrap())
            .or_default() += 1;
    }
    assert_eq!((counts["instance-1"], counts["instance-2"]), (200, 100));
    let decision = select(&mut e, tenant("t"));
    assert_eq!(
        (decision.instance_id, decision.subject.as_deref()),
        (None, Some("beamline.ext.pre.normalize_text.v2"))
    );
}

#[test]
fn an_instance_without_version_and_with_a_subject_of_its_own_serves_all_versions() {
    let mut e = engine(&[extension(
        json!([version("v1", json!({})), version("v2", json!({"tenant_id": "t"}))]),
        json!([
            {"instance_id": "a", "subject": "own.a"},
            {"instance_id": "b", "subject": "own.b", "version": "v2"},
        ]),
    )]);
    let mut seen = |context: &Json| -> HashSet<String> {
        (0..10)
            .map(|_| select(&mut e, context.clone()).instance_id.unwrap())
            .collect()
    };
    assert_eq!(seen(&json!({})), HashSet::from(["a".to_owned()]));
    assert_eq!(seen(&tenant("t")), HashSet::from(["a".to_owned(), "b".to_owned()]));
}

#[test]
fn eligibility_panic_and_none() {
    let out = |more: Json| instance("out", 100, more);
    for (more, reason, chosen) in [
        (json!({"enabled": false}), Reason::Ok, Some("in")),
        (json!({"draining": true}), Reason::Ok, Some("in")),
        (json!({"health_status": "unhealthy"}), Reason::Ok, Some("in")),
        (json!({"weight": 0}), Reason::Ok, Some("in")),
    ] {
        let mut e = engine(&[extension(json!([]), json!([out(more), instance("in", 1, json!({}))]))]);
        for _ in 0..20 {
            let decision = select(&mut e, json!({}));
            assert_eq!((decision.reason, decision.instance_id.as_deref()), (reason, chosen));
        }
    }
    for (more, reason) in [
        (json!({"health_status": "unhealthy"}), Reason::Panic),
        (json!({"weight": 0}), Reason::Panic),
        (json!({"enabled": false}), Reason::NoInstances),
        (json!({"draining": true}), Reason::NoInstances),
    ] {
        let mut e = engine(&[extension(json!([]), json!([out(more)]))]);
        let decision = select(&mut e, json!({}));
        assert_eq!((decision.reason, decision.allowed), (reason, true));
        assert!(decision.subject.is_some());
    }
}

#[test]
fn a_degraded_instance_counts_half() {
    let mut e = engine(&[extension(
        json!([]),
        json!([
            instance("a", 100, json!({})),
            instance("b", 100, json!({"health_status": "degraded"}))
        ]),
    )]);
    let picks: Vec<String> = (0..300)
        .map(|_| select(&mut e, json!({})).instance_id.unwrap())
        .collect();
    assert_eq!(picks.iter().filter(|id| *id == "a").count(), 200);
}

#[test]
fn instances_already_tried_are_avoided_while_there_is_another() {
    let mut e = engine(&[extension(
        json!([]),
        json!([instance("a", 100, json!({})), instance("b", 1, json!({}))]),
    )]);
    for _ in 0..20 {
        let decision = e.select("normalize_text", &facts(json!({})), &["a"], NOW);
        assert_eq!(decision.instance_id.as_deref(), Some("b"));
    }
    assert!(e.select("normalize_text", &facts(json!({})), &["a", "b"], NOW).allowed);
}

#[test]
fn shares_are_exact_sticky_and_a_canary_is_no_fall_through() {
    let mut e = engine(&[extension(json!([share("v1", 100.0), share("v2", 10.0)]), json!([]))]);
    let keys: Vec<String> = (0..20_000).map(|n| format!("tenant-{n}")).collect();
    let of = |e: &mut Engine| -> Vec<String> { keys.iter().map(|key| serves(e, tenant(key))).collect() };
    let before = of(&mut e);
    let canaries = before.iter().filter(|v| *v == "v2").count();
    assert!((1_900..2_100).contains(&canaries), "{canaries}");
    assert_eq!(of(&mut e), before, "the same key, the same answer");
    let mut raised = engine(&[extension(json!([share("v1", 100.0), share("v2", 25.0)]), json!([]))]);
    for (old, new) in before.iter().zip(of(&mut raised)) {
        assert!(old != "v2" || new == "v2", "raising a share moves no key away");
    }
    let stable = keys.iter().zip(&before).find(|(_, v)| *v == "v1").unwrap().0;
    break_it(&mut e, &tenant(stable));
    assert_eq!(select(&mut e, tenant(stable)).reason, Reason::ExtensionCircuitOpen);
}

#[test]
fn what_nobody_takes_goes_to_the_next_level() {
    let canary = json!({"version": "v3", "subject": "s.v3", "rollout_percent": 50, "routing_rules": {"plan": "pro"}});
    let mut e = engine(&[extension(json!([share("v1", 100.0), canary]), json!([]))]);
    let mut counts: HashMap<String, u32> = HashMap::new();
    for n in 0..10_000 {
        *counts
            .entry(serves(&mut e, json!({"plan": "pro", "tenant_id": format!("t{n}")})))
            .or_default() += 1;
    }
    assert!((4_800..5_200).contains(&counts["v3"]), "{counts:?}");
    assert_eq!(counts["v1"] + counts["v3"], 10_000);
}

#[test]
fn explaining_changes_nothing_and_names_everybody() {
    let mut e = engine(&[extension(
        json!([version("v1", json!({})), version("v2", json!({"tenant_id": "t"}))]),
        json!([instance("a", 1, json!({})), instance("b", 1, json!({"draining": true}))]),
    )]);
    let (decision, findings) = e.explain("normalize_text", &facts(json!({})), NOW);
    assert_eq!(decision.version.as_deref(), Some("v1"));
    for candidate in ["v1", "v2", "a", "b"] {
        assert!(
            findings.iter().any(|f| f.candidate == candidate),
            "{candidate}: {findings:#?}"
        );
    }
    assert_eq!(e.version_targets("normalize_text")[0].next_turn(Turn::Whole), 0);
    assert_eq!(e.version_targets("normalize_text")[0].in_flight(), 0);
    select(&mut e, json!({}));
    assert_eq!(
        e.version_targets("normalize_text")
            .iter()
            .map(ext_registry_core::target::Target::in_flight)
            .sum::<u64>(),
        1
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Explanation and decision are the same code: they name the same version and reason.
    #[test]
    fn the_explanation_is_the_decision(
        names in prop::collection::hash_set("v[1-9]", 0..5),
        rules in prop::collection::vec(prop_oneof![Just(json!({})), Just(json!({"tenant_id": "a"})), Just(json!({"tenant_id": ["a", "b"], "plan": "x"})), Just(json!({"tenant_id": []}))], 5),
        shares in prop::collection::vec(prop_oneof![Just(100.0), Just(10.0), Just(50.0), Just(0.0)], 5),
        who in "[abc]", plan in "[xy]",
    ) {
        let versions: Vec<Json> = names.iter().zip(rules).zip(shares).map(|((name, rules), percent)| {
            json!({"version": name, "subject": format!("s.{name}"), "routing_rules": rules, "rollout_percent": percent})
        }).collect();
        let mut e = engine(&[extension(json!(versions), json!([]))]);
        let context = facts(json!({"tenant_id": who, "plan": plan}));
        let (explained, findings) = e.explain("normalize_text", &context, NOW);
        let decided = e.select("normalize_text", &context, &[], NOW);
        prop_assert_eq!((&explained.version, explained.reason), (&decided.version, decided.reason));
        for version in &versions {
            let name = version["version"].as_str().unwrap();
            prop_assert!(findings.iter().any(|f| f.stage == "version" && f.candidate == name), "{} missing in {:#?}", name, findings);
        }
        // Whatever serves has rules that match.
        let serving = decided.version.unwrap();
        if let Some(row) = versions.iter().find(|v| v["version"] == json!(serving)) {
            let matches = ext_registry_core::rules::RuleSet::parse(&row["routing_rules"]).unwrap().matches(&context);
            prop_assert!(matches || serving == "v1");
        }
    }
}

proptest! {
    /// Among many versions only those are looked at that may match; that changes no decision.
    #[test]
    fn many_versions_are_decided_as_few(
        rules in prop::collection::vec((0u32..6, prop::collection::vec(0u32..12, 1..4)), 20..60),
        tenants in prop::collection::vec(0u32..14, 1..20),
    ) {
        let rule = |(kind, names): &(u32, Vec<u32>)| {
            let names: Vec<String> = names.iter().map(|n| format!("t{n}")).collect();
            match kind {
                0..=2 => json!({"tenant_id": names}),
                3 => json!({"tenant_id": names[0]}),
                4 => json!({"tenant_id": [names[0], 7, null]}),
                _ => json!({"environment": names[0]}),
            }
        };
        let rules: Vec<Json> = rules.iter().map(rule).collect();
        let versions: Vec<Json> = rules.iter().enumerate().map(|(n, rule)| version(&format!("v{n}"), rule.clone())).collect();
        let mut e = engine(&[extension(json!(versions), json!([]))]);
        for tenant in tenants {
            let context = json!({"tenant_id": format!("t{tenant}"), "environment": format!("t{}", tenant % 3)});
            // All have one key: the last that matches is the highest, and it serves.
            let matches = |rule: &Json| RuleSet::parse(rule).unwrap().matches(context.as_object().unwrap());
            let expected = rules.iter().rposition(matches).map_or("v1".to_owned(), |n| format!("v{n}"));
            prop_assert_eq!(serves(&mut e, context.clone()), expected.clone());
            let (explained, _) = e.explain("normalize_text", &facts(context), NOW);
            prop_assert_eq!(explained.version, Some(expected));
        }
    }
}

#[test]
fn a_breaker_that_is_open_elsewhere_stays_open_and_is_probed_in_time() {
    let mut e = engine(&[]);
    let document = ExtensionDocument::parse(&extension(
        json!([version("v2", json!({"tenant_id": "t2"}))]),
        json!([]),
    ))
    .unwrap();
    e.add(&document).unwrap();
    assert!(e.add(&document).is_err(), "twice");
    e.hold_open("normalize_text", "v1", NOW + 10 * SECOND, NOW);
    e.hold_open("normalize_text", "unknown", NOW + 10 * SECOND, NOW);
    let refused = select(&mut e, tenant("t1"));
    assert_eq!(refused.reason, Reason::ExtensionCircuitOpen);
    assert_eq!(refused.retry_after_ms, Some(10_000));
    assert_eq!(serves(&mut e, tenant("t2")), "v2");
    let later = e.select("normalize_text", &facts(tenant("t1")), &[], NOW + 11 * SECOND);
    assert!(later.allowed, "a probe: {later:?}");
}
