//! Rules look at a request's context where it lies: Postgres's binary `jsonb`, walked without parsing or copying.
//!
//! The format (src/include/utils/jsonb.h): a container begins with a word of flags and count, then one word an entry (for an object: all keys,
//! then all values), then the data. An entry holds its type and either its length or, every 32nd, the offset of its end. Keys are sorted by length,
//! then by bytes. Everything is bounds-checked: a malformed value is absent, never read beyond its end.

use std::borrow::Cow;

use ext_registry_core::context::{Context, Value};

const COUNT: u32 = 0x0fff_ffff;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const HAS_OFFSET: u32 = 0x8000_0000;
const TYPE: u32 = 0x7000_0000;
const LENGTH: u32 = 0x0fff_ffff;

/// A jsonb object, as the bytes behind the varlena header.
#[derive(Clone, Copy)]
pub struct Object<'a>(&'a [u8]);

impl<'a> Object<'a> {
    /// The object in these bytes; `None` if they hold something else.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let flags = word(bytes, 0)?;
        (flags & OBJECT != 0 && flags & SCALAR == 0).then_some(Self(bytes))
    }

    fn count(self) -> usize {
        word(self.0, 0).map_or(0, |flags| (flags & COUNT) as usize)
    }

    fn entry(self, index: usize) -> Option<u32> {
        word(self.0, 4 + 4 * index)
    }

    /// Where the data of an entry begins, relative to the data.
    fn start(self, index: usize) -> Option<usize> {
        let mut offset = 0;
        for before in (0..index).rev() {
            let entry = self.entry(before)?;
            offset += (entry & LENGTH) as usize;
            if entry & HAS_OFFSET != 0 {
                break;
            }
        }
        Some(offset)
    }

    /// An entry and its data.
    fn data(self, index: usize, start: usize) -> Option<(u32, &'a [u8])> {
        let entry = self.entry(index)?;
        let length = (entry & LENGTH) as usize;
        let end = if entry & HAS_OFFSET != 0 {
            length
        } else {
            start + length
        };
        let base = 4 + 8 * self.count();
        Some((entry, self.0.get(base + start..base + end)?))
    }

    fn find(self, key: &str) -> Option<usize> {
        let (key, mut start) = (key.as_bytes(), 0);
        for index in 0..self.count() {
            let (_, data) = self.data(index, start)?;
            if data == key {
                return Some(self.count() + index);
            }
            start += data.len();
            // Keys are sorted by length: longer ones cannot follow to be equal.
            if data.len() > key.len() {
                return None;
            }
        }
        None
    }

    fn value(self, index: usize) -> Option<Value<'a>> {
        let start = self.start(index)?;
        let (entry, data) = self.data(index, start)?;
        Some(match entry & TYPE {
            0x0000_0000 => Value::Str(String::from_utf8_lossy(data)),
            0x1000_0000 => Value::Number(Cow::Owned(numeric(aligned(start, data)?)?)),
            0x2000_0000 => Value::Bool(false),
            0x3000_0000 => Value::Bool(true),
            0x4000_0000 => Value::Null,
            _ => Value::Composite,
        })
    }

    fn nested(self, key: &str) -> Option<Self> {
        let index = self.find(key)?;
        let start = self.start(index)?;
        let (entry, data) = self.data(index, start)?;
        if entry & TYPE != 0x5000_0000 {
            return None;
        }
        Self::new(aligned(start, data)?)
    }
}

impl Context for Object<'_> {
    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.value(self.find(key)?)
    }

    fn get_path(&self, path: &[Box<str>]) -> Option<Value<'_>> {
        let (last, parents) = path.split_last()?;
        let mut object = *self;
        for key in parents {
            object = object.nested(key)?;
        }
        object.value(object.find(last)?)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .map(|chunk| u32::from_ne_bytes(*chunk))
}

/// Numbers and containers lie aligned: the padding before them counts as theirs.
fn aligned(start: usize, data: &[u8]) -> Option<&[u8]> {
    data.get(start.next_multiple_of(4) - start..)
}

/// A `numeric` inside a jsonb as JSON writes it (src/backend/utils/adt/numeric.c): base-10000 digits behind a short or a long header.
fn numeric(varlena: &[u8]) -> Option<String> {
    let body = match varlena.first()? {
        first if first & 1 == 1 => varlena.get(1..)?,
        _ => varlena.get(4..)?,
    };
    let half = |at: usize| {
        body.get(at..)?
            .first_chunk::<2>()
            .map(|chunk| u16::from_ne_bytes(*chunk))
    };
    let header = half(0)?;
    let (negative, weight, digits) = match header & 0xc000 {
        0xc000 => return None,
        0x8000 => {
            let weight = i32::from(header & 0x3f) - if header & 0x40 != 0 { 0x40 } else { 0 };
            (header & 0x2000 != 0, weight, body.get(2..)?)
        }
        sign => (sign == 0x4000, i32::from(half(2)? as i16), body.get(4..)?),
    };
    let groups: Vec<u16> = digits
        .chunks_exact(2)
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .collect();
    if groups.is_empty() {
        return Some("0".to_owned());
    }
    let mut text = String::with_capacity(4 * groups.len() + 8);
    if negative {
        text.push('-');
    }
    for group in &groups {
        text.push_str(&format!("{group:04}"));
    }
    // The groups are an integer times 10000^(weight - groups + 1).
    let exponent = 4 * (weight - groups.len() as i32 + 1);
    if exponent != 0 {
        text.push_str(&format!("e{exponent}"));
    }
    Some(text)
}
