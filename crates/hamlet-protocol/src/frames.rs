//! Counts HTTP/2 frames of one connection and says when the peer sends more than its share of
//! those that cost us work and carry nothing (threat T14, decision 25). *Hardened to untrusted
//! peer.* Bytes in, verdict out: no IO, no clock. Not a parser of HTTP/2: it looks at the nine
//! bytes of each frame's header (RFC 9113, 4.1) and skips the rest; what is wrong in a frame is
//! the library's to refuse.
//!
//! Each kind has a budget: a burst, a few a second, and what we ourselves give cause for. A peer
//! that gets much DATA from us sends many WINDOW_UPDATEs, and Go probes the bandwidth with about
//! one PING a round trip. So an honest peer at any speed stays far below, and a flood costs us no
//! more than what we sent anyway.
//!
//! Invariant: the state is of one size, whatever comes, and the verdict doesn't depend on how the
//! bytes were cut.

use std::fmt;
use std::time::Duration;

/// How many frames of each kind a peer may send at once beyond what we gave cause for.
pub const FRAMES_BURST: u32 = 1_024;
/// How many more of each kind a second.
pub const FRAMES_A_SECOND: u32 = 4;
/// Most frames of one kind that what we send may save up for: what was earned and not used in time
/// is no licence for a flood.
pub const FRAMES_SAVED_MAX: u32 = 65_536;
/// A DATA frame of fewer bytes carries nothing: a gRPC message has five before its first.
pub const THIN_DATA_BYTES: u32 = 5;
/// DATA with padding counts as empty up to this length: padding may be all of it.
const PADDED_THIN_BYTES: u32 = 257;
/// DATA of ours with fewer bytes earns nothing: a window of single bytes would pay for itself.
const EARNING_BYTES: u32 = 8;
/// The connection preface (RFC 9113, 3.4), in bytes.
const PREFACE_BYTES: u32 = 24;
/// A frame's header, in bytes.
const HEADER_BYTES: usize = 9;

/// Budgets are counted in these parts of a frame.
const WHOLE: u64 = 1_000_000_000;

const FLAG_ACK_OR_END_STREAM: u8 = 0x1;
const FLAG_PADDED: u8 = 0x8;

/// Kinds of frames that have a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// PING, questions and answers.
    Ping,
    /// SETTINGS, and their acknowledgement.
    Settings,
    /// RST_STREAM from the peer: rapid reset.
    Reset,
    /// RST_STREAM that the peer made us send: "MadeYouReset".
    Provoked,
    /// PRIORITY, which nobody needs any more.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// DATA with next to nothing in it that ends no stream.
    ThinData,
    /// HEADERS: streams that open, answers, trailers.
    Headers,
    /// CONTINUATION.
    Continuation,
    /// All else: GOAWAY, PUSH_PROMISE, extensions, grease.
    Other,
}

impl FrameKind {
    /// All of them, in the order of their counters.
    pub const ALL: [FrameKind; 10] = [
        FrameKind::Ping,
        FrameKind::Settings,
        FrameKind::Reset,
        FrameKind::Provoked,
        FrameKind::Priority,
        FrameKind::WindowUpdate,
        FrameKind::ThinData,
        FrameKind::Headers,
        FrameKind::Continuation,
        FrameKind::Other,
    ];

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            FrameKind::Ping => "PING",
            FrameKind::Settings => "SETTINGS",
            FrameKind::Reset => "RST_STREAM",
            FrameKind::Provoked => "provoked RST_STREAM",
            FrameKind::Priority => "PRIORITY",
            FrameKind::WindowUpdate => "WINDOW_UPDATE",
            FrameKind::ThinData => "empty DATA",
            FrameKind::Headers => "HEADERS",
            FrameKind::Continuation => "CONTINUATION",
            FrameKind::Other => "other",
        }
    }

    /// The kind of a frame that the peer sent; `None` for DATA that carries something.
    fn of(head: &Head) -> Option<FrameKind> {
        Some(match head.kind {
            0x0 if head.is_thin() => FrameKind::ThinData,
            0x0 => return None,
            0x1 => FrameKind::Headers,
            0x2 => FrameKind::Priority,
            0x3 => FrameKind::Reset,
            0x4 => FrameKind::Settings,
            0x6 => FrameKind::Ping,
            0x8 => FrameKind::WindowUpdate,
            0x9 => FrameKind::Continuation,
            _ => FrameKind::Other,
        })
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much of each kind a connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// At once.
    pub burst: u32,
    /// A second, in the long run.
    pub a_second: u32,
}

impl Default for FrameLimits {
    fn default() -> FrameLimits {
        FrameLimits { burst: FRAMES_BURST, a_second: FRAMES_A_SECOND }
    }
}

/// More frames of one kind than a connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "too many {kind} frames ({seen} on this connection); if the peer is honest, raise spec.limits.controlFrames"
)]
pub struct FrameFlood {
    /// Of which kind.
    pub kind: FrameKind,
    /// How many came so far.
    pub seen: u64,
}

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer dialled, so its bytes begin with the preface.
    Accepted,
    /// We dialled, so ours do.
    Dialled,
}

/// A frame's header, as far as it matters.
#[derive(Debug, Clone, Copy)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Head {
    fn read(bytes: &[u8; HEADER_BYTES]) -> Head {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        Head { length, kind: bytes[3], flags: bytes[4] }
    }

    fn is_thin(&self) -> bool {
        let least = if self.flags & FLAG_PADDED == 0 { THIN_DATA_BYTES } else { PADDED_THIN_BYTES };
        self.length < least && self.flags & FLAG_ACK_OR_END_STREAM == 0
    }
}

/// Finds the frame headers in one direction of a connection.
#[derive(Debug)]
struct Scanner {
    head: [u8; HEADER_BYTES],
    have: usize,
    /// Bytes before the next header.
    skip: u32,
}

impl Scanner {
    fn new(skip: u32) -> Scanner {
        Scanner { head: [0; HEADER_BYTES], have: 0, skip }
    }

    /// The next header in `bytes`, which moves on.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let skipped = bytes.len().min(self.skip as usize);
        self.skip -= skipped as u32;
        let taken = (bytes.len() - skipped).min(HEADER_BYTES - self.have);
        let (now, rest) = bytes[skipped..].split_at(taken);
        self.head[self.have..self.have + taken].copy_from_slice(now);
        self.have += taken;
        *bytes = rest;
        if self.have < HEADER_BYTES {
            return None;
        }
        let head = Head::read(&self.head);
        self.have = 0;
        self.skip = head.length;
        Some(head)
    }
}

/// The budgets of one connection.
#[derive(Debug)]
pub struct FrameMeter {
    limits: FrameLimits,
    theirs: Scanner,
    ours: Scanner,
    left: [u64; FrameKind::ALL.len()],
    seen: [u64; FrameKind::ALL.len()],
    refilled: Duration,
    flood: Option<FrameFlood>,
}

impl FrameMeter {
    /// The meter of a connection that begins at the running time `now`.
    pub fn new(limits: FrameLimits, side: Side, now: Duration) -> FrameMeter {
        let preface = |first| if first { PREFACE_BYTES } else { 0 };
        FrameMeter {
            limits,
            theirs: Scanner::new(preface(side == Side::Accepted)),
            ours: Scanner::new(preface(side == Side::Dialled)),
            left: [u64::from(limits.burst) * WHOLE; FrameKind::ALL.len()],
            seen: [0; FrameKind::ALL.len()],
            refilled: now,
            flood: None,
        }
    }

    /// Takes bytes that came. An error stays: the connection is to be closed.
    pub fn inbound(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), FrameFlood> {
        self.refill(now);
        while let Some(head) = self.theirs.next(&mut bytes) {
            if let Some(kind) = FrameKind::of(&head) {
                self.spend(kind);
            }
        }
        self.flood.map_or(Ok(()), Err)
    }

    /// Takes bytes that were written. What we send is the cause of some of what comes back.
    pub fn outbound(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), FrameFlood> {
        while let Some(head) = self.ours.next(&mut bytes) {
            match head.kind {
                0x0 if head.length >= EARNING_BYTES => {
                    self.earn(FrameKind::Ping, WHOLE);
                    // For the stream and for the connection, twice.
                    self.earn(FrameKind::WindowUpdate, 4 * WHOLE);
                    // Some follow the bandwidth that they measure with their window.
                    self.earn(FrameKind::Settings, WHOLE / 16);
                }
                0x1 => {
                    self.earn(FrameKind::Headers, 2 * WHOLE);
                    self.earn(FrameKind::WindowUpdate, 2 * WHOLE);
                }
                0x3 => {
                    self.refill(now);
                    self.spend(FrameKind::Provoked);
                }
                0x4 => self.earn(FrameKind::Settings, WHOLE),
                0x6 => self.earn(FrameKind::Ping, WHOLE),
                _ => {}
            }
        }
        self.flood.map_or(Ok(()), Err)
    }

    /// How many frames of a kind there were.
    pub fn seen(&self, kind: FrameKind) -> u64 {
        self.seen[kind as usize]
    }

    /// How many more of a kind may come at once.
    pub fn left(&self, kind: FrameKind) -> u64 {
        self.left[kind as usize] / WHOLE
    }

    /// The first budget that was overdrawn.
    pub fn flood(&self) -> Option<FrameFlood> {
        self.flood
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.refilled).as_nanos().min(u128::from(u64::MAX)) as u64;
        self.refilled = self.refilled.max(now);
        // A whole frame has as many parts as a second has nanoseconds.
        let gained = passed.saturating_mul(u64::from(self.limits.a_second));
        let full = u64::from(self.limits.burst) * WHOLE;
        for left in &mut self.left {
            // Time fills up to the burst; what was earned above it stays.
            *left = (*left).max(left.saturating_add(gained).min(full));
        }
    }

    fn earn(&mut self, kind: FrameKind, parts: u64) {
        let most = u64::from(FRAMES_SAVED_MAX.max(self.limits.burst)) * WHOLE;
        let left = &mut self.left[kind as usize];
        *left = left.saturating_add(parts).min(most);
    }

    fn spend(&mut self, kind: FrameKind) {
        self.seen[kind as usize] += 1;
        let left = &mut self.left[kind as usize];
        match left.checked_sub(WHOLE) {
            Some(rest) => *left = rest,
            None => {
                let seen = self.seen[kind as usize];
                self.flood.get_or_insert(FrameFlood { kind, seen });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Duration = Duration::ZERO;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEADER_BYTES + length, 0);
        bytes
    }

    fn meter() -> FrameMeter {
        let mut meter = FrameMeter::new(FrameLimits::default(), Side::Accepted, T0);
        meter.inbound(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", T0).unwrap();
        meter
    }

    /// The number of frames after which the connection is closed.
    fn survives(meter: &mut FrameMeter, frame: &[u8], now: Duration) -> Option<u32> {
        (0..2 * FRAMES_SAVED_MAX).find(|_| meter.inbound(frame, now).is_err())
    }

    #[test]
    fn every_kind_of_flood_is_closed_at_its_budget_and_as_much_less_one_is_not() {
        let cases: [(FrameKind, Vec<u8>); 10] = [
            (FrameKind::Ping, frame(6, 0, 8)),
            (FrameKind::Ping, frame(6, 1, 8)),
            (FrameKind::Settings, frame(4, 0, 6)),
            (FrameKind::Reset, frame(3, 0, 4)),
            (FrameKind::Priority, frame(2, 0, 5)),
            (FrameKind::WindowUpdate, frame(8, 0, 4)),
            (FrameKind::ThinData, frame(0, 0, 0)),
            (FrameKind::Headers, frame(1, 4, 30)),
            (FrameKind::Continuation, frame(9, 0, 0)),
            (FrameKind::Other, frame(0xbb, 0, 100)),
        ];
        for (kind, frame) in cases {
            let mut meter = meter();
            assert_eq!(survives(&mut meter, &frame, T0), Some(FRAMES_BURST), "{kind}");
            assert_eq!(meter.flood().map(|f| (f.kind, f.seen)), Some((kind, u64::from(FRAMES_BURST) + 1)));
            // It stays so, whatever else comes.
            assert!(meter.inbound(&[], Duration::from_secs(3600)).is_err());
        }
    }

    #[test]
    fn data_that_carries_something_or_ends_a_stream_is_free_and_padding_alone_is_not() {
        let cases = [
            ("a small message", frame(0, 0, 5), None),
            ("the end of a stream", frame(0, 1, 0), None),
            ("padded, with something in it", frame(0, 8, 300), None),
            ("one byte", frame(0, 0, 1), Some(FRAMES_BURST)),
            ("padding alone", frame(0, 8, 256), Some(FRAMES_BURST)),
        ];
        for (what, frame, wanted) in cases {
            let mut meter = meter();
            let survived = (0..10_000).find(|_| meter.inbound(&frame, T0).is_err());
            assert_eq!(survived, wanted, "{what}");
        }
    }

    #[test]
    fn what_we_send_is_a_cause_for_window_updates_and_pings() {
        let mut meter = meter();
        let (data, update, ping) = (frame(0, 0, 450), frame(8, 0, 4), frame(6, 0, 8));
        // A peer that answers each of our messages with four updates and a probe, for long.
        for _ in 0..100_000 {
            meter.outbound(&data, T0).unwrap();
            for _ in 0..4 {
                meter.inbound(&update, T0).unwrap();
            }
            meter.inbound(&ping, T0).unwrap();
        }
        assert_eq!(meter.left(FrameKind::Ping), u64::from(FRAMES_BURST));
        // One more of them each time, or a window of single bytes, is a flood.
        let dribble = frame(0, 0, 1);
        let survived = (0..10_000).find(|_| {
            meter.outbound(&dribble, T0).unwrap();
            meter.inbound(&update, T0).is_err()
        });
        assert_eq!(survived, Some(FRAMES_BURST));
    }

    #[test]
    fn what_was_earned_and_not_used_is_no_licence_for_a_flood() {
        let mut meter = meter();
        for _ in 0..1_000_000 {
            meter.outbound(&frame(0, 0, 450), T0).unwrap();
        }
        assert_eq!(survives(&mut meter, &frame(6, 0, 8), T0), Some(FRAMES_SAVED_MAX));
    }

    #[test]
    fn time_gives_back_a_few_a_second_up_to_the_burst() {
        let mut meter = meter();
        let ping = frame(6, 0, 8);
        // A keepalive every 300 ms, for a day.
        for i in 0..288_000 {
            meter.inbound(&ping, Duration::from_millis(300 * i)).unwrap();
        }
        let day = Duration::from_secs(86_400);
        assert_eq!(survives(&mut meter, &ping, day), Some(FRAMES_BURST));
        // Looked at every nanosecond, nothing is lost in rounding.
        let mut meter = self::meter();
        for _ in 0..FRAMES_BURST {
            meter.inbound(&ping, T0).unwrap();
        }
        for t in (0..1_000_000_000u64).step_by(1_000) {
            meter.inbound(&[], Duration::from_nanos(t)).unwrap();
        }
        assert_eq!(meter.left(FrameKind::Ping), u64::from(FRAMES_A_SECOND) - 1);
        meter.inbound(&[], Duration::from_secs(1)).unwrap();
        assert_eq!(meter.left(FrameKind::Ping), u64::from(FRAMES_A_SECOND));
    }

    #[test]
    fn resets_that_the_peer_makes_us_send_are_its_own() {
        let mut meter = meter();
        let reset = frame(3, 0, 4);
        let survived = (0..10_000).find(|_| meter.outbound(&reset, T0).is_err());
        assert_eq!(survived, Some(FRAMES_BURST));
        assert_eq!(meter.flood().map(|f| f.kind), Some(FrameKind::Provoked));
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_are_cut(
            frames in proptest::collection::vec((0u8..12, any::<u8>(), 0usize..40), 0..400),
            cuts in proptest::collection::vec(1usize..50, 1..50),
        ) {
            let whole: Vec<u8> = frames.iter().flat_map(|(k, f, l)| frame(*k, *f, *l)).collect();
            let (mut at_once, mut in_parts) = (meter(), meter());
            let verdict = at_once.inbound(&whole, T0);
            let mut rest = whole.as_slice();
            let mut last = Ok(());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                last = in_parts.inbound(now, T0);
                rest = later;
            }
            prop_assert_eq!(verdict, last);
            prop_assert_eq!(at_once.seen, in_parts.seen);
            prop_assert_eq!(at_once.left, in_parts.left);
        }
    }
}
