//! The limits of the DNS listener and its defaults. Constants only: what an operator sets (address,
//! time to live) arrives as an argument, already checked.

use std::time::Duration;

/// How long others may cache an address, in seconds, unless the operator says otherwise. Short,
/// because imports come and go with their peers.
pub const DEFAULT_TTL: u32 = 5;
/// How long others may cache that something does not exist, in seconds (RFC 2308, 4). Short,
/// because an import can appear at any moment.
pub const NEGATIVE_TTL: u32 = 5;
/// Most A or AAAA records of one answer; of more, each question gets other ones (threat T23).
pub const ADDRESSES_MAX: usize = 8;
/// Most SRV records of one answer. 64 of the longest fit one TCP message.
pub const SERVICES_MAX: usize = 64;

/// Longest request that is read, in bytes. A question has at most 271; the rest is for EDNS options.
pub const REQUEST_MAX: usize = 4096;
/// Most records beside the question in a request's authority section (IXFR has one).
pub const REQUEST_AUTHORITIES_MAX: u16 = 1;
/// Most records in a request's additional section (OPT, and a signature that we ignore).
pub const REQUEST_ADDITIONALS_MAX: u16 = 2;

/// Longest UDP reply to a client that speaks no EDNS, in bytes (RFC 1035, 4.2.1).
pub const UDP_PLAIN_MAX: usize = 512;
/// Longest UDP reply at all, in bytes: what passes everywhere without fragments (DNS flag day 2020).
pub const UDP_REPLY_MAX: usize = 1232;
/// A UDP reply is at most this many times as long as its request, so that we are useless to those
/// who forge senders (threat T23).
pub const AMPLIFICATION_MAX: usize = 3;
/// Longest TCP reply, in bytes: the length field has 16 bits.
pub const TCP_REPLY_MAX: usize = u16::MAX as usize;

/// How many tasks receive UDP questions.
pub const UDP_TASKS: usize = 2;
/// Most TCP connections at a time; one more closes the oldest.
pub const TCP_CONNECTIONS_MAX: usize = 256;
/// How long a TCP connection may stay without a question (RFC 7766, 6.2.3).
pub const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long a question may take to arrive once its first byte has.
pub const TCP_READ: Duration = Duration::from_secs(5);
/// How long a client may take to accept a reply.
pub const TCP_WRITE: Duration = Duration::from_secs(5);

/// How many ports are tried when any will do and UDP's is taken on TCP.
pub const PORT_ATTEMPTS: usize = 16;
