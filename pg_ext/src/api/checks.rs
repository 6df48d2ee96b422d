//! The functions behind CHECK constraints: true, or an error 23514 that names the value and what would do.

use ext_registry_core::ident::{self, IdentError, shorten};
use ext_registry_core::policy::PolicyDocument;
use ext_registry_core::rules::RuleSet;
use pgrx::pg_sys;

use crate::datum::{Args, Element, aligned_bytes, elements, json_text, text};
use crate::errors::{CHECK_VIOLATION, raise};
use crate::jsonb::Object;

fn yes() -> pg_sys::Datum {
    pg_sys::Datum::from(true)
}

fn what(args: Args) -> String {
    args.text(0).unwrap_or_default().into_owned()
}

fn name(args: Args, check: fn(&str, &str) -> Result<(), IdentError>) -> pg_sys::Datum {
    if let Err(error) = check(&what(args), &args.text(1).unwrap_or_default()) {
        raise(CHECK_VIOLATION, error.to_string(), error.hint());
    }
    yes()
}

crate::pg_function! {
    /// `_ext_check_id(what, value)`.
    _ext_check_id, pg_finfo__ext_check_id, |args| name(args, ident::check_id)
}

crate::pg_function! {
    /// `_ext_check_version(what, value)`.
    _ext_check_version, pg_finfo__ext_check_version, |args| name(args, ident::check_version)
}

crate::pg_function! {
    /// `_ext_check_subject(what, value)`.
    _ext_check_subject, pg_finfo__ext_check_subject, |args| name(args, ident::check_subject)
}

crate::pg_function! {
    /// `_ext_check_int(what, value, low, high)`.
    _ext_check_int, pg_finfo__ext_check_int, |args| {
        let [value, low, high]: [i64; 3] = [1, 2, 3].map(|n| args.get(n).unwrap_or(0));
        if !(low..=high).contains(&value) {
            let what = what(args);
            raise(CHECK_VIOLATION, format!("invalid {what} {value}: it is out of range"), format!("Use a {what} from {low} to {high}."));
        }
        yes()
    }
}

crate::pg_function! {
    /// `_ext_check_number(what, value, low, high)`.
    _ext_check_number, pg_finfo__ext_check_number, |args| {
        let [value, low, high]: [f64; 3] = [1, 2, 3].map(|n| args.get(n).unwrap_or(0.0));
        if !(low..=high).contains(&value) {
            let what = what(args);
            raise(CHECK_VIOLATION, format!("invalid {what} {value}: it is out of range"), format!("Use a {what} from {low} to {high}."));
        }
        yes()
    }
}

crate::pg_function! {
    /// `_ext_check_one_of(what, value, allowed)`.
    _ext_check_one_of, pg_finfo__ext_check_one_of, |args| {
        let value = args.text(1).unwrap_or_default();
        // SAFETY: the SQL declaration says text[].
        let allowed: Vec<String> = args.datum(2).map_or_else(Vec::new, |datum| unsafe {
            elements(datum, Element::Text).into_iter().flatten().map(|name| text(name).into_owned()).collect()
        });
        if !allowed.iter().any(|name| *name == *value) {
            raise(CHECK_VIOLATION, format!("invalid {} \"{}\"", what(args), shorten(&value)), format!("Use one of {}.", allowed.join(", ")));
        }
        yes()
    }
}

crate::pg_function! {
    /// `_ext_check_object(what, value)`.
    _ext_check_object, pg_finfo__ext_check_object, |args| {
        if let Some(datum) = args.datum(1) {
            // SAFETY: the SQL declaration says jsonb.
            let (object, text) = unsafe { (Object::new(aligned_bytes(datum)).is_some(), json_text(datum)) };
            if !object {
                raise(
                    CHECK_VIOLATION,
                    format!("invalid {}: {} is not a JSON object", what(args), shorten(&text)),
                    "Use an object such as '{}'.",
                );
            }
        }
        yes()
    }
}

/// A document to be checked; one that cannot be read is refused.
fn document(args: Args, what: &str) -> serde_json::Value {
    args.json(0)
        .unwrap_or(Ok(serde_json::Value::Null))
        .unwrap_or_else(|why| {
            raise(
                CHECK_VIOLATION,
                format!("invalid {what}: {why}"),
                "Nest less than 128 levels deep, and use numbers that fit a double.",
            )
        })
}

crate::pg_function! {
    /// `_ext_check_rules(rules)`.
    _ext_check_rules, pg_finfo__ext_check_rules, |args| {
        if let Err(error) = RuleSet::parse(&document(args, "routing_rules")) {
            raise(CHECK_VIOLATION, format!("invalid routing_rules: {error}"), error.hint());
        }
        yes()
    }
}

crate::pg_function! {
    /// `_ext_check_policy(document)`.
    _ext_check_policy, pg_finfo__ext_check_policy, |args| {
        if let Err(error) = PolicyDocument::parse(&document(args, "policy document")) {
            raise(CHECK_VIOLATION, format!("invalid policy document: {error}"), error.hint());
        }
        yes()
    }
}
