//! What is said between the bridge and an extension service, per type.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{push_optional, push_string};

/// The type of an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Pre,
    Validator,
    Provider,
    Post,
}

impl Kind {
    /// From the registry's word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "pre" => Self::Pre,
            "validator" => Self::Validator,
            "provider" => Self::Provider,
            "post" => Self::Post,
            _ => return None,
        })
    }

    /// The registry's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Validator => "validator",
            Self::Provider => "provider",
            Self::Post => "post",
        }
    }
}

/// Keys of the metadata that no extension may write.
pub const PROTECTED: [&str; 6] = [
    "tenant_id",
    "policy_id",
    "trace_id",
    "request_id",
    "deadline",
    "dry_run",
];

/// What a request to a service is made of; the parts are JSON text.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The request's trace.
    pub trace_id: &'a str,
    /// The tenant, if one was named.
    pub tenant_id: Option<&'a str>,
    /// The extension.
    pub extension_id: &'a str,
    /// The message.
    pub payload: &'a [u8],
    /// The merged metadata.
    pub metadata: &'a [u8],
    /// The merged configuration.
    pub config: &'a [u8],
}

#[derive(Deserialize)]
struct Prompt<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// The body of a request.
pub fn request(kind: Kind, parts: &Parts<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.payload.len() + parts.metadata.len() + parts.config.len() + 200);
    out.extend_from_slice(b"{\"trace_id\":");
    push_string(&mut out, parts.trace_id);
    out.extend_from_slice(b",\"tenant_id\":");
    push_optional(&mut out, parts.tenant_id);
    if kind == Kind::Provider {
        let prompt = serde_json::from_slice::<Prompt<'_>>(parts.payload)
            .ok()
            .and_then(|p| p.payload);
        out.extend_from_slice(b",\"provider_id\":");
        push_string(&mut out, parts.extension_id);
        out.extend_from_slice(b",\"prompt\":");
        out.extend_from_slice(prompt.map_or(b"null", |raw| raw.get().as_bytes()));
        out.extend_from_slice(b",\"parameters\":");
        out.extend_from_slice(parts.config);
        out.extend_from_slice(b",\"context\":");
    } else {
        out.extend_from_slice(b",\"payload\":");
        out.extend_from_slice(parts.payload);
        out.extend_from_slice(b",\"metadata\":");
    }
    out.extend_from_slice(parts.metadata);
    out.extend_from_slice(b",\"config\":");
    out.extend_from_slice(parts.config);
    out.push(b'}');
    out
}

/// A service's reply, as far as a pipeline needs it. The parts are JSON text within the reply.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// The changed message, of pre and post.
    pub payload: Option<Bytes>,
    /// What to merge into the metadata.
    pub metadata: Option<Bytes>,
    /// Whether a validator refused.
    pub rejected: bool,
    /// A validator's reason.
    pub reason: Option<String>,
    /// A validator's details.
    pub details: Option<Bytes>,
    /// A provider's output.
    pub output: Option<Bytes>,
    /// A provider's usage.
    pub usage: Option<Bytes>,
}

/// What a reply is.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Of the type's shape, without an error.
    Success(Reply),
    /// The service says that it failed.
    Error,
    /// Not JSON or not of the type's shape; says why.
    Invalid(&'static str),
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
    #[serde(borrow)]
    provider_id: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

fn starts(value: Option<&RawValue>, allowed: &[u8]) -> bool {
    value.is_none_or(|raw| raw.get().bytes().next().is_some_and(|b| allowed.contains(&b)))
}

/// Judges a reply. Unknown keys are fine; a key that is null counts as absent.
pub fn judge(kind: Kind, body: &Bytes) -> Verdict {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Verdict::Invalid("it is not a JSON object");
    }
    // The parser alone looks at what it keeps only.
    let wire = std::str::from_utf8(body)
        .ok()
        .and_then(|text| serde_json::from_str::<Wire<'_>>(text).ok());
    let Some(wire) = wire else {
        return Verdict::Invalid("it is not JSON, or has a key twice");
    };
    if wire.error.is_some() {
        return Verdict::Error;
    }
    let part = |raw: Option<&RawValue>| raw.map(|r| body.slice_ref(r.get().as_bytes()));
    if !starts(wire.metadata, b"{") {
        return Verdict::Invalid("metadata is not an object");
    }
    let mut reply = Reply {
        metadata: part(wire.metadata),
        ..Reply::default()
    };
    match kind {
        Kind::Pre | Kind::Post => {
            if !starts(wire.payload, b"{[\"") {
                return Verdict::Invalid("payload is not an object, a list or a string");
            }
            reply.payload = part(wire.payload);
        }
        Kind::Validator => {
            reply.rejected = match wire.status.map(RawValue::get) {
                None | Some("\"ok\"") => false,
                Some("\"reject\"") => true,
                Some(_) => return Verdict::Invalid("status is neither ok nor reject"),
            };
            if !starts(wire.reason, b"\"") {
                return Verdict::Invalid("reason is not a string");
            }
            if !starts(wire.details, b"{") {
                return Verdict::Invalid("details is not an object");
            }
            reply.reason = wire.reason.and_then(|raw| serde_json::from_str(raw.get()).ok());
            reply.details = part(wire.details);
        }
        Kind::Provider => {
            if wire.output.is_none() {
                return Verdict::Invalid("output is absent");
            }
            if !starts(wire.provider_id, b"\"") {
                return Verdict::Invalid("provider_id is not a string");
            }
            if !starts(wire.usage, b"{") {
                return Verdict::Invalid("usage is not an object");
            }
            reply.output = part(wire.output);
            reply.usage = part(wire.usage);
        }
    }
    Verdict::Success(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(kind: Kind, body: &'static str) -> Verdict {
        judge(kind, &Bytes::from_static(body.as_bytes()))
    }

    fn good(kind: Kind, body: &'static str) -> Reply {
        match judged(kind, body) {
            Verdict::Success(reply) => reply,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn replies_of_the_right_shape() {
        assert_eq!(good(Kind::Pre, "{}"), Reply::default());
        assert_eq!(
            good(Kind::Pre, r#" {"payload":{"a":1},"x":1}"#)
                .payload
                .unwrap()
                .as_ref(),
            br#"{"a":1}"#
        );
        assert_eq!(
            good(Kind::Post, r#"{"payload":"text","error":null}"#)
                .payload
                .unwrap()
                .as_ref(),
            b"\"text\""
        );
        assert!(!good(Kind::Validator, "{}").rejected);
        let reject = good(
            Kind::Validator,
            r#"{"status":"reject","reason":"pii","details":{"n":1}}"#,
        );
        assert!(reject.rejected && reject.reason.as_deref() == Some("pii"));
        let answer = good(
            Kind::Provider,
            r#"{"provider_id":"p","output":{"t":1},"usage":{"n":2},"metadata":{}}"#,
        );
        assert_eq!(answer.output.unwrap().as_ref(), br#"{"t":1}"#);
    }

    #[test]
    fn errors() {
        for body in [
            r#"{"error":{"code":"X"}}"#,
            r#"{"error":"no"}"#,
            r#"{"payload":5,"error":false}"#,
        ] {
            assert_eq!(judged(Kind::Pre, body), Verdict::Error, "{body}");
        }
    }

    #[test]
    fn replies_of_the_wrong_shape() {
        for (kind, body) in [
            (Kind::Pre, ""),
            (Kind::Pre, "ok"),
            (Kind::Pre, "[]"),
            (Kind::Pre, "{"),
            (Kind::Pre, r#"{"payload":5}"#),
            (Kind::Pre, r#"{"metadata":[]}"#),
            (Kind::Pre, r#"{"payload":{"a":nul}}"#),
            (Kind::Validator, r#"{"status":"rejected"}"#),
            (Kind::Validator, r#"{"status":true}"#),
            (Kind::Validator, r#"{"reason":5}"#),
            (Kind::Provider, "{}"),
            (Kind::Provider, r#"{"output":null}"#),
            (Kind::Provider, r#"{"output":"x","usage":3}"#),
        ] {
            assert!(matches!(judged(kind, body), Verdict::Invalid(_)), "{kind:?} {body}");
        }
    }

    #[test]
    fn requests() {
        let parts = Parts {
            trace_id: "t",
            tenant_id: None,
            extension_id: "p",
            payload: br#"{"payload":"hi"}"#,
            metadata: br#"{"m":1}"#,
            config: br#"{"c":2}"#,
        };
        let json = |kind| serde_json::from_slice::<serde_json::Value>(&request(kind, &parts)).unwrap();
        assert_eq!(
            json(Kind::Pre),
            serde_json::json!({"trace_id": "t", "tenant_id": null, "payload": {"payload": "hi"}, "metadata": {"m": 1},
                               "config": {"c": 2}})
        );
        assert_eq!(
            json(Kind::Provider),
            serde_json::json!({"trace_id": "t", "tenant_id": null, "provider_id": "p", "prompt": "hi",
                               "parameters": {"c": 2}, "context": {"m": 1}, "config": {"c": 2}})
        );
    }
}
