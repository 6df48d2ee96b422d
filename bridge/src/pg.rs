//! Connections to Postgres by role. A connection and its prepared statements live and die together.
//!
//! Each link is kept up by its own task: it connects, finds the extension's schema, prepares, and says so; when the
//! connection ends it begins again, with growing, jittered waits. There is no pool: statements are pipelined.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Socket, Statement};

use crate::tls::{self, BadFile, HandshakeError, Mode, Tls};

mod link;

pub use link::link;

/// How to reach a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Where it is, and who asks.
    pub config: Config,
    /// How the way there is protected.
    pub tls: Tls,
    /// It must be a standby: outcomes also go to the primary, so a server that writes its own history would count them twice.
    pub standby: bool,
}

/// How to reach it now: the settings may change while the process runs.
pub type Databases = watch::Receiver<Arc<Database>>;

/// What a connection is for. Reports have their own, so that a stuck one stops no decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `ext_select_many`.
    Decide,
    /// `ext_report_many` and `ext_report_merge`.
    Report,
    /// Policies, previews and facts.
    Side,
    /// `ext_report_merge` into the primary, where a standby decides.
    Merge,
}

impl Role {
    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decide => "decide",
            Self::Report => "report",
            Self::Side => "side",
            Self::Merge => "merge",
        }
    }
}

/// A connection with what was prepared on it.
pub struct Conn {
    /// The connection.
    pub client: Client,
    /// Different for every connection of the process.
    pub id: u64,
    /// The role's main statement.
    pub main: Statement,
    /// Of [`Role::Side`]: `ext_preview`, where the extension has it.
    pub preview: Option<Statement>,
    /// Of [`Role::Side`]: facts.
    pub facts: Option<Statement>,
    /// Of [`Role::Report`] and [`Role::Merge`]: `ext_report_merge`, where the extension has it.
    pub merge: Option<Statement>,
    broken: Notify,
}

impl Conn {
    /// Ends the connection; its link makes a new one. For statements that no longer fit the extension.
    pub fn reset(&self) {
        self.broken.notify_one();
    }
}

/// The present connection of a role.
pub type Link = watch::Receiver<Option<Arc<Conn>>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// From the library.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The database lacks the extension.
    #[error("the database has no extension ext_registry; run CREATE EXTENSION ext_registry")]
    NoExtension,
    /// What must be a standby is none.
    #[error("decide-url names no standby; name one, or this server by db-url")]
    NoStandby,
    /// A file for TLS cannot be read, which it could at start.
    #[error(transparent)]
    File(#[from] BadFile),
    /// It takes too long.
    #[error("Postgres does not answer in time")]
    TimedOut,
    /// The connection is not the one that the settings name by now.
    #[error("the settings of Postgres have changed")]
    Outdated,
}

/// What went wrong, with SQLSTATE and message where there are.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        if let Some(hint) = db.hint() {
            text.push_str("; ");
            text.push_str(hint);
        }
        return text.replace('\n', " ");
    }
    let mut text = error.to_string();
    if text.contains("server does not support TLS") {
        text.push_str("; turn on `ssl` in Postgres, or ask for less by db-sslmode");
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

/// An identifier in quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A statement with the extension's schema put in.
pub fn in_schema(sql: &str, schema: &str) -> String {
    sql.replace("@extschema@", schema)
}

type Dialled = (Client, Connection<Socket, tls::Stream<Socket>>);

/// Connects and logs in. `prefer` tries again without TLS where that alone may be what is refused, as libpq does.
async fn dial(database: &Database) -> Result<Dialled, PgError> {
    let tls = database.tls.clone();
    let connector = tokio::task::spawn_blocking(move || tls.connector())
        .await
        .map_err(|_| PgError::TimedOut)??;
    let error = match database.config.connect(connector.clone()).await {
        Ok(dialled) => return Ok(dialled),
        Err(error) => error,
    };
    // No line of pg_hba.conf fits: there may be one for connections without TLS.
    let not_allowed =
        |error: &tokio_postgres::Error| error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    let no_handshake = std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<HandshakeError>);
    if database.tls.mode != Mode::Prefer || !(no_handshake || not_allowed(&error)) {
        return Err(error.into());
    }
    let mut plain = database.config.clone();
    match plain.ssl_mode(SslMode::Disable).connect(connector).await {
        Err(second) if !not_allowed(&second) => Err(second.into()),
        Err(_) => Err(error.into()),
        Ok(dialled) => Ok(dialled),
    }
}

/// Connects, drives the connection in a task, and finds the extension. Gives its quoted schema and its version.
pub async fn connect(database: &Database) -> Result<(Client, tokio::task::JoinHandle<()>, String, String), PgError> {
    connect_with(database, Arc::default()).await
}

async fn connect_with(
    database: &Database,
    notified: Arc<Notify>,
) -> Result<(Client, tokio::task::JoinHandle<()>, String, String), PgError> {
    let work = async {
        let (client, mut connection) = dial(database).await?;
        let driver = tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notification(_))) => notified.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::debug!(error = describe(&error), "a connection to Postgres ended");
                        break;
                    }
                    None => break,
                }
            }
            notified.notify_one();
        });
        let sql = "select pg_catalog.pg_is_in_recovery()";
        if database.standby && !client.query_one(sql, &[]).await?.get::<_, bool>(0) {
            return Err(PgError::NoStandby);
        }
        match client.query_opt(include_str!("queries/extension.sql"), &[]).await? {
            None => Err(PgError::NoExtension),
            Some(row) => Ok((client, driver, quoted(row.get(0)), row.get(1))),
        }
    };
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .unwrap_or(Err(PgError::TimedOut))
}

/// A connection used by one task alone, straight to the server: its locks and what it listens for are its own. Ends when
/// dropped.
pub struct Direct {
    /// The connection.
    pub client: Client,
    /// The extension's schema, quoted.
    pub schema: String,
    /// Told of every notification, and of the end of the connection.
    pub notified: Arc<Notify>,
    database: Arc<Database>,
    driver: tokio::task::JoinHandle<()>,
}

impl Direct {
    /// Connects and finds the extension. Statements may take 5 s, waits for a lock 1 s.
    pub async fn open(databases: &Databases) -> Result<Self, PgError> {
        Self::open_told(databases, Arc::default()).await
    }

    /// The same; `notified` is told of every notification, and of the end of the connection.
    pub async fn open_told(databases: &Databases, notified: Arc<Notify>) -> Result<Self, PgError> {
        let database = Arc::clone(&databases.borrow());
        let (client, driver, schema, _) = connect_with(&database, Arc::clone(&notified)).await?;
        client
            .batch_execute("set statement_timeout = '5s'; set lock_timeout = '1s'")
            .await?;
        Ok(Self {
            client,
            schema,
            notified,
            database,
            driver,
        })
    }

    /// Whether the settings say something else by now.
    pub fn is_outdated(&self, databases: &Databases) -> bool {
        !Arc::ptr_eq(&self.database, &databases.borrow())
    }

    /// A statement with the extension's schema put in.
    pub fn sql(&self, sql: &str) -> String {
        in_schema(sql, &self.schema)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

async fn open(database: &Database, role: Role) -> Result<(Conn, tokio::task::JoinHandle<()>), PgError> {
    let (client, driver, schema, _) = connect(database).await?;
    let limit = match role {
        Role::Decide | Role::Side => "set statement_timeout = '2s'; set lock_timeout = '250ms'",
        Role::Report | Role::Merge => "set statement_timeout = '10s'; set lock_timeout = '5s'",
    };
    client.batch_execute(limit).await?;
    let main = match role {
        Role::Decide => include_str!("queries/decide.sql"),
        Role::Report | Role::Merge => include_str!("queries/report.sql"),
        Role::Side => include_str!("queries/policies.sql"),
    };
    let main = client.prepare(&in_schema(main, &schema)).await?;
    let (mut preview, mut facts, mut merge) = (None, None, None);
    if matches!(role, Role::Report | Role::Merge) {
        merge = client
            .prepare(&in_schema(include_str!("queries/merge.sql"), &schema))
            .await
            .ok();
    }
    if role == Role::Side {
        let ways = [
            include_str!("queries/preview.sql"),
            include_str!("queries/preview_by_explain.sql"),
        ];
        for sql in ways {
            if preview.is_none() {
                preview = client.prepare(&in_schema(sql, &schema)).await.ok();
            }
        }
        facts = client
            .prepare(&in_schema(include_str!("queries/facts.sql"), &schema))
            .await
            .ok();
    }
    let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    Ok((
        Conn {
            client,
            id,
            main,
            preview,
            facts,
            merge,
            broken: Notify::new(),
        },
        driver,
    ))
}

/// JSON text as a `jsonb` parameter or result, unparsed.
#[derive(Debug, Clone)]
pub struct RawJsonb(pub Bytes);

impl ToSql for RawJsonb {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_u8(1);
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for RawJsonb {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match raw.split_first() {
            Some((1, text)) => Ok(Self(Bytes::copy_from_slice(text))),
            _ => Err("jsonb of an unknown format".into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSONB
    }
}

/// What an error means for the statement that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is gone; whether the statement ran is unknown.
    Connection,
    /// A value is to blame; nothing was done.
    Data,
    /// Too slow or too busy; nothing was done.
    Busy,
    /// The statement no longer fits the database; nothing was done.
    Stale,
}

/// Sorts an error.
pub fn fault(error: &tokio_postgres::Error) -> Fault {
    let Some(db) = error.as_db_error() else {
        return Fault::Connection;
    };
    let code = db.code().code();
    match code {
        "57P01" | "57P02" | "57P03" => Fault::Connection,
        "57014" | "55P03" | "40001" | "40P01" => Fault::Busy,
        _ if code.starts_with("22") || code.starts_with("23") => Fault::Data,
        _ if code.starts_with("08") => Fault::Connection,
        _ if code.starts_with("53") => Fault::Busy,
        _ => Fault::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_quoted() {
        assert_eq!(
            in_schema("@extschema@.f(@extschema@.x)", &quoted("a\"b")),
            "\"a\"\"b\".f(\"a\"\"b\".x)"
        );
    }
}
