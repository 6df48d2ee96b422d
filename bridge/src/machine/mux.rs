//! The inbox: one wildcard subscription for all replies. A reply's subject carries the token of the attempt it answers.
//!
//! Each connection has an inbox of its own below the loop's prefix, so that a reply comes by one connection only; the replies
//! to all of them are known.

use super::slab::Token;
use super::text::Digits;

/// The token of one attempt of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptToken {
    /// The call.
    pub call: Token,
    /// Which of its attempts.
    pub attempt: u8,
}

const DIGITS: usize = 16;

/// The inbox of one loop on one connection.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// The loop's, with the dot at its end.
    prefix: String,
    /// Which of the loop's connections.
    connection: u32,
}

impl Inbox {
    /// An inbox below a prefix that is unique on this NATS system and has no trailing dot.
    pub fn new(unique: &str) -> Self {
        Self {
            prefix: format!("{unique}."),
            connection: 0,
        }
    }

    /// The same loop's inbox on its next connection.
    #[must_use]
    pub fn next(&self) -> Self {
        Self {
            prefix: self.prefix.clone(),
            connection: self.connection.wrapping_add(1),
        }
    }

    /// What to subscribe to.
    pub fn wildcard(&self) -> String {
        format!("{}{}.*", self.prefix, self.connection)
    }

    /// The reply subject of an attempt.
    pub fn subject(&self, token: AttemptToken) -> String {
        let packed = u64::from(token.call.generation) << 32
            | u64::from(token.call.index & 0xff_ffff) << 8
            | u64::from(token.attempt);
        let connection = Digits::of(u64::from(self.connection));
        let mut text = String::with_capacity(self.prefix.len() + connection.as_str().len() + 1 + DIGITS);
        text.push_str(&self.prefix);
        text.push_str(connection.as_str());
        text.push('.');
        for shift in (0..DIGITS as u32).rev() {
            text.push(char::from(b"0123456789abcdef"[(packed >> (shift * 4) & 15) as usize]));
        }
        text
    }

    /// The attempt that a reply subject names, whichever connection so far it went by; `None` for anything this loop did not write.
    pub fn token(&self, subject: &str) -> Option<AttemptToken> {
        let (connection, digits) = subject.strip_prefix(self.prefix.as_str())?.split_once('.')?;
        let number: u32 = connection.parse().ok()?;
        if number > self.connection || Digits::of(u64::from(number)).as_str() != connection {
            return None;
        }
        let is_written = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != DIGITS || !digits.bytes().all(is_written) {
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
            // By a former connection, too; but under a subject that the present one does not receive.
            let next = inbox.next();
            assert_eq!(next.token(&inbox.subject(token)), Some(token));
            assert_eq!(inbox.token(&next.subject(token)), None, "a connection to come");
            assert_ne!(inbox.subject(token), next.subject(token));
            assert_ne!(inbox.wildcard(), next.wildcard());
        }
    }

    #[test]
    fn what_others_write_is_nothing() {
        let inbox = Inbox::new("_INBOX.abc");
        for subject in [
            "",
            "_INBOX.abc.",
            "_INBOX.abc.12",
            "_INBOX.abc.0000000000000000",
            "_INBOX.abd.0.0000000000000000",
            "_INBOX.abc.0.+000000000000000",
            "_INBOX.abc.x.0000000000000000",
            "_INBOX.abc..0000000000000000",
            "_INBOX.abc.00.0000000000000000",
            "_INBOX.abc.0.000000000000000A",
        ] {
            assert_eq!(inbox.token(subject), None, "{subject}");
        }
    }
}
