//! Tags: the 32-bit numbers that relcache messages name an extension by. See [`crate::invalidate`].

/// The tag that marks every extension.
pub const EVERYTHING: u32 = 0x8000_0000;

/// The tag of an extension.
pub fn tag_of(id: &str) -> u32 {
    match xxhash_rust::xxh3::xxh3_64(id.as_bytes()) as u32 | 0x8000_0000 {
        EVERYTHING => 0x8000_0001,
        tag => tag,
    }
}
