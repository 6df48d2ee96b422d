//! [`Hdr`], the mergeable latency histogram behind the SQL type `hdr`, and its two written forms.
//!
//! Owns: the histogram kept in tables and handed to other programs. Promises: merging is addition (exact,
//! associative, in any order); the text is the HdrHistogram V2 compressed encoding, so the HdrHistogram libraries of
//! other languages read what is written here and the other way round, with equal counts and quantiles; reading
//! either form never panics, whatever the input, and needs bounded memory.
//!
//! The layout is HdrHistogram's with lowest value 1, highest 300,000,000 and 2 significant digits: integer
//! microseconds, exact below 256, then 128 buckets per octave (at most 0.79 % wide); above 5 minutes counts as
//! 5 minutes. Quantiles, mean and maximum follow the definitions of the Java implementation (highest, median,
//! highest equivalent value), and come out in milliseconds.

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::histogram::{LogLinear, MAX_US, MinuteSnapshot, index_of, lowest, ms, rank};

/// HdrHistogram with 2 significant digits.
const LAYOUT: LogLinear = LogLinear { bits: 7 };
const DIGITS: i32 = 2;

/// Buckets of the layout in use.
const BUCKETS: u64 = LAYOUT.index_of(MAX_US) as u64 + 1;

/// More samples than V2 can write (it has signed counts) count as this many, in a bucket and in all.
const MAX_COUNT: u64 = i64::MAX as u64;

/// First byte of the binary form.
const BINARY_VERSION: u8 = 1;

const COOKIE: u32 = 0x1c84_9313;
const COMPRESSED_COOKIE: u32 = 0x1c84_9314;
const HEADER_BYTES: usize = 40;

/// What is read at most. A histogram of this layout needs 26 KB, one with 3 digits over an hour 220 KB.
const MAX_DECODED_BYTES: usize = 4 << 20;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why bytes or a text are no histogram.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HdrError {
    /// The input ends inside of what it announces.
    #[error("histogram ends too early")]
    Truncated,
    /// The binary form has another version.
    #[error("histogram has binary version {0}, version {BINARY_VERSION} is read")]
    Version(u8),
    /// The binary form is not what `to_bytes` writes.
    #[error("histogram is corrupt at bucket {0}")]
    Corrupt(u64),
    /// The text is not base64.
    #[error("histogram text is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The text is too long, or unpacks to more than is read.
    #[error("histogram is larger than {MAX_DECODED_BYTES} bytes")]
    TooLarge,
    /// The text is base64 of something else.
    #[error("histogram starts with {0:#010x}, not with {1:#010x} (HdrHistogram V2 compressed, \"HISTFAAA...\")")]
    Cookie(u32, u32),
    /// The compressed part cannot be unpacked.
    #[error("histogram cannot be decompressed: {0}")]
    Zlib(#[from] std::io::Error),
    /// A number is not written in the one way it may be.
    #[error("histogram has a malformed number")]
    Number,
    /// A header field has a value that HdrHistogram does not have, or that is not supported here.
    #[error("histogram header has {0} {1}")]
    Header(&'static str, i64),
    /// A count lies outside of the range the header announces, or is too large.
    #[error("histogram has an impossible count at bucket {0}")]
    Count(u64),
}

/// A histogram of latencies in integer microseconds, 0 to 300,000,000 (5 minutes; above counts as 5 minutes).
///
/// Sparse: memory and the binary form grow with the number of different latencies, not with their count.
/// Counts saturate at 2^63 - 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hdr {
    /// (bucket, samples), ascending, none empty.
    counts: Vec<(u32, u64)>,
}

/// One bucket of an [`Hdr`]: latencies from `lowest_us` to `highest_us`, both inclusive, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub lowest_us: u64,
    pub highest_us: u64,
    pub count: u64,
}

fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(MAX_COUNT)
}

impl Hdr {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self { counts: Vec::new() }
    }

    /// One minute of a live ring. Each of its buckets goes to the lower of the two it is divided into here, which
    /// keeps a quantile within 0.79 % of the sample it stands for.
    pub fn from_snapshot(snapshot: &MinuteSnapshot) -> Self {
        let mut hdr = Self {
            counts: Vec::with_capacity(snapshot.buckets.len()),
        };
        for &(index, count) in &snapshot.buckets {
            hdr.record_n(lowest(index.into()), count.into());
        }
        hdr
    }

    /// The latencies as a minute of a live ring, without outcomes. Counts saturate; the sum takes each bucket by its lowest latency.
    pub fn to_snapshot(&self) -> MinuteSnapshot {
        let mut snapshot = MinuteSnapshot::default();
        for bucket in self.buckets() {
            let index = index_of(bucket.lowest_us) as u16;
            let count = u32::try_from(bucket.count).unwrap_or(u32::MAX);
            let sum_us = bucket.lowest_us.saturating_mul(bucket.count);
            snapshot.sum_us = snapshot.sum_us.saturating_add(sum_us);
            snapshot.max_us = snapshot.max_us.max(bucket.lowest_us);
            match snapshot.buckets.last_mut() {
                Some((last, total)) if *last == index => *total = total.saturating_add(count),
                _ => snapshot.buckets.push((index, count)),
            }
        }
        snapshot
    }

    /// Records one latency in microseconds.
    pub fn record_us(&mut self, us: u64) {
        self.record_n(us, 1);
    }

    /// Records a latency in microseconds `n` times.
    pub fn record_n(&mut self, us: u64, n: u64) {
        if n == 0 {
            return;
        }
        let index = LAYOUT.index_of(us.min(MAX_US)) as u32;
        // Decoding, and the conversion of a snapshot, come in ascending order.
        let at = match self.counts.last() {
            Some(&(last, _)) if last < index => Err(self.counts.len()),
            _ => self.counts.binary_search_by_key(&index, |&(index, _)| index),
        };
        match at {
            Ok(at) => self.counts[at].1 = add(self.counts[at].1, n),
            Err(at) => self.counts.insert(at, (index, n.min(MAX_COUNT))),
        }
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        let mine = std::mem::take(&mut self.counts);
        self.counts.reserve(mine.len().max(other.counts.len()));
        let (mut a, mut b) = (mine.into_iter().peekable(), other.counts.iter().copied().peekable());
        while let (Some(&(x, n)), Some(&(y, m))) = (a.peek(), b.peek()) {
            self.counts
                .push(if x == y { (x, add(n, m)) } else { (x, n).min((y, m)) });
            a.next_if(|_| x <= y);
            b.next_if(|_| y <= x);
        }
        self.counts.extend(a);
        self.counts.extend(b);
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &(_, count)| add(sum, count))
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The buckets that hold samples, in ascending order.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        self.counts.iter().map(|&(index, count)| Bucket {
            lowest_us: LAYOUT.lowest(index as usize),
            highest_us: LAYOUT.highest(index as usize),
            count,
        })
    }

    /// The `q`-quantile (0..=1; beyond counts as 0 or 1) in milliseconds: the highest latency equivalent to the
    /// sample of rank `ceil(q * n)`, the lowest one for 0, as `getValueAtPercentile(q * 100)` of the Java
    /// implementation. `None` when empty or `q` is NaN.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if q.is_nan() {
            return None;
        }
        let rank = rank(q, self.count());
        let mut seen = 0;
        let bucket = self.buckets().find(|bucket| {
            seen = add(seen, bucket.count);
            seen >= rank
        })?;
        Some(ms(if q <= 0.0 { bucket.lowest_us } else { bucket.highest_us } as f64))
    }

    /// The mean in milliseconds, each sample taken as the median of its bucket (`getMean` of the Java
    /// implementation): at most 0.4 % off for recorded samples, 1.2 % for those of a snapshot. `None` when empty.
    pub fn mean_ms(&self) -> Option<f64> {
        let median = |bucket: Bucket| bucket.lowest_us + (bucket.highest_us - bucket.lowest_us).div_ceil(2);
        let sum: f64 = self
            .buckets()
            .map(|bucket| median(bucket) as f64 * bucket.count as f64)
            .sum();
        let count: f64 = self.buckets().map(|bucket| bucket.count as f64).sum();
        (count > 0.0).then(|| ms(sum / count))
    }

    /// The highest latency equivalent to the largest sample, in milliseconds (`getMaxValue` of the Java
    /// implementation); `None` when empty.
    pub fn max_ms(&self) -> Option<f64> {
        let (index, _) = *self.counts.last()?;
        Some(ms(LAYOUT.highest(index as usize) as f64))
    }

    /// The compact binary form: a version byte, the number of buckets, then for each bucket its distance to the
    /// one before and its count, all LEB128. Equal histograms have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 3 * self.counts.len());
        bytes.push(BINARY_VERSION);
        write_varint(&mut bytes, self.counts.len() as u64);
        let mut next = 0;
        for &(index, count) in &self.counts {
            write_varint(&mut bytes, (index - next).into());
            write_varint(&mut bytes, count);
            next = index + 1;
        }
        bytes
    }

    /// Reads what [`Hdr::to_bytes`] writes, and nothing else.
    ///
    /// # Errors
    /// [`HdrError::Version`], [`HdrError::Truncated`], [`HdrError::Number`], [`HdrError::Corrupt`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HdrError> {
        let mut input = bytes;
        let [version] = *take(&mut input)?;
        if version != BINARY_VERSION {
            return Err(HdrError::Version(version));
        }
        let len = read_varint(&mut input)?;
        if len > BUCKETS {
            return Err(HdrError::Corrupt(len));
        }
        let mut counts = Vec::with_capacity(len as usize);
        let mut next = 0_u64;
        for _ in 0..len {
            let index = next.saturating_add(read_varint(&mut input)?);
            let count = read_varint(&mut input)?;
            if index >= BUCKETS || count == 0 || count > MAX_COUNT {
                return Err(HdrError::Corrupt(index));
            }
            counts.push((index as u32, count));
            next = index + 1;
        }
        if input.is_empty() {
            Ok(Self { counts })
        } else {
            Err(HdrError::Corrupt(next))
        }
    }

    /// The HdrHistogram V2 compressed encoding in base64 (`HISTFAAA...`).
    pub fn to_text(&self) -> String {
        let mut payload = Vec::new();
        let mut next = 0;
        for &(index, count) in &self.counts {
            match index - next {
                0 => {}
                1 => write_zigzag(&mut payload, 0),
                empty => write_zigzag(&mut payload, -i64::from(empty)),
            }
            write_zigzag(&mut payload, count as i64);
            next = index + 1;
        }
        if payload.is_empty() {
            // The other implementations always write the first bucket.
            write_zigzag(&mut payload, 0);
        }

        let mut encoded = Vec::with_capacity(HEADER_BYTES + payload.len());
        encoded.extend(COOKIE.to_be_bytes());
        encoded.extend((payload.len() as u32).to_be_bytes());
        encoded.extend(0_i32.to_be_bytes()); // normalizing index offset
        encoded.extend(DIGITS.to_be_bytes());
        encoded.extend(1_i64.to_be_bytes()); // lowest discernible value
        encoded.extend((MAX_US as i64).to_be_bytes()); // highest trackable value
        encoded.extend(1_f64.to_be_bytes()); // integer to double value conversion ratio
        encoded.extend(payload);

        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        let packed = zlib
            .write_all(&encoded)
            .and_then(|()| zlib.finish())
            .expect("a Vec takes all bytes");
        let mut compressed = Vec::with_capacity(8 + packed.len());
        compressed.extend(COMPRESSED_COOKIE.to_be_bytes());
        compressed.extend((packed.len() as u32).to_be_bytes());
        compressed.extend(packed);
        BASE64.encode(compressed)
    }

    /// Reads an HdrHistogram V2 compressed encoding in base64, of any precision and range, as a histogram of
    /// microseconds. One of another layout is brought into this one: each of its buckets by its median.
    ///
    /// # Errors
    /// All of [`HdrError`] but `Version` and `Corrupt`.
    pub fn from_text(text: &str) -> Result<Self, HdrError> {
        let text = text.trim_ascii();
        if text.len() > MAX_DECODED_BYTES {
            return Err(HdrError::TooLarge);
        }
        let compressed = BASE64.decode(text)?;
        let mut input = compressed.as_slice();
        read_cookie(&mut input, COMPRESSED_COOKIE)?;
        let length = u32::from_be_bytes(*take(&mut input)?) as usize;
        let packed = input.get(..length).ok_or(HdrError::Truncated)?;
        let mut encoded = Vec::new();
        ZlibDecoder::new(packed)
            .take(MAX_DECODED_BYTES as u64 + 1)
            .read_to_end(&mut encoded)?;
        if encoded.len() > MAX_DECODED_BYTES {
            return Err(HdrError::TooLarge);
        }
        Self::decode(&encoded)
    }

    /// An uncompressed V2 encoding.
    fn decode(mut input: &[u8]) -> Result<Self, HdrError> {
        read_cookie(&mut input, COOKIE)?;
        let length = u32::from_be_bytes(*take(&mut input)?) as usize;
        // How the writer keeps its array; V2 counts are in logical order whatever it is.
        let _normalizing_index_offset = take::<4>(&mut input)?;
        let digits = i32::from_be_bytes(*take(&mut input)?);
        let lowest = i64::from_be_bytes(*take(&mut input)?);
        let highest = i64::from_be_bytes(*take(&mut input)?);
        // Of use in a DoubleHistogram only; the JavaScript implementation writes something else than 1 here.
        let _conversion_ratio = take::<8>(&mut input)?;
        let mut payload = input.get(..length).ok_or(HdrError::Truncated)?;

        let refuse = |what, value| Err(HdrError::Header(what, value));
        let bits = match digits {
            0..=5 => (2 * 10_u32.pow(digits as u32)).next_power_of_two().ilog2() - 1,
            _ => return refuse("a number of significant digits of", digits.into()),
        };
        if lowest < 1 || lowest.ilog2() + bits > 61 {
            return refuse("a lowest value of", lowest);
        }
        if highest / 2 < lowest {
            return refuse("a highest value of", highest);
        }
        let layout = LogLinear { bits };
        let unit = lowest.ilog2();
        // HdrHistogram has whole octaves, and no fewer than the exact range.
        let octave = layout.index_of(highest as u64 >> unit) as u64 >> bits;
        let buckets = (octave.max(1) + 1) << bits;

        let mut hdr = Self::new();
        let mut index = 0_u64;
        while !payload.is_empty() {
            let count = read_zigzag(&mut payload)?;
            if count < 0 {
                index = index.saturating_add(count.unsigned_abs());
                if index > buckets {
                    return Err(HdrError::Count(index));
                }
            } else if index < buckets {
                let bucket = index as usize;
                let width = 1 << (layout.shift(bucket) + unit);
                hdr.record_n((layout.lowest(bucket) << unit) + width / 2, count as u64);
                index += 1;
            } else {
                return Err(HdrError::Count(index));
            }
        }
        Ok(hdr)
    }
}

fn take<'a, const N: usize>(input: &mut &'a [u8]) -> Result<&'a [u8; N], HdrError> {
    let (head, rest) = input.split_first_chunk().ok_or(HdrError::Truncated)?;
    *input = rest;
    Ok(head)
}

fn read_cookie(input: &mut &[u8], expected: u32) -> Result<(), HdrError> {
    match u32::from_be_bytes(*take(input)?) {
        cookie if cookie == expected => Ok(()),
        cookie => Err(HdrError::Cookie(cookie, expected)),
    }
}

/// LEB128-64b9B as HdrHistogram has it: groups of 7 bits, the lowest first; a ninth byte is taken whole.
fn write_varint(output: &mut Vec<u8>, mut number: u64) {
    for _ in 0..8 {
        if number < 0x80 {
            break;
        }
        output.push(number as u8 | 0x80);
        number >>= 7;
    }
    output.push(number as u8);
}

fn read_varint(input: &mut &[u8]) -> Result<u64, HdrError> {
    let mut number = 0;
    for group in 0..9 {
        let [byte] = *take(input)?;
        if group == 8 || byte < 0x80 {
            // One way to write each number.
            if byte == 0 && group > 0 {
                break;
            }
            return Ok(number | u64::from(byte) << (7 * group));
        }
        number |= u64::from(byte & 0x7f) << (7 * group);
    }
    Err(HdrError::Number)
}

fn write_zigzag(output: &mut Vec<u8>, number: i64) {
    write_varint(output, ((number << 1) ^ (number >> 63)) as u64);
}

fn read_zigzag(input: &mut &[u8]) -> Result<i64, HdrError> {
    let number = read_varint(input)?;
    Ok((number >> 1) as i64 ^ -((number & 1) as i64))
}
