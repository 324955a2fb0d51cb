//! The admin API: what an agent tells about itself, over a unix socket, to its own operators.
//!
//! Types ([`api`]), the server ([`server`]), a typed client ([`client`]) and the metrics text
//! ([`metrics`]). It owns no state: everything it shows comes from a [`StateSource`]. Access
//! control is the permission of the socket's file; on TCP there is nothing but health and metrics.
//!
//! Invariants: the command line and later dashboards can do nothing that this API can't, and a
//! lost peer never makes the agent unready.

pub mod api;
pub mod client;
pub mod limits;
pub mod metrics;
pub mod server;
pub mod source;

pub use client::{Client, ClientError, Watch};
pub use metrics::MetricsText;
pub use server::{AdminSocket, ServeError};
pub use source::{BoxFuture, Caller, StateSource};
