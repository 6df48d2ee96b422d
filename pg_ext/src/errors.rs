//! How errors leave this extension: an SQLSTATE, the offending value, a hint. Never a Rust panic.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

pub use PgSqlErrorCode::{
    ERRCODE_CHECK_VIOLATION as CHECK_VIOLATION, ERRCODE_INVALID_BINARY_REPRESENTATION as INVALID_BINARY_REPRESENTATION,
    ERRCODE_INVALID_PARAMETER_VALUE as INVALID_PARAMETER_VALUE,
    ERRCODE_INVALID_TEXT_REPRESENTATION as INVALID_TEXT_REPRESENTATION,
    ERRCODE_NULL_VALUE_NOT_ALLOWED as NULL_VALUE_NOT_ALLOWED,
    ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE as OBJECT_NOT_IN_PREREQUISITE_STATE,
    ERRCODE_UNDEFINED_OBJECT as UNDEFINED_OBJECT,
};

/// Raises an ERROR. Never while a lock is held.
pub fn raise(code: PgSqlErrorCode, message: impl Into<String>, hint: impl Into<String>) -> ! {
    ErrorReport::new(code, message.into(), "ext_registry")
        .set_hint(hint.into())
        .report(pgrx::PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Writes a WARNING with a hint.
pub fn warn(message: impl Into<String>, hint: impl Into<String>) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_WARNING, message.into(), "ext_registry")
        .set_hint(hint.into())
        .report(pgrx::PgLogLevel::WARNING);
}

/// Raises 42704 for an extension that is not registered.
pub fn unknown_extension(id: &str) -> ! {
    raise(
        UNDEFINED_OBJECT,
        format!(
            "extension \"{}\" is not registered",
            ext_registry_core::ident::shorten(id)
        ),
        "See the registered ones with: select id from extensions.",
    )
}
