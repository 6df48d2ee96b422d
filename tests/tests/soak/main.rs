//! Mixed load, random faults, and an account of every call: each ended once, each attempt was made once and counted once, but for
//! what `docs/guarantees.md` says a fault may cost.
//!
//! `make test` runs it for a short while, `make soak` for ten minutes. Calls come by NATS to single extensions and to pipelines, and
//! by SQL; meanwhile the registry is edited. One fault at a time befalls the system, as often as it has recovered. SOAK_SECONDS says
//! for how long, SOAK_SEED which faults in which order, SOAK_FAULTS (names of [`Fault`], with commas) which may be.

mod account;
mod faults;
mod random;
mod service;
mod sessions;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ext_registry_tests::Callers;
use serde_json::json;

use account::{Account, Flatness};
use faults::Fault;
use random::Random;
use service::Service;
use sessions::Ledger;
use world::World;

/// Callers of single extensions, of each of two clients.
const INVOKERS: usize = 8;
/// Callers of pipelines.
const ROUTERS: usize = 4;
/// Sessions that decide and report by SQL.
const SESSIONS: usize = 4;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: not a number"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_accounted_for_whatever_befalls_the_system() {
    let seconds = number("SOAK_SECONDS", 15);
    let seed = number("SOAK_SEED", random::of_the_clock());
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let chosen = Fault::chosen();
    let mut random = Random::new(seed);

    let mut world = World::start().await;
    world.recovered().await;
    let service = Service::start(&world.nats, random.next()).await;
    let ledger = Arc::new(Ledger::default());
    let callers = [Callers::new(&world.nats[0]).await, Callers::new(&world.nats[1]).await];
    let over = Arc::new(AtomicBool::new(false));

    let mut tasks = Vec::new();
    for (client, number) in (0..2).flat_map(|client| (0..INVOKERS).map(move |number| (client, number))) {
        let (callers, over) = (Arc::clone(&callers[client]), Arc::clone(&over));
        let extension = if number % 4 == 0 { "flaky" } else { "steady" };
        tasks.push(tokio::spawn(async move {
            while !over.load(Relaxed) {
                callers.invoke(extension).await;
                // An open breaker refuses at once.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }));
    }
    for _ in 0..ROUTERS {
        let (callers, over) = (Arc::clone(&callers[0]), Arc::clone(&over));
        let request = json!({"tenant_id": "default", "policy_id": "full", "message": {"payload": " HELLO "}});
        tasks.push(tokio::spawn(async move {
            while !over.load(Relaxed) {
                callers.send("beamline.bridge.v1.route", &request).await;
            }
        }));
    }
    let port = world.cluster.port();
    for _ in 0..SESSIONS {
        tasks.push(tokio::spawn(sessions::report(
            port,
            Arc::clone(&ledger),
            Arc::clone(&over),
        )));
    }
    tasks.push(tokio::spawn(sessions::edit(port, random.next(), Arc::clone(&over))));

    let (began, mut flatness, mut befallen) = (Instant::now(), Flatness::default(), Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        // Load between the faults, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(300 + random.below(1_500))).await;
        flatness.sample(&world).await;
        let fault = chosen[random.below(chosen.len() as u64) as usize];
        let (at, struck) = (began.elapsed(), Instant::now());
        fault.befall(&mut world, &ledger, &mut random).await;
        let (took, back) = (struck.elapsed(), Instant::now());
        world.recovered().await;
        println!(
            "{:7.1} s  {:18} {:5.1} s, recovered after {:4.1} s",
            at.as_secs_f64(),
            format!("{fault:?}"),
            took.as_secs_f64(),
            back.elapsed().as_secs_f64()
        );
        befallen.push(fault);
    }
    over.store(true, Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }

    let account = Account::take(&mut world, &service, &ledger, &callers, &befallen).await;
    println!("\n{account}\n\n{flatness}");
    account.settle();
    flatness.settle(Duration::from_secs(seconds));
    world.is_unharmed();
}
