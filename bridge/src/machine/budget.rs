//! Retry policy: how long to wait, and how many retries an extension may cause.

/// Wait before retry `k` (from 1), in microseconds: 100 ms x 2^(k-1), spread over the upper half ("equal jitter").
pub fn backoff_us(k: u32, random: &mut fastrand::Rng) -> u64 {
    let full = backoff_max_us(k);
    full / 2 + random.u64(0..=full / 2)
}

/// The longest wait before retry `k`, in microseconds.
pub fn backoff_max_us(k: u32) -> u64 {
    100_000_u64
        .saturating_mul(1_u64.checked_shl(k.saturating_sub(1)).unwrap_or(u64::MAX))
        .min(30_000_000)
}

/// A budget of retries: a share of the calls of the last seconds, and a few per second for an extension with few calls.
#[derive(Debug, Clone)]
pub struct Budget {
    share: f64,
    per_second: f64,
    earned: f64,
    floor: f64,
    at_us: u64,
}

/// Over this time what calls have earned fades away, in microseconds.
const MEMORY_US: f64 = 10_000_000.0;

impl Budget {
    /// `share` of calls (0-1), and at least `per_second` retries.
    pub fn new(share: f64, per_second: f64) -> Self {
        Self {
            share,
            per_second,
            earned: 0.0,
            floor: per_second.max(1.0),
            at_us: 0,
        }
    }

    /// Earns by other rates from now on; what was earned stays.
    pub fn set(&mut self, share: f64, per_second: f64) {
        (self.share, self.per_second) = (share, per_second);
        self.floor = self.floor.min(per_second.max(1.0));
    }

    fn pass(&mut self, now_us: u64) {
        let dt = now_us.saturating_sub(self.at_us) as f64;
        self.at_us = self.at_us.max(now_us);
        self.earned *= (-dt / MEMORY_US).exp();
        self.floor = (self.floor + self.per_second * dt / 1_000_000.0).min(self.per_second.max(1.0));
    }

    /// A call began.
    pub fn call(&mut self, now_us: u64) {
        self.pass(now_us);
        self.earned += self.share;
    }

    /// Whether one more retry may be made; takes it.
    pub fn retry(&mut self, now_us: u64) -> bool {
        self.pass(now_us);
        for pot in [&mut self.floor, &mut self.earned] {
            if *pot >= 1.0 {
                *pot -= 1.0;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_spread() {
        let mut random = fastrand::Rng::with_seed(1);
        for k in 1..=5 {
            let full = 100_000 << (k - 1);
            let waits: Vec<u64> = (0..200).map(|_| backoff_us(k, &mut random)).collect();
            assert!(waits.iter().all(|w| (full / 2..=full).contains(w)));
            assert!(waits.iter().any(|w| *w < full * 6 / 10) && waits.iter().any(|w| *w > full * 9 / 10));
        }
        assert_eq!(backoff_max_us(200), 30_000_000);
    }

    #[test]
    fn a_fifth_of_the_calls_and_three_a_second() {
        let mut budget = Budget::new(0.2, 3.0);
        let mut granted = 0;
        for call in 0..10_000_u64 {
            let now = call * 1000;
            budget.call(now);
            granted += u32::from(budget.retry(now));
        }
        assert!((1_990..=2_040).contains(&granted), "{granted}");

        let mut quiet = Budget::new(0.2, 3.0);
        let granted = (0..100_u64).filter(|i| quiet.retry(i * 100_000)).count();
        assert!((29..=34).contains(&granted), "{granted}");
    }
}
