//! A small authoritative DNS listener: the sink that makes imported names resolve.
//! *Hardened to untrusted peer* (decision 17, threat T23).
//!
//! - **Watches:** an [`arc_swap::ArcSwap`] with the current [`Zone`]; every question is answered from
//!   the zone of that moment.
//! - **Writes:** nothing.
//! - **Needs:** one address and port, UDP and TCP; below port 1024 the right to bind it.
//!
//! It is not a resolver: it never asks anybody and never recurses. It answers for imported names
//! and what lies between them and their suffix; all else is refused, so that forwarding a partner's
//! public domain here does not hide it, unless the suffix is `exclusive`.
//!
//! The whole meaning is in two pure parts: [`Zone`] (which names exist) and [`answer`] (bytes in,
//! bytes out). Around them are a UDP and a TCP loop that only carry bytes.
//!
//! Invariant: over UDP a reply is never longer than three times its request, nor longer than the
//! client said it takes, nor longer than 1232 bytes.

mod answer;
mod ask;
pub mod config;
mod sink;
mod stats;
mod tcp;
mod translate;

pub use answer::{Outcome, Transport, answer};
pub use ask::{AskError, ask};
pub use sink::{BindError, DnsServer};
pub use stats::{DnsCounters, DnsStats, OutcomeCounts};
pub use translate::{OwnedName, ServiceTarget, Zone, ZoneSuffix};
