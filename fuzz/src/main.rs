//! All targets as one program: libFuzzer feeds the one that [`hamlet_fuzz::CHOICE`] names. Built
//! and run by `cargo xtask fuzz` only.
#![no_main]

use std::sync::OnceLock;

use hamlet_fuzz::{CHOICE, Target, target};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        // libFuzzer owns the command line.
        #[allow(clippy::disallowed_methods)]
        let name = std::env::var(CHOICE).unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("{CHOICE} names no target: `{name}`; use `cargo xtask fuzz`"))
    });
    (chosen.law)(input);
});
