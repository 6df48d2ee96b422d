//! Who speaks NATS micro: one `$SRV.INFO` to all services, and what they answer within a while.
//!
//! Promise: whatever comes as an answer, it is bounded, and what is no service's description is passed over.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use ext_registry_core::ident::check_id;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::serve::micro;

/// Most answers that are read, and most bytes of them; then the call is cut short.
const MOST: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;
/// A service that claims more endpoints is passed over.
pub const MOST_ENDPOINTS: usize = 256;

/// A service as it describes itself. What it says is not to be trusted.
#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    /// What it is called; a valid id.
    pub name: String,
    /// Which one of that name it is.
    pub id: String,
    /// The version of the program.
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    metadata: Option<Map<String, Json>>,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
}

/// A subject that it says it listens on.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoint {
    /// The subject, unchecked.
    pub subject: String,
    #[serde(default)]
    metadata: Option<Map<String, Json>>,
}

impl Service {
    /// A description, if it is one.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let service: Self = serde_json::from_slice(payload).ok()?;
        let fits = check_id("name", &service.name).is_ok() && service.endpoints().len() <= MOST_ENDPOINTS;
        fits.then_some(service)
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        self.endpoints.as_deref().unwrap_or_default()
    }

    /// What the endpoint, or else the service, has under a key.
    pub fn fact<'a>(&'a self, endpoint: &'a Endpoint, key: &str) -> Option<&'a Json> {
        let of = |metadata: &'a Option<Map<String, Json>>| metadata.as_ref().and_then(|map| map.get(key));
        of(&endpoint.metadata).or_else(|| of(&self.metadata))
    }
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct RollCall {
    /// The services, bridges left out; each once.
    pub services: Vec<Service>,
    /// There were more answers than are read, or the question could not be asked.
    pub cut_short: bool,
}

impl RollCall {
    /// Asks all, and waits for answers this long.
    pub async fn take(client: &Client, window: Duration) -> Self {
        let mut roll_call = Self::default();
        let mut seen = HashSet::new();
        let inbox = client.new_inbox();
        let Ok(mut answers) = client.subscribe(inbox.clone()).await else {
            return Self::failed();
        };
        if client
            .publish_with_reply("$SRV.INFO", inbox, Bytes::new())
            .await
            .is_err()
        {
            return Self::failed();
        }
        let (mut count, mut bytes) = (0, 0);
        let gather = async {
            while let Some(answer) = answers.next().await {
                count += 1;
                bytes += answer.payload.len();
                if count > MOST || bytes > MOST_BYTES {
                    roll_call.cut_short = true;
                    return;
                }
                if let Some(service) = Service::read(&answer.payload)
                    && service.name != micro::NAME
                    && seen.insert(service.id.clone())
                {
                    roll_call.services.push(service);
                }
            }
        };
        let _ = tokio::time::timeout(window, gather).await; // that is how it ends
        roll_call
    }

    fn failed() -> Self {
        Self {
            cut_short: true,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptions_of_services_are_read() {
        let good = br#"{"name":"a","id":"I","version":"1.0.0","metadata":null,"type":"x","endpoints":[
            {"name":"e","subject":"s.*","queue_group":"q","metadata":{"weight":"7"}}, {"subject":"t"}]}"#;
        let service = Service::read(good).unwrap();
        let [first, second] = service.endpoints() else {
            panic!("two endpoints")
        };
        assert_eq!(service.fact(first, "weight"), Some(&Json::from("7")));
        assert_eq!(service.fact(second, "weight"), None);
        assert_eq!(Service::read(br#"{"name":"a","id":"I"}"#).unwrap().endpoints().len(), 0);

        let many = format!(
            r#"{{"name":"a","id":"I","endpoints":[{}]}}"#,
            vec![r#"{"subject":"s"}"#; 10_000].join(",")
        );
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in [
            "",
            "null",
            "[]",
            "\u{0}",
            r#"{"name":5,"id":"I"}"#,
            r#"{"name":"a"}"#,
            r#"{"name":"a b","id":"I"}"#,
            r#"{"name":"a\u0000","id":"I"}"#,
            r#"{"name":"a","id":"I","endpoints":{}}"#,
            r#"{"name":"a","id":"I","endpoints":[{"subject":null}]}"#,
            &many,
            &deep,
        ] {
            assert!(Service::read(bad.as_bytes()).is_none(), "{bad:.60}");
        }
    }
}
