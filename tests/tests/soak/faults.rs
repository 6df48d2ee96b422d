//! The faults, one at a time.

use std::time::{Duration, Instant};

use ext_registry_tests::Shutdown;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::random::Random;
use crate::sessions::Ledger;
use crate::world::{DATABASE, World};

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    BackendKilled,
    WorkerKilled,
    WorkerEnded,
    PostmasterKilled,
    PostgresCrashes,
    PostgresRestarts,
    PostgresFreezes,
    SessionsEnded,
    NatsKilled,
    BridgeKilled,
    BridgeEnds,
    BridgeHangsUp,
    ServicesMisbehave,
}

const ALL: [Fault; 13] = [
    Fault::BackendKilled,
    Fault::WorkerKilled,
    Fault::WorkerEnded,
    Fault::PostmasterKilled,
    Fault::PostgresCrashes,
    Fault::PostgresRestarts,
    Fault::PostgresFreezes,
    Fault::SessionsEnded,
    Fault::NatsKilled,
    Fault::BridgeKilled,
    Fault::BridgeEnds,
    Fault::BridgeHangsUp,
    Fault::ServicesMisbehave,
];

impl Fault {
    /// Those of SOAK_FAULTS, or all.
    pub fn chosen() -> Vec<Self> {
        let Ok(names) = std::env::var("SOAK_FAULTS") else {
            return ALL.to_vec();
        };
        let named = |name: &str| {
            let known = ALL.into_iter().find(|fault| format!("{fault:?}") == name);
            known.unwrap_or_else(|| panic!("SOAK_FAULTS names {name}; there are {ALL:?}"))
        };
        names.split(',').map(named).collect()
    }

    /// Whether what Postgres had counted and not yet written is gone.
    pub fn is_crash(self) -> bool {
        matches!(
            self,
            Self::BackendKilled | Self::WorkerKilled | Self::PostmasterKilled | Self::PostgresCrashes
        )
    }

    /// Happens; the system is on its way back when this returns.
    pub async fn befall(self, world: &mut World, ledger: &Ledger, random: &mut Random) {
        let began = Instant::now();
        match self {
            Self::BackendKilled => {
                let idle = world.session().await;
                world.cluster.kill_backend(idle.backend_pid().await).await;
            }
            Self::WorkerKilled => {
                if let Some(pid) = worker(world).await {
                    world.cluster.kill_backend(pid).await;
                }
            }
            Self::WorkerEnded => {
                if let Some(pid) = worker(world).await {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // it may have ended
                }
            }
            Self::PostmasterKilled => {
                world.cluster.kill();
                world.cluster.start_again();
            }
            Self::PostgresCrashes => world.cluster.restart(Shutdown::Immediate),
            Self::PostgresRestarts => world.cluster.restart(Shutdown::Fast),
            Self::PostgresFreezes => {
                let frozen = world.cluster.backends();
                let signal = |signal: Signal| {
                    for pid in &frozen {
                        let _ = kill(Pid::from_raw(*pid as i32), signal); // it may have ended
                    }
                };
                signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_millis(200 + random.below(3_000))).await;
                signal(Signal::SIGCONT);
            }
            Self::SessionsEnded => {
                let session = world.session().await;
                session
                    .run(&format!(
                        "select pg_terminate_backend(pid) from pg_stat_activity
                         where datname = '{DATABASE}' and pid <> pg_backend_pid() and backend_type = 'client backend'"
                    ))
                    .await;
            }
            Self::NatsKilled => {
                let node = &mut world.nats[random.below(2) as usize];
                node.stop();
                tokio::time::sleep(Duration::from_millis(random.below(1_000))).await;
                node.start_again();
            }
            Self::BridgeKilled => world.kill_bridge().await,
            Self::BridgeEnds => {
                assert!(world.bridges[1].terminate().success());
                world.replace_bridge().await;
            }
            Self::BridgeHangsUp => world.bridges[random.below(2) as usize].hang_up(),
            Self::ServicesMisbehave => {
                let target = ["normalize_text", "pii_guard", "mask_pii", "test_provider"][random.below(4) as usize];
                let mode = ["error", "hang", "garbage", "twice"][random.below(4) as usize];
                world.services.set(target, mode).await;
                tokio::time::sleep(Duration::from_millis(random.below(1_500))).await;
                world.services.set(target, "ok").await;
            }
        }
        if self.is_crash() {
            ledger.crashed(began);
        }
    }
}

async fn worker(world: &World) -> Option<i32> {
    let session = world.session().await;
    let pid = session
        .one("select worker_pid::text from ext_registry_status()", &[])
        .await;
    pid.parse().ok()
}
