//! Who decides where Postgres does not: the last known good image, else the fixtures.
//!
//! Owned by one loop. Promises: an image older than allowed is not used, and neither are fixtures in its place; the state of
//! the engine (breakers, turns, calls under way) outlives short returns of Postgres, but not a changed registry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::clock::now_ms;
use super::local::Local;
use crate::image::{Image, Kept};

/// The engine is made anew, with the breakers as Postgres had them, after so long without use, in microseconds.
const STALE_US: u64 = 30_000_000;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Decides {
    /// Nobody.
    Nobody,
    /// Postgres.
    Database,
    /// The last known good image.
    Image,
    /// The fixtures.
    Fixtures,
}

impl Decides {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 4] = [Self::Nobody, Self::Database, Self::Image, Self::Fixtures];

    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Database => "database",
            Self::Image => "image",
            Self::Fixtures => "fixtures",
        }
    }

    /// Back from its number.
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Nobody)
    }
}

/// See the module.
pub struct Fallback {
    kept: watch::Receiver<Option<Kept>>,
    max_age: Duration,
    fixtures: watch::Receiver<Option<Arc<Image>>>,
    capacity: usize,
    local: Option<(Decides, Local)>,
    used_us: u64,
}

impl Fallback {
    /// With an image that may come and change, and fixtures where there are any.
    pub fn new(
        kept: watch::Receiver<Option<Kept>>,
        max_age: Duration,
        fixtures: watch::Receiver<Option<Arc<Image>>>,
        capacity: usize,
    ) -> Self {
        Self {
            kept,
            max_age,
            fixtures,
            capacity,
            local: None,
            used_us: 0,
        }
    }

    /// Another age from which the image no longer decides.
    pub fn set_max_age(&mut self, max_age: Duration) {
        self.max_age = max_age;
    }

    /// Who would decide now.
    pub fn decides(&self) -> Decides {
        match (&*self.kept.borrow(), &*self.fixtures.borrow()) {
            (Some(kept), _) if u128::from(kept.age_ms(now_ms())) <= self.max_age.as_millis() => Decides::Image,
            (None, Some(_)) => Decides::Fixtures,
            _ => Decides::Nobody,
        }
    }

    /// The engine to decide with at `now` (microseconds), if somebody decides.
    pub fn local(&mut self, now: u64) -> Option<&mut Local> {
        let decides = self.decides();
        let (image, open) = match decides {
            Decides::Image => {
                let kept = self.kept.borrow().clone()?;
                (kept.image, kept.open)
            }
            Decides::Fixtures => (self.fixtures.borrow().clone()?, Arc::default()),
            Decides::Nobody | Decides::Database => return None,
        };
        let is_fixtures = decides == Decides::Fixtures;
        let fits = |(_, local): &(Decides, Local)| local.is_over(&image);
        if !self.local.as_ref().is_some_and(fits) || (!is_fixtures && now.saturating_sub(self.used_us) > STALE_US) {
            self.local = Some((decides, Local::over(image, open, self.capacity)));
        }
        self.used_us = now;
        self.local.as_mut().map(|(_, local)| local)
    }

    /// The engine as it was used last, to tell it what became of its calls.
    pub fn last(&mut self) -> Option<&mut Local> {
        self.local.as_mut().map(|(_, local)| local)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::image::OpenBreaker;
    use crate::machine::Question;
    use crate::machine::mux::AttemptToken;
    use crate::machine::slab::Token;

    fn image(subject: &str) -> Arc<Image> {
        let document = json!({"extensions": [{"id": "a", "type": "pre", "subject": subject}], "policies": []});
        Arc::new(Image::parse(document.to_string().as_bytes()).unwrap())
    }

    fn kept(subject: &str, age_ms: i64) -> Kept {
        Kept {
            image: image(subject),
            good_ms: now_ms() - age_ms,
            open: Arc::default(),
        }
    }

    fn none() -> watch::Receiver<Option<Arc<Image>>> {
        watch::channel(None).1
    }

    fn ask(fallback: &mut Fallback, now: u64) -> Option<crate::machine::Decision> {
        let question = Question {
            token: AttemptToken {
                call: Token {
                    index: 0,
                    generation: 0,
                },
                attempt: 0,
            },
            extension_id: "a".into(),
            context: Bytes::from_static(b"{}"),
            avoid: Vec::new(),
        };
        fallback.local(now)?.answer(&question, false).ok()
    }

    #[test]
    fn the_image_then_the_fixtures() {
        let hour = Duration::from_hours(1);
        let (sender, receiver) = watch::channel(None);
        let mut fallback = Fallback::new(receiver.clone(), hour, none(), 16);
        assert_eq!(fallback.decides(), Decides::Nobody);
        assert!(ask(&mut fallback, 0).is_none());
        let (folder, fixtures) = watch::channel(Some(image("fixture")));
        fallback = Fallback::new(receiver, hour, fixtures, 16);
        assert_eq!(fallback.decides(), Decides::Fixtures);
        assert_eq!(ask(&mut fallback, 0).unwrap().subject.as_deref(), Some("fixture"));
        folder.send_replace(Some(image("changed")));
        assert_eq!(ask(&mut fallback, 0).unwrap().subject.as_deref(), Some("changed"));
        sender.send_replace(Some(kept("image", 0)));
        assert_eq!(fallback.decides(), Decides::Image);
        assert_eq!(ask(&mut fallback, 1).unwrap().subject.as_deref(), Some("image"));
        sender.send_replace(Some(kept("image", 3_601_000)));
        assert_eq!(
            fallback.decides(),
            Decides::Nobody,
            "too old, and no fixtures in its place"
        );
        assert!(ask(&mut fallback, 2).is_none());
    }

    #[test]
    fn a_breaker_is_open_as_postgres_had_it_until_it_is_known_better() {
        let open = |until_us| {
            Arc::new(vec![OpenBreaker {
                extension_id: "a".to_owned(),
                version: "v1".to_owned(),
                until_us,
            }])
        };
        let mut first = kept("s", 0);
        first.open = open(super::super::local::unix_us() + 60_000_000);
        let (sender, receiver) = watch::channel(Some(first.clone()));
        let mut fallback = Fallback::new(receiver, Duration::from_hours(1), none(), 16);
        let refused = ask(&mut fallback, 0).unwrap();
        assert_eq!(
            (refused.allowed, refused.reason.as_str()),
            (false, "extension_circuit_open")
        );
        assert!(refused.retry_after_ms.is_some_and(|ms| ms > 50_000));
        // The same image, its breaker closed meanwhile: what the engine knows holds for a while, then what Postgres said.
        first.open = Arc::default();
        sender.send_replace(Some(first));
        assert!(!ask(&mut fallback, 1_000_000).unwrap().allowed);
        assert!(ask(&mut fallback, 1_000_000 + STALE_US + 1).unwrap().allowed);
    }
}
