//! How a session learns that the registry changed: Postgres's own invalidation, one tag per extension.
//!
//! A relcache message names a database and a 32-bit relation oid, and nobody checks that the relation exists. The row triggers on the
//! registry's tables send one whose "oid" is `0x8000_0000 | hash(extension id)`. Postgres delivers it at commit to every session (also for COMMIT
//! PREPARED), to this transaction at its next command, takes it back at ROLLBACK and ROLLBACK TO, and replays it on standbys. The callback
//! marks that one extension stale and does nothing else: it may run inside any call that opens a relation.
//!
//! - A commit makes rows visible before it sends messages, so a load that missed the rows always gets the message afterwards; one that
//!   arrives while loading makes it load again.
//! - The tag [`EVERYTHING`] marks all: TRUNCATE, `ext_reload`, and commands that touch many extensions (Postgres looks through the messages of
//!   one command one by one to drop repetitions, so after 256 ids one message for all is cheaper).
//! - What a transaction loaded while it may have changed rows itself is marked again when it, or a part of it, is undone.
//!
//! Costs, races and the alternatives that failed: docs/adr/0002-invalidation.md.

use std::cell::UnsafeCell;

use pgrx::pg_sys;

use crate::datum::Args;
use crate::session;
use crate::tags::{EVERYTHING, tag_of};

/// Ids of one command that get a message each.
const MESSAGES_PER_COMMAND: u32 = 256;

/// Registers the callbacks. Once, in the postmaster: every session inherits them.
pub fn register_callbacks() {
    // SAFETY: the callbacks are plain functions of this library, which is never unloaded.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0usize));
        pg_sys::RegisterXactCallback(Some(transaction_ended), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_ended), std::ptr::null_mut());
    }
}

unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let tag = relation.to_u32();
    session::with(|session| {
        if tag == 0 || tag >= EVERYTHING {
            session.changes += 1;
        }
        if tag == 0 || tag == EVERYTHING {
            session.mark_all();
            session.mark_table();
        } else if tag > EVERYTHING {
            session.mark(tag);
        } else if session.tables.as_ref().is_some_and(|tables| tables.contains(relation)) {
            // ALTER, DROP, VACUUM or ANALYZE of a table of ours: where it is and its shape may be another. Rows have not changed.
            session.mark_table();
        }
    });
}

unsafe extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_ABORT
        | pg_sys::XactEvent::XACT_EVENT_PREPARE
        | pg_sys::XactEvent::XACT_EVENT_PARALLEL_ABORT => {
            session::with(session::Session::mark_own);
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT => session::with(|session| session.own.clear()),
        _ => {}
    }
}

unsafe extern "C-unwind" fn subtransaction_ended(
    event: pg_sys::SubXactEvent::Type,
    _this: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        session::with(session::Session::mark_own);
    }
}

/// Takes in what other sessions have committed. It is what every lock of a table does first; costs 16 ns when there is nothing.
pub fn accept() {
    // SAFETY: allowed wherever a relation may be opened.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}

/// Sends a message that marks a tag, at the end of the transaction and to this session at its next command.
fn send(tag: u32) {
    // SAFETY: takes a copy of any pg_class row (pg_class's own is always there), gives it the oid to be named, and hands it to the function
    // that sends the oid of the tuple it is given.
    unsafe {
        let class = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            pg_sys::Datum::from(pg_sys::RelationRelationId),
        );
        if class.is_null() {
            return;
        }
        let copy = pg_sys::heap_copytuple(class);
        pg_sys::ReleaseSysCache(class);
        let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(copy);
        (*form).oid = pg_sys::Oid::from(tag);
        // A shared relation's message would go to all databases; pg_class is not one.
        pg_sys::CacheInvalidateRelcacheByTuple(copy);
        pg_sys::heap_freetuple(copy);
    }
}

/// How many messages the present command has sent.
struct Sent {
    command: (u32, u32),
    count: u32,
}

struct SentCell(UnsafeCell<Sent>);
// SAFETY: Postgres processes have one thread.
unsafe impl Sync for SentCell {}
static SENT: SentCell = SentCell(UnsafeCell::new(Sent {
    command: (0, 0),
    count: 0,
}));

/// Tells every session, here and on standbys, that an extension is to be loaded anew once this transaction has committed.
pub fn announce(id: &str) {
    send(tag_of(id));
}

fn send_for(id: &str) {
    // SAFETY: one thread; the borrow ends before Postgres is called.
    let many = unsafe {
        let command = (
            pg_sys::GetCurrentTransactionIdIfAny().into_inner(),
            pg_sys::GetCurrentCommandId(false),
        );
        let sent = &mut *SENT.0.get();
        if sent.command != command {
            *sent = Sent { command, count: 0 };
        }
        sent.count += 1;
        sent.count > MESSAGES_PER_COMMAND
    };
    send(if many { EVERYTHING } else { tag_of(id) });
}

/// Columns whose change alone is no change of the registry.
const BOOKKEEPING: [&std::ffi::CStr; 4] = [c"last_health_check", c"updated_at", c"updated_by", c"changed_at"];

/// The text of the first column.
unsafe fn first_column<'a>(
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
) -> Option<std::borrow::Cow<'a, str>> {
    let mut is_null = false;
    // SAFETY: the tables that have this trigger begin with the extension's id.
    unsafe {
        let value = pg_sys::heap_getattr(tuple, 1, descriptor, &mut is_null);
        (!is_null).then(|| crate::datum::text(value))
    }
}

/// Whether an UPDATE changed anything but bookkeeping.
unsafe fn really_changed(old: pg_sys::HeapTuple, new: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> bool {
    // SAFETY: both tuples are of this descriptor.
    unsafe {
        let columns = (*descriptor).natts as usize;
        (0..columns).any(|column| {
            let attribute = crate::datum::attribute(descriptor, column);
            if attribute.attisdropped
                || BOOKKEEPING
                    .iter()
                    .any(|name| std::ffi::CStr::from_ptr(attribute.attname.data.as_ptr()) == *name)
            {
                return false;
            }
            let (mut old_null, mut new_null) = (false, false);
            let before = pg_sys::heap_getattr(old, column as i32 + 1, descriptor, &mut old_null);
            let after = pg_sys::heap_getattr(new, column as i32 + 1, descriptor, &mut new_null);
            old_null != new_null || (!old_null && !crate::datum::same(before, after, attribute))
        })
    }
}

fn trigger_data(args: Args) -> *mut pg_sys::TriggerData {
    // SAFETY: the context of a trigger call is a TriggerData; anything else is refused.
    unsafe {
        let context = (*args.0).context.cast::<pg_sys::Node>();
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            crate::errors::raise(
                crate::errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "this function is a trigger of ext_registry",
                "It cannot be called by hand; ext_reload() drops every session's compiled registry.",
            );
        }
        context.cast()
    }
}

crate::pg_function! {
    /// Row trigger: tells every session that an extension changed.
    _ext_invalidate, pg_finfo__ext_invalidate, |args| {
        let data = trigger_data(args);
        // SAFETY: Postgres fills the tuples that the event has; the returned pointer of an AFTER trigger is ignored.
        unsafe {
            let event = (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
            let descriptor = (*(*data).tg_relation).rd_att;
            let old = (*data).tg_trigtuple;
            if event != pg_sys::TRIGGER_EVENT_UPDATE || really_changed(old, (*data).tg_newtuple, descriptor) {
                let before = first_column(old, descriptor);
                if let Some(id) = &before {
                    send_for(id);
                }
                if event == pg_sys::TRIGGER_EVENT_UPDATE {
                    let after = first_column((*data).tg_newtuple, descriptor);
                    if after != before && let Some(id) = after {
                        send_for(&id);
                    }
                }
            }
        }
        pgrx::pg_sys::Datum::from(0usize)
    }
}

crate::pg_function! {
    /// Statement trigger for TRUNCATE: tells every session that everything changed.
    _ext_invalidate_all, pg_finfo__ext_invalidate_all, |args| {
        trigger_data(args);
        send(EVERYTHING);
        pgrx::pg_sys::Datum::from(0usize)
    }
}

crate::pg_function! {
    /// `_ext_reload()`: drops every session's compiled registry, at commit.
    _ext_reload, pg_finfo__ext_reload, |args| {
        let _ = args;
        send(EVERYTHING);
        pgrx::pg_sys::Datum::from(0usize)
    }
}
