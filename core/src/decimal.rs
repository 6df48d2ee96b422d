//! Exact comparison of JSON numbers by value: `1`, `1.0` and `1e0` are equal, and nothing is rounded.

use std::cmp::Ordering;

/// A finite decimal number in canonical form: sign, digits without zeros at either end, and the power of ten before the first digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decimal {
    negative: bool,
    /// Most significant first; empty for zero.
    digits: Box<[u8]>,
    /// The value is `0.d1d2d3... * 10^magnitude`.
    magnitude: i64,
}

impl Decimal {
    /// Reads a number as JSON writes it. `None` for anything else, and for exponents beyond any use (18 digits).
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, "0"),
        };
        let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
        if exponent.len() > 18 {
            return None;
        }
        let exponent: i64 = exponent.parse().ok()?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let Some(first) = all.iter().position(|&b| b != b'0') else {
            return Some(Self {
                negative: false,
                digits: Box::default(),
                magnitude: 0,
            });
        };
        let last = all.iter().rposition(|&b| b != b'0').unwrap_or(first);
        let magnitude = exponent + whole.len() as i64 - first as i64;
        Some(Self {
            negative,
            digits: all[first..=last].into(),
            magnitude,
        })
    }

    /// The canonical text, equal for equal numbers; used where a number is a hash key.
    pub fn canonical(&self) -> String {
        if self.digits.is_empty() {
            return "0".to_owned();
        }
        let digits = String::from_utf8_lossy(&self.digits);
        let sign = if self.negative { "-" } else { "" };
        let (length, magnitude) = (digits.len() as i64, self.magnitude);
        // Integers up to 20 digits read as people write them.
        if magnitude >= length && magnitude <= 20 {
            return format!("{sign}{digits}{}", "0".repeat((magnitude - length) as usize));
        }
        format!("{sign}0.{digits}e{magnitude}")
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |d: &Self| {
            if d.digits.is_empty() {
                0
            } else if d.negative {
                -1
            } else {
                1
            }
        };
        let (a, b) = (sign(self), sign(other));
        if a != b || a == 0 {
            return a.cmp(&b);
        }
        let absolute = self
            .magnitude
            .cmp(&other.magnitude)
            .then_with(|| self.digits.cmp(&other.digits));
        if a < 0 { absolute.reverse() } else { absolute }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn d(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn equal_by_value() {
        for (a, b) in [
            ("1", "1.0"),
            ("100", "1e2"),
            ("0", "-0"),
            ("0.5", "5e-1"),
            ("-12.50", "-1.25E+1"),
        ] {
            assert_eq!(d(a), d(b));
            assert_eq!(d(a).canonical(), d(b).canonical());
        }
        assert_ne!(d("9007199254740993"), d("9007199254740992"));
        for bad in [
            "",
            "-",
            ".5",
            "1x",
            "NaN",
            "1e",
            "1e9999999999999999999",
            "--1",
            "1.2.3",
        ] {
            assert_eq!(Decimal::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn ordered_as_integers(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(d(&a.to_string()).cmp(&d(&b.to_string())), a.cmp(&b));
            prop_assert_eq!(d(&a.to_string()).canonical(), a.to_string());
        }

        #[test]
        fn ordered_as_floats(a in -1e9f64..1e9, b in -1e9f64..1e9) {
            prop_assert_eq!(d(&a.to_string()).cmp(&d(&b.to_string())), a.partial_cmp(&b).unwrap());
        }

        #[test]
        fn any_text_is_safe(text in ".{0,24}") {
            let _ = Decimal::parse(&text);
        }
    }
}
