//! The bridge as a NATS micro service: answers to `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS`.

use serde_json::{Value as Json, json};

use crate::machine::EndpointStats;

/// The service's name, and the queue group of its endpoints.
pub const NAME: &str = "ext-bridge";

/// One loop as an instance of the service.
pub struct Micro {
    id: String,
    prefix: String,
    started: String,
}

impl Micro {
    /// An instance with an id of its own.
    pub fn new(prefix: &str, started: String) -> Self {
        Self {
            id: uuid::Uuid::new_v4().simple().to_string(),
            prefix: prefix.to_owned(),
            started,
        }
    }

    /// What to subscribe to.
    pub fn subjects(&self) -> Vec<String> {
        ["PING", "INFO", "STATS"]
            .iter()
            .flat_map(|verb| {
                [
                    format!("$SRV.{verb}"),
                    format!("$SRV.{verb}.{NAME}"),
                    format!("$SRV.{verb}.{NAME}.{}", self.id),
                ]
            })
            .collect()
    }

    /// The answer to a request on one of the subjects.
    pub fn answer(&self, subject: &str, stats: &[EndpointStats; 2]) -> Option<Json> {
        let verb = subject.split('.').nth(1)?;
        let kind = match verb {
            "PING" => "ping",
            "INFO" => "info",
            "STATS" => "stats",
            _ => return None,
        };
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{kind}_response"),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        });
        let endpoints = [
            ("invoke", format!("{}.invoke.*", self.prefix)),
            ("route", format!("{}.route", self.prefix)),
        ];
        match verb {
            "INFO" => {
                answer["description"] = "Calls extensions of the registry".into();
                answer["endpoints"] = endpoints
                    .iter()
                    .map(|(name, subject)| json!({"name": name, "subject": subject, "queue_group": NAME, "metadata": {}}))
                    .collect();
            }
            "STATS" => {
                answer["started"] = self.started.as_str().into();
                answer["endpoints"] = endpoints
                    .iter()
                    .zip(stats)
                    .map(|((name, subject), s)| {
                        let ns = s.processing_us * 1000;
                        json!({"name": name, "subject": subject, "queue_group": NAME, "num_requests": s.requests,
                               "num_errors": s.errors, "last_error": "", "processing_time": ns,
                               "average_processing_time": ns / s.requests.max(1)})
                    })
                    .collect();
            }
            _ => {}
        }
        Some(answer)
    }
}
