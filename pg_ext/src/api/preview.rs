//! `ext_preview`: decisions that leave no trace; and the live state as it is seen without leaving one.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

use ext_registry_core::context::{Context, Empty};
use ext_registry_core::decide::{Decision, Live, Reason, Request, decide};
use ext_registry_core::fitness::{Effects, Fitness};
use ext_registry_core::preview::{Moved, Previewer, Rehearsal};
use ext_registry_core::target::Target;

use super::select::{self, Decided, Facts};
use crate::datum;
use crate::image::{Image, Seen};
use crate::shmem::{self, Shared};
use crate::{clock, registry, session, tuple};

/// The live state of an image's targets for whoever only looks: nothing is pinned, nothing gets a place.
pub struct Onlooker<'a> {
    image: &'a Image,
    shared: Shared,
    versions: Box<[OnceCell<Seen>]>,
    instances: Box<[OnceCell<Seen>]>,
}

impl<'a> Onlooker<'a> {
    pub fn new(image: &'a Image) -> Self {
        let cells = |n: usize| (0..n).map(|_| OnceCell::new()).collect();
        Self {
            image,
            shared: shmem::get(),
            versions: cells(image.compiled.targets.len()),
            instances: cells(image.compiled.instances.len()),
        }
    }
}

impl Live for Onlooker<'_> {
    fn version(&self, target: usize) -> Option<&Target> {
        Some(self.versions[target].get_or_init(|| self.image.version_seen(target, &self.shared)))
    }

    fn instance(&self, place: usize) -> Option<&Target> {
        Some(self.instances[place].get_or_init(|| self.image.instance_seen(place, &self.shared)))
    }

    fn fitness(&self, now_us: u64, random: u64, _effects: Effects) -> Option<Rc<Fitness>> {
        self.image.fitness(&self.shared, now_us, random, Effects::Pretend)
    }
}

/// An extension in a preview, with what previewed calls have moved.
struct Rehearsed {
    image: Rc<Image>,
    moved: Moved,
}

fn rehearse<C: Context + ?Sized>(rehearsed: &Rehearsed, onlooker: &Onlooker<'_>, context: &C) -> Decided {
    let request = Request {
        context,
        avoid: &[],
        now_us: clock::now_us(),
        random: session::with(session::Session::random),
    };
    let live = Rehearsal::new(onlooker, &rehearsed.moved);
    Decided {
        decision: decide(&rehearsed.image.compiled, &request, &live, &mut Previewer),
        image: Some(Rc::clone(&rehearsed.image)),
        ticket: 0,
    }
}

crate::pg_function! {
    /// `ext_preview(extension_ids, contexts)`: what these calls would get, one after the other.
    ext_preview, pg_finfo_ext_preview, |args| {
        let (ids, contexts) = select::batch(args);
        let mut known: HashMap<String, Option<Rehearsed>> = HashMap::new();
        let names: Vec<Option<String>> = ids
            .into_iter()
            // SAFETY: elements of a text array.
            .map(|id| id.map(|datum| unsafe { datum::text(datum) }.into_owned()))
            .collect();
        for id in names.iter().flatten() {
            if !known.contains_key(id) {
                let image = registry::get(args.function(), id);
                known.insert(id.clone(), image.map(|image| Rehearsed { image, moved: Moved::default() }));
            }
        }
        let onlookers: HashMap<&str, (&Rehearsed, Onlooker<'_>)> = known
            .iter()
            .filter_map(|(id, rehearsed)| rehearsed.as_ref().map(|it| (&**id, (it, Onlooker::new(&it.image)))))
            .collect();
        let rows = tuple::Rows::new(args, registry::row_type(args));
        for (number, (id, facts)) in names.iter().zip(&contexts).enumerate() {
            let decided = match id.as_deref().and_then(|id| onlookers.get(id)) {
                None => Decided { image: None, decision: Decision::refused(Reason::ExtensionNotFound), ticket: 0 },
                Some((rehearsed, onlooker)) => match facts {
                    Facts::None => rehearse(rehearsed, onlooker, &Empty),
                    Facts::Object(object) => rehearse(rehearsed, onlooker, object),
                },
            };
            let (header, length) = select::row(&rows.row_type, Some(number as i64 + 1), id.as_deref(), &decided);
            rows.push_filled(header, length);
        }
        rows.finish(args)
    }
}
