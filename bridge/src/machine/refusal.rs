//! What callers are told when there is no version to call.

use super::Decision;
use super::codes::{Code, Failure};

/// An id from a subject, shortened: it may be anything.
pub fn shown(id: &str) -> String {
    ext_registry_core::ident::shorten(id)
}

/// For an id that is not registered.
pub fn not_found(id: &str) -> Failure {
    Failure::new(
        Code::ExtensionNotFound,
        format!("no extension {} is registered", shown(id)),
    )
}

/// The label of a refusal: only known words.
pub fn refusal_label(reason: &str) -> &'static str {
    match reason {
        "extension_not_found" => "extension_not_found",
        "extension_disabled" => "extension_disabled",
        "tenant_not_allowed" => "tenant_not_allowed",
        "no_version" => "no_version",
        "extension_circuit_open" => "extension_circuit_open",
        _ => "other",
    }
}

/// What a caller is told of a decision that refuses.
pub fn refusal(id: &str, decision: &Decision) -> Failure {
    let failure = match decision.reason.as_str() {
        "extension_not_found" => not_found(id),
        "tenant_not_allowed" => Failure::new(Code::TenantNotAllowed, format!("the tenant may not use {id}")),
        "extension_disabled" => Failure::new(Code::ExtensionUnavailable, format!("{id} is disabled")),
        "no_version" => Failure::new(
            Code::ExtensionUnavailable,
            format!("no version of {id} serves this request"),
        ),
        "extension_circuit_open" => Failure::new(
            Code::ExtensionUnavailable,
            format!("the circuit breaker of {id} is open"),
        ),
        other => Failure::new(Code::ExtensionUnavailable, format!("{id} was refused: {other}")),
    };
    let failure = failure.with("reason", decision.reason.as_str());
    match decision.retry_after_ms {
        Some(ms) => failure.with("retry_after_ms", ms),
        None => failure,
    }
}
