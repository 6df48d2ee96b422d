//! A gateway's side of the bridge: requests on its subjects, and what comes back.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use serde_json::Value;

use crate::Nats;

const PREFIX: &str = "beamline.bridge.v1";
/// Longer than any call may take: what is tested is that the bridge answers.
const PATIENCE: Duration = Duration::from_secs(40);

/// Someone who calls the bridge.
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client,
}

/// What the bridge answered.
#[derive(Clone, Debug)]
pub struct Reply {
    pub body: Value,
    pub bytes: Vec<u8>,
    headers: HeaderMap,
}

impl Caller {
    pub async fn new(nats: &Nats) -> Self {
        Self {
            client: nats.connect().await,
        }
    }

    /// By a connection that is made already.
    pub fn by(client: Client) -> Self {
        Self { client }
    }

    /// Calls one extension.
    pub async fn invoke(&self, extension: &str, request: &Value) -> Reply {
        self.send(
            &format!("{PREFIX}.invoke.{extension}"),
            request.to_string().into_bytes(),
        )
        .await
    }

    /// Sends a message through a policy's pipeline.
    pub async fn route(&self, request: &Value) -> Reply {
        self.send(&format!("{PREFIX}.route"), request.to_string().into_bytes())
            .await
    }

    /// Sends bytes to any subject and awaits the answer.
    pub async fn send(&self, subject: &str, body: Vec<u8>) -> Reply {
        let request = async_nats::Request::new().payload(body.into()).timeout(Some(PATIENCE));
        let message = self
            .client
            .send_request(subject.to_owned(), request)
            .await
            .unwrap_or_else(|error| panic!("{subject}: {error}"));
        Reply {
            body: serde_json::from_slice(&message.payload)
                .unwrap_or_else(|error| panic!("{subject}: {error}: {}", String::from_utf8_lossy(&message.payload))),
            bytes: message.payload.to_vec(),
            headers: message.headers.unwrap_or_default(),
        }
    }

    /// The NATS client beneath.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// The error code of a refusal, with the number in the header; `None` when it is none.
    ///
    /// # Panics
    /// When body and headers disagree on whether it is one.
    #[track_caller]
    pub fn error(&self) -> Option<(&str, u16)> {
        let number = self
            .header("Nats-Service-Error-Code")
            .map(|number| number.parse().expect("a number"));
        let code = (self.body["ok"] == false).then(|| self.body["error"]["code"].as_str().expect("a code"));
        match (code, number) {
            (None, None) => None,
            (Some(code), Some(number)) => {
                assert!(
                    self.header("Nats-Service-Error").is_some_and(|text| !text.is_empty()),
                    "{self:?}"
                );
                assert!(
                    self.body["error"]["message"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{self:?}"
                );
                Some((code, number))
            }
            _ => panic!("body and headers disagree: {self:?}"),
        }
    }
}
