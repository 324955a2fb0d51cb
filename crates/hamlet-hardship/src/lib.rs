//! Hardship: Hamlet's own protocol, store and policies in a simulated world where links, disks,
//! clocks and processes fail, judged by a model after every step.
//!
//! Same seed, same story: one thread, a paused clock, every choice from the seed. What is real
//! here: sessions, stream loop, codec, committer, links, views, policies and store. What isn't:
//! TCP, TLS, HTTP/2, and the Go peer, which is a model of it. Development only: it switches in the
//! seeded bugs by which it shows that it can fail.

mod campaign;
mod clock;
mod disk;
mod draw;
mod executor;
mod foreign;
mod hostile;
mod model;
mod outage;
mod pipe;
mod run;
mod script;
mod services;
mod store;
mod tally;
mod truth;
mod wire;
mod world;

pub use campaign::{Campaign, MutantReport, Report};
pub use model::Violation;
pub use run::{Outcome, run_seed};
pub use tally::Tally;
