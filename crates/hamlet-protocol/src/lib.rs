//! The Hamlet wire: dialects, sessions, streams, client and server.
//!
//! The sessions are sans-IO: messages in, messages out, time passed in. One small loop
//! ([`stream`]) does the talking. Protobuf types stop in this crate.

pub mod beat;
pub mod consumer;
pub mod dial;
pub mod dialect;
pub mod frames;
pub mod importer;
pub mod kind;
pub mod limits;
pub mod link;
mod metered;
pub mod owner;
pub mod round;
pub mod sdk;
pub mod server;
pub mod session;
pub mod stream;
pub mod transcript;
pub mod transport;

/// Generated from `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}
