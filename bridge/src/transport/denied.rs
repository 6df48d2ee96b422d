//! What the server does not let this user do. It says so once for each message or subscription, by subject, and goes on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::ServerError;
use tokio::sync::Notify;

/// The same is logged again after this time at the earliest.
const QUIET: Duration = Duration::from_mins(1);
/// Most subjects that are remembered.
const MOST: usize = 1000;

/// Something that the server did not do, for want of a permission.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Denied {
    /// Nobody has got the message to this subject.
    Publish(String),
    /// Nothing comes by this subscription.
    Subscribe(String),
}

impl Denied {
    /// `Permissions Violation for Publish to "a.b"`, or `for Subscription to "a.b" using queue "q"`.
    fn of(error: &ServerError) -> Option<Self> {
        let ServerError::Other(text) = error else { return None };
        let (what, rest) = text.strip_prefix("Permissions Violation for ")?.split_once(" to \"")?;
        let subject = rest.split('"').next()?.to_owned();
        match what {
            "Publish" => Some(Self::Publish(subject)),
            "Subscription" => Some(Self::Subscribe(subject)),
            _ => None,
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, subject) = match self {
            Self::Publish(subject) => ("publish to", subject),
            Self::Subscribe(subject) => ("subscribe to", subject),
        };
        write!(f, "this user of NATS may not {what} {subject}; give it the permission")?;
        if subject.starts_with("_INBOX") {
            f.write_str(", or name the inbox that it has by --nats-inbox-prefix")?;
        }
        Ok(())
    }
}

/// When it was.
#[derive(Debug, Clone, Copy)]
struct Times {
    seen: Instant,
    logged: Instant,
}

/// What one client was denied so far.
#[derive(Debug, Default)]
pub struct Denials {
    denied: Mutex<HashMap<Denied, Times>>,
    more: Notify,
}

impl Denials {
    /// Logs what the server says, and remembers it where it is a denial.
    pub(super) fn note(&self, error: &ServerError) {
        let Some(denied) = Denied::of(error) else {
            tracing::warn!(%error, "NATS");
            return;
        };
        let seen = Instant::now();
        let mut all = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.get(&denied).map(|times| times.logged);
        let logged = match before {
            Some(logged) if seen.duration_since(logged) < QUIET => logged,
            _ => {
                tracing::warn!("{denied}");
                seen
            }
        };
        if before.is_none() && all.len() >= MOST {
            all.clear();
        }
        all.insert(denied, Times { seen, logged });
        drop(all);
        self.more.notify_waiters();
    }

    /// One that is like this and was seen since then, if there was one.
    pub fn since(&self, then: Instant, like: impl Fn(&Denied) -> bool) -> Option<Denied> {
        let all = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|(denied, times)| times.seen >= then && like(denied));
        found.map(|(denied, _)| denied.clone())
    }

    /// Waits for one that is like this and was seen since then.
    pub async fn wait(&self, then: Instant, like: impl Fn(&Denied) -> bool) -> Denied {
        loop {
            let more = self.more.notified();
            if let Some(denied) = self.since(then, &like) {
                return denied;
            }
            more.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_from_what_the_server_says() {
        let of = |text: &str| Denied::of(&ServerError::Other(text.to_owned()));
        assert_eq!(
            of(r#"Permissions Violation for Publish to "a.B""#),
            Some(Denied::Publish("a.B".to_owned()))
        );
        let queue = of(r#"Permissions Violation for Subscription to "a.*" using queue "q""#);
        assert_eq!(queue, Some(Denied::Subscribe("a.*".to_owned())));
        for other in [
            "",
            "Permissions Violation",
            "User Authentication Expired",
            "Stale Connection",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn each_is_remembered_and_waited_for() {
        let (denials, begin) = (Denials::default(), Instant::now());
        let publish = |subject: &str| ServerError::Other(format!("Permissions Violation for Publish to \"{subject}\""));
        for n in 0..2 * MOST {
            denials.note(&publish(&n.to_string()));
        }
        assert!(denials.denied.lock().unwrap().len() <= MOST);
        let wanted = |denied: &Denied| *denied == Denied::Publish("x".to_owned());
        assert_eq!(denials.since(begin, wanted), None);
        let waiting = denials.wait(begin, wanted);
        let told = async { denials.note(&publish("x")) };
        let (denied, ()) = tokio::join!(waiting, told);
        assert!(denied.to_string().contains("publish to x"), "{denied}");
        assert_eq!(denials.since(Instant::now(), wanted), None);
        // Said anew by the server, if not by us.
        let later = Instant::now();
        denials.note(&publish("x"));
        assert_eq!(denials.since(later, wanted), Some(denied));
    }
}
