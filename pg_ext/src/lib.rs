//! `ext_registry`: puts the core next to the tables.
pgrx::pg_module_magic!();
