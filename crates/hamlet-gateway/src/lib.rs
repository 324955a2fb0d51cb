//! The data plane: traffic of federated services in and out of this mesh.
//!
//! *Ingress* terminates mTLS on one port and forwards to local backends; *egress* has a local
//! listener for each imported service and carries its bytes over mTLS to the owner's ingress.
//! This crate decides no policy: what is published and what was admitted reaches it as route
//! tables ([`IngressTable`], [`EgressTable`]), who is trusted lives in `hamlet-identity`, whose
//! rustls configurations it uses as they are.
//!
//! Invariants, most of them absences:
//!
//! 1. No byte reaches a backend before the client's certificate proved a peer that the service
//!    is published to; no SNI, an unknown or unparsable one is closed, there is no default route.
//! 2. No connection goes anywhere but to an endpoint of a programmed route, and nothing ever
//!    falls back to plaintext.
//! 3. A change of routes never drops a connection whose route still stands. A withdrawn route
//!    drains; a peer that is no longer proven is cut.
//! 4. Nothing is unbounded: [`limits`] names every bound.
//!
//! Where requests are looked at (the shared HTTP listener, services told their caller by header),
//! WebSocket upgrades pass through over HTTP/1.1; no other upgrade does, and CONNECT is refused.
//!
//! What a certificate that has expired since its handshake means: it is no longer proven at the
//! next change of trust; by itself, time does not cut a connection.

pub mod limits;
pub mod metrics;
pub mod pool;
pub mod routes;

mod bind;
mod dial;
mod egress;
mod egress_http;
mod exchange;
mod gateway;
mod guard;
mod headers;
mod http_server;
mod ingress;
mod ingress_http;
mod pick;
mod proxy_v2;
mod splice;

pub use egress::{EgressState, EgressStatus};
pub use gateway::{Gateway, GatewayConfig, StartError};
pub use limits::Limits;
pub use metrics::{GatewayMetrics, GatewayStats, ListenerKind, Outcome};
pub use pool::{AddressName, AddressPool, PoolError};
pub use routes::{EgressRoute, EgressTable, IngressRoute, IngressTable};
