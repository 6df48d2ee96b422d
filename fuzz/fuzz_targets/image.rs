#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ext_bridge_machine::machine::hostile::image(bytes));
