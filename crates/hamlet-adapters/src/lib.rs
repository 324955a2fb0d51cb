//! Sources of local services and sinks of imported ones, one folder a platform.
//!
//! A source observes a platform and delivers what it saw; a sink makes imported services usable
//! there, either by writing objects (reconciling) or by answering questions (serving). Nothing here
//! decides who may see or import what: that is `hamlet-core`'s, and has happened before.
//!
//! | folder | is a | does |
//! |---|---|---|
//! | [`mod@file`] | source | delivers the texts of a folder of YAML, again whenever they change |
//! | [`dns`] | serving sink | answers for imported names, authoritatively and for nothing else |
//!
//! A folder looks the same everywhere: `mod.rs` says what it watches, writes and needs, `config.rs`
//! holds its limits, `source.rs` or `sink.rs` does the IO, `translate.rs` is pure.

pub mod dns;
pub mod file;
