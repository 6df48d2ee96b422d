//! Keeps the last known good image of the registry: reads it from Postgres when it has changed, and from its file at start.
//!
//! Promises: while Postgres answers, the image is a few seconds old at most, and the file as old as [`REWRITE`] makes it beyond
//! that; what cannot be read or written is said once and stops nothing. It takes a twentieth of one session's time at most.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::clock::now_ms;
use super::local::unix_us;
use super::registry::Registry;
use super::reload::Live;
use crate::config::{Settings, registry_name};
use crate::image::{self, Image, Kept, OpenBreaker};
use crate::pg::{PgError, RawJsonb};

/// The registry is asked for changes this often.
const EVERY: Duration = Duration::from_secs(2);
/// While it does not answer, this often.
const AGAIN: Duration = Duration::from_millis(500);
/// An unchanged image is written again after this time at most, so that its file does not grow old.
const REWRITE: Duration = Duration::from_mins(10);

/// See the module.
pub struct Keeper {
    path: Option<PathBuf>,
    registry: String,
    rewrite: Duration,
    sender: watch::Sender<Option<Kept>>,
    document: Option<(String, Bytes)>,
    written: Option<Instant>,
    complained: bool,
}

impl Keeper {
    /// Reads the file, if there is a good one.
    pub fn open(settings: &Settings) -> (Self, watch::Receiver<Option<Kept>>) {
        let registry = registry_name(&settings.database.config);
        let mut found = None;
        if let Some(path) = &settings.image {
            match image::read(path, &registry) {
                Ok((kept, _)) => {
                    let age_s = kept.age_ms(now_ms()) / 1000;
                    tracing::info!(image = %path.display(), age_s, "there is an image of the registry");
                    found = Some(kept);
                }
                Err(error) if error.is_missing() => {}
                Err(error) => {
                    tracing::warn!(image = %path.display(), %error, "the image of the registry is ignored");
                }
            }
        }
        let (sender, receiver) = watch::channel(found);
        let keeper = Self {
            path: settings.image.clone(),
            registry,
            rewrite: REWRITE.min(settings.image_max_age / 4),
            sender,
            document: None,
            written: None,
            complained: false,
        };
        (keeper, receiver)
    }

    /// Keeps it for as long as the process lives.
    pub async fn run(mut self, registry: Arc<Registry>, live: Live, anew: Arc<Notify>) {
        loop {
            self.follow(&live.borrow());
            let began = Instant::now();
            let wait = match self.look(&registry).await {
                Ok(()) => EVERY.max(began.elapsed() * 20),
                Err(error) => {
                    tracing::debug!(%error, "the image of the registry cannot be renewed");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = anew.notified() => self.document = None,
            }
        }
    }

    /// Takes over settings that have changed. The image of another registry decides until that one has been read.
    fn follow(&mut self, settings: &Settings) {
        let registry = registry_name(&settings.database.config);
        if registry != self.registry || settings.image != self.path {
            (self.registry, self.path) = (registry, settings.image.clone());
            (self.document, self.written) = (None, None);
            self.complained = false;
        }
        self.rewrite = REWRITE.min(settings.image_max_age / 4);
    }

    async fn look(&mut self, registry: &Registry) -> Result<(), PgError> {
        // Asked before the registry is read: what changes in between is seen the next time.
        let good_ms = now_ms();
        let rows = registry.query(include_str!("../queries/fingerprint.sql"), &[]).await?;
        let fingerprint: String = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        let same = self.document.as_ref().is_some_and(|(known, _)| *known == fingerprint);
        let mut image = self.sender.borrow().as_ref().map(|kept| Arc::clone(&kept.image));
        if !same || image.is_none() {
            let rows = registry.query(include_str!("../queries/export.sql"), &[]).await?;
            let Some(RawJsonb(document)) = rows.first().and_then(|row| row.get(0)) else {
                return Ok(());
            };
            let read = document.clone();
            match tokio::task::spawn_blocking(move || Image::parse(&read)).await {
                Ok(Ok(parsed)) => image = Some(Arc::new(parsed)),
                Ok(Err(why)) => {
                    self.complain(&why);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
            self.document = Some((fingerprint, document));
            self.written = None;
        }
        let open = registry
            .query(include_str!("../queries/open_breakers.sql"), &[])
            .await?;
        let now_us = unix_us();
        let open = open.iter().map(|row| OpenBreaker {
            extension_id: row.get(0),
            version: row.get(1),
            until_us: now_us + u64::try_from(row.get::<_, i64>(2)).unwrap_or(0) * 1000,
        });
        let open = Arc::new(open.collect());
        self.sender
            .send_replace(image.map(|image| Kept { image, good_ms, open }));
        self.save(good_ms).await;
        Ok(())
    }

    async fn save(&mut self, good_ms: i64) {
        let (Some(path), Some((_, document))) = (self.path.clone(), self.document.clone()) else {
            return;
        };
        if self.written.is_some_and(|at| at.elapsed() < self.rewrite) {
            return;
        }
        let registry = self.registry.clone();
        let written = tokio::task::spawn_blocking(move || image::write(&path, &registry, good_ms, &document)).await;
        self.written = Some(Instant::now());
        match written {
            Ok(Ok(())) => self.complained = false,
            Ok(Err(error)) => self.complain(&error.to_string()),
            Err(_) => {}
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            let path = self.path.as_deref().unwrap_or(std::path::Path::new("")).display();
            tracing::warn!(image = %path, why, "the image of the registry cannot be kept");
        }
    }
}
