//! Lean clients: just enough of gRPC to subscribe, count and acknowledge, so that a swarm of them
//! costs little beside the server that is measured. They check nothing and keep nothing.

mod call;
mod speech;
mod wire;

pub(super) use call::{Call, connect};
pub(super) use speech::{Delivery, Speech, put_request};
