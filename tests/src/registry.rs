//! Talking to the extension as its users do: decisions, reports, the registry's documents.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Database, Session, places};

/// One row of `ext_select`.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub extension_id: Option<String>,
    pub version: Option<String>,
    pub instance_id: Option<String>,
    pub subject: Option<String>,
    pub timeout_ms: Option<i32>,
    pub retry: Option<i32>,
    pub config: Option<Value>,
    pub allowed: bool,
    pub reason: String,
    pub retry_after_ms: Option<i32>,
    pub ticket: i64,
    pub epoch: Option<i64>,
}

impl Decision {
    fn from_row(row: &tokio_postgres::Row) -> Self {
        Self {
            extension_id: row.get("extension_id"),
            version: row.get("version"),
            instance_id: row.get("instance_id"),
            subject: row.get("subject"),
            timeout_ms: row.get("timeout_ms"),
            retry: row.get("retry"),
            config: row.get("config"),
            allowed: row.get("allowed"),
            reason: row.get("reason"),
            retry_after_ms: row.get("retry_after_ms"),
            ticket: row.get("ticket"),
            epoch: row.get("epoch"),
        }
    }

    /// The version, for assertions: `-` where none was chosen.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("-")
    }

    /// The instance, for assertions: `-` where none was chosen.
    pub fn instance(&self) -> &str {
        self.instance_id.as_deref().unwrap_or("-")
    }
}

impl Session {
    /// `select * from ext_select(...)`
    pub async fn select(&self, extension: &str, context: &Value) -> Decision {
        let row = self
            .query_one("select * from ext_select($1, $2)", &[&extension, context])
            .await
            .unwrap_or_else(|error| panic!("ext_select({extension}, {context}): {error:?}"));
        Decision::from_row(&row)
    }

    /// The same as one of its tenants.
    pub async fn select_for(&self, extension: &str, tenant: &str) -> Decision {
        self.select(extension, &json!({ "tenant_id": tenant })).await
    }

    /// Reports how the call of a decision went.
    pub async fn report(&self, ticket: i64, outcome: &str, latency: Duration) {
        let ms = latency.as_secs_f64() * 1e3;
        self.execute("select ext_report($1::bigint, $2, $3)", &[&ticket, &outcome, &ms])
            .await
            .unwrap_or_else(|error| panic!("ext_report({ticket}, {outcome}, {ms}): {error:?}"));
    }

    /// Decides and reports, `times` times; returns how often a call was allowed.
    pub async fn call(&self, extension: &str, context: &Value, outcome: &str, times: usize) -> usize {
        let mut allowed = 0;
        for _ in 0..times {
            let decision = self.select(extension, context).await;
            if decision.allowed {
                allowed += 1;
                self.report(decision.ticket, outcome, Duration::from_millis(7)).await;
            }
        }
        allowed
    }

    /// The state of the breaker in `extension_health`.
    pub async fn breaker(&self, extension: &str) -> String {
        let sql = "select circuit_breaker_state::text from extension_health where extension_id = $1";
        self.one(sql, &[&extension]).await
    }

    /// `success_count`, `failure_count` of `extension_health`.
    pub async fn counts(&self, extension: &str) -> (i64, i64) {
        let sql = "select success_count, failure_count from extension_health where extension_id = $1";
        let row = self
            .query_one(sql, &[&extension])
            .await
            .expect("a registered extension");
        (row.get(0), row.get(1))
    }
}

impl Database<'_> {
    /// Imports `fixtures/`: the four extensions and the policies of tenant `default`.
    pub fn load_fixtures(&self) {
        let document = fixtures().to_string();
        assert!(!document.contains("$doc$"), "the quotes below are enough");
        self.run(&format!("select ext_import($doc${document}$doc$)"));
    }
}

/// `fixtures/` as one document for `ext_import`.
pub fn fixtures() -> Value {
    let folder = places::root().join("fixtures");
    let extensions: Vec<_> = json_files(&folder.join("extensions"))
        .into_iter()
        .map(|(_, document)| document)
        .collect();
    let mut policies = Vec::new();
    for tenant in std::fs::read_dir(folder.join("policies")).expect("fixtures/policies") {
        let tenant = tenant.expect("a readable folder");
        for (policy, document) in json_files(&tenant.path()) {
            policies.push(json!({
                "tenant_id": tenant.file_name().to_string_lossy(),
                "policy_id": policy,
                "enabled": true,
                "document": document,
            }));
        }
    }
    assert!(
        !extensions.is_empty() && !policies.is_empty(),
        "{} is empty",
        folder.display()
    );
    json!({ "extensions": extensions, "policies": policies })
}

/// Name without ending and content of each JSON file of a folder.
fn json_files(folder: &std::path::Path) -> Vec<(String, Value)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path
                .file_stem()
                .expect("a file has a name")
                .to_string_lossy()
                .into_owned();
            let text = std::fs::read_to_string(&path).expect("a readable file");
            files.push((
                name,
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            ));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}
