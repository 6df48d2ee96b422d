//! The settings of a breaker, and the judgement they pass on a window.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{MAX_PROBES, Reason};
use crate::window::{self, Tally};

/// Who decides: the breaker or an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The breaker.
    #[default]
    Auto,
    /// Refuse everything.
    ForcedOpen,
    /// Let everything pass.
    ForcedClosed,
    /// Let everything pass, and count what the breaker would see.
    MetricsOnly,
}

impl Mode {
    /// Every mode by its name in SQL.
    pub const ALL: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("forced_open", Self::ForcedOpen),
        ("forced_closed", Self::ForcedClosed),
        ("metrics_only", Self::MetricsOnly),
    ];

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(n, mode)| (n == name).then_some(mode))
    }

    /// The name of this mode.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find_map(|(name, mode)| (mode == self).then_some(name))
            .unwrap_or("auto")
    }
}

/// The settings of one breaker. Rates are shares of 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Failures within the window that open it; `None` = off.
    pub failure_threshold: Option<u32>,
    /// The failure count opens only at or above this error rate.
    pub failure_min_rate: Option<f64>,
    /// Error rate that opens it; `None` = off.
    pub error_rate_threshold: Option<f64>,
    /// Below this many outcomes the rates are not judged.
    pub minimum_requests: u32,
    /// Length of the window, in microseconds.
    pub window_us: u64,
    /// Open time before growth and jitter, in microseconds.
    pub open_us: u64,
    /// A success slower than this is slow, in microseconds.
    pub slow_call_us: Option<u64>,
    /// Share of slow successes that opens it; `None` = off.
    pub slow_rate_threshold: Option<f64>,
    /// Probes at once, and successes needed to close: 1 to [`MAX_PROBES`].
    pub half_open_max: u32,
    /// Who decides.
    pub mode: Mode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failure_threshold: Some(5),
            failure_min_rate: Some(0.01),
            error_rate_threshold: Some(0.5),
            minimum_requests: 5,
            window_us: 60_000_000,
            open_us: 60_000_000,
            slow_call_us: None,
            slow_rate_threshold: None,
            half_open_max: 3,
            mode: Mode::Auto,
        }
    }
}

impl Settings {
    /// Whether a success of this latency is slow.
    pub fn is_slow(&self, latency_us: u64) -> bool {
        self.slow_call_us.is_some_and(|limit| latency_us > limit)
    }

    /// Why these outcomes open a breaker, if they do.
    pub(super) fn judge(&self, tally: &Tally) -> Option<Reason> {
        let error_rate = tally.error_rate()?;
        let enough = tally.requests() >= u64::from(self.minimum_requests);
        if self
            .failure_threshold
            .is_some_and(|limit| tally.failures >= u64::from(limit))
            && self.failure_min_rate.is_none_or(|least| error_rate >= least)
            && tally.failures > 0
        {
            return Some(Reason::FailureThreshold);
        }
        if enough && tally.failures > 0 && self.error_rate_threshold.is_some_and(|limit| error_rate >= limit) {
            return Some(Reason::ErrorRate);
        }
        let slow_rate = tally.slow_rate()?;
        (enough && tally.slow > 0 && self.slow_rate_threshold.is_some_and(|limit| slow_rate >= limit))
            .then_some(Reason::SlowCalls)
    }

    /// A number for a judgement by these settings within one bucket of the window.
    pub(super) fn judgement(&self, now_us: u64) -> u64 {
        let rate = |rate: Option<f64>| rate.map_or(u64::MAX, f64::to_bits);
        let parts = [
            u64::from(self.minimum_requests) << 32 | u64::from(self.failure_threshold.unwrap_or(0)),
            rate(self.failure_min_rate),
            rate(self.error_rate_threshold),
            rate(self.slow_rate_threshold),
        ];
        let bucket = window::bucket(self.window_us, now_us);
        parts.iter().fold(bucket, |hash, part| {
            (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        })
    }

    /// How many probes there may be, within the slots there are.
    pub(super) fn probes(&self) -> usize {
        (self.half_open_max as usize).clamp(1, MAX_PROBES)
    }
}

/// Settings as atomics, so that a report finds them beside the state it moves, without the registry.
///
/// The host stores them whenever a decision was made with committed settings that differ. A reader may meet a mixture of old and new
/// while they are being stored; it lasts nanoseconds and is judged by once.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SharedSettings {
    /// Zero until the first store.
    stamp: AtomicU64,
    words: [AtomicU64; 10],
}

const NONE: u64 = u64::MAX;

impl SharedSettings {
    fn encode(settings: &Settings) -> [u64; 10] {
        let rate = |rate: Option<f64>| rate.map_or(NONE, f64::to_bits);
        let mode = Mode::ALL
            .iter()
            .position(|(_, mode)| *mode == settings.mode)
            .unwrap_or(0);
        [
            settings.failure_threshold.map_or(NONE, u64::from),
            rate(settings.failure_min_rate),
            rate(settings.error_rate_threshold),
            u64::from(settings.minimum_requests),
            settings.window_us,
            settings.open_us,
            settings.slow_call_us.unwrap_or(NONE),
            rate(settings.slow_rate_threshold),
            u64::from(settings.half_open_max),
            mode as u64,
        ]
    }

    /// A number that is equal for equal settings and never zero.
    pub fn stamp_of(settings: &Settings) -> u64 {
        let bytes: Vec<u8> = Self::encode(settings).into_iter().flat_map(u64::to_le_bytes).collect();
        xxhash_rust::xxh3::xxh3_64(&bytes) | 1
    }

    /// The stamp of the settings stored; zero for none.
    pub fn stamp(&self) -> u64 {
        self.stamp.load(Relaxed)
    }

    /// Stores settings with their stamp.
    pub fn store(&self, settings: &Settings, stamp: u64) {
        for (place, word) in self.words.iter().zip(Self::encode(settings)) {
            place.store(word, Relaxed);
        }
        self.stamp.store(stamp, Relaxed);
    }

    /// The settings stored, or the defaults.
    pub fn load(&self) -> Settings {
        if self.stamp() == 0 {
            return Settings::default();
        }
        let [
            threshold,
            min_rate,
            error_rate,
            minimum,
            window,
            open,
            slow,
            slow_rate,
            probes,
            mode,
        ] = std::array::from_fn(|i| self.words[i].load(Relaxed));
        let some = |word: u64| (word != NONE).then_some(word);
        Settings {
            failure_threshold: some(threshold).map(|n| n as u32),
            failure_min_rate: some(min_rate).map(f64::from_bits),
            error_rate_threshold: some(error_rate).map(f64::from_bits),
            minimum_requests: minimum as u32,
            window_us: window,
            open_us: open,
            slow_call_us: some(slow),
            slow_rate_threshold: some(slow_rate).map(f64::from_bits),
            half_open_max: probes as u32,
            mode: Mode::ALL.get(mode as usize).map_or(Mode::Auto, |(_, mode)| *mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded() {
        let shared = SharedSettings::default();
        assert_eq!(shared.load(), Settings::default());
        for settings in [
            Settings::default(),
            Settings {
                failure_threshold: None,
                failure_min_rate: None,
                error_rate_threshold: None,
                ..Settings::default()
            },
            Settings {
                slow_call_us: Some(7),
                slow_rate_threshold: Some(0.25),
                mode: Mode::MetricsOnly,
                ..Settings::default()
            },
        ] {
            let stamp = SharedSettings::stamp_of(&settings);
            shared.store(&settings, stamp);
            assert_eq!((shared.load(), shared.stamp()), (settings, stamp));
        }
    }
}
