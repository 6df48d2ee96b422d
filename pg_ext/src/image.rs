//! An extension as one session keeps it: compiled, with its places in shared memory and its ready-made answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use ext_registry_core::breaker::{Mode, SharedSettings, State, Transition, View};
use ext_registry_core::compile::Compiled;
use ext_registry_core::decide::Live;
use ext_registry_core::ejection::Standing;
use ext_registry_core::fitness::{Effects, Fitness, Remembered};
use ext_registry_core::model::ExtensionRow;
use ext_registry_core::target::Target;
use ext_registry_core::window::Tally;
use pgrx::pg_sys;
use smallvec::SmallVec;

use crate::clock;
use crate::load::{Extras, Tables};
use crate::persist::{self, Saved};
use crate::shmem::{INSTANCE, Identity, Shared, Slot, VERSION};
use crate::small_map::SmallMap;

/// Not looked up yet.
const UNKNOWN: u32 = u32::MAX;
/// How long a target without a place waits before it asks again, in microseconds.
const ASK_AGAIN_US: u64 = 1_000_000;

/// What a ready-made row takes, with its place in the map.
const TEMPLATE_BYTES: usize = 400;
/// So many are kept of one extension.
pub const MAX_TEMPLATES: usize = 1024;

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
    /// Whether this transaction wrote any of it and has not committed yet.
    own: bool,
    /// On a standby, of each version: the state word of the primary's breaker.
    primary: Box<[u64]>,
    fitness: Remembered,
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
        let primary = |name: &str| {
            let known = extras.primary.iter().find(|(version, _)| version == name);
            known.map_or(0, |(_, word)| *word)
        };
        // One ready-made row for each version and each of its instances, in the end.
        let rows: usize = compiled
            .versions
            .iter()
            .map(|version| version.pool.members.len().max(1))
            .sum();
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
            own: extras.own,
            primary: if extras.primary.is_empty() {
                Box::default()
            } else {
                compiled.targets.iter().map(|name| primary(name)).collect()
            },
            fitness: Remembered::default(),
            ask_again_us: Cell::new(0),
            templates: RefCell::default(),
            bytes: size_of::<Self>()
                + compiled.bytes()
                + 64 * (versions + instances)
                + TEMPLATE_BYTES * rows.min(MAX_TEMPLATES),
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
        // A reset is seen before somebody has applied it.
        if self.pending[target] || live.breaker.resets_applied() < self.resets[target] {
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
        if place.is_some() && position < self.compiled.targets.len() {
            self.recall_ejections(shared);
        }
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

    /// Gives places to those instances that were out, or coming back, when they were last written down: so an ejection outlives a restart.
    /// Called when a version gets a place: by the first decision for it.
    fn recall_ejections(&self, shared: &Shared) {
        if self.compiled.ejection.after.is_none() || self.compiled.instances.is_empty() {
            return;
        }
        let now_us = clock::now_us();
        let mut out = false;
        for (name, ejection) in persist::saved_ejections(&self.tables, self.compiled.uid) {
            let instances = &self.compiled.instances;
            if ejection.standing(now_us) != Standing::Fit
                && let Ok(instance) = instances.binary_search_by(|instance| (*instance.id).cmp(&*name))
                && self.resolve(self.instance_position(instance), shared).is_some()
            {
                out = true;
            }
        }
        if out {
            shared.suspect(self.compiled.uid);
        }
    }

    /// A target that has a place, not pinned; gives it none.
    fn known(&self, position: usize, shared: &Shared) -> Option<(u32, &'static Slot)> {
        let is_mine = |place: &u32| {
            let slot = shared.slots.get(*place as usize);
            slot.is_some_and(|slot| slot.key() == self.keys[position])
        };
        let place = Some(self.places[position].get())
            .filter(is_mine)
            .or_else(|| shared.find(self.keys[position]))?;
        self.places[position].set(place);
        Some((place, &shared.slots[place as usize]))
    }

    /// A version as readers see it: where it has no place, as it was written down.
    pub fn version_seen(&self, target: usize, shared: &Shared) -> Seen {
        match self.known(target, shared) {
            Some((_, slot)) => {
                self.refresh(target, slot, shared);
                Seen::Live(&slot.target)
            }
            None => self.saved(target),
        }
    }

    /// An instance as readers see it.
    pub fn instance_seen(&self, instance: usize, shared: &Shared) -> Seen {
        let position = self.instance_position(instance);
        match self.known(position, shared) {
            Some((_, slot)) => Seen::Live(&slot.target),
            None => self.saved(position),
        }
    }

    fn saved(&self, position: usize) -> Seen {
        static NOTHING: OnceLock<Box<Target>> = OnceLock::new();
        let saved = Saved::read(&self.tables, &self.compiled.id, &self.identity(position));
        if saved.is_empty() {
            return Seen::Live(NOTHING.get_or_init(Box::default));
        }
        let target = Box::<Target>::default();
        saved.restore(&target);
        if let Some(word) = self.primary.get(position) {
            target.breaker.follow(*word, clock::now_us());
        }
        Seen::Saved(target)
    }

    /// Where the instances stand; `None` while all are fit. One session at a time judges with effects, and none with rows that are not
    /// committed; the others go by what would be.
    fn judge(&self, shared: &Shared, now_us: u64, random: u64, effects: Effects) -> Option<Rc<Fitness>> {
        let uid = self.compiled.uid;
        let targets: Vec<Option<(u32, &'static Slot)>> = (0..self.compiled.instances.len())
            .map(|instance| self.known(self.instance_position(instance), shared))
            .collect();
        // Pinned, so that nobody is ejected in place of another.
        let pinned: Vec<Option<(u32, &'static Slot)>> = targets
            .into_iter()
            .enumerate()
            .map(|(instance, known)| {
                let (place, _) = known?;
                let slot = shared.pin(place, self.keys[self.instance_position(instance)])?;
                // Only what is committed, and only where the judgement is meant.
                if !self.own && effects == Effects::Apply {
                    slot.target.ejection.set_after(self.compiled.ejection.after);
                }
                Some((place, slot))
            })
            .collect();
        let target = |instance: usize| pinned[instance].map(|(_, slot)| &slot.target);
        let right = (effects == Effects::Apply && !self.own)
            .then(|| shared.judging(uid))
            .flatten();
        let fitness = match right {
            Some(mut judging) => {
                let mut moves = SmallVec::<[_; 4]>::new();
                let fitness = Fitness::judge(
                    &self.compiled,
                    target,
                    now_us,
                    random,
                    Effects::Apply,
                    |instance, moved| {
                        moves.push((instance, moved));
                    },
                );
                judging.moved = !moves.is_empty();
                let count = judging.finish();
                for (instance, moved) in moves {
                    if let Some((place, _)) = pinned[instance] {
                        shared.push_move(place, now_us, &moved);
                    }
                }
                self.fitness.keep(count, fitness, now_us)
            }
            None => {
                let fitness = Fitness::judge(&self.compiled, target, now_us, random, Effects::Pretend, |_, _| {});
                (!fitness.is_calm()).then(|| Rc::new(fitness))
            }
        };
        pinned.iter().flatten().for_each(|(_, slot)| slot.target.end());
        fitness
    }

    /// Where the instances stand, as remembered or judged anew; `None` while all are fit.
    pub fn fitness(&self, shared: &Shared, now_us: u64, random: u64, effects: Effects) -> Option<Rc<Fitness>> {
        if self.fitness.holds(shared.suspicion_count(self.compiled.uid), now_us) {
            return self.fitness.get();
        }
        self.judge(shared, now_us, random, effects)
    }

    /// Pins a version for whoever counts something there.
    pub fn pin_version(&self, target: usize, shared: &Shared) -> Option<&'static Slot> {
        let (_, slot) = self.pin(target, shared)?;
        self.refresh(target, slot, shared);
        Some(slot)
    }

    /// Pins an instance.
    pub fn pin_instance(&self, instance: usize, shared: &Shared) -> Option<(u32, &'static Slot)> {
        let (place, slot) = self.pin(self.instance_position(instance), shared)?;
        if !self.own {
            slot.target.ejection.set_after(self.compiled.ejection.after);
        }
        Some((place, slot))
    }

    /// Resets the statistics of every target that has any, and returns how many.
    pub fn reset_statistics(&self, shared: &Shared) -> i64 {
        let mut targets = 0;
        for position in 0..self.places.len() {
            let saved = || !Saved::read(&self.tables, &self.compiled.id, &self.identity(position)).is_empty();
            if (self.known(position, shared).is_some() || saved())
                && let Some((_, slot)) = self.pin(position, shared)
            {
                slot.target.reset_statistics();
                slot.target.end();
                targets += 1;
            }
        }
        targets
    }

    /// Where an instance stands.
    pub fn standing(&self, live: &Target, now_us: u64) -> Standing {
        match self.compiled.ejection.after {
            Some(_) => live.ejection.standing(now_us),
            None => Standing::Fit,
        }
    }

    /// Brings what the registry says to where reports find it: settings, resets, a mode that takes the decision over. Only what is
    /// committed.
    fn refresh(&self, target: usize, slot: &Slot, shared: &Shared) {
        let live = &slot.target;
        let settings = || self.compiled.settings_of(target);
        if !self.own && live.settings.stamp() != self.stamps[target] {
            live.settings.store(settings(), self.stamps[target]);
        }
        if self.resets[target] > live.breaker.resets_applied() {
            let now_us = clock::now_us();
            if let (_, Some(transition)) = live.breaker.reset(self.resets[target], now_us) {
                self.push(target, now_us, &transition, shared);
            }
        }
        if let Some(word) = self.primary.get(target) {
            let now_us = clock::now_us();
            if let Some(transition) = live.breaker.follow(*word, now_us) {
                self.push(target, now_us, &transition, shared);
            }
        }
        if !self.own && live.breaker.state() != State::Closed && settings().mode != Mode::Auto {
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
            shared.push_transition(place, at_us, transition);
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
        self.image.pin_instance(instance, &self.shared)
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
        let position = self.image.instance_position(place);
        self.image.known(position, &self.shared).map(|(_, slot)| &slot.target)
    }

    fn fitness(&self, now_us: u64, random: u64, effects: Effects) -> Option<Rc<Fitness>> {
        self.image.fitness(&self.shared, now_us, random, effects)
    }
}

/// A target as a reader sees it.
pub enum Seen {
    /// In shared memory, or one that has seen nothing.
    Live(&'static Target),
    /// As it was last written down.
    Saved(Box<Target>),
}

impl std::ops::Deref for Seen {
    type Target = Target;

    fn deref(&self) -> &Target {
        match self {
            Self::Live(target) => target,
            Self::Saved(target) => target,
        }
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        // After an error in the middle of a decision.
        self.keep(None);
    }
}
