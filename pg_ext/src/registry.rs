//! The registry as this session knows it: compiled extensions, the tables they come from, the row types of functions.
//!
//! Everything is looked up once and kept in the [`session`]; what a message has marked since is looked up again.

use std::rc::Rc;

use ext_registry_core::ident::check_id;
use pgrx::pg_sys;

use crate::datum::Args;
use crate::image::Image;
use crate::load::{self, Tables};
use crate::session::{self, Known};
use crate::tags::tag_of;
use crate::tuple::RowType;
use crate::{errors, invalidate, shmem};

/// So often is loaded what changes while it is loaded.
const MOST_LOADS: u32 = 3;
/// So often what is rewritten meanwhile: each time somebody has committed an ALTER TABLE or the like.
const MOST_VOID_LOADS: u32 = 1000;

/// The image of an extension; `None` if it is not registered. Accepts what other sessions have committed first.
pub fn get(function: pg_sys::Oid, id: &str) -> Option<Rc<Image>> {
    invalidate::accept();
    let tag = tag_of(id);
    match session::with(|session| session.known(tag, id)) {
        Known::Image(image) => return Some(image),
        Known::Unknown => return None,
        Known::Stale => {}
    }
    // Names that cannot be registered, however long, are not remembered.
    if check_id("extension_id", id).is_err() {
        return None;
    }
    tables(function);
    // The tables may have been asked for only because one of them was vacuumed.
    match session::with(|session| session.known(tag, id)) {
        Known::Image(image) => return Some(image),
        Known::Unknown => return None,
        Known::Stale => {}
    }
    announce();
    let mut attempts = 0;
    loop {
        attempts += 1;
        session::with(|session| session.begin_load(tag));
        let tables = tables(function);
        let image = load::extension(&tables, id).map(|(row, extras)| Rc::new(Image::new(row, &extras, &tables)));
        // SAFETY: reads transaction state.
        let own = unsafe { pg_sys::GetTopTransactionIdIfAny() }.into_inner() != 0;
        // What has changed meanwhile is loaded again, three times; then it is stored stale and loaded by the next decision: it is as
        // old as the snapshot it was loaded by, and that is younger than the decision. What may be wrong is loaded until it is not.
        let done = session::with(|session| {
            let done = session.load_is_clean()
                || !session.load_is_void() && attempts >= MOST_LOADS
                || attempts >= MOST_VOID_LOADS;
            if done {
                session.store(tag, id, image.clone(), own);
            }
            done
        });
        if done {
            if let Some(image) = &image {
                for warning in &image.compiled.warnings {
                    errors::warn(
                        warning.clone(),
                        "Correct the row; see extension_versions.routing_rules.",
                    );
                }
            }
            return image;
        }
        pgrx::check_for_interrupts!();
    }
}

/// Tells the launcher that this database needs a worker.
pub fn announce() {
    // SAFETY: a global of this process.
    shmem::get().announce(unsafe { pg_sys::MyDatabaseId }.to_u32(), true);
}

/// The tables of the registry whose function is called; looked up once, and again after a message about one of them.
pub fn tables(function: pg_sys::Oid) -> Rc<Tables> {
    if let Some(tables) = session::with(|session| session.tables.clone()) {
        return tables;
    }
    // SAFETY: looks a function up in the catalog.
    let namespace = unsafe { pg_sys::get_func_namespace(function) };
    tables_in(namespace).unwrap_or_else(|| {
        errors::raise(
            errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the tables of ext_registry are not where its functions are",
            "Run ALTER EXTENSION ext_registry UPDATE, or create the extension anew.",
        )
    })
}

/// The tables of the registry in a schema.
pub fn tables_in(namespace: pg_sys::Oid) -> Option<Rc<Tables>> {
    let tables = Rc::new(Tables::resolve(namespace)?);
    session::with(|session| {
        // After DROP and CREATE EXTENSION in one session nothing remembered is right.
        if session.last_tables.as_ref().is_some_and(|last| !last.is_same(&tables)) {
            session.mark_all();
        }
        session.last_tables = Some(Rc::clone(&tables));
        session.tables = Some(Rc::clone(&tables));
    });
    Some(tables)
}

/// The row type of the function called, looked up once a session.
pub fn row_type(args: Args) -> Rc<RowType> {
    let function = args.function().to_u32();
    if let Some(known) = session::with(|session| session.row_types.get(&function).cloned()) {
        return known;
    }
    // SAFETY: get_call_result_type fills the descriptor of the declared row type; the copy lives as long as the session.
    let found = unsafe {
        let mut descriptor = std::ptr::null_mut();
        let class = pg_sys::get_call_result_type(args.0, std::ptr::null_mut(), &mut descriptor);
        if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE || descriptor.is_null() {
            errors::raise(
                errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "a function of ext_registry that returns rows is called where it cannot",
                "Call it in FROM, or declare it as the extension's install script does.",
            );
        }
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let copy = pg_sys::CreateTupleDescCopy(descriptor);
        pg_sys::MemoryContextSwitchTo(before);
        Rc::new(RowType {
            descriptor: pg_sys::BlessTupleDesc(copy),
            id: function,
        })
    };
    session::with(|session| session.row_types.insert(function, Rc::clone(&found)));
    found
}
