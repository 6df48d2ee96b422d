//! What comes and what goes.

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject};
use bytes::Bytes;

/// What a subscription is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `<prefix>.invoke.*`
    Invoke,
    /// `<prefix>.route`
    Route,
    /// `<prefix>.admin.*`
    Admin,
    /// The inbox.
    Reply,
    /// `$SRV.>` of the micro service.
    Micro,
}

impl Channel {
    /// Whether a bridge can do nothing without it.
    pub(super) fn is_needed(self) -> bool {
        matches!(self, Self::Invoke | Self::Route | Self::Reply)
    }
}

/// A message that came.
#[derive(Debug)]
pub struct Inbound {
    /// By which subscription.
    pub channel: Channel,
    /// Its subject.
    pub subject: Subject,
    /// Where to answer.
    pub reply: Option<Subject>,
    /// Its body.
    pub payload: Bytes,
    /// Whether NATS says that nobody listens on the subject that was asked.
    pub no_responders: bool,
    pub(super) headers: Option<HeaderMap>,
}

impl Inbound {
    /// A message without headers.
    #[cfg(any(test, feature = "hostile"))]
    pub fn new(channel: Channel, subject: &str, reply: Option<&str>, payload: Bytes) -> Self {
        let (subject, reply) = (Subject::from(subject), reply.map(Subject::from));
        Self {
            channel,
            subject,
            reply,
            payload,
            no_responders: false,
            headers: None,
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(HeaderValue::as_str)
    }
}

/// Headers of an outgoing message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Headers {
    values: String,
    /// Names, and where in `values` each value ends.
    ends: Vec<(&'static str, usize)>,
}

impl Headers {
    /// Without headers, with room for the usual ones.
    pub fn roomy() -> Self {
        Self {
            values: String::with_capacity(128),
            ends: Vec::with_capacity(6),
        }
    }

    /// Adds a header. Line breaks in a value become spaces.
    pub fn push(&mut self, name: &'static str, value: &str) {
        if value.contains(['\r', '\n']) {
            self.values
                .extend(value.chars().map(|c| if matches!(c, '\r' | '\n') { ' ' } else { c }));
        } else {
            self.values.push_str(value);
        }
        self.ends.push((name, self.values.len()));
    }

    /// The names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, end)| {
            let value = &self.values[start..end];
            start = end;
            (name, value)
        })
    }

    /// As the client library wants them.
    pub(super) fn map(&self) -> HeaderMap {
        self.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from(value)))
            .collect()
    }
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Where to.
    pub subject: Subject,
    /// Where the answer shall go.
    pub reply: Option<Subject>,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
    /// Not sent after this time, in microseconds since the loop began.
    pub expires_us: u64,
}
