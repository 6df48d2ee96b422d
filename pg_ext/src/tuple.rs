//! Rows out: ready-made ones for decisions, ordinary ones for the rest.
//!
//! A decision for the same version and instance differs from the last one only by ticket and epoch (and its number in a batch). So the row is
//! formed once and kept as bytes; a call copies them and writes the few words that differ. Ticket and epoch are therefore the last two
//! columns of the row type, and never NULL.

use std::rc::Rc;

use pgrx::pg_sys;

use crate::datum::Args;

/// The row type a function returns.
pub struct RowType {
    pub descriptor: pg_sys::TupleDesc,
    /// A number of its own in this session.
    pub id: u32,
}

/// One value of a row.
pub type Value = Option<pg_sys::Datum>;

/// Forms a row of the values given, in the order of the row type's columns.
fn form(row_type: &RowType, values: &[Value]) -> pg_sys::HeapTuple {
    // SAFETY: checked to have as many values as columns; their types are those of the install script.
    unsafe {
        let columns = (*row_type.descriptor).natts as usize;
        if values.len() != columns {
            crate::errors::raise(
                crate::errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the library returns {} columns, the installed function has {columns}",
                    values.len()
                ),
                "Run ALTER EXTENSION ext_registry UPDATE.",
            );
        }
        let mut datums: Vec<pg_sys::Datum> = values
            .iter()
            .map(|value| value.unwrap_or(pg_sys::Datum::from(0usize)))
            .collect();
        let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
        pg_sys::heap_form_tuple(row_type.descriptor, datums.as_mut_ptr(), nulls.as_mut_ptr())
    }
}

/// A row as the result of a function.
pub fn to_datum(row_type: &RowType, values: &[Value]) -> pg_sys::Datum {
    let tuple = form(row_type, values);
    // SAFETY: heap_form_tuple made the header that of a composite datum.
    unsafe { pg_sys::Datum::from((*tuple).t_data) }
}

/// A row to copy from.
pub fn template(row_type: &RowType, values: &[Value]) -> Rc<[u64]> {
    let tuple = form(row_type, values);
    // SAFETY: t_data has t_len bytes; they are copied behind a word that holds the length.
    unsafe {
        let length = (*tuple).t_len as usize;
        let mut words = vec![0u64; 1 + length.div_ceil(8)];
        words[0] = length as u64;
        words
            .as_mut_ptr()
            .add(1)
            .cast::<u8>()
            .copy_from_nonoverlapping((*tuple).t_data.cast::<u8>(), length);
        pg_sys::heap_freetuple(tuple);
        words.into()
    }
}

/// A copy of a template with its ticket and epoch, and its number if it is one of a batch, in memory of the current context.
pub fn fill(template: &[u64], ordinality: Option<i64>, ticket: i64, epoch: i64) -> (pg_sys::HeapTupleHeader, u32) {
    let length = template[0] as usize;
    // SAFETY: the template has `length` bytes behind its first word; the last two columns are bigints that are never NULL, so they are the
    // last 16 bytes; the first column of a batch's row is one too and lies at t_hoff.
    unsafe {
        let copy = pg_sys::palloc(length).cast::<u8>();
        copy.copy_from_nonoverlapping(template.as_ptr().add(1).cast::<u8>(), length);
        copy.add(length - 16).cast::<i64>().write_unaligned(ticket);
        copy.add(length - 8).cast::<i64>().write_unaligned(epoch);
        let header = copy.cast::<pg_sys::HeapTupleHeaderData>();
        if let Some(number) = ordinality {
            copy.add((*header).t_hoff as usize)
                .cast::<i64>()
                .write_unaligned(number);
        }
        (header, length as u32)
    }
}

/// Rows of a set-returning function, collected.
pub struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    pub row_type: Rc<RowType>,
}

impl Rows {
    /// Tells Postgres that the result comes as a whole.
    pub fn new(args: Args, row_type: Rc<RowType>) -> Self {
        // SAFETY: as src/backend/utils/fmgr/README asks of a function that returns a set by materialization.
        unsafe {
            let info = (*args.0).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            if info.is_null()
                || (*info).type_ != pg_sys::NodeTag::T_ReturnSetInfo
                || (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32 == 0
            {
                crate::errors::raise(
                    crate::errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "set-valued function called in context that cannot accept a set",
                    "Call it in FROM.",
                );
            }
            let before = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let store = pg_sys::tuplestore_begin_heap(
                (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize_Random as i32 != 0,
                false,
                pg_sys::work_mem,
            );
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = pg_sys::CreateTupleDescCopy(row_type.descriptor);
            pg_sys::MemoryContextSwitchTo(before);
            Self { store, row_type }
        }
    }

    /// Adds a row.
    pub fn push(&self, values: &[Value]) {
        let tuple = form(&self.row_type, values);
        // SAFETY: the tuple is of the descriptor's type; the store copies it.
        unsafe {
            pg_sys::tuplestore_puttuple(self.store, tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// Adds a row filled from a template.
    pub fn push_filled(&self, header: pg_sys::HeapTupleHeader, length: u32) {
        // SAFETY: as `push`; the struct on the stack only points to the row.
        unsafe {
            let mut tuple: pg_sys::HeapTupleData = std::mem::zeroed();
            tuple.t_len = length;
            tuple.t_data = header;
            pg_sys::tuplestore_puttuple(self.store, &mut tuple);
            pg_sys::pfree(header.cast());
        }
    }

    /// What the function returns: nothing by itself.
    pub fn finish(self, args: Args) -> pg_sys::Datum {
        args.null()
    }
}
