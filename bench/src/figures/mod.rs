//! The figures that are measured. Each file makes the lines of one.

mod f01_select;
mod f02_size;
mod f03_report;
mod f04_call;
mod f05_plpgsql;
mod f06_many;
mod f07_core;
mod f08_edit;
mod f09_throughput;
mod f10_latency;
mod f11_bridge_memory;
mod f12_memory;
mod f13_pipeline;
mod f14_percentiles;

use crate::figure::Figure;

/// All there are, in the order in which they run.
pub const ALL: &[Figure] = &[
    f01_select::FIGURE,
    f02_size::FIGURE,
    f03_report::FIGURE,
    f04_call::FIGURE,
    f05_plpgsql::FIGURE,
    f06_many::FIGURE,
    f07_core::FIGURE,
    f08_edit::FIGURE,
    f09_throughput::FIGURE,
    f10_latency::FIGURE,
    f11_bridge_memory::FIGURE,
    f12_memory::FIGURE,
    f13_pipeline::FIGURE,
    f14_percentiles::FIGURE,
];
