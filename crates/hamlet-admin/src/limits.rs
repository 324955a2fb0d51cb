//! Every limit of the admin API, by name. None of them is reachable by a peer: whoever connects
//! is an operator of this machine, or a scraper of the health listener.

use std::time::Duration;

/// Most connections to the unix socket at once; a further one waits to be accepted.
pub const SOCKET_CONNECTIONS: usize = 64;
/// Most connections to the health listener at once.
pub const HEALTH_CONNECTIONS: usize = 64;
/// Largest head (request line and headers) of a request, in bytes.
pub const HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take to send a request's head; also ends idle connections.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time a watch is silent: then an empty line says that the agent lives.
pub const WATCH_BEAT: Duration = Duration::from_secs(10);
/// Shortest time between two lists of one watch; changes in between are seen as one.
pub const WATCH_GAP: Duration = Duration::from_millis(200);
/// How long finished requests may take to be written once shutdown has begun.
pub const DRAIN: Duration = Duration::from_secs(2);
/// Largest answer that a client reads, in bytes: a list of 100,000 services fits.
pub const ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Largest body of a request, in bytes: a token and some names.
pub const BODY_BYTES: usize = 64 * 1024;
/// Longest path of a unix socket on Linux, in bytes (`sun_path` less its NUL and our suffix).
pub const SOCKET_PATH_BYTES: usize = 106;
/// Longest name of a resource in a request, in bytes, before percent-decoding.
pub const NAME_BYTES: usize = 2048;
