//! The type `hdr`: text in and out, and what can be asked of one histogram.

use std::ffi::CStr;

use ext_registry_core::hdr::Hdr;
use pgrx::{IntoDatum, pg_sys};

use crate::datum::{self, Args, nullable};
use crate::errors;

pub(super) fn read(args: Args, n: usize) -> Hdr {
    let Some(value) = args.datum(n) else { return Hdr::new() };
    // SAFETY: the SQL declaration says hdr, a varlena.
    let bytes = unsafe { datum::bytes(value) };
    Hdr::from_bytes(bytes.get()).unwrap_or_else(|error| {
        errors::raise(
            errors::INVALID_TEXT_REPRESENTATION,
            format!("unreadable hdr: {error}"),
            "The stored value is damaged; restore it from a backup.",
        )
    })
}

pub(super) fn write(hdr: &Hdr) -> pg_sys::Datum {
    let bytes = hdr.to_bytes();
    bytes
        .as_slice()
        .into_datum()
        .unwrap_or_else(|| pg_sys::Datum::from(0usize))
}

crate::pg_function! {
    /// Text to `hdr`.
    hdr_in, pg_finfo_hdr_in, |args| {
        let Some(value) = args.datum(0) else { return args.null() };
        // SAFETY: an input function gets a C string.
        let text = unsafe { CStr::from_ptr(value.cast_mut_ptr()) }.to_string_lossy();
        match Hdr::from_text(&text) {
            Ok(hdr) => write(&hdr),
            Err(error) => errors::raise(
                errors::INVALID_TEXT_REPRESENTATION,
                format!("invalid input syntax for type hdr: \"{}\": {error}", ext_registry_core::ident::shorten(&text)),
                "The text form is the HdrHistogram V2 compressed base64, which begins with HISTFAAA.",
            ),
        }
    }
}

crate::pg_function! {
    /// `hdr` to text.
    hdr_out, pg_finfo_hdr_out, |args| {
        let text = read(args, 0).to_text();
        let Ok(text) = std::ffi::CString::new(text) else { return args.null() };
        // SAFETY: a C string in memory of the current context, as an output function returns it.
        unsafe { pg_sys::Datum::from(pg_sys::pstrdup(text.as_ptr())) }
    }
}

crate::pg_function! {
    /// `hdr_quantile(h, q)`, in ms.
    hdr_quantile, pg_finfo_hdr_quantile, |args| {
        let q: f64 = args.get(1).unwrap_or(f64::NAN);
        if !(0.0..=1.0).contains(&q) {
            errors::raise(errors::INVALID_PARAMETER_VALUE, format!("quantile {q} is out of range"), "Use a quantile from 0 to 1, such as 0.95.");
        }
        nullable(read(args, 0).quantile(q)).unwrap_or_else(|| args.null())
    }
}

crate::pg_function! {
    /// `hdr_count(h)`.
    hdr_count, pg_finfo_hdr_count, |args| pg_sys::Datum::from(read(args, 0).count() as i64)
}

crate::pg_function! {
    /// `hdr_mean(h)`, in ms.
    hdr_mean, pg_finfo_hdr_mean, |args| nullable(read(args, 0).mean_ms()).unwrap_or_else(|| args.null())
}

crate::pg_function! {
    /// `hdr_max(h)`, in ms.
    hdr_max, pg_finfo_hdr_max, |args| nullable(read(args, 0).max_ms()).unwrap_or_else(|| args.null())
}

crate::pg_function! {
    /// `hdr_merge(a, b)`.
    hdr_merge, pg_finfo_hdr_merge, |args| {
        let mut merged = read(args, 0);
        merged.merge(&read(args, 1));
        write(&merged)
    }
}
