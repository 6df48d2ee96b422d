#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ext_registry_fuzz::contexts(bytes));
