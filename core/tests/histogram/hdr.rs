//! The mergeable value: quantiles, merging, and its two written forms, against the `hdrhistogram` crate.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ext_registry_core::hdr::{Hdr, HdrError};
use ext_registry_core::histogram::MAX_US;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{NOW, QUANTILES, TOLERANCE, close, config, exact, ring, samples};

fn hdr(samples: &[u64]) -> Hdr {
    let mut hdr = Hdr::new();
    for &us in samples {
        hdr.record_us(us);
    }
    hdr
}

/// The same histogram in the `hdrhistogram` crate.
fn reference(samples: &[u64], digits: u8) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, MAX_US, digits).unwrap();
    for &us in samples {
        histogram.record(us).unwrap();
    }
    histogram
}

fn reference_text(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).unwrap();
    STANDARD.encode(bytes)
}

fn read_reference(text: &str) -> Histogram<u64> {
    Deserializer::new()
        .deserialize(&mut STANDARD.decode(text).unwrap().as_slice())
        .unwrap()
}

#[test]
fn empty() {
    let hdr = Hdr::new();
    assert_eq!(
        (hdr.count(), hdr.quantile(0.5), hdr.mean_ms(), hdr.max_ms()),
        (0, None, None, None)
    );
    assert_eq!(Hdr::from_bytes(&hdr.to_bytes()).unwrap(), hdr);
    assert_eq!(Hdr::from_text(&hdr.to_text()).unwrap(), hdr);
    assert_eq!(read_reference(&hdr.to_text()).len(), 0);
    assert_eq!(hdr.to_text(), reference_text(&reference(&[], 2)));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn quantiles_of_hdr((samples, spread) in (samples(), 1..=5_u64)) {
        let ring = ring();
        let mut direct = Hdr::new();
        for (i, &us) in samples.iter().enumerate() {
            ring.record(NOW + i as u64 % spread, us);
            direct.record_us(us);
        }
        let mut stored = Hdr::new();
        for minute in NOW..NOW + spread {
            stored.merge(&Hdr::from_snapshot(&ring.minute_snapshot(minute)));
        }
        let mut sorted = samples;
        sorted.sort_unstable();
        for (hdr, mean_tolerance) in [(direct, 0.004), (stored, 0.012)] {
            prop_assert_eq!(hdr.count(), sorted.len() as u64);
            for q in QUANTILES {
                let (estimate, exact) = (hdr.quantile(q).unwrap(), exact(&sorted, q));
                prop_assert!(close(estimate, exact, TOLERANCE), "{q}: {estimate}, exactly {exact}");
            }
            let mean = sorted.iter().sum::<u64>() as f64 / 1e3 / sorted.len() as f64;
            prop_assert!(close(hdr.mean_ms().unwrap(), mean, mean_tolerance));
            prop_assert!(close(hdr.max_ms().unwrap(), exact(&sorted, 1.0), TOLERANCE));
        }
    }

    #[test]
    fn hdr_equals_the_reference(samples in samples(), q in 0.0..=1.0_f64) {
        let (ours, theirs) = (hdr(&samples), reference(&samples, 2));
        prop_assert_eq!(ours.count(), theirs.len());
        prop_assert_eq!(ours.max_ms(), Some(theirs.max() as f64 / 1e3));
        prop_assert!(close(ours.mean_ms().unwrap(), theirs.mean() / 1e3, 1e-12));
        for q in QUANTILES.into_iter().chain([0.0, q]) {
            // As the Java implementation: one ulp less, but for 0.
            let theirs = theirs.value_at_quantile(if q > 0.0 { q.next_down() } else { 0.0 });
            prop_assert_eq!(ours.quantile(q), Some(theirs as f64 / 1e3), "quantile {}", q);
        }
    }

    #[test]
    fn texts_are_those_of_hdrhistogram(samples in samples()) {
        let (ours, theirs) = (hdr(&samples), reference(&samples, 2));
        prop_assert!(ours.to_text().starts_with("HISTFAAA"));
        prop_assert!(read_reference(&ours.to_text()) == theirs);
        prop_assert_eq!(&Hdr::from_text(&reference_text(&theirs)).unwrap(), &ours);
        prop_assert_eq!(&Hdr::from_text(&format!(" {}\n", ours.to_text())).unwrap(), &ours);
    }

    #[test]
    fn texts_of_other_precision_and_range(samples in samples(), digits in 2..=5_u8, low in 1..50_u64) {
        let mut theirs = Histogram::<u64>::new_with_bounds(low, 3_600_000_000, digits).unwrap();
        for &us in &samples {
            theirs.record(us).unwrap();
        }
        theirs.record(3_000_000_000).unwrap();
        let ours = Hdr::from_text(&reference_text(&theirs)).unwrap();
        prop_assert_eq!(ours.count(), theirs.len());
        let mut sorted = samples;
        sorted.push(MAX_US);
        sorted.sort_unstable();
        for q in QUANTILES {
            let (estimate, exact) = (ours.quantile(q).unwrap(), exact(&sorted, q));
            let slack = exact * 0.016 + low as f64 / 1e3;
            prop_assert!((estimate - exact).abs() <= slack, "{q}: {estimate}, exactly {exact}");
        }
    }

    #[test]
    fn merging_is_addition(a in samples(), b in samples(), c in samples()) {
        let merged = |parts: &[&Hdr]| parts.iter().fold(Hdr::new(), |mut sum, part| { sum.merge(part); sum });
        let (x, y, z) = (hdr(&a), hdr(&b), hdr(&c));
        let all = hdr(&[a, b, c].concat());
        prop_assert_eq!(&merged(&[&x, &y, &z]), &all);
        prop_assert_eq!(&merged(&[&z, &merged(&[&y, &x])]), &all);
        prop_assert_eq!(&merged(&[&x, &Hdr::new()]), &x);
        prop_assert_eq!(&merged(&[&Hdr::new(), &x]), &x);
    }

    #[test]
    fn bytes_round_trip(samples in samples(), big in 1..=u64::MAX) {
        let mut hdr = hdr(&samples);
        hdr.record_n(samples[0], big);
        prop_assert!(i64::try_from(hdr.count()).is_ok());
        prop_assert_eq!(&Hdr::from_bytes(&hdr.to_bytes()).unwrap(), &hdr);
        prop_assert_eq!(&Hdr::from_text(&hdr.to_text()).unwrap(), &hdr);
        prop_assert!(hdr.quantile(0.5).is_some());
    }

    /// What is read is what would be written: no two byte strings for one histogram, nothing left over.
    #[test]
    fn hostile_bytes(mut bytes in vec(any::<u8>(), 0..200), versioned: bool) {
        if let (true, Some(version)) = (versioned, bytes.first_mut()) {
            *version = 1;
        }
        if let Ok(hdr) = Hdr::from_bytes(&bytes) {
            prop_assert_eq!(hdr.to_bytes(), bytes);
        }
    }

    #[test]
    fn damaged_bytes(samples in samples(), at: prop::sample::Index, by in 1..=u8::MAX, cut: prop::sample::Index) {
        let bytes = hdr(&samples).to_bytes();
        prop_assert!(Hdr::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        if let Ok(hdr) = Hdr::from_bytes(&bytes) {
            prop_assert_eq!(hdr.to_bytes(), bytes);
        }
    }

    #[test]
    fn hostile_text(text in "\\PC{0,80}|[A-Za-z0-9+/]{0,300}={0,2}|HISTFAAA[A-Za-z0-9+/]{0,300}") {
        prop_assert!(Hdr::from_text(&text).is_err());
    }

    /// Damage inside of the compressed part: any header, any counts.
    #[test]
    fn hostile_encodings(
        header in (any::<i32>(), -1..=6_i32, any::<i64>(), any::<i64>(), any::<f64>()),
        honest: [bool; 6],
        payload in vec(any::<u8>(), 0..100),
    ) {
        let keep = |honest, yes, no| if honest { yes } else { no };
        let lowest = if honest[2] { 1 } else { header.2 };
        let highest = if honest[3] { 300_000_000 } else { header.3 };
        let text = encoding(
            keep(honest[5], payload.len() as i32, header.0),
            keep(honest[0], 0, header.0),
            keep(honest[1], 2, header.1),
            lowest,
            highest,
            if honest[4] { 1.0 } else { header.4 },
            &payload,
        );
        if let Ok(hdr) = Hdr::from_text(&text) {
            prop_assert_eq!(Hdr::from_bytes(&hdr.to_bytes()).unwrap(), hdr);
        }
    }
}

/// A V2 text with any content.
fn encoding(length: i32, offset: i32, digits: i32, lowest: i64, highest: i64, ratio: f64, payload: &[u8]) -> String {
    let mut bytes = 0x1c84_9313_u32.to_be_bytes().to_vec();
    bytes.extend([length, offset, digits].into_iter().flat_map(i32::to_be_bytes));
    bytes.extend([lowest, highest].into_iter().flat_map(i64::to_be_bytes));
    bytes.extend(ratio.to_be_bytes());
    bytes.extend(payload);
    compressed(&bytes)
}

fn compressed(bytes: &[u8]) -> String {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(bytes).unwrap();
    let packed = zlib.finish().unwrap();
    let head = [0x1c84_9314, packed.len() as u32]
        .into_iter()
        .flat_map(u32::to_be_bytes);
    STANDARD.encode(head.chain(packed).collect::<Vec<_>>())
}

#[test]
fn text_errors_name_what_is_wrong() {
    let encoded = |offset, digits, lowest, highest, ratio, payload: &[u8]| {
        encoding(payload.len() as i32, offset, digits, lowest, highest, ratio, payload)
    };
    let v1 = STANDARD.encode([0x1c, 0x84, 0x93, 0x02, 0, 0, 0, 0]);
    // A bomb: 64 MB of zeros in 64 KB.
    let bomb = compressed(&vec![0; 64 << 20]);
    for (text, message) in [
        (String::new(), "histogram ends too early"),
        ("HISTFAAA".into(), "histogram ends too early"),
        (
            "no base64".into(),
            "histogram text is not base64: Invalid symbol 32, offset 2.",
        ),
        (
            v1,
            "histogram starts with 0x1c849302, not with 0x1c849314 (HdrHistogram V2 compressed, \"HISTFAAA...\")",
        ),
        (bomb, "histogram is larger than 4194304 bytes"),
        ("A".repeat(5 << 20), "histogram is larger than 4194304 bytes"),
        (
            encoded(0, 6, 1, 1000, 1.0, &[2]),
            "histogram header has a number of significant digits of 6",
        ),
        (
            encoded(0, 2, 0, 1000, 1.0, &[2]),
            "histogram header has a lowest value of 0",
        ),
        (
            encoded(0, 2, 10, 19, 1.0, &[2]),
            "histogram header has a highest value of 19",
        ),
        (
            encoded(0, 2, 1, 255, 1.0, &[0xff, 0x03, 2]),
            "histogram has an impossible count at bucket 256",
        ),
        (
            encoded(0, 2, 1, 255, 1.0, &[0x82, 0]),
            "histogram has a malformed number",
        ),
        (encoding(2, 0, 2, 1, 255, 1.0, &[2]), "histogram ends too early"),
    ] {
        assert_eq!(Hdr::from_text(&text).unwrap_err().to_string(), message);
    }
    // With the index offset and the ratio that the JavaScript implementation writes.
    let odd = encoded(1, 2, 1, 255, f64::from_bits(1), &[0xfd, 0x03, 2]);
    assert_eq!(Hdr::from_text(&odd).unwrap().max_ms(), Some(0.255));
    assert!(matches!(Hdr::from_bytes(&[2, 0]), Err(HdrError::Version(2))));
}
