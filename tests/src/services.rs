//! The reference services (`bridge/examples/reference_services.rs`) as a running process.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::process::{Directory, Server};
use crate::{Nats, places};

/// normalize_text, pii_guard, mask_pii and test_provider, each as v1 and v2; ended when dropped.
#[derive(Debug)]
pub struct Services {
    server: Server,
    control: async_nats::Client,
    directory: Directory,
}

impl Services {
    /// Starts them; returns when they listen. `instances` are the names that get a subject of their own beside the
    /// version's, `<subject>.<instance>`.
    pub async fn start(nats: &Nats, instances: &[&str]) -> Self {
        let directory = Directory::new("services-", None);
        let mut command = Command::new(places::built("examples/reference_services", "services"));
        command.args(["--nats-url", &nats.url()]);
        for instance in instances {
            command.args(["--instance", instance]);
        }
        let mut server = Server::start(
            "reference_services",
            &mut command,
            &directory.path().join("log"),
            Signal::SIGKILL,
        );
        server.await_ready(Duration::from_secs(20), |server| {
            server.log().lines().any(|line| line == "ready")
        });
        Self {
            server,
            control: nats.connect().await,
            directory,
        }
    }

    /// Changes how `target` behaves: an extension (`pii_guard`), one version of it (`pii_guard.v2`) or one instance
    /// (`pii_guard.v1.a`). `mode` is one of `ok`, `error`, `hang`, `slow`, `garbage`, `twice`. In force on return.
    pub async fn set(&self, target: &str, mode: &str) {
        self.ask(target, &json!({ "mode": mode })).await;
    }

    /// Answers of `target` take `wait` longer, in whole ms.
    pub async fn slow_down(&self, target: &str, wait: Duration) {
        self.ask(target, &json!({ "mode": "slow", "ms": wait.as_millis() as u64 }))
            .await;
    }

    /// How many requests have arrived at `target` since the start.
    pub async fn served(&self, target: &str) -> u64 {
        self.ask(target, &json!({})).await["served"].as_u64().expect("a count")
    }

    async fn ask(&self, target: &str, request: &Value) -> Value {
        let answer = self
            .control
            .request(format!("demo.control.{target}"), request.to_string().into())
            .await
            .unwrap_or_else(|error| panic!("no answer for {target}: {error}\n{}", self.server.log_tail()));
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(answer["ok"], true, "{target} {request}: {answer}");
        answer
    }

    /// Ends the process at once, as a crash does.
    pub fn kill(&mut self) {
        self.server.stop(Signal::SIGKILL, Duration::from_secs(5));
    }

    /// Where its log is.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}
