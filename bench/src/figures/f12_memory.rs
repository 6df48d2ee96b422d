//! Figure 12: shared memory with the capacity that the extension comes with, and whether docs/tuning.md tells how much it is.

use crate::Failure;
use crate::database::Database;
use crate::figure::{Effort, Figure};
use crate::results::{Compare, Line, Target, Unit};

pub const FIGURE: Figure = Figure {
    number: 12,
    title: "shared memory at default capacity, and the formula in docs/tuning.md",
    measure,
};

/// What the capacity must be at least.
const TARGETS: i64 = 1024;
const CALLS: i64 = 65_536;
/// The table in docs/tuning.md, bytes: what is there once, and for each target and call.
const ONCE: f64 = 30e3 + 4096.0 * 56.0;
const OF_A_TARGET: f64 = 32.2e3;
const OF_A_CALL: f64 = 64.0;

const MIB: f64 = 1024.0 * 1024.0;

fn measure(_effort: &Effort) -> Result<Vec<Line>, Failure> {
    // The harness has more targets than the default.
    let database = Database::start(&["ext_registry.max_targets = 1024"], 5000);
    let setting = |column: &str, name: &str| {
        database.number(&format!(
            "select {column} from pg_settings where name = 'ext_registry.{name}'"
        ))
    };
    for (name, least) in [("max_targets", TARGETS), ("max_in_flight", CALLS)] {
        let (default, now) = (setting("boot_val", name)?, setting("setting", name)?);
        if default != now || default < least {
            return Err(format!(
                "ext_registry.{name} is {default} by default, {now} here; at least {least} is asked for"
            )
            .into());
        }
    }
    let bytes = database.number("select allocated_size from pg_shmem_allocations where name = 'ext_registry'")? as f64;
    let (targets, calls) = (setting("setting", "max_targets")?, setting("setting", "max_in_flight")?);
    let formula = ONCE + OF_A_TARGET * targets as f64 + OF_A_CALL * calls as f64;
    let of_the_formula = [100.0 * (bytes / formula - 1.0).abs()];
    Ok(vec![
        Line::compared(
            12,
            "shared memory, beside the formula of docs/tuning.md",
            Unit::MiB,
            Compare::Alone,
            &[bytes / MIB],
            &[formula / MIB],
            Target::AtMost(64.0),
        ),
        Line::alone(
            12,
            "  how far the formula is off",
            Unit::Percent,
            &of_the_formula,
            Target::AtMost(1.0),
        ),
    ])
}
