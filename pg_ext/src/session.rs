//! What one session remembers: compiled extensions, where the tables are, row types, and its place in shared sequences.
//!
//! Postgres calls invalidation callbacks from nearly anywhere, and they mark what is in here. So [`with`] hands out a mutable borrow only for
//! code that does not call Postgres; images are handed out as `Rc` and outlive their entry.

use std::cell::UnsafeCell;
use std::rc::Rc;

use crate::image::Image;
use crate::load::Tables;
use crate::small_map::SmallMap;
use crate::tuple::RowType;

/// Compiled extensions are dropped, all of them, when they take more than this.
const MAX_BYTES: usize = 48 << 20;
/// Unknown ids remembered as unknown.
const MAX_UNKNOWN: usize = 10_000;

/// What one session remembers.
#[derive(Default)]
pub struct Session {
    buckets: SmallMap<u32, Bucket>,
    /// Raised when everything is stale.
    generation: u64,
    bytes: usize,
    unknown: usize,
    /// What is being loaded.
    loading: Option<Loading>,
    /// Tags loaded by a transaction that may have changed rows itself.
    pub own: Vec<u32>,
    /// Where the tables are.
    pub tables: Option<Rc<Tables>>,
    /// Where they were when last looked up.
    pub last_tables: Option<Rc<Tables>>,
    /// Row types by function.
    pub row_types: SmallMap<u32, Rc<RowType>>,
    /// Where this session looks for a free entry among the calls under way.
    pub cursor: u32,
    random: u64,
    /// How many changes of the registry it has been told of. What is told before it is committed here counts too.
    pub changes: u64,
    /// Whether this session counts itself among those that may report.
    pub attached: bool,
}

/// A load under way, and the messages that have come meanwhile.
struct Loading {
    tag: u32,
    /// What is loaded has changed since.
    stale: bool,
    /// A table has: it may have been rewritten since the snapshot, and then looks empty.
    rewritten: bool,
}

/// The extensions of one tag: one, unless two ids have the same hash.
#[derive(Default)]
struct Bucket {
    stale: bool,
    generation: u64,
    images: Vec<(Box<str>, Option<Rc<Image>>)>,
}

struct SessionCell(UnsafeCell<Option<Session>>);
// SAFETY: Postgres processes have one thread.
unsafe impl Sync for SessionCell {}
static SESSION: SessionCell = SessionCell(UnsafeCell::new(None));

/// Borrows the session. The closure must not call Postgres: a callback would borrow it again.
pub fn with<T>(use_it: impl FnOnce(&mut Session) -> T) -> T {
    // SAFETY: one thread, and no closure passed here calls Postgres (or `with`), so there is one borrow at a time.
    let session = unsafe { &mut *SESSION.0.get() };
    use_it(session.get_or_insert_with(Session::default))
}

/// What the session knows of an id.
pub enum Known {
    /// It is registered.
    Image(Rc<Image>),
    /// It is not.
    Unknown,
    /// It has to be looked up.
    Stale,
}

impl Session {
    /// What is known of an id.
    pub fn known(&self, tag: u32, id: &str) -> Known {
        let Some(bucket) = self.buckets.get(&tag) else {
            return Known::Stale;
        };
        // Without tables it is not even known whether this is still the same registry.
        if self.tables.is_none() || bucket.stale || bucket.generation != self.generation {
            return Known::Stale;
        }
        match bucket.images.iter().find(|(name, _)| **name == *id) {
            Some((_, Some(image))) => Known::Image(Rc::clone(image)),
            Some((_, None)) => Known::Unknown,
            None => Known::Stale,
        }
    }

    /// A load of this tag begins: messages that come from now on make it load again.
    pub fn begin_load(&mut self, tag: u32) {
        self.loading = Some(Loading {
            tag,
            stale: false,
            rewritten: false,
        });
    }

    /// Whether what was loaded is still right.
    pub fn load_is_clean(&self) -> bool {
        self.loading
            .as_ref()
            .is_some_and(|loading| !loading.stale && !loading.rewritten)
    }

    /// Whether what was loaded may be wrong, and not only old.
    pub fn load_is_void(&self) -> bool {
        self.loading.as_ref().is_some_and(|loading| loading.rewritten)
    }

    /// A table of the registry has changed: where it is and its shape may be another. Called from callbacks.
    pub fn mark_table(&mut self) {
        self.tables = None;
        self.row_types.clear();
        if let Some(loading) = &mut self.loading {
            loading.rewritten = true;
        }
    }

    /// Keeps what was loaded. `own`: the transaction may have changed rows itself, so it is dropped if that is undone.
    pub fn store(&mut self, tag: u32, id: &str, image: Option<Rc<Image>>, own: bool) {
        let clean = self.load_is_clean();
        self.loading = None;
        let bytes = image.as_ref().map_or(64, |image| image.bytes());
        if self.bytes + bytes > MAX_BYTES || self.unknown > MAX_UNKNOWN {
            self.buckets.clear();
            self.bytes = 0;
            self.unknown = 0;
        }
        self.bytes += bytes;
        self.unknown += usize::from(image.is_none());
        let generation = self.generation;
        let bucket = self.buckets.entry(tag).or_default();
        if bucket.stale || bucket.generation != generation {
            for (_, image) in bucket.images.drain(..) {
                self.bytes = self
                    .bytes
                    .saturating_sub(image.as_ref().map_or(64, |image| image.bytes()));
                self.unknown -= usize::from(image.is_none());
            }
        }
        bucket.stale = !clean;
        bucket.generation = generation;
        bucket.images.push((id.into(), image));
        if own {
            self.own.push(tag);
        }
    }

    /// Marks one tag stale. Called from callbacks: no allocation, nothing that can fail.
    pub fn mark(&mut self, tag: u32) {
        if let Some(bucket) = self.buckets.get_mut(&tag) {
            bucket.stale = true;
        }
        if let Some(loading) = &mut self.loading {
            loading.stale |= loading.tag == tag;
        }
    }

    /// Marks everything stale. Called from callbacks.
    pub fn mark_all(&mut self) {
        self.generation += 1;
        if let Some(loading) = &mut self.loading {
            loading.stale = true;
        }
    }

    /// Marks what a transaction loaded that may have changed rows itself.
    pub fn mark_own(&mut self) {
        while let Some(tag) = self.own.pop() {
            self.mark(tag);
        }
    }

    /// A random word: `xorshift64*` (Marsaglia 2003, Vigna 2014), seeded by process and time.
    pub fn random(&mut self) -> u64 {
        if self.random == 0 {
            self.random =
                (u64::from(std::process::id()) << 32 ^ crate::clock::wall_us()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            self.cursor = self.random as u32;
        }
        let mut x = self.random;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
