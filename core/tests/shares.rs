//! Shares and turns over many requests: what a percentage, a hash and a weight come to, measured.

mod random;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use ext_registry_core::balance::Schedule;
use ext_registry_core::compile::Compiled;
use ext_registry_core::context::{Context, Value};
use ext_registry_core::decide::{Caller, Live, Request, decide};
use ext_registry_core::engine::Engine;

use ext_registry_core::fitness::{Effects, Fitness};
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::outcome::Outcome;
use ext_registry_core::target::Target;
use random::Random;
use serde_json::{Map, Value as Json, json};

const NOW: u64 = 1_800_000_000_000_000;
const KEYS: usize = 1_000_000;

fn engine(document: &Json) -> Engine {
    let document = ExtensionDocument::parse(document).unwrap_or_else(|error| panic!("{error}: {document}"));
    Engine::new(&[document], 64, 1).expect("one document")
}

/// A request of which one fact is known.
struct Tenant(String);

impl Context for Tenant {
    fn get(&self, key: &str) -> Option<Value<'_>> {
        (key == "tenant_id").then(|| Value::Str(self.0.as_str().into()))
    }

    fn get_path(&self, _path: &[Box<str>]) -> Option<Value<'_>> {
        None
    }
}

/// No live state: all breakers are closed.
struct Fresh;

impl Live for Fresh {
    fn version(&self, _target: usize) -> Option<&Target> {
        None
    }

    fn instance(&self, _place: usize) -> Option<&Target> {
        None
    }

    fn fitness(&self, _now_us: u64, _random: u64, _effects: Effects) -> Option<Rc<Fitness>> {
        None
    }
}

/// What `answer` says of the decision of each key.
fn each<T>(extension: &Compiled, avoid: &[&str], answer: impl Fn(&Compiled, usize, Option<usize>) -> T) -> Vec<T> {
    let mut tenant = Tenant(String::new());
    (0..KEYS)
        .map(|n| {
            tenant.0.clear();
            write!(tenant.0, "tenant-{n}").expect("a string");
            let request = Request {
                context: &tenant,
                avoid,
                now_us: NOW,
                random: 0,
            };
            let decision = decide(extension, &request, &Fresh, &mut Caller);
            answer(extension, decision.version.expect("a version"), decision.instance)
        })
        .collect()
}

/// An extension whose versions have these shares, of which each key gets one: the number after the `v`.
fn versions(id: &str, shares: &[(u16, f64)]) -> Vec<u16> {
    let versions: Vec<Json> = shares
        .iter()
        .map(|(version, percent)| json!({"version": format!("v{version}"), "subject": "s", "rollout_percent": percent}))
        .collect();
    let engine = engine(&json!({"id": id, "type": "pre", "subject": "s", "version": "v0", "versions": versions}));
    each(
        engine.extension(id).expect("registered"),
        &[],
        |extension, version, _| extension.versions[version].name[1..].parse().expect("a number"),
    )
}

/// `count` of [`KEYS`] independent draws that each come out with `probability`: within five standard deviations, which one
/// in two million does not.
#[track_caller]
fn assert_binomial(count: usize, probability: f64, what: &str) {
    let mean = KEYS as f64 * probability;
    let sigma = (mean * (1.0 - probability)).sqrt();
    let off = (count as f64 - mean) / sigma.max(f64::MIN_POSITIVE);
    println!("{what}: {count} of {KEYS}, {off:+.2} sigma");
    assert!(
        (count as f64 - mean).abs() <= 5.0 * sigma,
        "{what}: {count} instead of {mean}, {off:+.2} sigma"
    );
}

fn count(all: &[u16], version: u16) -> usize {
    all.iter().filter(|one| **one == version).count()
}

#[test]
fn a_million_keys_get_the_shares_that_are_asked_for() {
    type Case<'a> = (&'a [(u16, f64)], &'a [(u16, f64)]);
    let cases: &[Case] = &[
        // What the versions have, and what comes of it: from the highest down, each takes what is left.
        (&[(1, 100.0), (2, 10.0)], &[(1, 0.9), (2, 0.1)]),
        (&[(1, 100.0), (2, 10.0), (3, 10.0)], &[(1, 0.8), (2, 0.1), (3, 0.1)]),
        (&[(1, 100.0), (2, 66.67)], &[(1, 0.3333), (2, 0.6667)]),
        (&[(1, 100.0), (2, 0.01)], &[(1, 0.9999), (2, 0.0001)]),
        // Nobody's share is the extension's own.
        (&[(2, 0.01)], &[(0, 0.9999), (2, 0.0001)]),
        (&[(1, 50.0), (2, 60.0), (3, 30.0)], &[(1, 0.1), (2, 0.6), (3, 0.3)]),
    ];
    for (number, (shares, expected)) in cases.iter().enumerate() {
        let all = versions(&format!("case_{number}"), shares);
        for (version, share) in *expected {
            assert_binomial(count(&all, *version), *share, &format!("{shares:?}: v{version}"));
        }
        let known: usize = expected.iter().map(|(version, _)| count(&all, *version)).sum();
        assert_eq!(known, KEYS, "{shares:?}: nobody else serves");
    }
}

#[test]
fn raising_a_share_moves_keys_to_it_and_few_others() {
    let before = versions("x", &[(1, 100.0), (2, 10.0), (3, 10.0)]);
    // (v1 80, v2 10, v3 10) becomes (v1 70, v2 20, v3 10), and on to (v1 0, v2 90, v3 10).
    for raised in [10.01, 20.0, 90.0] {
        let after = versions("x", &[(1, 100.0), (2, raised), (3, 10.0)]);
        assert_binomial(count(&after, 2), raised / 100.0, &format!("v2 at {raised} %"));
        let moved = |from: u16, to: u16| {
            let pairs = before.iter().zip(&after);
            pairs.filter(|pair| *pair == (&from, &to)).count()
        };
        assert_eq!(
            moved(2, 1) + moved(2, 3),
            0,
            "no key leaves the version whose share was raised"
        );
        // To it go as many as it gains and v3 must give back what it takes from v1: a key moves twice at most.
        let gained = count(&after, 2) - count(&before, 2);
        let between = moved(1, 3) + moved(3, 1);
        println!("v2 at {raised} %: {gained} keys gained, {between} moved between the others");
        assert!(
            between * 5 <= gained,
            "{between} moved between the others, {gained} to the raised one"
        );
    }
}

fn hashed(members: usize, without: Option<usize>) -> Json {
    let instances: Vec<Json> = (0..members)
        .filter(|n| Some(*n) != without)
        .map(|n| json!({"instance_id": format!("i{n}"), "subject": "s"}))
        .collect();
    json!({
        "id": "x", "type": "pre", "subject": "s", "balancing": "consistent_hash", "hash_key": "tenant_id", "instances": instances,
    })
}

#[test]
fn removing_one_of_n_instances_moves_its_keys_only() {
    const MEMBERS: usize = 7;
    const GONE: usize = 4;
    let instance = |extension: &Compiled, _: usize, instance: Option<usize>| -> u16 {
        let id = &extension.instances[instance.expect("an instance")].id;
        id[1..].parse().expect("a number")
    };
    let with = engine(&hashed(MEMBERS, None));
    let with = with.extension("x").expect("registered");
    let before = each(with, &[], instance);
    for member in 0..MEMBERS {
        assert_binomial(
            count(&before, member as u16),
            1.0 / MEMBERS as f64,
            &format!("i{member} of {MEMBERS}"),
        );
    }
    let without = engine(&hashed(MEMBERS, Some(GONE)));
    let after = each(without.extension("x").expect("registered"), &[], instance);
    let mut heirs = [0_usize; MEMBERS];
    for (old, new) in before.iter().zip(&after) {
        if usize::from(*old) == GONE {
            heirs[usize::from(*new)] += 1;
        } else {
            assert_eq!(old, new, "a key of an instance that is still there");
        }
    }
    // The others inherit alike.
    let inherited: usize = heirs.iter().sum();
    assert_eq!(heirs[GONE], 0);
    for (member, keys) in heirs.iter().enumerate().filter(|(member, _)| *member != GONE) {
        let mean = inherited as f64 / (MEMBERS - 1) as f64;
        assert!(
            (*keys as f64 - mean).abs() <= 5.0 * mean.sqrt(),
            "i{member} inherits {keys}, not {mean}"
        );
    }
    // The order of the scores is the retry sequence: whoever tried it in vain goes where its keys would go without it.
    assert_eq!(each(with, &["i4"], instance), after);
}

#[test]
fn weighted_round_robin_is_within_one_over_every_prefix() {
    const CASES: usize = 150;
    const PICKS: usize = 2000;
    let mut random = Random::new();
    for _ in 0..CASES {
        let most_members = if random.chance(1, 10) { 60 } else { 9 };
        let members = random.within(1, most_members);
        let most = [1, 3, 10, 100][random.below(4) as usize];
        let mut weights: BTreeMap<String, u64> = BTreeMap::new();
        let mut instances = Vec::new();
        for n in 0..members {
            let weight = random.within(0, most);
            // Twice the weight, so that half of it is a whole number.
            let (health, counts) = match random.below(5) {
                0 => ("degraded", weight),
                1 => ("unhealthy", 0),
                2 => ("unknown", 2 * weight),
                _ => ("healthy", 2 * weight),
            };
            let id = format!("i{n:02}");
            instances.push(json!({"instance_id": id, "subject": "s", "weight": weight, "health_status": health}));
            weights.insert(id, counts);
        }
        let total: u64 = weights.values().sum();
        if total == 0 {
            continue;
        }
        let mut engine = engine(&json!({"id": "x", "type": "pre", "subject": "s", "instances": instances}));
        let mut picks: BTreeMap<&str, u64> = weights.keys().map(|id| (id.as_str(), 0)).collect();
        let context = Map::new();
        for turn in 1..=PICKS as u64 {
            let decision = engine.select("x", &context, &[], NOW);
            let id = decision.instance_id.expect("an instance");
            engine.report(decision.ticket, Outcome::Success, 1, 0, NOW);
            *picks.get_mut(id.as_str()).expect("one of them") += 1;
            for (id, picked) in &picks {
                // |picked - turn * weight / total| <= 1, in whole numbers.
                let distance = (picked * total).abs_diff(turn * weights[*id]);
                assert!(
                    distance <= total,
                    "{id} of {weights:?} was picked {picked} times in {turn} turns"
                );
            }
        }
    }
}

/// Two thousand instances of weights 1 to 100: 101,000 turns until all have had theirs.
#[test]
fn a_long_cycle_is_within_one_too() {
    let weights: Vec<u32> = (0..2000).map(|n| 1 + n % 100).collect();
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let schedule = Schedule::new(&weights).expect("weights");
    let mut picks = vec![0_u64; weights.len()];
    let mut farthest = 0.0_f64;
    for turn in 0..5 * total {
        let member = schedule.pick(turn);
        picks[member] += 1;
        let share = (turn + 1) as f64 * f64::from(weights[member]) / total as f64;
        farthest = farthest.max((picks[member] as f64 - share).abs());
    }
    println!(
        "cycle of {} instead of {total}: {farthest:.2} picks off",
        schedule.len()
    );
    assert!(farthest <= 1.0, "{farthest:.2} picks off");
}
