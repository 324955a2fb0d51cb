//! Fuzz target: see `hamlet_fuzz::targets::addresses`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| hamlet_fuzz::targets::addresses(input));
