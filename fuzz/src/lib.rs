//! What the fuzzers run: each target takes any bytes, and panics when a law is broken. Nothing here
//! ships. `cargo xtask fuzz` builds and runs it; `fuzz/README.md` says how, and how long.
//!
//! A target checks more than "no panic" wherever there is a law to check: what was accepted is what
//! it should be, what is written can be read, and how input is cut doesn't matter.

mod codecs;
mod core_types;
mod edges;
pub mod seeds;
mod sessions;

/// The targets by name, as the files in `fuzz_targets/` call them.
pub mod targets {
    pub use crate::codecs::{control, message, records, service};
    pub use crate::core_types::{addresses, digests, names, spiffe, text};
    pub use crate::edges::{bundle, chain, config, dns, frames, hello};
    pub use crate::sessions::{exchange, session};
}
