//! The inbox: one wildcard subscription for all replies. A reply's subject carries the token of the attempt it answers.

use super::slab::Token;

/// The token of one attempt of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptToken {
    /// The call.
    pub call: Token,
    /// Which of its attempts.
    pub attempt: u8,
}

const DIGITS: usize = 16;

/// The inbox of one loop.
#[derive(Debug, Clone)]
pub struct Inbox {
    prefix: String,
}

impl Inbox {
    /// An inbox below a prefix that is unique on this NATS system and has no trailing dot.
    pub fn new(unique: &str) -> Self {
        Self {
            prefix: format!("{unique}."),
        }
    }

    /// What to subscribe to.
    pub fn wildcard(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// The reply subject of an attempt.
    pub fn subject(&self, token: AttemptToken) -> String {
        let packed = u64::from(token.call.generation) << 32
            | u64::from(token.call.index & 0xff_ffff) << 8
            | u64::from(token.attempt);
        let mut text = String::with_capacity(self.prefix.len() + DIGITS);
        text.push_str(&self.prefix);
        for shift in (0..DIGITS as u32).rev() {
            text.push(char::from(b"0123456789abcdef"[(packed >> (shift * 4) & 15) as usize]));
        }
        text
    }

    /// The attempt that a reply subject names; `None` for anything this inbox did not write.
    pub fn token(&self, subject: &str) -> Option<AttemptToken> {
        let digits = subject.strip_prefix(self.prefix.as_str())?;
        if digits.len() != DIGITS || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let packed = u64::from_str_radix(digits, 16).ok()?;
        Some(AttemptToken {
            call: Token {
                index: (packed >> 8 & 0xff_ffff) as u32,
                generation: (packed >> 32) as u32,
            },
            attempt: (packed & 0xff) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back() {
        let inbox = Inbox::new("_INBOX.abc");
        for (index, generation, attempt) in [(0, 0, 1), (16_383, u32::MAX, 11), (0xff_ffff, 7, 255)] {
            let token = AttemptToken {
                call: Token { index, generation },
                attempt,
            };
            assert_eq!(inbox.token(&inbox.subject(token)), Some(token));
        }
    }

    #[test]
    fn what_others_write_is_nothing() {
        let inbox = Inbox::new("_INBOX.abc");
        for subject in [
            "",
            "_INBOX.abc.",
            "_INBOX.abc.12",
            "_INBOX.abd.0000000000000000",
            "_INBOX.abc.+000000000000000",
        ] {
            assert_eq!(inbox.token(subject), None, "{subject}");
        }
    }
}
