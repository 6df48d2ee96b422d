//! The last known good image of the registry: what decides while Postgres does not answer.
//!
//! Owns the registry as documents, in memory and in a file. Promises: the file is replaced as a whole or not at all (written
//! beside it, flushed, renamed) and only its owner can read it; a file that is cut short, changed, of another registry or of
//! another program is not used; one extension that cannot be read does not spoil the others.
//!
//! The file is a line of JSON that says what follows, then the document that `ext_export()` gave, byte for byte.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ext_registry_core::fixture::ExtensionDocument;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use xxhash_rust::xxh3::xxh3_64;

use crate::fixtures::Fixtures;
use crate::machine::policies::PolicyKey;

/// The registry as documents. Never changes.
pub struct Image {
    extensions: HashMap<String, ExtensionDocument>,
    /// Registered, but not readable here.
    unreadable: HashSet<String>,
    policies: HashMap<PolicyKey, Json>,
}

/// A breaker that refuses calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBreaker {
    /// Whose.
    pub extension_id: String,
    /// Which version's.
    pub version: String,
    /// Until when, in microseconds since 1970.
    pub until_us: u64,
}

/// An image, and what was known with it.
#[derive(Clone)]
pub struct Kept {
    /// The registry.
    pub image: Arc<Image>,
    /// When Postgres said last that this is the registry, in milliseconds since 1970.
    pub good_ms: i64,
    /// The breakers that were not closed then.
    pub open: Arc<Vec<OpenBreaker>>,
}

impl Kept {
    /// How old it is, in milliseconds. A clock that was set back makes it new.
    pub fn age_ms(&self, now_ms: i64) -> u64 {
        u64::try_from(now_ms.saturating_sub(self.good_ms)).unwrap_or(0)
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("it is no image of a registry: {0}")]
    Foreign(&'static str),
    /// It is not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is of another registry.
    #[error("it is of another registry, {0}")]
    Other(String),
}

impl ImageError {
    /// Whether there is no file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == std::io::ErrorKind::NotFound)
    }
}

const FORMAT: &str = "ext-bridge image";
const VERSION: u32 = 1;
/// A file is never read beyond this many bytes.
const MOST_BYTES: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    registry: String,
    good_ms: i64,
    bytes: usize,
    xxh3: String,
}

impl Image {
    /// Reads what `ext_export()` gave.
    pub fn parse(document: &[u8]) -> Result<Self, String> {
        let Json::Object(mut document) = serde_json::from_slice(document).map_err(|e| e.to_string())? else {
            return Err("the registry is not an object".to_owned());
        };
        let mut list = |key: &str| match document.remove(key) {
            Some(Json::Array(list)) => Ok(list),
            _ => Err(format!("the registry has no list of {key}")),
        };
        let (extensions, policies) = (list("extensions")?, list("policies")?);
        let mut image = Self {
            extensions: HashMap::with_capacity(extensions.len()),
            unreadable: HashSet::new(),
            policies: HashMap::with_capacity(policies.len()),
        };
        for document in extensions {
            match ExtensionDocument::parse(&document) {
                Ok(extension) => {
                    image.extensions.insert(extension.id.clone(), extension);
                }
                Err(error) => {
                    let id = document["id"].as_str().unwrap_or_default().to_owned();
                    tracing::warn!(extension_id = id, %error, "an extension will be unavailable without Postgres");
                    image.unreadable.insert(id);
                }
            }
        }
        for mut policy in policies {
            let key = ["tenant_id", "policy_id"].map(|key| policy[key].as_str().unwrap_or_default().to_owned());
            let [tenant, id] = key;
            if policy["enabled"] == Json::Bool(true) {
                image.policies.insert((tenant, id), policy["document"].take());
            }
        }
        Ok(image)
    }

    /// A folder of fixtures as an image.
    pub fn of_fixtures(fixtures: &Fixtures) -> Result<Self, String> {
        Self::parse(fixtures.document().to_string().as_bytes())
    }

    /// The document of an extension.
    pub fn extension(&self, id: &str) -> Option<&ExtensionDocument> {
        self.extensions.get(id)
    }

    /// Whether an extension is registered, but cannot be read here.
    pub fn is_unreadable(&self, id: &str) -> bool {
        self.unreadable.contains(id)
    }

    /// The document of an enabled policy.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Json> {
        self.policies.get(key)
    }

    /// All extensions.
    pub fn extensions(&self) -> impl Iterator<Item = &ExtensionDocument> {
        self.extensions.values()
    }

    /// Registered extensions, as (type, number).
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let kinds = ext_registry_core::fixture::TYPES.into_iter();
        kinds
            .map(|kind| {
                (
                    kind,
                    self.extensions().filter(|extension| extension.kind == kind).count(),
                )
            })
            .collect()
    }
}

/// Replaces the file. `document` is what `ext_export()` gave; `registry` names where.
pub fn write(path: &Path, registry: &str, good_ms: i64, document: &Bytes) -> Result<(), ImageError> {
    let head = Head {
        format: FORMAT.to_owned(),
        version: VERSION,
        registry: registry.to_owned(),
        good_ms,
        bytes: document.len(),
        xxh3: format!("{:016x}", xxh3_64(document)),
    };
    let mut head = serde_json::to_vec(&head).map_err(|e| ImageError::Damaged(e.to_string()))?;
    head.push(b'\n');
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = Path::new(&beside);
    let written = (|| {
        // One that a killed process left has rights and content of its own.
        match std::fs::remove_file(beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(beside)?;
        file.write_all(&head)?;
        file.write_all(document)?;
        file.sync_all()?;
        std::fs::rename(beside, path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(beside); // it may not be there
    }
    Ok(written?)
}

/// Reads the file. `registry` names whose it must be.
pub fn read(path: &Path, registry: &str) -> Result<(Kept, Bytes), ImageError> {
    let file = std::fs::File::open(path)?;
    if file.metadata()?.len() > MOST_BYTES {
        return Err(ImageError::Foreign("it is too large"));
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST_BYTES), &mut bytes)?;
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (head, document) = bytes.split_at(end.ok_or(ImageError::Foreign("it has no first line"))?);
    let head: Head =
        serde_json::from_slice(head).map_err(|_| ImageError::Foreign("its first line says something else"))?;
    if head.format != FORMAT || head.version != VERSION {
        return Err(ImageError::Foreign("it has another format"));
    }
    let document = Bytes::copy_from_slice(&document[1..]);
    if document.len() != head.bytes || format!("{:016x}", xxh3_64(&document)) != head.xxh3 {
        return Err(ImageError::Damaged(
            "it is not as long, or not the same, as its first line says".to_owned(),
        ));
    }
    if head.registry != registry {
        return Err(ImageError::Other(head.registry));
    }
    let image = Image::parse(&document).map_err(ImageError::Damaged)?;
    let kept = Kept {
        image: Arc::new(image),
        good_ms: head.good_ms,
        open: Arc::default(),
    };
    Ok((kept, document))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn export() -> Bytes {
        json!({
            "extensions": [
                {"id": "a", "type": "pre", "subject": "s.a"},
                {"id": "b", "type": "post", "subject": "s.b", "from_the_future": 1},
            ],
            "policies": [
                {"tenant_id": "t", "policy_id": "p", "enabled": true, "document": {"pre": [{"id": "a"}]}},
                {"tenant_id": "t", "policy_id": "off", "enabled": false, "document": {}},
            ],
        })
        .to_string()
        .into()
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("ext-bridge-image-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = folder("round");
        let path = folder.join("deep").join("image");
        assert!(read(&path, "db").err().unwrap().is_missing());
        write(&path, "db", 123, &export()).unwrap();
        write(&path, "db", 456, &export()).unwrap();
        let (kept, document) = read(&path, "db").unwrap();
        assert_eq!((kept.good_ms, document), (456, export()));
        assert_eq!(kept.image.extension("a").unwrap().subject, "s.a");
        assert!(kept.image.extension("b").is_none() && kept.image.is_unreadable("b"));
        let key = |id: &str| ("t".to_owned(), id.to_owned());
        assert!(kept.image.policy(&key("p")).is_some() && kept.image.policy(&key("off")).is_none());
        assert_eq!(kept.image.counts()[0], ("pre", 1));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_not_as_it_was_written_is_not_used() {
        let folder = folder("damaged");
        let path = folder.join("image");
        write(&path, "db", 1, &export()).unwrap();
        assert!(matches!(read(&path, "other"), Err(ImageError::Other(name)) if name == "db"));
        let good = std::fs::read(&path).unwrap();
        // Cut short anywhere.
        for length in 0..good.len() {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(read(&path, "db").is_err(), "{length}");
        }
        // Any byte changed; of the first line some may differ without harm, such as the time.
        let first_line = good.iter().position(|byte| *byte == b'\n').unwrap();
        for place in first_line..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&path, "db").is_err(), "{place}");
        }
        for foreign in [&b"{}\n{}"[..], b"\n", b"\x7fELF\n\0\0", b"[]"] {
            std::fs::write(&path, foreign).unwrap();
            assert!(matches!(read(&path, "db"), Err(ImageError::Foreign(_))));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn age() {
        let kept = Kept {
            image: Arc::new(Image::parse(&export()).unwrap()),
            good_ms: 1000,
            open: Arc::default(),
        };
        assert_eq!((kept.age_ms(3500), kept.age_ms(0)), (2500, 0));
    }
}
