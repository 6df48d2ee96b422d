//! Names that enter the registry: extension ids, versions, instance ids, NATS subjects.
//!
//! Owns the rules of what a name may look like. They are checked once, when a row or a document is
//! written, so that nothing behind them needs to quote or escape.

use thiserror::Error;

/// Longest extension, instance, tenant or policy id, in bytes.
pub const MAX_ID: usize = 255;
/// Longest version name, in bytes.
pub const MAX_VERSION: usize = 32;
/// Longest subject, in bytes.
pub const MAX_SUBJECT: usize = 512;

/// A name that may not enter the registry. `Display` names the column and the value; [`IdentError::hint`] says what would do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid {what} \"{}\": {why}", shorten(.value))]
pub struct IdentError {
    /// The column or document key the value was meant for.
    pub what: String,
    /// The offending value.
    pub value: String,
    why: &'static str,
    hint: &'static str,
}

impl IdentError {
    /// What a valid value looks like.
    pub fn hint(&self) -> &'static str {
        self.hint
    }
}

/// The first 80 characters of a value, for error messages.
pub fn shorten(value: &str) -> String {
    let mut short: String = value.chars().take(80).collect();
    if short.len() < value.len() {
        short.push_str("...");
    }
    short
}

const ID_HINT: &str = "Use 1 to 255 characters out of letters, digits, underscore and hyphen: ^[A-Za-z0-9_-]{1,255}$.";
const VERSION_HINT: &str =
    "Use 1 to 32 characters out of letters, digits, dot, underscore, plus and hyphen, such as v2 or 1.10.0.";
const SUBJECT_HINT: &str = "Use a NATS subject that can be published to, such as beamline.ext.pre.normalize_text.v1: \
     tokens separated by dots, no spaces, no wildcards (* and >), not beginning with $ or _INBOX.";

fn refuse(what: &str, value: &str, why: &'static str, hint: &'static str) -> Result<(), IdentError> {
    Err(IdentError {
        what: what.to_owned(),
        value: value.to_owned(),
        why,
        hint,
    })
}

/// An extension, instance, tenant or policy id: `^[A-Za-z0-9_-]{1,255}$`.
pub fn check_id(what: &str, value: &str) -> Result<(), IdentError> {
    if value.is_empty() {
        return refuse(what, value, "it is empty", ID_HINT);
    }
    if value.len() > MAX_ID {
        return refuse(what, value, "it is longer than 255 characters", ID_HINT);
    }
    if !value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    {
        return refuse(what, value, "it has a character that is not allowed", ID_HINT);
    }
    Ok(())
}

/// A version name: 1-32 characters out of `[A-Za-z0-9._+-]`.
pub fn check_version(what: &str, value: &str) -> Result<(), IdentError> {
    if value.is_empty() {
        return refuse(what, value, "it is empty", VERSION_HINT);
    }
    if value.len() > MAX_VERSION {
        return refuse(what, value, "it is longer than 32 characters", VERSION_HINT);
    }
    if !value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-'))
    {
        return refuse(what, value, "it has a character that is not allowed", VERSION_HINT);
    }
    Ok(())
}

/// A subject that one can publish to: no wildcards, spaces, control characters or empty tokens, not `$...`, not `_INBOX...`.
pub fn check_subject(what: &str, value: &str) -> Result<(), IdentError> {
    if value.is_empty() {
        return refuse(what, value, "it is empty", SUBJECT_HINT);
    }
    if value.len() > MAX_SUBJECT {
        return refuse(what, value, "it is longer than 512 bytes", SUBJECT_HINT);
    }
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return refuse(what, value, "it has white space or a control character", SUBJECT_HINT);
    }
    if value.contains(['*', '>']) {
        return refuse(what, value, "wildcards cannot be published to", SUBJECT_HINT);
    }
    if value.split('.').any(str::is_empty) {
        return refuse(what, value, "it has an empty token", SUBJECT_HINT);
    }
    if value.starts_with('$') || value.starts_with("_INBOX") {
        return refuse(
            what,
            value,
            "subjects beginning with $ or _INBOX belong to NATS itself",
            SUBJECT_HINT,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "normalize_text", "A-1", &"x".repeat(255)] {
            assert_eq!(check_id("id", good), Ok(()));
        }
        for bad in ["", "a b", "a.b", "ä", "a\0", "x;drop", &"x".repeat(256)] {
            assert!(check_id("id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions() {
        for good in ["v1", "1.10.0", "2024-01-01", "1.0.0+build_5"] {
            assert_eq!(check_version("version", good), Ok(()));
        }
        for bad in ["", "v 1", "v1/2", &"v".repeat(33)] {
            assert!(check_version("version", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn subjects() {
        for good in ["a", "beamline.ext.pre.x.v1", "a.$b"] {
            assert_eq!(check_subject("subject", good), Ok(()));
        }
        for bad in [
            "", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\tb", "$SYS.x", "_INBOX.x", "_INBOXx", "a\u{7f}",
        ] {
            assert!(check_subject("subject", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_names_the_value() {
        let error = check_subject("subject", "a.*").unwrap_err();
        assert!(error.to_string().contains("a.*") && error.to_string().contains("subject"));
        assert!(error.hint().contains("NATS"));
    }
}
