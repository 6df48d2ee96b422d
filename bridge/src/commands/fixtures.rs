//! `fixtures validate|load|dump`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value as Json;

use crate::config::Settings;
use crate::exit::{Exit, Kind};
use crate::fixtures::Fixtures;
use crate::pg::{self, RawJsonb, describe, in_schema};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum FixturesCommand {
    /// Check every file of the folder; one line for each problem
    Validate,
    /// Import the folder into the database, in one transaction
    Load,
    /// Write the database's extensions and policies into a folder, or print them as one document
    Dump {
        /// The folder; without, standard output
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// Runs it.
pub async fn run(settings: Settings, command: FixturesCommand) -> Result<ExitCode, Exit> {
    match command {
        FixturesCommand::Validate => Ok(validate(&settings)),
        FixturesCommand::Load => load(&settings).await,
        FixturesCommand::Dump { to } => dump(&settings, to).await,
    }
}

fn validate(settings: &Settings) -> ExitCode {
    let (found, problems) = Fixtures::inspect(&settings.fixtures);
    for line in problems.iter().chain(&found.dangling()) {
        println!("{line}");
    }
    println!(
        "{} extensions, {} policies, {} problems",
        found.extensions.len(),
        found.policies.len(),
        problems.len()
    );
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Kind::Fixtures as u8)
    }
}

async fn call(settings: &Settings, sql: &str, argument: Option<RawJsonb>) -> Result<Option<RawJsonb>, Exit> {
    let failed = |why: String| Exit::new(Kind::Postgres, why);
    let (client, driver, schema, _) = pg::connect(&settings.database)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let sql = in_schema(sql, &schema);
    let rows = match &argument {
        Some(argument) => client.query(&sql, &[argument]).await,
        None => client.query(&sql, &[]).await,
    };
    driver.abort();
    let rows = rows.map_err(|e| failed(describe(&e)))?;
    Ok(rows
        .first()
        .and_then(|row| row.try_get::<_, Option<RawJsonb>>(0).ok().flatten()))
}

async fn load(settings: &Settings) -> Result<ExitCode, Exit> {
    let fixtures = Fixtures::read(&settings.fixtures)?;
    let document = RawJsonb(fixtures.document().to_string().into());
    let sql = "select pg_catalog.to_jsonb(i) from @extschema@.ext_import($1::pg_catalog.jsonb) i";
    call(settings, sql, Some(document)).await?;
    println!(
        "{} extensions, {} policies loaded",
        fixtures.extensions.len(),
        fixtures.policies.len()
    );
    Ok(ExitCode::SUCCESS)
}

async fn dump(settings: &Settings, to: Option<PathBuf>) -> Result<ExitCode, Exit> {
    let raw = call(settings, "select @extschema@.ext_export()::pg_catalog.jsonb", None).await?;
    let internal = |why: String| Exit::new(Kind::Internal, why);
    let document: Json = match &raw {
        Some(raw) => serde_json::from_slice(&raw.0).map_err(|e| internal(e.to_string()))?,
        None => return Err(internal("the database exports nothing".to_owned())),
    };
    let Some(folder) = to else {
        println!("{document:#}");
        return Ok(ExitCode::SUCCESS);
    };
    let text = |value: &Json, key: &str| value.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let list = |key: &str| document.get(key).and_then(Json::as_array).cloned().unwrap_or_default();
    for extension in list("extensions") {
        write(
            &folder
                .join("extensions")
                .join(format!("{}.json", text(&extension, "id"))),
            &extension,
        )?;
    }
    for policy in list("policies") {
        let file = format!("{}.json", text(&policy, "policy_id"));
        let path = folder.join("policies").join(text(&policy, "tenant_id")).join(file);
        write(&path, policy.get("document").unwrap_or(&Json::Null))?;
    }
    println!(
        "{} extensions, {} policies written",
        list("extensions").len(),
        list("policies").len()
    );
    Ok(ExitCode::SUCCESS)
}

fn write(path: &std::path::Path, value: &Json) -> Result<(), Exit> {
    let failed = |e: std::io::Error| Exit::new(Kind::Fixtures, format!("{}: {e}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, format!("{value:#}\n")).map_err(failed)
}
