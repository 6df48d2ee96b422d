//! JSON objects read one level deep; what lies below stays the bytes that came.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object, in order, with their raw values.
#[derive(Debug, Default, Clone)]
pub struct RawObject<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(v)))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = RawObject<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(RawObject(members))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

impl<'a> RawObject<'a> {
    /// Reads an object; any syntax error below it is found too.
    pub fn parse(text: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

/// An object that is built up by overlaying members, one level deep.
#[derive(Debug, Default, Clone)]
pub struct Members(Vec<(Box<str>, Bytes)>);

impl Members {
    /// The members of JSON text that is an object; empty for anything else.
    pub fn of(text: &Bytes) -> Self {
        let mut members = Self::default();
        members.overlay(text, &[]);
        members
    }

    /// Lays the members of `text` over these, but for the `kept` keys.
    pub fn overlay(&mut self, text: &Bytes, kept: &[&str]) {
        let Ok(object) = RawObject::parse(text) else { return };
        for (key, value) in object.0 {
            if !kept.contains(&key.as_ref()) {
                self.set(&key, text.slice_ref(value.get().as_bytes()));
            }
        }
    }

    /// Sets one member to raw JSON.
    pub fn set(&mut self, key: &str, value: Bytes) {
        match self.0.iter_mut().find(|(name, _)| **name == *key) {
            Some(member) => member.1 = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// One member, as raw JSON.
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.0.iter().find(|(name, _)| **name == *key).map(|(_, value)| value)
    }

    /// As JSON text.
    pub fn render(&self) -> Bytes {
        if self.0.is_empty() {
            return Bytes::from_static(b"{}");
        }
        let mut out = Vec::with_capacity(self.0.iter().map(|(k, v)| k.len() + v.len() + 6).sum::<usize>() + 2);
        out.push(b'{');
        for (i, (key, value)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            push_string(&mut out, key);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        out.into()
    }
}

/// Writes a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    let plain = text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\');
    if plain {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else if serde_json::to_writer(&mut *out, text).is_err() {
        out.extend_from_slice(b"\"\""); // writing to a Vec does not fail
    }
}

/// Writes a JSON string, or null.
pub fn push_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_one_level_deep_and_keeps_what_must_stay() {
        let mut members = Members::of(&Bytes::from_static(br#"{"a":{"x":1},"tenant_id":"t","\u0062":2}"#));
        members.overlay(
            &Bytes::from_static(br#"{"a":{"y":2},"tenant_id":"evil","c":"\"q"}"#),
            &["tenant_id"],
        );
        let expected = br#"{"a":{"y":2},"tenant_id":"t","b":2,"c":"\"q"}"#;
        assert_eq!(&members.render()[..], expected);
    }

    #[test]
    fn strings() {
        for text in ["", "plain", "quote \" back \\ line \n nul \0 ü"] {
            let mut out = Vec::new();
            push_string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
