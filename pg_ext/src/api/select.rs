//! `ext_select` and `ext_select_many`: decisions that are meant.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use ext_registry_core::context::{Context, Empty};
use ext_registry_core::decide::{Caller, Decision, Reason, Request, decide};
use ext_registry_core::tickets::Call;
use pgrx::{IntoDatum, pg_sys};

use super::report;
use crate::datum::{self, Args, Element, elements, nullable};
use crate::image::{Image, MAX_TEMPLATES, Pins};
use crate::jsonb::Object;
use crate::shmem::{self, Shared};
use crate::tuple::{self, RowType, Value};
use crate::{clock, errors, registry, session};

/// A decision with what it needs to become a row.
pub struct Decided {
    pub image: Option<Rc<Image>>,
    pub decision: Decision,
    pub ticket: u64,
}

/// A context argument: NULL is `{}`, anything but an object is an error.
pub enum Facts<'a> {
    None,
    Object(Object<'a>),
}

/// Reads a context.
pub fn facts<'a>(datum: Option<pg_sys::Datum>) -> Facts<'a> {
    let Some(datum) = datum else { return Facts::None };
    // SAFETY: the SQL declaration says jsonb.
    let bytes = unsafe { datum::aligned_bytes(datum) };
    if let Some(object) = Object::new(bytes) {
        return Facts::Object(object);
    }
    // SAFETY: as above.
    let shown = unsafe { datum::json_text(datum) };
    errors::raise(
        errors::INVALID_PARAMETER_VALUE,
        format!(
            "context is not a JSON object: {}",
            ext_registry_core::ident::shorten(&shown)
        ),
        "Pass the facts of the request as an object, such as '{\"tenant_id\": \"t1\"}'.",
    )
}

/// Decides for one call, with all effects.
pub fn select(function: pg_sys::Oid, id: Option<&str>, facts: &Facts<'_>, avoid: &[&str]) -> Decided {
    let refused = Decided {
        image: None,
        decision: Decision::refused(Reason::ExtensionNotFound),
        ticket: 0,
    };
    let Some(id) = id else { return refused };
    let Some(image) = registry::get(function, id) else {
        return refused;
    };
    match facts {
        Facts::None => select_in(image, &Empty, avoid),
        Facts::Object(object) => select_in(image, object, avoid),
    }
}

fn select_in<C: Context>(image: Rc<Image>, context: &C, avoid: &[&str]) -> Decided {
    let shared = shmem::get();
    let now_us = clock::now_us();
    let request = Request {
        context,
        avoid,
        now_us,
        random: session::with(session::Session::random),
    };
    let pins = Pins::new(&image, shared);
    let decision = decide(&image.compiled, &request, &pins, &mut Caller);
    if let Some((target, transition)) = decision.transition {
        image.push(target, now_us, &transition, &shared);
    }
    let ticket = issue(&image, &decision, &pins, &shared, now_us);
    drop(pins);
    Decided {
        image: Some(image),
        decision,
        ticket,
    }
}

/// Enters the call among those under way.
fn issue(image: &Image, decision: &Decision, pins: &Pins<'_>, shared: &Shared, now_us: u64) -> u64 {
    let Some(place) = decision.version else { return 0 };
    let version = &image.compiled.versions[place];
    let Some((version_place, slot)) = pins.keep(Some(version.target)) else {
        return 0;
    };
    if !decision.reason.is_allowed() {
        slot.target.record_refusal(now_us);
        slot.target.end();
        return 0;
    }
    let instance = decision.instance.and_then(|instance| pins.pin_instance(instance));
    let call = Call {
        version: version_place,
        instance: instance.map(|(place, _)| place),
        started_us: now_us,
        deadline_us: now_us + version.lease_us(),
        generation: decision.generation,
        lease: decision.lease,
    };
    report::attach(shared);
    let mut cursor = session::with(|session| session.cursor);
    let ticket = shared
        .tickets()
        .issue(&mut cursor, &call, now_us, |lapsed| report::release(shared, lapsed));
    session::with(|session| session.cursor = cursor);
    if ticket == 0 {
        shared.head.ticketless.fetch_add(1, Relaxed);
        // A probe keeps its lease: nobody can report it, but no more of them go than are asked for.
        report::release(shared, &Call { lease: None, ..call });
    }
    ticket
}

/// The columns of a decision, but for ticket and epoch.
fn columns(id: Option<&str>, image: Option<&Image>, decision: &Decision) -> Vec<Value> {
    let compiled = image.map(|image| &image.compiled);
    let version = compiled
        .zip(decision.version)
        .map(|(compiled, place)| &compiled.versions[place]);
    let instance = compiled
        .zip(decision.instance)
        .map(|(compiled, place)| &compiled.instances[place]);
    let allowed = decision.reason.is_allowed();
    let served = version.filter(|_| allowed);
    let subject = instance.map(|i| &*i.subject).or(served.map(|v| &*v.subject));
    vec![
        nullable(id),
        nullable(compiled.map(|compiled| compiled.kind.as_str())),
        nullable(version.map(|v| &*v.name)),
        nullable(instance.map(|i| &*i.id)),
        nullable(subject),
        nullable(served.map(|v| v.timeout_ms as i32)),
        nullable(served.map(|v| v.retry as i32)),
        served.map(|v| jsonb(&v.config)),
        allowed.into_datum(),
        decision.reason.as_str().into_datum(),
        nullable(decision.retry_after_ms.map(|ms| ms as i32)),
    ]
}

/// A jsonb datum of a payload as it lay in its row.
fn jsonb(payload: &[u8]) -> pg_sys::Datum {
    // SAFETY: a varlena with a plain header in memory of the current context.
    unsafe {
        let length = payload.len() + 4;
        let varlena = pg_sys::palloc(length).cast::<u8>();
        varlena.cast::<u32>().write((length as u32) << 2);
        varlena.add(4).copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        pg_sys::Datum::from(varlena)
    }
}

/// A decision as a row in memory of the current context.
pub fn row(
    row_type: &RowType,
    ordinality: Option<i64>,
    id: Option<&str>,
    decided: &Decided,
) -> (pg_sys::HeapTupleHeader, u32) {
    let epoch = decided.image.as_ref().map_or(0, |image| image.compiled.epoch) as i64;
    let ticket = decided.ticket as i64;
    let form = || {
        let mut values = Vec::with_capacity(14);
        values.extend(ordinality.map(|_| 0i64.into_datum()));
        values.extend(columns(id, decided.image.as_deref(), &decided.decision));
        values.extend([0i64.into_datum(), 0i64.into_datum()]);
        tuple::template(row_type, &values)
    };
    match (&decided.image, decided.decision.version) {
        (Some(image), Some(version)) if decided.decision.reason == Reason::Ok => {
            let key = (
                row_type.id,
                version as u32,
                decided.decision.instance.map_or(0, |place| place as u32 + 1),
            );
            let known = image.templates.borrow().get(&key).cloned();
            let template = known.unwrap_or_else(|| {
                let made = form();
                let mut templates = image.templates.borrow_mut();
                if templates.len() >= MAX_TEMPLATES {
                    templates.clear();
                }
                templates.insert(key, Rc::clone(&made));
                made
            });
            tuple::fill(&template, ordinality, ticket, epoch)
        }
        _ => tuple::fill(&form(), ordinality, ticket, epoch),
    }
}

/// The names in a text array.
fn names<'a>(datum: Option<pg_sys::Datum>) -> Vec<Cow<'a, str>> {
    let Some(datum) = datum else { return Vec::new() };
    // SAFETY: the SQL declaration says text[]. The empty array, the usual case, is told by its header alone.
    unsafe {
        let raw = datum::bytes(datum).get();
        if raw
            .first_chunk::<4>()
            .is_some_and(|dimensions| i32::from_ne_bytes(*dimensions) == 0)
        {
            return Vec::new();
        }
        elements(datum, Element::Text)
            .into_iter()
            .flatten()
            .map(|name| datum::text(name))
            .collect()
    }
}

crate::pg_function! {
    /// `ext_select(extension_id, context, avoid)`: decides for one call.
    ext_select, pg_finfo_ext_select, |args| {
        let id = args.text(0);
        let facts = facts(args.datum(1));
        let avoid = names(args.datum(2));
        let avoid: smallvec::SmallVec<[&str; 4]> = avoid.iter().map(AsRef::as_ref).collect();
        let decided = select(args.function(), id.as_deref(), &facts, &avoid);
        let row_type = registry::row_type(args);
        let (header, _) = row(&row_type, None, id.as_deref(), &decided);
        pg_sys::Datum::from(header)
    }
}

/// An array argument that may not be NULL.
fn list(args: Args, n: usize, name: &str, kind: Element) -> Vec<Option<pg_sys::Datum>> {
    match args.datum(n) {
        // SAFETY: the SQL declaration says an array of this type.
        Some(datum) => unsafe { elements(datum, kind) },
        None => errors::raise(
            errors::NULL_VALUE_NOT_ALLOWED,
            format!("{name} is NULL"),
            "Pass an array; an empty one asks for nothing.",
        ),
    }
}

/// The lists of instances already tried, one for each call.
fn avoid_lists(args: Args, calls: usize) -> Vec<Vec<String>> {
    let Some(avoid) = args.json(2) else { return Vec::new() };
    let refuse = |what: &str| -> ! {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!("avoid {what}"),
            "Pass an array with one list of instance ids for each call, such as '[[\"i1\"], []]', or NULL.",
        )
    };
    let avoid = avoid.unwrap_or_else(|why| refuse(&why));
    let shown = || ext_registry_core::ident::shorten(&avoid.to_string());
    let Some(lists) = avoid.as_array() else {
        refuse(&format!("is no array: {}", shown()))
    };
    if lists.len() != calls {
        refuse(&format!("has {} lists for {calls} calls: {}", lists.len(), shown()));
    }
    lists
        .iter()
        .map(|list| match list {
            serde_json::Value::Null => Vec::new(),
            serde_json::Value::Array(ids) => ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect(),
            _ => refuse(&format!("has a member that is no list: {}", shown())),
        })
        .collect()
}

/// The first two arguments of a batch. Every context is looked at before anything is decided: an error leaves no call half entered.
pub fn batch<'a>(args: Args) -> (Vec<Option<pg_sys::Datum>>, Vec<Facts<'a>>) {
    let ids = list(args, 0, "extension_ids", Element::Text);
    let contexts = list(args, 1, "contexts", Element::Jsonb);
    if ids.len() != contexts.len() {
        errors::raise(
            errors::INVALID_PARAMETER_VALUE,
            format!("{} extension_ids, but {} contexts", ids.len(), contexts.len()),
            "Pass one context for each extension id; NULL stands for {}.",
        );
    }
    (ids, contexts.into_iter().map(facts).collect())
}

crate::pg_function! {
    /// `ext_select_many(extension_ids, contexts, avoid)`: decides for many calls, a row each.
    ext_select_many, pg_finfo_ext_select_many, |args| {
        let (ids, contexts) = batch(args);
        let avoid = avoid_lists(args, ids.len());
        let rows = tuple::Rows::new(args, registry::row_type(args));
        for (number, (id, facts)) in ids.into_iter().zip(&contexts).enumerate() {
            // SAFETY: elements of a text array.
            let id = id.map(|datum| unsafe { datum::text(datum) });
            let avoid: Vec<&str> = avoid.get(number).map_or_else(Vec::new, |list| list.iter().map(String::as_str).collect());
            let decided = select(args.function(), id.as_deref(), facts, &avoid);
            let (header, length) = row(&rows.row_type, Some(number as i64 + 1), id.as_deref(), &decided);
            rows.push_filled(header, length);
        }
        rows.finish(args)
    }
}
