//! The routing decision of `ext_registry`, pure.
#![forbid(unsafe_code)]
