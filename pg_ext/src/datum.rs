//! Raw Postgres values: read where they lie, without a copy where that can be.

use std::borrow::Cow;

use pgrx::pg_sys;

/// A varlena without its header, detoasted if it was compressed or stored apart.
pub enum Bytes<'a> {
    /// Where the caller's datum lies.
    Borrowed(&'a [u8]),
    /// In memory of the current context.
    Copied(&'a [u8]),
}

impl<'a> Bytes<'a> {
    pub fn get(&self) -> &'a [u8] {
        match self {
            Self::Borrowed(bytes) | Self::Copied(bytes) => bytes,
        }
    }
}

/// The bytes of a varlena datum.
///
/// # Safety
/// `datum` must be a varlena that outlives `'a`.
pub unsafe fn bytes<'a>(datum: pg_sys::Datum) -> Bytes<'a> {
    // SAFETY: a varlena begins with one of three headers, told apart by its first byte (little-endian: the build target is checked
    // by Postgres's own configure): low bits 00 = plain 4-byte header, 1 = short header, 0x01 = external, 10 = compressed.
    unsafe {
        let start = datum.cast_mut_ptr::<u8>();
        let first = *start;
        if first & 3 == 0 {
            let length = (start.cast::<u32>().read_unaligned() >> 2) as usize;
            return Bytes::Borrowed(std::slice::from_raw_parts(start.add(4), length.saturating_sub(4)));
        }
        if first & 1 == 1 && first != 1 {
            let length = (first >> 1) as usize;
            return Bytes::Borrowed(std::slice::from_raw_parts(start.add(1), length.saturating_sub(1)));
        }
        let plain = pg_sys::pg_detoast_datum(start.cast()).cast::<u8>();
        let length = (plain.cast::<u32>().read() >> 2) as usize;
        Bytes::Copied(std::slice::from_raw_parts(plain.add(4), length.saturating_sub(4)))
    }
}

/// The bytes of a varlena datum at an address divisible by four, as jsonb needs.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn aligned_bytes<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: as `bytes`; a short header leaves the content unaligned, so such a value is copied.
    unsafe {
        let found = bytes(datum).get();
        if found.as_ptr().cast::<u32>().is_aligned() {
            return found;
        }
        let copy = pg_sys::palloc(found.len().max(1)).cast::<u8>();
        copy.copy_from_nonoverlapping(found.as_ptr(), found.len());
        std::slice::from_raw_parts(copy, found.len())
    }
}

/// The text of a text or varchar datum. Bytes that are no UTF-8 (another server encoding) are replaced; names are ASCII.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn text<'a>(datum: pg_sys::Datum) -> Cow<'a, str> {
    // SAFETY: by the caller.
    String::from_utf8_lossy(unsafe { bytes(datum) }.get())
}

/// A jsonb as Postgres writes it.
///
/// # Safety
/// `datum` must be a jsonb.
pub unsafe fn json_text(datum: pg_sys::Datum) -> String {
    // SAFETY: by the caller; JsonbToCString returns a C string in memory of the current context.
    unsafe {
        let payload = aligned_bytes(datum);
        let container = payload.as_ptr().cast_mut().cast::<pg_sys::JsonbContainer>();
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), container, payload.len() as i32);
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// A jsonb parsed, or why it cannot be: it is nested deeper than 128 levels, or holds a number beyond a double.
///
/// # Safety
/// `datum` must be a jsonb.
pub unsafe fn json(datum: pg_sys::Datum) -> Result<serde_json::Value, String> {
    // SAFETY: by the caller.
    let text = unsafe { json_text(datum) };
    serde_json::from_str(&text).map_err(|error| {
        let why = error.to_string();
        let why = why.split(" at line").next().unwrap_or_default();
        format!("{} is not readable: {why}", ext_registry_core::ident::shorten(&text))
    })
}

/// The arguments of one call.
#[derive(Clone, Copy)]
pub struct Args(pub pg_sys::FunctionCallInfo);

impl Args {
    /// How many there are.
    pub fn len(self) -> usize {
        // SAFETY: Postgres passes a valid struct for the time of the call.
        unsafe { (*self.0).nargs as usize }
    }

    /// The n-th argument; `None` for NULL and where there is none.
    pub fn datum(self, n: usize) -> Option<pg_sys::Datum> {
        if n >= self.len() {
            return None;
        }
        // SAFETY: `args` has `nargs` elements.
        let argument = unsafe { *(*self.0).args.as_ptr().add(n) };
        (!argument.isnull).then_some(argument.value)
    }

    /// A text argument.
    pub fn text<'a>(self, n: usize) -> Option<Cow<'a, str>> {
        // SAFETY: the SQL declaration says text; arguments outlive the call.
        self.datum(n).map(|datum| unsafe { text(datum) })
    }

    /// An argument of a type pgrx converts.
    pub fn get<T: pgrx::FromDatum>(self, n: usize) -> Option<T> {
        // SAFETY: the SQL declaration says the type.
        self.datum(n).and_then(|datum| unsafe { T::from_datum(datum, false) })
    }

    /// A jsonb argument, parsed; see [`json`].
    pub fn json(self, n: usize) -> Option<Result<serde_json::Value, String>> {
        // SAFETY: the SQL declaration says jsonb.
        self.datum(n).map(|datum| unsafe { json(datum) })
    }

    /// Says that the result is NULL.
    pub fn null(self) -> pg_sys::Datum {
        // SAFETY: the struct is valid for the time of the call.
        unsafe { (*self.0).isnull = true };
        pg_sys::Datum::from(0usize)
    }

    /// The function's own oid.
    pub fn function(self) -> pg_sys::Oid {
        // SAFETY: calls from SQL always carry flinfo.
        unsafe { (*(*self.0).flinfo).fn_oid }
    }
}

/// A value as Postgres takes it, or NULL.
pub fn nullable<T: pgrx::IntoDatum>(value: Option<T>) -> Option<pg_sys::Datum> {
    value.and_then(pgrx::IntoDatum::into_datum)
}

/// The elements of a one-dimensional array argument.
///
/// # Safety
/// `datum` must be an array of the element type described.
pub unsafe fn elements(datum: pg_sys::Datum, kind: Element) -> Vec<Option<pg_sys::Datum>> {
    let (oid, length, by_value, align) = kind.layout();
    // SAFETY: deconstruct_array palloc's the two lists; they are read within their length.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(array, oid, length, by_value, align, &mut values, &mut nulls, &mut count);
        (0..count as usize)
            .map(|i| (!*nulls.add(i)).then(|| *values.add(i)))
            .collect()
    }
}

/// What an array holds.
#[derive(Clone, Copy)]
pub enum Element {
    Text,
    Jsonb,
    Int8,
    Int4,
    Float8,
}

impl Element {
    fn layout(self) -> (pg_sys::Oid, i32, bool, std::ffi::c_char) {
        match self {
            Self::Text => (pg_sys::TEXTOID, -1, false, b'i' as _),
            Self::Jsonb => (pg_sys::JSONBOID, -1, false, b'i' as _),
            Self::Int8 => (pg_sys::INT8OID, 8, true, b'd' as _),
            Self::Int4 => (pg_sys::INT4OID, 4, true, b'i' as _),
            Self::Float8 => (pg_sys::FLOAT8OID, 8, true, b'd' as _),
        }
    }
}

/// Declares a C function of the SQL surface: the symbol, its `pg_finfo_` twin, and the guard between Rust and Postgres.
#[macro_export]
macro_rules! pg_function {
    ($(#[$meta:meta])* $name:ident, $info:ident, |$args:ident| $body:expr) => {
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            let body = move || {
                let $args = $crate::datum::Args(fcinfo);
                $body
            };
            // SAFETY: the boundary between C and Rust: panics become errors of Postgres and the reverse.
            unsafe { pgrx::pg_sys::submodules::panic::pgrx_extern_c_guard(body) }
        }

        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            const INFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }
    };
}

/// The description of a column, counted from 0.
///
/// # Safety
/// `descriptor` must be valid and have more than `column` columns.
pub unsafe fn attribute<'a>(descriptor: pg_sys::TupleDesc, column: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: by the caller; from 18 on the descriptions lie behind the compact ones.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let first = (*descriptor).attrs.as_ptr();
        #[cfg(feature = "pg18")]
        let first = (*descriptor)
            .compact_attrs
            .as_ptr()
            .add((*descriptor).natts as usize)
            .cast::<pg_sys::FormData_pg_attribute>();
        &*first.add(column)
    }
}

/// Whether two values of a column are the same, byte by byte.
///
/// # Safety
/// Both must be values of a column so described.
pub unsafe fn same(a: pg_sys::Datum, b: pg_sys::Datum, column: &pg_sys::FormData_pg_attribute) -> bool {
    if column.attbyval {
        return a.value() == b.value();
    }
    // SAFETY: by the caller.
    unsafe {
        match column.attlen {
            -1 => bytes(a).get() == bytes(b).get(),
            length if length > 0 => {
                let view =
                    |datum: pg_sys::Datum| std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), length as usize);
                view(a) == view(b)
            }
            _ => false,
        }
    }
}
