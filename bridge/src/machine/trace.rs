//! Where a request belongs in a distributed trace (W3C Trace Context), and what is recorded of it.
//!
//! Promises: a trace that comes along is carried through. Where nothing is recorded, its `traceparent` goes on as it came, so
//! that no span is named that nobody will ever see; where the request is recorded, a service is told the span of its call.
//! Whoever began a trace decides whether it is recorded; traces that begin here are drawn by their id, so that every bridge
//! draws alike (OpenTelemetry's `TraceIdRatioBased`).

use ext_registry_core::outcome::Outcome;

use super::codes::Failure;
use super::contract::Kind;
use super::text::push_hex;

/// `sampled`, of the flags of a trace.
const SAMPLED: u8 = 1;
/// Longest `tracestate` that is carried through, in bytes; a longer one may be dropped.
const MAX_STATE: usize = 512;

/// The trace headers of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Incoming<'a> {
    /// `traceparent`
    pub parent: Option<&'a str>,
    /// `tracestate`
    pub state: Option<&'a str>,
}

/// A request's place in its trace.
#[derive(Debug, Default)]
pub struct Trace {
    id: u128,
    /// The span it was sent by; 0 where it begins the trace.
    parent: u64,
    flags: u8,
    state: Option<String>,
    /// Its own span: recorded, or only made up for a trace that begins here.
    span: u64,
    recorded: bool,
}

impl Trace {
    /// The trace of a request that names `trace_id` in its body, and the id it is known by. `share` is that of the traces
    /// beginning here that are recorded; without, no span is.
    pub fn begin(
        trace_id: Option<String>,
        incoming: Incoming<'_>,
        share: Option<f64>,
        random: &mut fastrand::Rng,
    ) -> (String, Self) {
        let mut trace = Self {
            span: random.u64(1..),
            ..Self::default()
        };
        if let Some((id, parent, flags)) = incoming.parent.and_then(parse) {
            let state = incoming.state.filter(|s| !s.is_empty() && s.len() <= MAX_STATE);
            (trace.id, trace.parent, trace.flags) = (id, parent, flags);
            trace.state = state.map(str::to_owned);
            trace.recorded = share.is_some() && flags & SAMPLED != 0;
        } else {
            trace.id = trace_id.as_deref().and_then(named).unwrap_or_else(|| random.u128(1..));
            trace.recorded = share.is_some_and(|share| drawn(trace.id, share));
            trace.flags = if trace.recorded { SAMPLED } else { 0 };
        }
        let name = trace_id.unwrap_or_else(|| {
            let mut name = String::with_capacity(32);
            push_hex(&mut name, trace.id, 32);
            name
        });
        (name, trace)
    }

    /// The request's own span, where it is recorded.
    pub fn recorded(&self) -> Option<u64> {
        self.recorded.then_some(self.span)
    }

    /// `traceparent` for what is sent on behalf of the request; `span` is that of the call, where it is recorded.
    pub fn header(&self, span: Option<u64>) -> String {
        let above = if self.parent == 0 { self.span } else { self.parent };
        let mut header = String::with_capacity(55);
        header.push_str("00-");
        push_hex(&mut header, self.id, 32);
        header.push('-');
        push_hex(&mut header, u128::from(span.unwrap_or(above)), 16);
        header.push('-');
        push_hex(&mut header, u128::from(self.flags), 2);
        header
    }

    /// `tracestate`, as it came.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// A span of this trace. The request's own is below the one it came from, all others are below it.
    pub fn span(&self, span: u64, times_us: (u64, u64), what: What, failure: Option<&Failure>) -> Recorded {
        let own = span == self.span;
        Recorded {
            trace: self.id,
            span,
            parent: if own { self.parent } else { self.span },
            parent_is_remote: own && self.parent != 0,
            state: self.state.clone(),
            times_us,
            failure: failure.map(|failure| (failure.code.as_str(), failure.message.clone())),
            what,
            tenant_id: None,
            policy_id: None,
            request_id: None,
        }
    }
}

/// Trace, span and flags of a `traceparent` that is well formed.
fn parse(header: &str) -> Option<(u128, u64, u8)> {
    let mut parts = header.split('-');
    let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may say more; this one does not.
    if !hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) || !hex(flags, 2) {
        return None;
    }
    let id = hex(id, 32).then(|| u128::from_str_radix(id, 16).ok())??;
    let span = hex(span, 16).then(|| u64::from_str_radix(span, 16).ok())??;
    (id != 0 && span != 0).then_some((id, span, u8::from_str_radix(flags, 16).ok()?))
}

fn hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The trace that a `trace_id` of 32 hexadecimal digits names; a UUID is one.
fn named(trace_id: &str) -> Option<u128> {
    let digits: String = trace_id
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    hex(&digits, 32)
        .then(|| u128::from_str_radix(&digits, 16).ok())
        .flatten()
        .filter(|id| *id != 0)
}

/// Whether a trace is among the share of those that are recorded.
fn drawn(id: u128, share: f64) -> bool {
    share >= 1.0 || ((id as u64) >> 1) < (share.max(0.0) * (1_u64 << 63) as f64) as u64
}

/// A call of one extension while it is recorded.
#[derive(Debug)]
pub struct Recording {
    /// Its span.
    pub span: u64,
    /// When it began.
    pub began_us: u64,
    /// When the last decision was asked for.
    pub asked_us: u64,
    /// How long that decision took, in microseconds.
    pub decide_us: u64,
    /// Whether the bridge decided itself.
    pub local: bool,
    /// Where the last attempt went; empty where none was sent.
    pub subject: String,
    /// The attempts that have ended.
    pub attempts: Vec<Attempt>,
}

impl Recording {
    /// Begins one, for a span.
    pub fn begin(span: u64, now: u64) -> Self {
        Self {
            span,
            began_us: now,
            asked_us: now,
            decide_us: 0,
            local: false,
            subject: String::new(),
            attempts: Vec::new(),
        }
    }

    /// An attempt was sent on a decision.
    pub fn sent(&mut self, subject: &str, local: bool, now: u64) {
        self.decide_us = now.saturating_sub(self.asked_us);
        subject.clone_into(&mut self.subject);
        self.local = local;
    }
}

/// An attempt that was sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// When it ended, in microseconds since the loop began.
    pub ended_us: u64,
    /// How long it took, in microseconds.
    pub latency_us: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The version it went to.
    pub version: String,
    /// The instance it went to.
    pub instance_id: Option<String>,
}

/// A span that has ended.
#[derive(Debug)]
pub struct Recorded {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// The span above it; 0 where there is none.
    pub parent: u64,
    /// Whether that one was not made here.
    pub parent_is_remote: bool,
    /// `tracestate`
    pub state: Option<String>,
    /// When it began and ended, in microseconds since the loop began.
    pub times_us: (u64, u64),
    /// The code and the message where it failed.
    pub failure: Option<(&'static str, String)>,
    /// What it was.
    pub what: What,
    /// The tenant.
    pub tenant_id: Option<String>,
    /// The policy.
    pub policy_id: Option<String>,
    /// The request.
    pub request_id: Option<String>,
}

/// What a span was.
#[derive(Debug)]
pub enum What {
    /// A pipeline.
    Route {
        /// The provider that was chosen last.
        provider: Option<String>,
    },
    /// A call of one extension.
    Invoke {
        /// The extension.
        extension_id: String,
        /// Its type, where a decision named it.
        kind: Option<Kind>,
        /// How it went.
        recording: Box<Recording>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn begin(trace_id: Option<&str>, parent: Option<&str>, share: Option<f64>) -> (String, Trace) {
        let incoming = Incoming {
            parent,
            state: Some("vendor=1"),
        };
        Trace::begin(
            trace_id.map(str::to_owned),
            incoming,
            share,
            &mut fastrand::Rng::with_seed(1),
        )
    }

    #[test]
    fn a_trace_that_came_goes_on_as_it_came() {
        for flags in ["00", "01", "03"] {
            let header = format!("00-{ID}-{SPAN}-{flags}");
            let (name, trace) = begin(None, Some(&header), None);
            assert_eq!(
                (name.as_str(), trace.header(None), trace.recorded()),
                (ID, header, None)
            );
            assert_eq!(trace.state(), Some("vendor=1"));
        }
        // A later version is answered in this one.
        let (_, trace) = begin(None, Some(&format!("01-{ID}-{SPAN}-01-more")), None);
        assert_eq!(trace.header(None), format!("00-{ID}-{SPAN}-01"));
    }

    #[test]
    fn where_it_is_recorded_services_are_told_the_span_of_their_call() {
        let (_, trace) = begin(Some("abc"), Some(&format!("00-{ID}-{SPAN}-01")), Some(0.0));
        let own = trace.recorded().expect("who began the trace wants it recorded");
        assert_eq!(trace.header(Some(0xab)), format!("00-{ID}-00000000000000ab-01"));
        let span = |span| trace.span(span, (1, 2), What::Route { provider: None }, None);
        let request = span(own);
        assert_eq!(
            (request.parent, request.parent_is_remote),
            (0x00f0_67aa_0ba9_02b7, true)
        );
        let call = span(0xab);
        assert_eq!((call.parent, call.parent_is_remote), (own, false));
        let (_, trace) = begin(None, Some(&format!("00-{ID}-{SPAN}-00")), Some(1.0));
        assert_eq!(trace.recorded(), None, "who began the trace does not want it recorded");
    }

    #[test]
    fn what_is_malformed_begins_a_trace() {
        let malformed = [
            String::new(),
            "garbage".to_owned(),
            "00-0-0-0".to_owned(),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{ID}-{}-01", "0".repeat(16)),
            format!("ff-{ID}-{SPAN}-01"),
            format!("00-{ID}-{SPAN}-01-more"),
            format!("00-{}-{SPAN}-01", ID.to_uppercase()),
            format!("00-{ID}-{SPAN}-+1"),
            format!("+0-{ID}-{SPAN}-01"),
        ];
        for header in malformed {
            let (name, trace) = begin(Some("abc"), Some(&header), None);
            assert_eq!(
                (name.as_str(), trace.state(), trace.parent),
                ("abc", None, 0),
                "{header}"
            );
            let sent = trace.header(None);
            assert!(parse(&sent).is_some() && sent.ends_with("-00"), "{header}: {sent}");
        }
    }

    #[test]
    fn a_trace_id_that_is_one_names_the_trace() {
        let (name, trace) = begin(Some("4BF92F35-77b3-4da6-a3ce-929d0e0e4736"), None, Some(1.0));
        assert_eq!(name, "4BF92F35-77b3-4da6-a3ce-929d0e0e4736");
        let header = trace.header(trace.recorded());
        assert!(
            header.starts_with(&format!("00-{ID}-")) && header.ends_with("-01"),
            "{header}"
        );
    }

    #[test]
    fn the_share_of_traces_that_begin_here() {
        let mut random = fastrand::Rng::with_seed(3);
        for share in [0.0, 0.1, 0.5, 1.0] {
            let mut count = 0;
            for _ in 0..10_000 {
                let (_, trace) = Trace::begin(None, Incoming::default(), Some(share), &mut random);
                count += i32::from(trace.recorded().is_some());
                assert_eq!(trace.header(None).ends_with("-01"), trace.recorded().is_some());
            }
            let wanted = share * 10_000.0;
            assert!((f64::from(count) - wanted).abs() < 200.0, "{share}: {count}");
        }
    }
}
