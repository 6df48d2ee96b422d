//! What became of one attempt.

use std::fmt;
use std::str::FromStr;

/// How an attempt ended, as reported. The discriminants are the positions in the per-minute counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// A reply of the type's shape without an error. A validator's `reject` is one.
    Success = 0,
    /// A reply that says it is an error.
    Error = 1,
    /// No reply in time.
    Timeout = 2,
    /// NATS knew no subscriber.
    NoResponders = 3,
    /// A reply that is not JSON or not of the type's shape.
    InvalidResponse = 4,
    /// Given up by the caller. Neutral.
    Cancelled = 5,
    /// The caller's own fault: payload too large, limits. Neutral.
    CallerError = 6,
}

/// Position of the refusals by an open breaker among the counters; nothing can report it.
pub const CIRCUIT_OPEN: usize = 7;
/// Position of the retries among the counters.
pub const RETRIES: usize = 8;

/// What an outcome means to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It worked.
    Success,
    /// It failed.
    Failure,
    /// It says nothing about the service: no breaker counts it, a lease is freed.
    Neutral,
}

impl Outcome {
    /// Every outcome that can be reported, in counter order.
    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::Error,
        Self::Timeout,
        Self::NoResponders,
        Self::InvalidResponse,
        Self::Cancelled,
        Self::CallerError,
    ];

    /// The name used in SQL and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::NoResponders => "no_responders",
            Self::InvalidResponse => "invalid_response",
            Self::Cancelled => "cancelled",
            Self::CallerError => "caller_error",
        }
    }

    /// What a breaker makes of it.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Success => Verdict::Success,
            Self::Error | Self::Timeout | Self::NoResponders | Self::InvalidResponse => Verdict::Failure,
            Self::Cancelled | Self::CallerError => Verdict::Neutral,
        }
    }

    /// Whether its latency says something about the service (the time waited, for a timeout).
    pub const fn has_latency(self) -> bool {
        matches!(
            self,
            Self::Success | Self::Error | Self::Timeout | Self::InvalidResponse
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown outcome \"{}\"", crate::ident::shorten(.0))]
pub struct UnknownOutcome(pub String);

impl UnknownOutcome {
    /// The names that are outcomes.
    pub const HINT: &'static str =
        "Outcomes are success, error, timeout, no_responders, invalid_response, cancelled and caller_error.";
}

impl FromStr for Outcome {
    type Err = UnknownOutcome;

    fn from_str(name: &str) -> Result<Self, UnknownOutcome> {
        Self::ALL
            .into_iter()
            .find(|o| o.as_str() == name)
            .ok_or_else(|| UnknownOutcome(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_positions_match() {
        for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
            assert_eq!(outcome as usize, position);
        }
        assert!("circuit_open".parse::<Outcome>().is_err());
        assert!("".parse::<Outcome>().is_err());
    }
}
