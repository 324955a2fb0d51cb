//! Fuzz target: see `hamlet_fuzz::targets::message`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| hamlet_fuzz::targets::message(input));
