//! Every bound of the data plane, by name. A limit without a constant here is a mistake
//! (threats T15, T17).

use std::time::Duration;

use hamlet_identity::{SILENT_PER_PREFIX, SILENT_SOCKETS};

/// From accept to the end of the TLS handshake, or one TLS handshake of egress.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// TLS handshakes computed at the same time.
pub const HANDSHAKES: usize = 64;
/// Whole ClientHellos that may wait for a handshake slot; the next one is closed.
pub const HANDSHAKES_WAITING: usize = 256;
/// Live connections of ingress, and as many of egress.
pub const CONNECTIONS: usize = 8192;
/// Listeners of egress; services above are reachable through the shared HTTP listener only.
pub const EGRESS_LISTENERS: usize = 4096;
/// How many endpoints one connection tries.
pub const DIAL_ATTEMPTS: usize = 8;
/// How long one connection tries in all.
pub const DIAL_BUDGET: Duration = Duration::from_secs(20);
/// How long an endpoint that failed is tried last.
pub const FAILED_LAST: Duration = Duration::from_secs(10);
/// Failures and round-robin positions remembered; more are forgotten, which costs only fairness.
pub const REMEMBERED_TARGETS: usize = 4096;
/// How often listeners that could not be bound are tried again.
pub const BIND_RETRY: Duration = Duration::from_secs(30);
/// The pause of an accept loop that ran out of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// An address is not given to another name for this long after its release.
pub const ADDRESS_COOLING: Duration = Duration::from_secs(24 * 3600);
/// Most addresses a pool uses, however large its range.
pub const POOL_SLOTS: u32 = 1 << 22;
/// Largest saved state of a pool that is read back, in bytes.
pub const POOL_BYTES: usize = 256 * 1024 * 1024;
/// Time until a connection's next request has a whole header section; the wait between requests
/// counts. Longer than [`HTTP_IDLE_TIME`], so that our own client side gives up first.
pub const HTTP_NEXT_REQUEST: Duration = Duration::from_secs(120);
/// Most header fields of a request.
pub const HTTP_HEADERS: usize = 128;
/// Largest header section, in bytes.
pub const HTTP_HEADER_BYTES: usize = 64 * 1024;
/// Concurrent HTTP/2 streams of one connection.
pub const HTTP_STREAMS: u32 = 100;
/// Idle upstream connections kept for one route.
pub const HTTP_IDLE: usize = 8;
/// Routes with idle upstream connections; those of further routes are not kept.
pub const HTTP_POOLS: usize = 256;
/// How long an upstream connection is kept without a request.
pub const HTTP_IDLE_TIME: Duration = Duration::from_secs(60);

/// The bounds that an operator may change; the defaults are this module's constants.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From accept to the end of the TLS handshake at ingress.
    pub handshake: Duration,
    /// TLS handshakes computed at the same time; a slot is taken after a whole ClientHello.
    pub handshakes: usize,
    /// Sockets without a whole ClientHello.
    pub silent_sockets: usize,
    /// Of those, how many may come from one /24 or /56. `None` behind a load balancer, where all
    /// share an address.
    pub silent_per_prefix: Option<usize>,
    /// Live connections of ingress.
    pub ingress_connections: usize,
    /// Live connections of egress, the shared HTTP listener included.
    pub egress_connections: usize,
    /// Listeners of egress. Half of the process's limit on open files is a second bound.
    pub egress_listeners: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshake: HANDSHAKE,
            handshakes: HANDSHAKES,
            silent_sockets: SILENT_SOCKETS,
            silent_per_prefix: Some(SILENT_PER_PREFIX),
            ingress_connections: CONNECTIONS,
            egress_connections: CONNECTIONS,
            egress_listeners: EGRESS_LISTENERS,
        }
    }
}
