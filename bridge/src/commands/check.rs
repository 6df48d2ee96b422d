//! `check`: one line for each thing that must be right.

use std::process::ExitCode;
use std::time::Duration;

use async_nats::{Client, RequestErrorKind};

use crate::config::{Settings, Source};
use crate::exit::{Exit, Kind};
use crate::fixtures::Fixtures;
use crate::pg::{self, describe, in_schema};
use crate::transport;

struct Lines {
    failed: bool,
}

impl Lines {
    fn good(what: &str, text: &str) {
        println!("ok    {what}: {text}");
    }

    fn warn(what: &str, text: &str) {
        println!("warn  {what}: {text}");
    }

    fn bad(&mut self, what: &str, text: &str) {
        self.failed = true;
        println!("FAIL  {what}: {text}");
    }
}

/// Checks; exits with 1 where something fails.
pub async fn run(settings: Settings) -> Result<ExitCode, Exit> {
    let mut lines = Lines { failed: false };
    let nats = match transport::client(&settings.nats).await {
        Ok(client) => {
            let info = client.server_info();
            Lines::good("nats", &format!("{} (server {})", settings.nats.shown(), info.version));
            Some(client)
        }
        Err(error) => {
            lines.bad("nats", &error.to_string());
            None
        }
    };
    let mut subjects: Vec<(String, String)> = Vec::new();
    let mut from_database = settings.source != Source::Fixtures;
    if from_database {
        match database(&settings, &mut lines).await {
            Ok(found) => subjects = found,
            Err(why) if settings.source == Source::Auto => {
                Lines::warn("postgres", &why);
                from_database = false;
            }
            Err(why) => lines.bad("postgres", &why),
        }
    }
    if !from_database {
        match Fixtures::read(&settings.fixtures) {
            Ok(fixtures) => {
                Lines::good("fixtures", &format!("{} extensions", fixtures.extensions.len()));
                for (_, document) in &fixtures.extensions {
                    subjects.push((document.id.clone(), document.subject.clone()));
                    subjects.extend(
                        document
                            .versions
                            .iter()
                            .map(|v| (document.id.clone(), v.subject.clone())),
                    );
                    subjects.extend(
                        document
                            .instances
                            .iter()
                            .map(|i| (document.id.clone(), i.subject.clone())),
                    );
                }
            }
            Err(error) => lines.bad("fixtures", &error.message),
        }
    }
    if let Some(client) = &nats {
        subjects.sort();
        subjects.dedup();
        for (id, subject) in subjects {
            match listens(client, &subject).await {
                Some(true) => Lines::good("subject", &format!("{subject} ({id}) has a listener")),
                Some(false) => lines.bad("subject", &format!("{subject} ({id}): nobody listens")),
                None => Lines::warn("subject", &format!("{subject} ({id}): cannot be tested")),
            }
        }
    }
    Ok(if lines.failed {
        ExitCode::from(Kind::Refused as u8)
    } else {
        ExitCode::SUCCESS
    })
}

async fn database(settings: &Settings, lines: &mut Lines) -> Result<Vec<(String, String)>, String> {
    let (client, driver, schema, version) = pg::connect(&settings.database).await.map_err(|e| e.to_string())?;
    let server = client
        .query_one(
            "select pg_catalog.current_setting('server_version'), current_user::text",
            &[],
        )
        .await;
    let server = server.map_err(|e| describe(&e))?;
    let (number, user): (&str, &str) = (server.get(0), server.get(1));
    Lines::good("postgres", &format!("server {number}, as {user}"));
    Lines::good("extension", &format!("ext_registry {version} in schema {schema}"));
    // Without the last ones the bridge serves, and shows or does less.
    let rights: [(&str, &str); 10] = [
        ("ext_select_many", include_str!("../queries/decide.sql")),
        ("ext_report_many", include_str!("../queries/report.sql")),
        ("extension_policies", include_str!("../queries/policies.sql")),
        ("extensions", include_str!("../queries/facts.sql")),
        ("ext_health_all", include_str!("../queries/health.sql")),
        ("extension_instances", include_str!("../queries/instances.sql")),
        ("extension_breaker_events", include_str!("../queries/openings.sql")),
        ("extension_invocations", include_str!("../queries/claim.sql")),
        ("_ext_all_invocations", include_str!("../queries/finish.sql")),
        ("extension_publications", include_str!("../queries/published.sql")),
    ];
    for (place, (what, sql)) in rights.into_iter().enumerate() {
        let sql = in_schema(sql, &schema);
        let allowed = match client.prepare(&sql).await {
            Ok(_) => may(&client, &schema, what).await,
            Err(error) => Err(describe(&error)),
        };
        match allowed {
            Ok(()) => Lines::good("rights", what),
            Err(why) if place >= 4 => Lines::warn("rights", &format!("{what}: {why}")),
            Err(why) => lines.bad("rights", &format!("{what}: {why}")),
        }
    }
    let rows = client
        .query(&in_schema(include_str!("../queries/subjects.sql"), &schema), &[])
        .await;
    driver.abort();
    let rows = rows.map_err(|e| describe(&e))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Preparing checks no rights; this does.
async fn may(client: &tokio_postgres::Client, schema: &str, what: &str) -> Result<(), String> {
    let bare = schema.trim_matches('"').replace("\"\"", "\"");
    let row = client
        .query_one(include_str!("../queries/rights.sql"), &[&bare, &what])
        .await
        .map_err(|e| describe(&e))?;
    if row.get::<_, Option<bool>>(0).unwrap_or(false) {
        Ok(())
    } else {
        Err(format!(
            "this role has no right to it; grant it with ext_grant(current_user, 'bridge') (as {schema})"
        ))
    }
}

/// Whether somebody listens. NATS cannot be asked that without sending: the request is empty, which a service refuses.
async fn listens(client: &Client, subject: &str) -> Option<bool> {
    let request = async_nats::Request::new().timeout(Some(Duration::from_millis(300)));
    match client.send_request(subject.to_owned(), request).await {
        Ok(_) => Some(true),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders => Some(false),
            RequestErrorKind::TimedOut => Some(true),
            _ => None,
        },
    }
}
