//! Whether the triggers that tell sessions of changes are on. A restore with `pg_dump --disable-triggers` leaves them off, and
//! nothing else would say so.

use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::spi::Spi;
use pgrx::{PgLogLevel, PgSqlErrorCode, function_name};

/// How often it is said.
const AGAIN: Duration = Duration::from_hours(1);

/// See the module.
#[derive(Default)]
pub struct Triggers {
    /// When it was last said that some are off.
    warned: Option<Instant>,
}

impl Triggers {
    /// Looks at them, and warns where some are off.
    pub fn look_at(&mut self, schema: &str) {
        let amiss = format!(
            "select pg_catalog.string_agg(pg_catalog.format('%I of %s', name, relation), ', ') \
             from {schema}._ext_triggers_amiss()"
        );
        let looked = BackgroundWorker::transaction(|| {
            Spi::connect(|client| client.select(&amiss, Some(1), &[])?.first().get::<String>(1))
        });
        match looked {
            Ok(None) => self.warned = None,
            Ok(Some(_)) if self.warned.is_some_and(|at| at.elapsed() < AGAIN) => {}
            Ok(Some(amiss)) => {
                self.warned = Some(Instant::now());
                ErrorReport::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("ext_registry: triggers are not enabled as they must be: {amiss}"),
                    function_name!(),
                )
                .set_detail("Sessions may go on with what the registry was before.")
                .set_hint(format!("select * from {schema}.ext_repair();"))
                .report(PgLogLevel::WARNING);
            }
            Err(error) => pgrx::log!("ext_registry: cannot look at the triggers: {error}"),
        }
    }
}
