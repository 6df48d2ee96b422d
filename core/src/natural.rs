//! The order of version names: natural, so that `v10` follows `v9` and `1.10.0` follows `1.9.2`.

use std::cmp::Ordering;

/// Compares two version names: runs of digits by value, everything else byte by byte.
///
/// A pre-release (`1.0.0-rc1`) is lower than its release (`1.0.0`), as in Semantic Versioning; names that differ only in
/// leading zeros are told apart by their text, so that the order is total.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return left.cmp(right),
            // A pre-release is lower than its release, and than a release line that goes on (1.0.0-rc1 < 1.0.0.1).
            (Some(b'-'), other) if other != Some(&b'-') => return Ordering::Less,
            (other, Some(b'-')) if other != Some(&b'-') => return Ordering::Greater,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let ((number, rest_a), (other, rest_b)) = (split_number(a), split_number(b));
                // Without leading zeros the longer number is the greater one.
                let order = number.len().cmp(&other.len()).then_with(|| number.cmp(other));
                if order != Ordering::Equal {
                    return order;
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), Some(y)) if x == y => (a, b) = (&a[1..], &b[1..]),
            (Some(x), Some(y)) => return x.cmp(y),
        }
    }
}

/// The leading digits without leading zeros, and what follows them.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let start = text[..end].iter().position(|&b| b != b'0').unwrap_or(end);
    (&text[start..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_of_versions() {
        let sorted = [
            "1.0.0-rc1",
            "1.0.0-rc2",
            "1.0.0-rc10",
            "1.0.0",
            "1.0.0.1",
            "1.2",
            "1.9.2",
            "1.10.0",
            "2",
            "v1",
            "v1.1",
            "v2",
            "v9",
            "v10",
            "v010x",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_total_order(mut names in prop::collection::vec("[v0-9.-]{0,6}", 3)) {
            for a in &names {
                for b in &names {
                    prop_assert_eq!(compare(a, b), compare(b, a).reverse());
                    prop_assert_eq!(compare(a, b) == Ordering::Equal, a == b);
                }
            }
            names.sort_by(|a, b| compare(a, b));
            prop_assert!(compare(&names[0], &names[2]) != Ordering::Greater);
        }
    }
}
