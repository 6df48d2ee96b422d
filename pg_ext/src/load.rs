//! The rows of one extension, as newly committed as there are, plus what this transaction has changed.
//!
//! Rows are read by systable scans with a NULL snapshot: Postgres then takes a fresh catalog snapshot, under REPEATABLE READ and SERIALIZABLE too.
//! Reading through SPI would use the caller's snapshot, and an image loaded from an old snapshot would stay stale after the transaction.
//! It needs no plan, no rights, no row security and no search_path, and works in parallel workers. One extension costs about 10 us.

use std::ffi::{CStr, CString};

use ext_registry_core::breaker::{Mode, Settings};
use ext_registry_core::context::Context;
use ext_registry_core::ejection;
use ext_registry_core::model::{Balancing, ExtensionRow, Health, InstanceRow, Kind, Overrides, Tenants, VersionRow};
use ext_registry_core::rules::{RuleError, RuleSet};
use ext_registry_core::target::Target;
use pgrx::pg_sys;

use crate::datum;
use crate::jsonb::Object;
use crate::shmem::VERSION;

/// The payload of an empty jsonb object.
const EMPTY_OBJECT: [u8; 4] = 0x2000_0000u32.to_ne_bytes();

/// Where the tables of this database's registry are.
pub struct Tables {
    pub namespace: pg_sys::Oid,
    extensions: Table,
    versions: Table,
    instances: Table,
    settings: Table,
    resets: Table,
    pub state: Table,
    pub reporters: Table,
    pub metrics: Table,
}

/// One table: its index, and where the columns asked for are.
pub struct Table {
    pub oid: pg_sys::Oid,
    index: pg_sys::Oid,
    columns: Vec<usize>,
}

const EXTENSIONS: &[&CStr] = &[
    c"id",
    c"type",
    c"subject",
    c"timeout_ms",
    c"retry",
    c"enabled",
    c"version",
    c"config",
    c"metadata",
    c"balancing",
    c"hash_key",
    c"uid",
];
const VERSIONS: &[&CStr] = &[
    c"id",
    c"version",
    c"subject",
    c"timeout_ms",
    c"retry",
    c"config",
    c"metadata",
    c"routing_rules",
    c"rollout_percent",
    c"rollout_key",
    c"enabled",
    c"circuit_breaker_failure_threshold",
    c"circuit_breaker_failure_min_rate",
    c"circuit_breaker_error_rate_threshold",
    c"circuit_breaker_minimum_requests",
    c"circuit_breaker_window_seconds",
    c"circuit_breaker_timeout_seconds",
    c"slow_call_ms",
    c"slow_call_rate_threshold",
    c"half_open_max_requests",
    c"breaker_mode",
];
/// Where the breaker's settings begin among [`VERSIONS`].
const OVERRIDES: usize = 11;
const INSTANCES: &[&CStr] = &[
    c"extension_id",
    c"instance_id",
    c"subject",
    c"weight",
    c"enabled",
    c"health_status",
    c"version",
    c"draining",
    c"metadata",
];
const SETTINGS: &[&CStr] = &[
    c"extension_id",
    c"circuit_breaker_failure_threshold",
    c"circuit_breaker_failure_min_rate",
    c"circuit_breaker_error_rate_threshold",
    c"circuit_breaker_minimum_requests",
    c"circuit_breaker_window_seconds",
    c"circuit_breaker_timeout_seconds",
    c"slow_call_ms",
    c"slow_call_rate_threshold",
    c"half_open_max_requests",
    c"breaker_mode",
    c"ejection_consecutive_failures",
    c"max_ejection_percent",
];
/// Where the settings of ejection begin among [`SETTINGS`].
const EJECTION: usize = 11;
const RESETS: &[&CStr] = &[c"extension_id", c"version", c"epoch"];
const STATE: &[&CStr] = &[c"uid", c"kind", c"name", c"snapshot"];
const REPORTERS: &[&CStr] = &[c"reporter", c"seq"];
const METRICS: &[&CStr] = &[
    c"minute",
    c"extension_id",
    c"version",
    c"instance_id",
    c"success",
    c"error",
    c"timeout",
    c"no_responders",
    c"invalid_response",
    c"cancelled",
    c"caller_error",
    c"circuit_open",
    c"retries",
    c"latency",
];

impl Table {
    fn resolve(namespace: pg_sys::Oid, name: &str, columns: &[&CStr]) -> Option<Self> {
        let relation = CString::new(name).ok()?;
        let key = CString::new(format!("{name}_pkey")).ok()?;
        // SAFETY: looks names up in the catalog.
        unsafe {
            let oid = pg_sys::get_relname_relid(relation.as_ptr(), namespace);
            let index = pg_sys::get_relname_relid(key.as_ptr(), namespace);
            if oid == pg_sys::InvalidOid || index == pg_sys::InvalidOid {
                return None;
            }
            let position = |column: &&CStr| usize::try_from(pg_sys::get_attnum(oid, column.as_ptr()) - 1).ok();
            Some(Self {
                oid,
                index,
                columns: columns.iter().map(position).collect::<Option<_>>()?,
            })
        }
    }
}

impl Tables {
    /// Finds the tables in the schema of the extension.
    pub fn resolve(namespace: pg_sys::Oid) -> Option<Self> {
        let table = |name, columns| Table::resolve(namespace, name, columns);
        Some(Self {
            namespace,
            extensions: table("extensions", EXTENSIONS)?,
            versions: table("extension_versions", VERSIONS)?,
            instances: table("extension_instances", INSTANCES)?,
            settings: table("extension_health_settings", SETTINGS)?,
            resets: table("extension_breaker_resets", RESETS)?,
            state: table("extension_target_state", STATE)?,
            reporters: table("extension_reporters", REPORTERS)?,
            metrics: table("extension_metrics", METRICS)?,
        })
    }

    /// Whether a relation is one of these.
    pub fn contains(&self, relation: pg_sys::Oid) -> bool {
        [
            &self.extensions,
            &self.versions,
            &self.instances,
            &self.settings,
            &self.resets,
            &self.state,
            &self.reporters,
            &self.metrics,
        ]
        .iter()
        .any(|table| table.oid == relation || table.index == relation)
    }

    /// What tells this registry from one that was dropped: the oid of its table `extensions`.
    pub fn registry(&self) -> u32 {
        self.extensions.oid.to_u32()
    }

    /// Whether these are the tables of the same registry.
    pub fn is_same(&self, other: &Self) -> bool {
        self.extensions.oid == other.extensions.oid && self.namespace == other.namespace
    }
}

/// One column of a scan's key.
pub enum Key<'a> {
    Text(&'a str),
    Int8(i64),
    Int2(i16),
    Uuid([u8; 16]),
    Timestamp(i64),
}

/// One row of a scan: the columns asked for, in the order in which they were named.
pub struct Row<'a> {
    columns: &'a [usize],
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    /// Whether this transaction wrote it.
    pub own: bool,
}

impl Row<'_> {
    fn datum(&self, column: usize) -> Option<pg_sys::Datum> {
        let place = self.columns[column];
        (!self.nulls[place]).then(|| self.values[place])
    }

    /// A text column.
    pub fn text(&self, column: usize) -> Option<String> {
        // SAFETY: the column is text or varchar by the install script.
        self.datum(column)
            .map(|datum| unsafe { datum::text(datum) }.into_owned())
    }

    /// The bytes of a varlena column.
    pub fn bytes(&self, column: usize) -> Option<Box<[u8]>> {
        // SAFETY: the column is a varlena by the install script.
        self.datum(column)
            .map(|datum| unsafe { datum::bytes(datum) }.get().into())
    }

    fn object(&self, column: usize) -> Box<[u8]> {
        self.bytes(column).unwrap_or_else(|| Box::new(EMPTY_OBJECT))
    }

    fn rules(&self, column: usize) -> Result<RuleSet, RuleError> {
        // SAFETY: the column is jsonb by the install script.
        match self.datum(column).map(|datum| unsafe { datum::json(datum) }) {
            None => Ok(RuleSet::default()),
            Some(Ok(rules)) => RuleSet::parse(&rules),
            Some(Err(why)) => Err(RuleError::unreadable(&why)),
        }
    }

    /// The tenants that metadata allows; it is only parsed if it names any.
    fn tenants(&self, column: usize) -> Tenants {
        let Some(datum) = self.datum(column) else {
            return Tenants::All;
        };
        // SAFETY: the column is jsonb by the install script.
        unsafe {
            let named = Object::new(datum::aligned_bytes(datum))
                .is_some_and(|metadata| metadata.get("allowed_tenants").is_some());
            match named.then(|| datum::json(datum)) {
                None => Tenants::All,
                Some(Ok(metadata)) => Tenants::from_metadata(&metadata),
                Some(Err(_)) => Tenants::Nobody,
            }
        }
    }

    fn int(&self, column: usize) -> Option<u32> {
        self.datum(column).map(|datum| (datum.value() as i32).max(0) as u32)
    }

    /// A bigint column.
    pub fn big(&self, column: usize) -> Option<i64> {
        self.datum(column).map(|datum| datum.value() as i64)
    }

    fn float(&self, column: usize) -> Option<f64> {
        self.datum(column).map(|datum| f64::from_bits(datum.value() as u64))
    }

    fn flag(&self, column: usize) -> Option<bool> {
        self.datum(column).map(|datum| datum.value() as u8 != 0)
    }

    /// A numeric column in hundredths, rounded.
    fn hundredths(&self, column: usize) -> Option<u32> {
        let datum = self.datum(column)?;
        // SAFETY: the column is numeric by the install script.
        let number = unsafe { <pgrx::AnyNumeric as pgrx::FromDatum>::from_datum(datum, false) }?;
        let percent: f64 = number.normalize().parse().ok()?;
        Some((percent * 100.0).round().clamp(0.0, 10_000.0) as u32)
    }
}

/// Calls `each` for every row whose primary key begins with `key`, as newly committed as there are.
pub fn scan(table: &Table, key: &[Key<'_>], each: impl FnMut(&Row<'_>)) {
    scan_as_of(std::ptr::null_mut(), table, key, each);
}

/// The same under one snapshot.
fn scan_as_of(snapshot: pg_sys::Snapshot, table: &Table, key: &[Key<'_>], mut each: impl FnMut(&Row<'_>)) {
    // SAFETY: the sequence of systable scans as src/backend/access/index/genam.c asks for; on an ERROR Postgres releases all of it.
    unsafe {
        let relation = pg_sys::table_open(table.oid, pg_sys::AccessShareLock as i32);
        let descriptor = (*relation).rd_att;
        let columns = (*descriptor).natts as usize;
        let mut scan_keys: Vec<pg_sys::ScanKeyData> = Vec::with_capacity(key.len());
        for (number, part) in key.iter().enumerate() {
            let (function, value) = match part {
                Key::Text(text) => (
                    pg_sys::F_TEXTEQ,
                    pgrx::IntoDatum::into_datum(*text).unwrap_or_else(|| pg_sys::Datum::from(0usize)),
                ),
                Key::Int8(n) => (pg_sys::F_INT8EQ, pg_sys::Datum::from(*n)),
                Key::Int2(n) => (pg_sys::F_INT2EQ, pg_sys::Datum::from(*n)),
                Key::Uuid(bytes) => (pg_sys::F_UUID_EQ, pg_sys::Datum::from(bytes.as_ptr())),
                Key::Timestamp(n) => (pg_sys::F_TIMESTAMPTZ_EQ, pg_sys::Datum::from(*n)),
            };
            let place = table.columns[number];
            let collation = datum::attribute(descriptor, place).attcollation;
            let mut scan_key = std::mem::zeroed();
            pg_sys::ScanKeyEntryInitialize(
                &mut scan_key,
                0,
                place as i16 + 1,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::InvalidOid,
                collation,
                pg_sys::Oid::from(function),
                value,
            );
            scan_keys.push(scan_key);
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            table.index,
            true,
            snapshot,
            key.len() as i32,
            scan_keys.as_mut_ptr(),
        );
        let mut values = vec![pg_sys::Datum::from(0usize); columns];
        let mut nulls = vec![false; columns];
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let own =
                pg_sys::TransactionIdIsCurrentTransactionId(pg_sys::htup::HeapTupleHeaderGetXmin((*tuple).t_data));
            each(&Row {
                columns: &table.columns,
                values: &values,
                nulls: &nulls,
                own,
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}

/// What rows say that is not configuration.
#[derive(Default)]
pub struct Extras {
    /// Resets by version ('' for all), and whether this transaction wrote the number: then it is applied when it commits.
    pub resets: Vec<(String, u64, bool)>,
    /// Whether this transaction wrote any of it: then it is its own until it commits.
    pub own: bool,
    /// On a standby: the state words of the primary's breakers, by version.
    pub primary: Vec<(String, u64)>,
}

/// Reads an extension. `None`: it is not registered.
pub fn extension(tables: &Tables, id: &str) -> Option<(ExtensionRow, Extras)> {
    // One snapshot for all tables: half of somebody's transaction must not be seen. Taken for a table that is no catalog it is always
    // a fresh one; on an error Postgres releases it. Each table is locked only while it is read, or a decision would be part of deadlocks;
    // one that is rewritten between the snapshot and its lock looks empty, and its message makes the session load again.
    // SAFETY: registered here, unregistered below.
    let snapshot = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetCatalogSnapshot(tables.extensions.oid)) };
    let found = extension_as_of(snapshot, tables, id);
    // SAFETY: registered above.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    found
}

fn extension_as_of(snapshot: pg_sys::Snapshot, tables: &Tables, id: &str) -> Option<(ExtensionRow, Extras)> {
    let mut found = None;
    let mut extras = Extras::default();
    scan_as_of(snapshot, &tables.extensions, &[Key::Text(id)], |row| {
        extras.own |= row.own;
        found = Some(extension_row(row));
    });
    let mut found = found?;
    scan_as_of(snapshot, &tables.settings, &[Key::Text(id)], |row| {
        extras.own |= row.own;
        found.settings = settings(row);
        found.ejection = ejection::Settings {
            after: row.int(EJECTION),
            max_percent: row.int(EJECTION + 1).unwrap_or(50),
        };
    });
    scan_as_of(snapshot, &tables.versions, &[Key::Text(id)], |row| {
        extras.own |= row.own;
        found
            .versions
            .push(version_row(row, &found.subject, found.timeout_ms, found.retry));
    });
    scan_as_of(snapshot, &tables.instances, &[Key::Text(id)], |row| {
        extras.own |= row.own;
        found.instances.push(instance_row(row, &found.subject));
    });
    scan_as_of(snapshot, &tables.resets, &[Key::Text(id)], |row| {
        extras.resets.push((
            row.text(1).unwrap_or_default(),
            row.big(2).unwrap_or(0).max(0) as u64,
            row.own,
        ));
    });
    // SAFETY: reads the server's state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        let key = [Key::Int8(found.uid as i64), Key::Int2(VERSION as i16)];
        scan_as_of(snapshot, &tables.state, &key, |row| {
            let word = row.bytes(3).and_then(|snapshot| Target::breaker_word_of(&snapshot));
            extras.primary.extend(row.text(2).zip(word));
        });
    }
    Some((found, extras))
}

/// Every registered id with its uid.
pub fn ids(tables: &Tables) -> Vec<(String, u64)> {
    let mut ids = Vec::new();
    scan(&tables.extensions, &[], |row| {
        ids.push((row.text(0).unwrap_or_default(), row.big(11).unwrap_or(0) as u64));
    });
    ids
}

fn extension_row(row: &Row<'_>) -> ExtensionRow {
    ExtensionRow {
        id: row.text(0).unwrap_or_default(),
        uid: row.big(11).unwrap_or(0) as u64,
        kind: row.text(1).and_then(|name| Kind::from_name(&name)).unwrap_or(Kind::Pre),
        subject: row.text(2).unwrap_or_default(),
        timeout_ms: row.int(3).unwrap_or(5000),
        retry: row.int(4).unwrap_or(0),
        enabled: row.flag(5).unwrap_or(true),
        version: row.text(6).unwrap_or_else(|| "v1".to_owned()),
        config: row.object(7),
        metadata: row.object(8),
        tenants: row.tenants(8),
        balancing: row
            .text(9)
            .and_then(|name| Balancing::from_name(&name))
            .unwrap_or_default(),
        hash_key: row.text(10),
        settings: Settings::default(),
        ejection: ejection::Settings::default(),
        versions: Vec::new(),
        instances: Vec::new(),
    }
}

fn version_row(row: &Row<'_>, subject: &str, timeout_ms: u32, retry: u32) -> VersionRow {
    VersionRow {
        version: row.text(1).unwrap_or_default(),
        subject: row.text(2).unwrap_or_else(|| subject.to_owned()),
        timeout_ms: row.int(3).unwrap_or(timeout_ms),
        retry: row.int(4).unwrap_or(retry),
        config: row.object(5),
        metadata: row.object(6),
        rules: row.rules(7),
        rules_text: row.object(7),
        rollout: row.hundredths(8).unwrap_or(10_000),
        rollout_key: row.text(9),
        enabled: row.flag(10).unwrap_or(true),
        overrides: overrides(row, OVERRIDES),
    }
}

fn instance_row(row: &Row<'_>, subject: &str) -> InstanceRow {
    InstanceRow {
        instance_id: row.text(1).unwrap_or_default(),
        subject: row.text(2).unwrap_or_else(|| subject.to_owned()),
        weight: row.int(3).unwrap_or(100),
        enabled: row.flag(4).unwrap_or(true),
        health: row.text(5).map_or(Health::Unknown, |name| Health::from_name(&name)),
        version: row.text(6),
        draining: row.flag(7).unwrap_or(false),
        metadata: row.object(8),
    }
}

fn us_from_seconds(seconds: u32) -> u64 {
    u64::from(seconds.clamp(1, 86_400)) * 1_000_000
}

fn us_from_ms(ms: f64) -> u64 {
    (ms * 1000.0).clamp(0.0, 3.6e9) as u64
}

/// The settings columns from `first` on, as they stand: `None` for NULL.
fn overrides(row: &Row<'_>, first: usize) -> Overrides {
    Overrides {
        failure_threshold: row.int(first),
        failure_min_rate: row.float(first + 1),
        error_rate_threshold: row.float(first + 2),
        minimum_requests: row.int(first + 3),
        window_us: row.int(first + 4).map(us_from_seconds),
        open_us: row.int(first + 5).map(us_from_seconds),
        slow_call_us: row.float(first + 6).map(us_from_ms),
        slow_rate_threshold: row.float(first + 7),
        half_open_max: row.int(first + 8),
        mode: row.text(first + 9).and_then(|name| Mode::from_name(&name)),
    }
}

/// The extension's own settings: here NULL means off.
fn settings(row: &Row<'_>) -> Settings {
    let stored = overrides(row, 1);
    let off = Settings {
        failure_threshold: None,
        failure_min_rate: None,
        error_rate_threshold: None,
        slow_call_us: None,
        slow_rate_threshold: None,
        ..Settings::default()
    };
    stored.over(off)
}
