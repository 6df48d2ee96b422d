//! Instances that fail in a row are left out, and come back: through decisions and reports, under simulated time.

#![allow(clippy::needless_pass_by_value, reason = "json!(..) reads better than &json!(..)")]

use std::collections::BTreeMap;

use ext_registry_core::decide::Reason;
use ext_registry_core::ejection::{Cause, Move};
use ext_registry_core::engine::{Engine, EngineDecision};
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::outcome::Outcome;
use serde_json::{Map, Value as Json, json};

const SECOND: u64 = 1_000_000;
const NOW: u64 = 1_800_000_000 * SECOND;

/// An extension with instances `a`, `b`, ... and a breaker that does not open, so that only ejection acts.
fn engine(instances: usize, more: Json) -> Engine {
    let list: Vec<Json> = ('a'..)
        .take(instances)
        .map(|name| json!({"instance_id": name, "subject": "s", "weight": 100}))
        .collect();
    let mut document = json!({
        "id": "x", "type": "pre", "subject": "s", "instances": list,
        "health": {"breaker_mode": "metrics_only"},
    });
    for (key, value) in more.as_object().unwrap() {
        match (document.get_mut(key).and_then(Json::as_object_mut), value) {
            (Some(known), Json::Object(value)) => known.extend(value.clone()),
            _ => document[key] = value.clone(),
        }
    }
    Engine::new(&[ExtensionDocument::parse(&document).unwrap()], 4096, 7).unwrap()
}

fn select(engine: &mut Engine, now: u64) -> EngineDecision {
    engine.select("x", &Map::new(), &[], now)
}

/// Makes calls of which those to the named instances end so, and counts who got them.
fn calls(engine: &mut Engine, bad: &[&str], outcome: Outcome, times: usize, now: u64) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let decision = select(engine, now);
        let instance = decision.instance_id.unwrap();
        let ended = if bad.contains(&&*instance) {
            outcome
        } else {
            Outcome::Success
        };
        engine.report(decision.ticket, ended, 1000, 0, now);
        *counts.entry(instance).or_default() += 1;
    }
    counts
}

#[test]
fn five_failures_in_a_row_take_an_instance_out() {
    let mut e = engine(3, json!({}));
    let counts = calls(&mut e, &["b"], Outcome::Error, 100, NOW);
    assert_eq!(counts["b"], 5);
    assert!(counts["a"].abs_diff(counts["c"]) <= 1, "{counts:?}");
    let moves = e.take_ejections();
    assert_eq!(moves.len(), 1);
    assert_eq!(&*moves[0].instance_id, "b");
    let Move::Ejected {
        cause,
        failures,
        until_us,
    } = moves[0].moved
    else {
        panic!("{moves:?}")
    };
    assert_eq!((cause, failures), (Cause::ConsecutiveFailures, 5));
    assert!((27 * SECOND..=33 * SECOND).contains(&(until_us - NOW)));
}

#[test]
fn two_answers_that_nobody_listens_are_enough() {
    let mut e = engine(2, json!({}));
    assert_eq!(calls(&mut e, &["a"], Outcome::NoResponders, 50, NOW)["a"], 2);
    let mut e = engine(2, json!({"health": {"ejection_consecutive_failures": null}}));
    assert_eq!(
        calls(&mut e, &["a"], Outcome::NoResponders, 50, NOW)["a"],
        25,
        "switched off"
    );
}

#[test]
fn the_last_one_and_half_of_them_stay() {
    let mut e = engine(1, json!({}));
    assert_eq!(calls(&mut e, &["a"], Outcome::Error, 50, NOW)["a"], 50);
    let mut e = engine(4, json!({}));
    let counts = calls(&mut e, &["a", "b", "c", "d"], Outcome::Error, 400, NOW);
    let kept = counts.values().filter(|n| **n > 100).count();
    assert_eq!(kept, 2, "{counts:?}");
    assert_eq!(select(&mut e, NOW).reason, Reason::Ok);
}

#[test]
fn it_comes_back_through_a_ramp() {
    let mut e = engine(2, json!({}));
    calls(&mut e, &["a"], Outcome::Timeout, 20, NOW);
    assert!(!calls(&mut e, &[], Outcome::Success, 20, NOW + 26 * SECOND).contains_key("a"));
    let Move::Ejected { until_us, .. } = e.take_ejections()[0].moved else {
        panic!("ejected")
    };
    let share = |e: &mut Engine, seconds: u64| {
        calls(e, &[], Outcome::Success, 110, until_us + seconds * SECOND)
            .get("a")
            .copied()
            .unwrap_or(0)
    };
    let shares: Vec<usize> = (0..11).map(|second| share(&mut e, second)).collect();
    assert!((9..=11).contains(&shares[0]), "one to ten at first: {shares:?}");
    assert_eq!(shares[10], 55);
    assert!(shares.is_sorted(), "{shares:?}");
    assert_eq!(e.take_ejections().len(), 1, "its return is told once");
}

#[test]
fn a_second_time_lasts_longer() {
    let mut e = engine(2, json!({}));
    calls(&mut e, &["a"], Outcome::Error, 20, NOW);
    let later = NOW + 60 * SECOND;
    calls(&mut e, &["a"], Outcome::Error, 40, later);
    let moves = e.take_ejections();
    let Move::Ejected { until_us, .. } = moves[2].moved else {
        panic!("{moves:?}")
    };
    assert!((54 * SECOND..=66 * SECOND).contains(&(until_us - later)));
}

#[test]
fn reports_of_calls_from_before_say_nothing_new() {
    let mut e = engine(2, json!({}));
    // Twelve calls each are under way when the failures come in.
    let under_way: Vec<EngineDecision> = (0..24).map(|_| select(&mut e, NOW)).collect();
    let mut late = Vec::new();
    for decision in under_way {
        let bad = decision.instance_id.as_deref() == Some("a");
        if bad && late.len() < 6 {
            late.push(decision.ticket);
        } else {
            let outcome = if bad { Outcome::Error } else { Outcome::Success };
            e.report(decision.ticket, outcome, 1000, 0, NOW);
        }
    }
    select(&mut e, NOW);
    assert_eq!(e.take_ejections().len(), 1);
    // The rest of them fail in the time of its return.
    for ticket in late {
        e.report(ticket, Outcome::Error, 1000, 0, NOW + SECOND);
    }
    let back = NOW + 45 * SECOND;
    assert_eq!(calls(&mut e, &[], Outcome::Success, 100, back)["a"], 50);
}

#[test]
fn where_nobody_else_is_eligible_the_ejected_serve_in_panic() {
    let healthy_and_not = json!([
        {"instance_id": "a", "subject": "s"}, {"instance_id": "b", "subject": "s"},
        {"instance_id": "c", "subject": "s", "health_status": "unhealthy"},
    ]);
    let mut e = engine(0, json!({"instances": healthy_and_not}));
    calls(&mut e, &["a", "b"], Outcome::Error, 100, NOW);
    let served = calls(&mut e, &[], Outcome::Success, 10, NOW);
    assert_eq!(
        served.len(),
        1,
        "one of the two stays, the unhealthy one is not asked: {served:?}"
    );
    assert!(!served.contains_key("c"));
}

#[test]
fn retries_share_among_the_rest_and_leave_the_first_attempts_their_turns() {
    let mut e = engine(4, json!({}));
    let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..120 {
        let tried = select(&mut e, NOW).instance_id.unwrap();
        let retry = e.select("x", &Map::new(), &[&tried], NOW).instance_id.unwrap();
        assert_ne!(tried, retry);
        *first.entry(tried).or_insert(0) += 1;
        let from_a = e.select("x", &Map::new(), &["a"], NOW).instance_id.unwrap();
        *second.entry(from_a).or_insert(0) += 1;
    }
    assert!(first.values().all(|n| *n == 30), "{first:?}");
    assert_eq!(second.len(), 3);
}

#[test]
fn every_way_of_balancing_leaves_out_who_is_out() {
    for balancing in [
        "weighted_round_robin",
        "round_robin",
        "consistent_hash",
        "least_latency",
    ] {
        let mut e = engine(3, json!({"balancing": balancing}));
        let counts = calls(&mut e, &["a"], Outcome::Error, 300, NOW);
        assert_eq!(counts.get("a"), Some(&5), "{balancing}: {counts:?}");
        let (_, findings) = e.explain("x", &Map::new(), NOW);
        let a = findings
            .iter()
            .find(|f| f.stage == "instance" && f.candidate == "a")
            .unwrap();
        assert!(
            a.verdict == "skipped" && a.detail.starts_with("ejected for"),
            "{balancing}: {a:?}"
        );
    }
}

#[test]
fn explaining_ejects_nobody() {
    let mut e = engine(2, json!({}));
    let mut failed = 0;
    while failed < 5 {
        let decision = select(&mut e, NOW);
        let bad = decision.instance_id.as_deref() == Some("a");
        failed += usize::from(bad);
        e.report(
            decision.ticket,
            if bad { Outcome::Error } else { Outcome::Success },
            1000,
            0,
            NOW,
        );
    }
    let (_, findings) = e.explain("x", &Map::new(), NOW);
    assert!(
        findings.iter().any(|f| f.candidate == "a" && f.verdict == "skipped"),
        "it says what would be"
    );
    assert!(e.take_ejections().is_empty());
    select(&mut e, NOW);
    assert_eq!(e.take_ejections().len(), 1);
}
