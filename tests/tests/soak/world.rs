//! What the faults befall: Postgres, two nats-servers, two bridges, the reference services; and when all of it has recovered.

use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Nats, Postgres, Services, Session, eventually, registry};

/// The database.
pub const DATABASE: &str = "app";
const SOON: Duration = Duration::from_mins(1);

/// See the module.
pub struct World {
    pub cluster: Postgres,
    pub nats: Vec<Nats>,
    /// The first one is never ended: what it holds must not grow. The other may be.
    pub bridges: Vec<Bridge>,
    pub services: Services,
    /// So many outcomes killed bridges had gathered and not handed over.
    pub gathered_by_killed: i64,
    images: [Directory; 2],
    logs: String,
}

/// What a bridge has gathered and not handed over.
fn gathered(bridge: &Bridge) -> i64 {
    let series = bridge.scrape();
    series.by_labels("ext_bridge_reports_gathered").values().sum::<f64>() as i64
}

impl World {
    pub async fn start() -> Self {
        let cluster = Postgres::start(&["max_connections = 60"]);
        cluster.make_database(DATABASE);
        let session = cluster.connect(DATABASE).await;
        session
            .execute("select ext_import($1)", &[&registry::fixtures()])
            .await
            .expect("the fixtures are good");
        session
            .run(
                "update extensions set timeout_ms = 2000;
                 insert into extensions (id, type, subject, timeout_ms, retry) values
                     ('steady', 'pre', 'soak.steady', 2000, 2),
                     ('flaky', 'pre', 'soak.flaky', 200, 1),
                     ('sql', 'pre', 'soak.sql', 2000, 0);
                 insert into extension_versions (id, version, subject, timeout_ms, retry, rollout_percent)
                 values ('steady', 'v2', 'soak.steady', 2000, 2, 30);
                 insert into extension_instances (extension_id, instance_id, subject, weight)
                 values ('steady', 'a', 'soak.steady', 60), ('steady', 'b', 'soak.steady', 40);
                 update extension_health set circuit_breaker_timeout_seconds = 1 where extension_id = 'flaky'",
            )
            .await;
        let nats = Nats::cluster(2).await;
        let services = Services::start(&nats[0], &[]).await;
        let images = [Directory::new("state-", None), Directory::new("state-", None)];
        let mut world = Self {
            cluster,
            nats,
            bridges: Vec::new(),
            services,
            gathered_by_killed: 0,
            images,
            logs: String::new(),
        };
        for number in 0..2 {
            let bridge = world.launch(number);
            world.bridges.push(bridge);
        }
        world
    }

    fn launch(&self, number: usize) -> Bridge {
        let image = self.images[number].path().join("image");
        let flags = ["--image", image.to_str().expect("UTF-8")];
        Bridge::launch_auto(&self.nats[number], &self.cluster, DATABASE, &flags)
    }

    /// Kills the second bridge; another takes its place.
    pub async fn kill_bridge(&mut self) {
        self.gathered_by_killed += gathered(&self.bridges[1]);
        self.bridges[1].kill();
        self.replace_bridge().await;
    }

    /// Another bridge in the place of the second, which has ended. Returns when all that it reported is on disk: nobody would report
    /// it again if Postgres crashed.
    pub async fn replace_bridge(&mut self) {
        let next = self.launch(1);
        let former = std::mem::replace(&mut self.bridges[1], next);
        self.logs += &former.log();
        let session = self.session().await;
        let since = session.one("select clock_timestamp()::text", &[]).await;
        // A flush that has begun before would be over by then.
        let flushed =
            "select (worker_last_flush > $1::text::timestamptz + interval '1 second')::text from ext_registry_status()";
        eventually(SOON, async || match session.one(flushed, &[&since]).await.as_str() {
            "true" => Ok(()),
            _ => Err(self.cluster.log()),
        })
        .await;
    }

    /// A superuser's session, as soon as there is one to be had.
    pub async fn session(&self) -> Session {
        eventually(SOON, async || {
            self.cluster
                .try_connect(DATABASE)
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// Returns when Postgres decides for both bridges and has what they had gathered without it, its worker is there, and the
    /// services can be reached.
    pub async fn recovered(&self) {
        for bridge in &self.bridges {
            eventually(SOON, async || {
                let ready = bridge.readyz();
                if ready["source"] != "database" || ready["reasons"] != serde_json::json!([]) {
                    return Err(format!("{ready}\n{}", bridge.log()));
                }
                match gathered(bridge) {
                    0 => Ok(()),
                    left => Err(format!("{left} gathered outcomes\n{}", bridge.log())),
                }
            })
            .await;
        }
        let alive = "select worker_alive from ext_registry_status()";
        eventually(SOON, async || {
            // A backend that was killed may take this session with it.
            let row = self.session().await.query_one(alive, &[]).await;
            match row.map(|row| row.get::<_, bool>(0)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(self.cluster.log()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        let control = self.nats[0].connect().await;
        eventually(SOON, async || {
            let asked = control.request("demo.control.pii_guard", "{}".into()).await;
            asked.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    /// Nothing has been logged that must never be.
    #[track_caller]
    pub fn is_unharmed(&self) {
        let all = [
            &*self.cluster.log(),
            &*self.logs,
            &*self.bridges[0].log(),
            &*self.bridges[1].log(),
        ]
        .concat();
        for trace in ["panicked", "PANIC", "XX000", "cannot write live state"] {
            let line = all.lines().find(|line| line.contains(trace));
            assert_eq!(line, None, "{trace}");
        }
    }
}
