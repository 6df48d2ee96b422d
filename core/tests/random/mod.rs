//! Random numbers for tests whose cases are too large for a strategy of proptest.

use std::time::{SystemTime, UNIX_EPOCH};

/// `xorshift64*`, seeded by the clock or by `SEED`. The seed is printed, which shows where a test fails.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_nanos() as u64
        };
        let seed = std::env::var("SEED").map_or_else(|_| clock(), |text| text.parse().expect("SEED is a number"));
        println!("SEED={seed}");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// One of `from..=to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `n` of `of` cases.
    pub fn chance(&mut self, n: u64, of: u64) -> bool {
        self.below(of) < n
    }
}
