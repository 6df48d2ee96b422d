//! Requests to the bridge: reading and refusing them. Nothing here decides or sends.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::codes::{Code, Failure};
use super::json::{Members, push_string};
use super::limits::{Limits, check_jsonb, check_shape};
use super::trace::{Incoming, Recorded, Trace, What};

/// The facts that a request names itself by.
#[derive(Debug, Default)]
pub struct Ids {
    /// The trace; made up where none is named.
    pub trace_id: String,
    /// The tenant.
    pub tenant_id: Option<String>,
    /// The policy.
    pub policy_id: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// Its place in that trace.
    pub trace: Trace,
}

impl Ids {
    /// A span of the request that has ended; see [`Trace::span`].
    pub fn span(&self, span: u64, times_us: (u64, u64), what: What, failure: Option<&Failure>) -> Recorded {
        Recorded {
            tenant_id: self.tenant_id.clone(),
            policy_id: self.policy_id.clone(),
            request_id: self.request_id.clone(),
            ..self.trace.span(span, times_us, what, failure)
        }
    }
}

/// A request for one extension or for a pipeline.
#[derive(Debug)]
pub struct Request {
    /// Who and what for.
    pub ids: Rc<Ids>,
    /// The payload or message: a JSON object.
    pub payload: Bytes,
    /// Its metadata: a JSON object.
    pub metadata: Bytes,
    /// What the decision looks at: a JSON object that `jsonb` can hold. Keys may repeat; the last one counts.
    pub context: Bytes,
    /// Laid over the registered configuration.
    pub config: Option<Bytes>,
    /// The deadline from receipt, in ms.
    pub timeout_ms: Option<u64>,
    /// Whether nothing shall happen.
    pub dry_run: bool,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    tenant_id: Option<&'a RawValue>,
    #[serde(borrow)]
    trace_id: Option<&'a RawValue>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow)]
    policy_id: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(borrow)]
    timeout_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    dry_run: Option<&'a RawValue>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// One extension; the body is `payload`.
    Invoke,
    /// A pipeline; the body is `message`, tenant and policy are required.
    Route,
}

/// Longest id in a request, in bytes.
const MAX_ID: usize = 255;

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

fn text(key: &str, raw: Option<&RawValue>) -> Result<Option<String>, Failure> {
    let Some(raw) = raw else { return Ok(None) };
    if !raw.get().starts_with('"') {
        return Err(refused(format!("{key} must be a string")).with("key", key));
    }
    check_jsonb(raw.get().as_bytes()).map_err(|why| refused(format!("{key}: {why}")).with("key", key))?;
    let text: Cow<'_, str> = serde_json::from_str(raw.get()).map_err(|e| refused(format!("{key}: {e}")))?;
    if text.len() > MAX_ID {
        return Err(refused(format!("{key} is longer than {MAX_ID} bytes")).with("key", key));
    }
    Ok(Some(text.into_owned()))
}

fn object(key: &str, raw: Option<&RawValue>, body: &Bytes) -> Result<Option<Bytes>, Failure> {
    match raw {
        None => Ok(None),
        Some(raw) if raw.get().starts_with('{') => Ok(Some(body.slice_ref(raw.get().as_bytes()))),
        Some(_) => Err(refused(format!("{key} must be an object")).with("key", key)),
    }
}

impl Request {
    /// Reads a request. `record` is the share of the traces beginning here that are recorded; without, no span is.
    pub fn parse(
        asked: Asked,
        body: &Bytes,
        incoming: Incoming<'_>,
        record: Option<f64>,
        limits: &Limits,
        random: &mut fastrand::Rng,
    ) -> Result<Self, Failure> {
        if body.len() > limits.message_bytes {
            return Err(refused(format!(
                "the message has {} bytes, at most {} are allowed",
                body.len(),
                limits.message_bytes
            )));
        }
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(refused("the request must be a JSON object"));
        }
        check_shape(body, limits).map_err(refused)?;
        // The parser alone looks at what it keeps only.
        let json = std::str::from_utf8(body).map_err(|_| refused("the request is not valid JSON: it is not UTF-8"))?;
        let wire: Wire<'_> =
            serde_json::from_str(json).map_err(|e| refused(format!("the request is not valid JSON: {e}")))?;
        let (key, main) = match asked {
            Asked::Invoke => ("payload", wire.payload),
            Asked::Route => ("message", wire.message),
        };
        let Some(payload) = object(key, main, body)? else {
            return Err(refused(format!("{key} is required and must be an object")).with("key", key));
        };
        let (trace_id, trace) = Trace::begin(text("trace_id", wire.trace_id)?, incoming, record, random);
        let ids = Ids {
            tenant_id: text("tenant_id", wire.tenant_id)?,
            policy_id: text("policy_id", wire.policy_id)?,
            request_id: text("request_id", wire.request_id)?,
            trace_id,
            trace,
        };
        if asked == Asked::Route {
            for (key, id) in [("tenant_id", &ids.tenant_id), ("policy_id", &ids.policy_id)] {
                if id.as_deref().is_none_or(str::is_empty) {
                    return Err(refused(format!("{key} is required")).with("key", key));
                }
            }
        }
        let metadata = object("metadata", wire.metadata, body)?;
        let context = object("context", wire.context, body)?;
        for (key, part) in [("metadata", &metadata), ("context", &context)] {
            let Some(part) = part else { continue };
            if part.len() > limits.metadata_bytes {
                let message = format!(
                    "{key} has {} bytes, at most {} are allowed",
                    part.len(),
                    limits.metadata_bytes
                );
                return Err(refused(message).with("key", key));
            }
            check_jsonb(part).map_err(|why| refused(format!("{key}: {why}")).with("key", key))?;
        }
        let timeout_ms = match wire.timeout_ms {
            None => None,
            Some(raw) => match raw.get().parse::<u64>() {
                Ok(ms) if ms > 0 => Some(ms),
                _ => return Err(refused("timeout_ms must be a whole number above 0").with("key", "timeout_ms")),
            },
        };
        let dry_run = match wire.dry_run.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(refused("dry_run must be true or false").with("key", "dry_run")),
        };
        Ok(Self {
            context: selection_context(metadata.as_ref(), context.as_ref(), &ids),
            config: object("config", wire.config, body)?,
            metadata: metadata.unwrap_or_else(|| Bytes::from_static(b"{}")),
            ids: Rc::new(ids),
            payload,
            timeout_ms,
            dry_run,
        })
    }
}

/// Metadata, overlaid by the context, overlaid by the ids. In JSON for Postgres a later key wins, so this is a concatenation.
fn selection_context(metadata: Option<&Bytes>, context: Option<&Bytes>, ids: &Ids) -> Bytes {
    let inner = |object: Option<&Bytes>| -> Bytes {
        object.map_or_else(Bytes::new, |text| text.slice_ref(text[1..text.len() - 1].trim_ascii()))
    };
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    for part in [inner(metadata), inner(context)] {
        if !part.is_empty() {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(&part);
        }
    }
    let named = [
        ("tenant_id", ids.tenant_id.as_deref()),
        ("policy_id", ids.policy_id.as_deref()),
        ("trace_id", Some(ids.trace_id.as_str())),
        ("request_id", ids.request_id.as_deref()),
    ];
    for (key, value) in named {
        if let Some(value) = value {
            if out.len() > 1 {
                out.push(b',');
            }
            push_string(&mut out, key);
            out.push(b':');
            push_string(&mut out, value);
        }
    }
    out.push(b'}');
    out.into()
}

/// The merged configuration: the registered one, overlaid by the request's or the item's.
pub fn merged_config(registered: &Bytes, over: Option<&Bytes>) -> Bytes {
    match over {
        None => registered.clone(),
        Some(over) => {
            let mut members = Members::of(registered);
            members.overlay(over, &[]);
            members.render()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(asked: Asked, body: &str) -> Result<Request, Failure> {
        let mut random = fastrand::Rng::with_seed(1);
        Request::parse(
            asked,
            &Bytes::copy_from_slice(body.as_bytes()),
            Incoming::default(),
            None,
            &Limits::default(),
            &mut random,
        )
    }

    #[test]
    fn the_context_is_metadata_then_context_then_ids() {
        let request = parse(
            Asked::Invoke,
            r#"{"payload":{},"metadata":{"a":1,"tenant_id":"m"},"context":{ "a":2, "tenant_id":"c" },"tenant_id":"t","trace_id":"x"}"#,
        )
        .unwrap();
        let context: serde_json::Value = serde_json::from_slice(&request.context).unwrap();
        assert_eq!(context, serde_json::json!({"a": 2, "tenant_id": "t", "trace_id": "x"}));
    }

    #[test]
    fn refusals_name_the_key() {
        for (body, says) in [
            ("", "JSON object"),
            ("[]", "JSON object"),
            ("{", "not valid JSON"),
            ("{}", "payload"),
            (r#"{"payload":[]}"#, "payload"),
            (r#"{"payload":null}"#, "payload"),
            (r#"{"payload":{},"tenant_id":5}"#, "tenant_id"),
            (r#"{"payload":{},"metadata":[]}"#, "metadata"),
            (r#"{"payload":{},"context":"x"}"#, "context"),
            (r#"{"payload":{},"config":1}"#, "config"),
            (r#"{"payload":{},"timeout_ms":"5"}"#, "timeout_ms"),
            (r#"{"payload":{},"timeout_ms":0}"#, "timeout_ms"),
            (r#"{"payload":{},"timeout_ms":-1}"#, "timeout_ms"),
            (r#"{"payload":{},"dry_run":1}"#, "dry_run"),
            (r#"{"payload":{},"metadata":{"a":"\u0000"}}"#, "U+0000"),
            (r#"{"payload":{},"payload":{}}"#, "payload"),
        ] {
            let failure = parse(Asked::Invoke, body).unwrap_err();
            assert_eq!(failure.code, Code::InvalidRequest);
            assert!(failure.message.contains(says), "{body}: {}", failure.message);
        }
        assert!(
            parse(Asked::Route, r#"{"message":{},"tenant_id":"t"}"#)
                .unwrap_err()
                .message
                .contains("policy_id")
        );
        assert!(parse(Asked::Route, r#"{"message":{},"tenant_id":"t","policy_id":"p"}"#).is_ok());
    }
}
