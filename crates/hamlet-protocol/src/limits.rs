//! What one peer, one connection and one network may have of the agent's port. Values only; who
//! keeps to them is [`crate::server`], [`crate::dial`] and [`crate::frames`].

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_identity::SILENT_PER_PREFIX;

use crate::frames::FrameLimits;
use crate::link::CONNECTIONS_MAX;
use crate::server::STREAMS_A_MINUTE;

/// The bounds that an operator may change (threats T14, T15); the defaults are constants with a
/// name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections that one peer may have open to us.
    pub connections_per_peer: usize,
    /// Most streams that one connection may open in a minute.
    pub streams_a_minute: u32,
    /// HTTP/2 frames that carry nothing, on accepted and on dialled connections.
    pub frames: FrameLimits,
    /// Most sockets without a whole ClientHello from one /24 or /56; `None` behind a load balancer,
    /// where all share an address.
    pub silent_per_prefix: Option<usize>,
    /// How long a stream that we dialled to another Hamlet agent lives before it is renewed.
    pub stream_life: Duration,
}

/// Default of [`ConnectionLimits::stream_life`] (threat T20).
pub const STREAM_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            connections_per_peer: CONNECTIONS_MAX,
            streams_a_minute: STREAMS_A_MINUTE,
            frames: FrameLimits::default(),
            silent_per_prefix: Some(SILENT_PER_PREFIX),
            stream_life: STREAM_LIFE,
        }
    }
}

/// The limits in force; swapped when the configuration changes, for connections that come then.
pub type SharedLimits = Arc<ArcSwap<ConnectionLimits>>;
