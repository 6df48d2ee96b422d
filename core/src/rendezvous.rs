//! Weighted rendezvous hashing: which of several weighted candidates a key belongs to.
//!
//! Each candidate scores `-ln(u) / weight` with `u` a uniform hash of (salt, candidate, key); the least score wins. Shares are
//! proportional to the weights, raising one weight moves keys only to it, and removing a candidate moves only its own keys
//! (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005). The order of the scores is the retry sequence.
//!
//! Promise: the same bucket on every CPU and in every release. The hash is XXH3-64, and the logarithm uses only IEEE additions,
//! multiplications and divisions, which are exact everywhere; `f64::ln` is not.

use xxhash_rust::xxh3::Xxh3;

/// The hash of a candidate for a key. The parts are framed by their lengths, so that no two splits of a text collide.
pub fn hash(salt: &str, candidate: &str, key: &str) -> u64 {
    let mut hasher = Xxh3::new();
    for part in [salt, candidate, key] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.digest()
}

/// The hash of a candidate for a key, where the candidate is known by a hash of its own: for choices among many.
pub fn seeded(candidate: u64, key: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), candidate)
}

/// The score of a candidate of this weight (> 0) for a hash; the least wins.
pub fn score(hash: u64, weight: f64) -> f64 {
    // 53 bits, never zero: u lies in (0, 1).
    let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -ln(u) / weight
}

/// The natural logarithm of `x` > 0 by `2 atanh((m-1)/(m+1))` after taking out the power of two.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let z = (m - 1.0) / (m + 1.0);
    let z2 = z * z;
    // |z| <= 0.172: eleven terms leave an error below 1e-17.
    let mut sum = 0.0;
    let mut k = 21;
    while k >= 1 {
        sum = sum * z2 + 1.0 / f64::from(k);
        k -= 2;
    }
    2.0 * z * sum + exponent as f64 * std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The winner among (name, weight).
    fn winner<'a>(candidates: &[(&'a str, f64)], key: &str) -> &'a str {
        candidates
            .iter()
            .filter(|(_, weight)| *weight > 0.0)
            .map(|(name, weight)| (score(hash("salt", name, key), *weight), *name))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap()
            .1
    }

    #[test]
    fn the_buckets_never_change() {
        // Fixed points: a release that moves one of these moves customers.
        assert_eq!(hash("normalize_text", "v2", "tenant-1"), 12_054_631_277_028_503_390);
        let keys = (0..1000).map(|n| format!("tenant-{n}"));
        assert_eq!(
            keys.filter(|key| winner(&[("v1", 90.0), ("v2", 10.0)], key) == "v2")
                .count(),
            88
        );
    }

    #[test]
    fn shares_are_the_weights() {
        let candidates = [("a", 50.0), ("b", 30.0), ("c", 20.0)];
        let mut counts = [0u32; 3];
        for n in 0..200_000 {
            let name = winner(&candidates, &n.to_string());
            counts[candidates.iter().position(|c| c.0 == name).unwrap()] += 1;
        }
        for (count, (_, weight)) in counts.iter().zip(candidates) {
            let share = f64::from(*count) / 2_000.0;
            assert!((share - weight).abs() < 0.5, "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn ln_is_right(x in 1e-16f64..1.0) {
            prop_assert!((ln(x) - x.ln()).abs() <= 1e-14 * x.ln().abs().max(1.0));
        }

        #[test]
        fn raising_a_share_moves_keys_only_to_it(key in "[a-z0-9]{1,12}", low in 1u32..50, more in 1u32..49) {
            let before = winner(&[("a", f64::from(100 - low)), ("b", f64::from(low))], &key);
            let after = winner(&[("a", f64::from(100 - low - more)), ("b", f64::from(low + more))], &key);
            if before == "b" {
                prop_assert_eq!(after, "b");
            }
        }

        #[test]
        fn removing_one_moves_only_its_keys(key in "[a-z0-9]{1,12}") {
            let all = [("a", 1.0), ("b", 2.0), ("c", 3.0)];
            let with = winner(&all, &key);
            if with != "c" {
                prop_assert_eq!(winner(&all[..2], &key), with);
            }
        }
    }
}
