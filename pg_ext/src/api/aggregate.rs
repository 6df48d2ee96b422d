//! The aggregates over latencies and histograms: `hdr_agg` and `hdr_merge`. Their state is an [`Hdr`] in the aggregate's memory context.

use ext_registry_core::hdr::Hdr;
use ext_registry_core::histogram::us_from_ms;
use pgrx::{PgMemoryContexts, pg_sys};

use super::hdr::{read, write};
use crate::datum::{self, Args};
use crate::errors;

/// A histogram that is dropped with its memory context.
fn keep(hdr: Hdr, context: pg_sys::MemoryContext) -> *mut Hdr {
    PgMemoryContexts::For(context).leak_and_drop_on_delete(hdr)
}

/// The memory context of the aggregate that calls; an error where none does.
fn context(args: Args) -> pg_sys::MemoryContext {
    let mut context = std::ptr::null_mut();
    // SAFETY: reads the call's context.
    if unsafe { pg_sys::AggCheckCallContext(args.0, &mut context) } == 0 {
        errors::raise(
            errors::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this function is a part of the aggregates of hdr",
            "Use hdr_agg(latency_ms) or hdr_merge(histogram).",
        );
    }
    context
}

/// The state in argument `n`, if there is one.
fn state<'a>(args: Args, n: usize) -> Option<&'a mut Hdr> {
    // SAFETY: arguments of type internal of these functions are what `keep` returned, and live as long as the aggregate; each call has the
    // only reference.
    args.datum(n).map(|datum| unsafe { &mut *datum.cast_mut_ptr::<Hdr>() })
}

/// The state in argument 0, made anew if there is none; applies `change` to it.
fn change(args: Args, change: impl FnOnce(&mut Hdr)) -> pg_sys::Datum {
    let context = context(args);
    let pointer: *mut Hdr = match state(args, 0) {
        Some(state) => state,
        None => keep(Hdr::new(), context),
    };
    // SAFETY: as in `state`.
    change(unsafe { &mut *pointer });
    pg_sys::Datum::from(pointer)
}

crate::pg_function! {
    /// Adds a latency.
    hdr_agg_add, pg_finfo_hdr_agg_add, |args| {
        let latency = args.get::<f64>(1).map(|ms| us_from_ms(ms).unwrap_or_else(|| {
            errors::raise(
                errors::INVALID_PARAMETER_VALUE,
                format!("latency {ms} is no latency"),
                "Aggregate milliseconds, 0 or more; NULL is left out.",
            )
        }));
        change(args, |hdr| {
            if let Some(us) = latency {
                hdr.record_us(us);
            }
        })
    }
}

crate::pg_function! {
    /// Adds a histogram.
    hdr_agg_merge, pg_finfo_hdr_agg_merge, |args| {
        let other = args.datum(1).map(|_| read(args, 1));
        change(args, |hdr| {
            if let Some(other) = &other {
                hdr.merge(other);
            }
        })
    }
}

crate::pg_function! {
    /// Adds the state of another process.
    hdr_agg_combine, pg_finfo_hdr_agg_combine, |args| {
        let other = state(args, 1);
        change(args, |hdr| {
            if let Some(other) = &other {
                hdr.merge(other);
            }
        })
    }
}

crate::pg_function! {
    /// The state for another process.
    hdr_agg_serialize, pg_finfo_hdr_agg_serialize, |args| {
        context(args);
        state(args, 0).map_or_else(|| args.null(), |hdr| write(hdr))
    }
}

crate::pg_function! {
    /// The state of another process.
    hdr_agg_deserialize, pg_finfo_hdr_agg_deserialize, |args| {
        context(args);
        // SAFETY: the memory context of now is what a deserialize function fills.
        pg_sys::Datum::from(keep(read(args, 0), unsafe { pg_sys::CurrentMemoryContext }))
    }
}

crate::pg_function! {
    /// The result: NULL where there was nothing.
    hdr_agg_final, pg_finfo_hdr_agg_final, |args| {
        context(args);
        match state(args, 0).filter(|hdr| !hdr.is_empty()) {
            Some(hdr) => write(hdr),
            None => args.null(),
        }
    }
}

crate::pg_function! {
    /// Binary input of `hdr`.
    hdr_recv, pg_finfo_hdr_recv, |args| {
        let Some(buffer) = args.datum(0) else { return args.null() };
        // SAFETY: a receive function gets a StringInfo, and takes all of it.
        let bytes = unsafe {
            let buffer = &mut *buffer.cast_mut_ptr::<pg_sys::StringInfoData>();
            let from = buffer.cursor as usize;
            let rest = std::slice::from_raw_parts(buffer.data.cast::<u8>().add(from), buffer.len as usize - from);
            buffer.cursor = buffer.len;
            rest
        };
        match Hdr::from_bytes(bytes) {
            Ok(hdr) => write(&hdr),
            Err(error) => errors::raise(
                errors::INVALID_BINARY_REPRESENTATION,
                format!("invalid binary form of type hdr: {error}"),
                "Send what hdr_send writes, or the text form.",
            ),
        }
    }
}

crate::pg_function! {
    /// Binary output of `hdr`.
    hdr_send, pg_finfo_hdr_send, |args| {
        // SAFETY: the SQL declaration says hdr, whose content is its binary form.
        args.datum(0).map_or_else(|| args.null(), |datum| {
            pgrx::IntoDatum::into_datum(unsafe { datum::bytes(datum) }.get()).unwrap_or_else(|| args.null())
        })
    }
}
