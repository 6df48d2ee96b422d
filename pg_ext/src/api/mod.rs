//! The functions of the SQL surface. Their declarations, with volatility, strictness and parallel safety, are in `sql/`.

mod aggregate;
mod checks;
mod explain;
mod hdr;
mod history;
mod live;
mod preview;
mod report;
mod review;
mod select;
mod status;

pub use report::release;
