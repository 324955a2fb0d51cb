//! What the fuzzers run: each target takes any bytes, and panics when a law is broken. Nothing here
//! ships. `cargo xtask fuzz` builds and runs it; `fuzz/README.md` says how, and how long.
//!
//! A target checks more than "no panic" wherever there is a law to check: what was accepted is what
//! it should be, what is written can be read, and how input is cut doesn't matter. The laws need no
//! fuzzer: the tests of this crate run the corpus through them.

#![forbid(unsafe_code)]

mod codecs;
mod core_types;
mod edges;
mod jwks;
mod peering;
pub mod seeds;
mod sessions;
mod store;

/// The environment variable that tells the program which target it is.
pub const CHOICE: &str = "HAMLET_FUZZ_TARGET";

/// A law, and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As on the command line, and its folder in the corpus.
    pub name: &'static str,
    /// Takes any bytes; panics if they break it.
    pub law: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident: $($law:ident),+;)+) => {
        /// All targets, sorted by name.
        pub const TARGETS: &[Target] = &[$($(Target { name: stringify!($law), law: $module::$law }),+),+];
    };
}

targets! {
    core_types: addresses;
    edges: bundle, chain, config;
    codecs: control;
    core_types: digests;
    edges: dns;
    sessions: exchange;
    edges: frames, hello;
    store: journal;
    jwks: jwks;
    codecs: message, message_v1;
    core_types: names;
    peering: peering, peering_texts;
    codecs: records, service, service_v1;
    sessions: session, session_v1;
    core_types: spiffe, text;
    edges: trust;
}

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|t| t.name == name).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn targets_are_sorted_and_each_has_its_seeds_and_no_other_has() {
        assert!(TARGETS.is_sorted_by(|a, b| a.name < b.name));
        let seeded: BTreeSet<&str> = seeds::all().iter().map(|(target, ..)| *target).collect();
        assert_eq!(seeded, TARGETS.iter().map(|t| t.name).collect());
    }

    #[test]
    fn the_repository_has_every_seed_and_all_of_its_corpus_keeps_the_laws() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for (target, name, bytes) in seeds::all() {
            let there = std::fs::read(corpus.join(target).join(&name)).unwrap_or_default();
            // A ClientHello has keys that are made anew each time.
            assert!(
                there == bytes || (target == "hello" && !there.is_empty()),
                "{target}/{name}: write it anew"
            );
        }
        for folder in std::fs::read_dir(&corpus).unwrap() {
            let folder = folder.unwrap();
            let name = folder.file_name().to_string_lossy().into_owned();
            let target = target(&name).unwrap_or_else(|| panic!("{name} is no target"));
            let mut bytes = 0;
            for seed in std::fs::read_dir(folder.path()).unwrap() {
                let seed = std::fs::read(seed.unwrap().path()).unwrap();
                bytes += seed.len();
                (target.law)(&seed);
            }
            assert!(bytes <= 64 * 1024, "the corpus of {name} is small: {bytes} bytes");
        }
    }

    /// Not libFuzzer: no coverage guides it. It finds what any bytes find.
    #[test]
    fn seeds_with_bytes_changed_at_random_keep_the_laws() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for (name, _, seed) in seeds::all() {
            let target = target(name).unwrap_or_else(|| panic!("{name} is no target"));
            for _ in 0..8 {
                let mut bytes = seed.clone();
                for _ in 0..=random() % 8 {
                    let at = random() as usize % (bytes.len() + 1);
                    match random() % 4 {
                        0 => bytes.insert(at, random() as u8),
                        1 => bytes.truncate(at),
                        _ if at < bytes.len() => bytes[at] = random() as u8,
                        _ => {}
                    }
                }
                (target.law)(&bytes);
            }
        }
    }
}
