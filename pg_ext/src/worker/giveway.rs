//! Commands that need a database for themselves: the worker gives way.
//!
//! DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, and CREATE DATABASE with a template refuse to run while anybody is connected to the
//! database. A worker that is always connected would make them fail for ever, so it is ended before such a command; the launcher starts
//! it again some seconds later if the database is still there.

use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::pg_sys;

use crate::{clock, shmem};

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// How long a command waits for the worker, in ms.
const WAIT_MS: u64 = 5000;

/// Looks at every utility command from now on.
pub fn install() {
    // SAFETY: in _PG_init, in the postmaster's only thread.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// The hook, with the arguments it has from 14 on, or without.
///
/// Nearly every command of the server passes here, and its errors must leave as they are. So no guard of pgrx stands around the next function,
/// which would catch an error and raise a copy that lacks context and constraint names: an ERROR jumps over this frame, which holds nothing that
/// would have to be dropped.
macro_rules! utility_hook {
    ($($read_only_tree:ident: $type:ty,)?) => {
        unsafe extern "C-unwind" {
            fn standard_ProcessUtility(
                statement: *mut pg_sys::PlannedStmt,
                query: *const std::ffi::c_char,
                $($read_only_tree: $type,)?
                context: pg_sys::ProcessUtilityContext::Type,
                parameters: pg_sys::ParamListInfo,
                environment: *mut pg_sys::QueryEnvironment,
                destination: *mut pg_sys::DestReceiver,
                completion: *mut pg_sys::QueryCompletion,
            );
        }

        #[allow(clippy::too_many_arguments, reason = "the signature of the hook")]
        unsafe extern "C-unwind" fn utility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            $($read_only_tree: $type,)?
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        ) {
            // SAFETY: passes everything on as it came. What is our own runs inside a guard, and is over before.
            unsafe {
                let node = (*statement).utilityStmt;
                if is_about_a_database(node) {
                    pg_sys::submodules::panic::pgrx_extern_c_guard(move || give_way(node));
                }
                match PREVIOUS {
                    Some(next) => next(statement, query, $($read_only_tree,)? context, parameters, environment, destination, completion),
                    None => standard_ProcessUtility(statement, query, $($read_only_tree,)? context, parameters, environment, destination, completion),
                }
            }
        }
    };
}

#[cfg(feature = "pg13")]
utility_hook!();
#[cfg(not(feature = "pg13"))]
utility_hook!(read_only_tree: bool,);

/// Whether a command may need a database for itself.
unsafe fn is_about_a_database(node: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::{T_AlterDatabaseStmt, T_CreatedbStmt, T_DropdbStmt, T_RenameStmt};
    // SAFETY: a parse tree; every node begins with its tag.
    !node.is_null()
        && matches!(
            unsafe { (*node).type_ },
            T_DropdbStmt | T_AlterDatabaseStmt | T_RenameStmt | T_CreatedbStmt
        )
}

/// Whether the caller may do such things to a database: nobody else ends its worker.
unsafe fn is_owner(oid: u32) -> bool {
    let oid = pg_sys::Oid::from(oid);
    // SAFETY: look-ups in the catalog.
    unsafe {
        #[cfg(any(feature = "pg13", feature = "pg14", feature = "pg15"))]
        let owner = pg_sys::pg_database_ownercheck(oid, pg_sys::GetUserId());
        #[cfg(not(any(feature = "pg13", feature = "pg14", feature = "pg15")))]
        let owner = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, oid, pg_sys::GetUserId());
        owner || pg_sys::superuser()
    }
}

/// Ends the worker of the database a command needs for itself.
unsafe fn give_way(node: *mut pg_sys::Node) {
    // SAFETY: a parse tree; the tag says which struct it is.
    let name = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname.cast_const(),
            pg_sys::NodeTag::T_AlterDatabaseStmt => (*node.cast::<pg_sys::AlterDatabaseStmt>()).dbname.cast_const(),
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = node.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return;
                }
                (*rename).subname.cast_const()
            }
            pg_sys::NodeTag::T_CreatedbStmt => template((*node.cast::<pg_sys::CreatedbStmt>()).options),
            _ => return,
        }
    };
    if name.is_null() {
        return;
    }
    // SAFETY: a name out of the parse tree; looked up in the catalog.
    let oid = unsafe { pg_sys::get_database_oid(name, true) }.to_u32();
    let shared = shmem::get();
    let Some(database) = shared.database(oid).filter(|_| oid != 0) else {
        return;
    };
    // SAFETY: inside a command, where the catalog can be read.
    if !unsafe { is_owner(oid) } {
        return;
    }
    // The worker flushes once and ends, and the launcher waits from now on before it starts another.
    database.give_way.store(true, Relaxed);
    database.asked_us.store(clock::now_us(), Relaxed);
    let begun_us = clock::now_us();
    loop {
        let pid = database.worker_pid.load(Relaxed);
        if pid == 0 || clock::now_us() > begun_us + WAIT_MS * 1000 {
            return;
        }
        // SAFETY: SIGTERM to our own worker: it flushes and ends. Waits in between, and can be cancelled.
        unsafe {
            libc::kill(pid, libc::SIGTERM);
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                20,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
            pgrx::check_for_interrupts!();
        }
    }
}

/// The database a new one is copied from.
unsafe fn template(options: *mut pg_sys::List) -> *const std::ffi::c_char {
    if options.is_null() {
        return std::ptr::null();
    }
    // SAFETY: the options of CREATE DATABASE are a list of DefElem.
    unsafe {
        for i in 0..(*options).length as usize {
            let element = (*(*options).elements.add(i)).ptr_value.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*element).defname) == c"template" && !(*element).arg.is_null() {
                return pg_sys::defGetString(element);
            }
        }
    }
    std::ptr::null()
}
