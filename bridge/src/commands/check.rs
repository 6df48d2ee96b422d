//! `check`: one line for each thing that must be right.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_nats::{Client, RequestErrorKind};
use ext_registry_core::fixture::ExtensionDocument;

use crate::config::{Settings, Source, registry_name};
use crate::exit::{Exit, Kind};
use crate::fixtures::Fixtures;
use crate::image::{self, Kept};
use crate::pg::{self, Database, describe, in_schema};
use crate::serve::clock::now_ms;
use crate::transport::{self, Denied};

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
    let start = Instant::now();
    let nats = match transport::client(&settings.nats).await {
        Ok((client, denials)) => {
            let info = client.server_info();
            Lines::good("nats", &format!("{} (server {})", settings.nats.shown(), info.version));
            Some((client, denials))
        }
        Err(error) => {
            lines.bad("nats", &error.to_string());
            None
        }
    };
    Lines::good("source", source(settings.source));
    let mut subjects: Vec<(String, String)> = Vec::new();
    if settings.source == Source::Auto {
        image(&settings);
    }
    let mut from_database = settings.source != Source::Fixtures;
    if from_database {
        match database(&settings, &mut lines).await {
            Ok(found) => subjects = found,
            Err(why) if settings.source == Source::Auto => {
                Lines::warn("postgres", &why);
                from_database = false;
                if let Some(kept) = usable_image(&settings) {
                    subjects = subjects_of(kept.image.extensions());
                    from_database = true;
                }
            }
            Err(why) => lines.bad("postgres", &why),
        }
    }
    if !from_database {
        match Fixtures::read(&settings.fixtures) {
            Ok(fixtures) => {
                Lines::good("fixtures", &format!("{} extensions", fixtures.extensions.len()));
                subjects = subjects_of(fixtures.extensions.iter().map(|(_, document)| document));
            }
            Err(error) => lines.bad("fixtures", &error.message),
        }
    }
    if let (Some(nearby), true) = (&settings.decide, settings.source != Source::Fixtures) {
        match nearby_answers(nearby).await {
            Ok(text) => Lines::good("decide-url", &text),
            Err(why) => lines.bad("decide-url", &why),
        }
    }
    if let Some((client, denials)) = &nats {
        subjects.sort();
        subjects.dedup();
        for (id, subject) in subjects {
            let begin = Instant::now();
            let answer = listens(client, &subject).await;
            let ours = |denied: &Denied| matches!(denied, Denied::Publish(other) if *other == subject);
            if let Some(denied) = denials.since(begin, ours) {
                lines.bad("subject", &format!("{subject} ({id}): {denied}"));
                continue;
            }
            if let Some(denied) = denials.since(start, |denied| matches!(denied, Denied::Subscribe(_))) {
                lines.bad("nats", &denied.to_string());
                break;
            }
            match answer {
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

fn source(source: Source) -> &'static str {
    match source {
        Source::Database => "database: Postgres decides",
        Source::Fixtures => "fixtures: the fixtures decide",
        Source::Auto => "auto: Postgres decides; without it the image kept of it, else the fixtures",
    }
}

/// The image on disk, if it is young enough to decide.
fn usable_image(settings: &Settings) -> Option<Kept> {
    let path = settings.image.as_deref()?;
    let (kept, _) = image::read(path, &registry_name(&settings.database.config)).ok()?;
    (u128::from(kept.age_ms(now_ms())) <= settings.image_max_age.as_millis()).then_some(kept)
}

/// Says what is known of the image on disk.
fn image(settings: &Settings) {
    let Some(path) = settings.image.as_deref() else {
        Lines::warn("image", "there is no place to keep one; set --image");
        return;
    };
    let shown = path.display();
    match image::read(path, &registry_name(&settings.database.config)) {
        Ok((kept, _)) => {
            let (age_s, most_s) = (kept.age_ms(now_ms()) / 1000, settings.image_max_age.as_secs());
            let count = kept.image.extensions().count();
            if age_s > most_s {
                Lines::warn("image", &format!("{shown}: {age_s} s old, too old to decide"));
            } else {
                Lines::good("image", &format!("{shown}: {count} extensions, {age_s} s old"));
            }
        }
        Err(error) if error.is_missing() => Lines::warn("image", &format!("{shown}: none yet")),
        Err(error) => Lines::warn("image", &format!("{shown}: {error}")),
    }
}

fn subjects_of<'a>(documents: impl Iterator<Item = &'a ExtensionDocument>) -> Vec<(String, String)> {
    let mut subjects = Vec::new();
    for document in documents {
        let versions = document.versions.iter().map(|version| &version.subject);
        let instances = document.instances.iter().map(|instance| &instance.subject);
        let all = std::iter::once(&document.subject).chain(versions).chain(instances);
        subjects.extend(all.map(|subject| (document.id.clone(), subject.clone())));
    }
    subjects
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
    // Without the last ones the bridge serves, and shows or does less, or has no image and no way to hand over what it gathered.
    let rights: [(&str, &str); 13] = [
        ("ext_select_many", include_str!("../queries/decide.sql")),
        ("ext_report_many", include_str!("../queries/report.sql")),
        ("extension_policies", include_str!("../queries/policies.sql")),
        ("extensions", include_str!("../queries/facts.sql")),
        ("ext_health_all", include_str!("../queries/health.sql")),
        ("extension_instances", include_str!("../queries/instances.sql")),
        ("extension_breaker_events", include_str!("../queries/openings.sql")),
        ("ext_export", include_str!("../queries/export.sql")),
        ("extension_version_health", include_str!("../queries/open_breakers.sql")),
        ("ext_report_merge", include_str!("../queries/merge.sql")),
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

/// The standby that decides.
async fn nearby_answers(nearby: &Database) -> Result<String, String> {
    let (_, driver, schema, version) = pg::connect(nearby).await.map_err(|e| e.to_string())?;
    driver.abort();
    Ok(format!("a standby, ext_registry {version} in schema {schema}"))
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
