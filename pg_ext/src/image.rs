//! An extension as one session keeps it: compiled, with its places in shared memory and its ready-made answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use ext_registry_core::breaker::{Mode, SharedSettings, State, Transition, View};
use ext_registry_core::compile::Compiled;
use ext_registry_core::decide::Live;
use ext_registry_core::model::ExtensionRow;
use ext_registry_core::target::Target;
use ext_registry_core::window::Tally;
use pgrx::pg_sys;
use smallvec::SmallVec;

use crate::clock;
use crate::load::{Extras, Tables};
use crate::persist::Saved;
use crate::shmem::{INSTANCE, Identity, Shared, Slot, VERSION};
use crate::small_map::SmallMap;

/// Not looked up yet.
const UNKNOWN: u32 = u32::MAX;
/// How long a target without a place waits before it asks again, in microseconds.
const ASK_AGAIN_US: u64 = 1_000_000;

/// Ready-made rows by (row type, version, instance).
pub type Templates = SmallMap<(u32, u32, u32), Rc<[u64]>>;

/// One extension in one session.
pub struct Image {
    pub compiled: Compiled,
    database: u32,
    tables: Rc<Tables>,
    /// Places of the versions, then of the instances.
    places: Box<[Cell<u32>]>,
    keys: Box<[u64]>,
    /// Of each version: the stamp of its settings, and the number of its last reset.
    stamps: Box<[u64]>,
    resets: Box<[u64]>,
    /// Of each version: whether this transaction has reset it and not committed yet.
    pending: Box<[bool]>,
    own_settings: bool,
    ask_again_us: Cell<u64>,
    /// Ready-made rows by (row type, version, instance).
    pub templates: RefCell<Templates>,
    bytes: usize,
}

impl Image {
    /// Compiles an extension and works out the keys of its targets.
    pub fn new(row: ExtensionRow, extras: &Extras, tables: &Rc<Tables>) -> Self {
        let compiled = Compiled::new(row);
        // SAFETY: a global of this process.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        let (versions, instances) = (compiled.targets.len(), compiled.instances.len());
        let registry = tables.registry();
        let key = |kind, name| {
            Identity {
                database,
                registry,
                uid: compiled.uid,
                kind,
                name,
            }
            .key()
        };
        let of = |name: &str| {
            extras
                .resets
                .iter()
                .filter(|(version, _, _)| version.is_empty() || version == name)
                .collect::<Vec<_>>()
        };
        // A number this transaction has written may yet be taken back; none of the others is applied before it either.
        let number = |name: &str| {
            of(name)
                .iter()
                .map(|(_, number, own)| if *own { 0 } else { *number })
                .sum()
        };
        let pending = |name: &str| of(name).iter().any(|(_, _, own)| *own);
        let keys = compiled
            .targets
            .iter()
            .map(|name| key(VERSION, name))
            .chain(compiled.instances.iter().map(|instance| key(INSTANCE, &instance.id)))
            .collect();
        Self {
            database,
            tables: Rc::clone(tables),
            places: (0..versions + instances).map(|_| Cell::new(UNKNOWN)).collect(),
            keys,
            stamps: (0..versions)
                .map(|target| SharedSettings::stamp_of(compiled.settings_of(target)))
                .collect(),
            resets: compiled.targets.iter().map(|name| number(name)).collect(),
            pending: compiled.targets.iter().map(|name| pending(name)).collect(),
            own_settings: extras.own_settings,
            ask_again_us: Cell::new(0),
            templates: RefCell::default(),
            bytes: size_of_compiled(&compiled) + 32 * (versions + instances),
            compiled,
        }
    }

    /// A rough size in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a version's breaker stands, as this transaction should see it: closed if it has reset it itself.
    pub fn breaker_view(&self, target: usize, live: &Target, now_us: u64) -> View {
        let mut view = live.breaker.view(self.compiled.settings_of(target), now_us);
        if self.pending[target] {
            view = View {
                state: State::Closed,
                opened_us: None,
                live_leases: 0,
                retry_after_us: None,
                tally: Tally::default(),
                ..view
            };
        }
        view
    }

    /// The position of an instance among the places.
    fn instance_position(&self, instance: usize) -> usize {
        self.compiled.targets.len() + instance
    }

    fn identity(&self, position: usize) -> Identity<'_> {
        let versions = self.compiled.targets.len();
        let (kind, name) = match self.compiled.targets.get(position) {
            Some(name) => (VERSION, &**name),
            None => (INSTANCE, &*self.compiled.instances[position - versions].id),
        };
        Identity {
            database: self.database,
            registry: self.tables.registry(),
            uid: self.compiled.uid,
            kind,
            name,
        }
    }

    /// Pins a target: counts a call under way at its place. Gives it a place if it has none; `None` if there is none to give.
    fn pin(&self, position: usize, shared: &Shared) -> Option<(u32, &'static Slot)> {
        for _ in 0..8 {
            let place = self.places[position].get();
            if place != UNKNOWN
                && let Some(slot) = shared.pin(place, self.keys[position])
            {
                return Some((place, slot));
            }
            self.places[position].set(self.resolve(position, shared)?);
        }
        None
    }

    fn resolve(&self, position: usize, shared: &Shared) -> Option<u32> {
        if let Some(place) = shared.find(self.keys[position]) {
            return Some(place);
        }
        let now_us = clock::now_us();
        if now_us < self.ask_again_us.get() {
            return None;
        }
        let identity = self.identity(position);
        let saved = Saved::read(&self.tables, &self.compiled.id, &identity);
        let place = shared.claim(identity, |target| saved.restore(target));
        if place.is_none() {
            self.ask_again_us.set(now_us + ASK_AGAIN_US);
            let warned = shared.head.warned_us.load(Relaxed);
            if warned + 60_000_000 < now_us
                && shared
                    .head
                    .warned_us
                    .compare_exchange(warned, now_us, Relaxed, Relaxed)
                    .is_ok()
            {
                pgrx::log!(
                    "ext_registry: no place in shared memory for \"{}\" of extension \"{}\": it has no breaker and no statistics; raise ext_registry.max_targets ({})",
                    identity.name,
                    self.compiled.id,
                    shared.slots.len()
                );
            }
        }
        place
    }

    /// The slot of a version, not pinned: for readers. Gives it a place if it has none.
    pub fn version_slot(&self, target: usize, shared: &Shared) -> Option<&'static Slot> {
        let (_, slot) = self.pin(target, shared)?;
        self.refresh(target, slot, shared);
        slot.target.end();
        Some(slot)
    }

    /// The slot of an instance, not pinned: for readers.
    pub fn instance_slot(&self, instance: usize, shared: &Shared) -> Option<&'static Slot> {
        let (_, slot) = self.pin(self.instance_position(instance), shared)?;
        slot.target.end();
        Some(slot)
    }

    /// Brings what the registry says to where reports find it: settings, resets, a mode that takes the decision over. Only what is
    /// committed.
    fn refresh(&self, target: usize, slot: &Slot, shared: &Shared) {
        let live = &slot.target;
        let settings = || self.compiled.settings_of(target);
        if !self.own_settings && live.settings.stamp() != self.stamps[target] {
            live.settings.store(settings(), self.stamps[target]);
        }
        if self.resets[target] > live.breaker.resets_applied() {
            let now_us = clock::now_us();
            if let (_, Some(transition)) = live.breaker.reset(self.resets[target], now_us) {
                self.push(target, now_us, &transition, shared);
            }
        }
        if !self.own_settings && live.breaker.state() != State::Closed && settings().mode != Mode::Auto {
            let now_us = clock::now_us();
            if let Some(transition) = live
                .breaker
                .force_closed(now_us, ext_registry_core::breaker::Reason::Forced)
            {
                self.push(target, now_us, &transition, shared);
            }
        }
    }

    /// Tells the worker that a version's breaker has moved.
    pub fn push(&self, target: usize, at_us: u64, transition: &Transition, shared: &Shared) {
        let place = self.places[target].get();
        if place != UNKNOWN {
            shared.push_event(place, at_us, transition);
        }
    }
}

/// A version looked at: its target, its place, its slot.
type Pin = (usize, u32, &'static Slot);

/// The live state of an image's targets during one decision. Every version looked at stays pinned until [`Pins::keep`].
pub struct Pins<'a> {
    image: &'a Image,
    shared: Shared,
    pinned: RefCell<SmallVec<[Pin; 4]>>,
}

impl<'a> Pins<'a> {
    pub fn new(image: &'a Image, shared: Shared) -> Self {
        Self {
            image,
            shared,
            pinned: RefCell::default(),
        }
    }

    /// Keeps the pin of the chosen version and lets go of the others. Returns its place.
    pub fn keep(&self, chosen: Option<usize>) -> Option<(u32, &'static Slot)> {
        let mut kept = None;
        for (target, place, slot) in self.pinned.borrow_mut().drain(..) {
            if Some(target) == chosen && kept.is_none() {
                kept = Some((place, slot));
            } else {
                slot.target.end();
            }
        }
        kept
    }

    /// Pins the chosen instance.
    pub fn pin_instance(&self, instance: usize) -> Option<(u32, &'static Slot)> {
        self.image.pin(self.image.instance_position(instance), &self.shared)
    }
}

impl Live for Pins<'_> {
    fn version(&self, target: usize) -> Option<&Target> {
        if let Some((_, _, slot)) = self.pinned.borrow().iter().find(|(known, _, _)| *known == target) {
            return Some(&slot.target);
        }
        let Some((place, slot)) = self.image.pin(target, &self.shared) else {
            self.shared.head.untracked.fetch_add(1, Relaxed);
            return None;
        };
        self.pinned.borrow_mut().push((target, place, slot));
        self.image.refresh(target, slot, &self.shared);
        Some(&slot.target)
    }

    fn instance(&self, place: usize) -> Option<&Target> {
        self.image.instance_slot(place, &self.shared).map(|slot| &slot.target)
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        // After an error in the middle of a decision.
        self.keep(None);
    }
}

/// A rough size of a compiled extension in memory.
fn size_of_compiled(compiled: &Compiled) -> usize {
    let versions: usize = compiled
        .versions
        .iter()
        .map(|v| 400 + v.config.len() + v.subject.len() + 4 * v.pool.members.len() * 3)
        .sum();
    let instances: usize = compiled
        .instances
        .iter()
        .map(|i| 64 + i.subject.len() + i.id.len())
        .sum();
    size_of::<Compiled>() + versions + instances
}
