//! The life of a dialled connection: renewed before its certificates or its time end, the next one
//! up before the old one goes.
//!
//! It decides when, and dials; streams stay the link's. Invariants: no stream outlives the
//! certificates that were shown for it; a connection that isn't proven to work replaces nothing. How
//! long certificates last is read from the wall clock once, at the handshake; from then on running
//! time counts, so that a clock that steps ends nothing (threat T22).

use std::time::Duration;

use hamlet_core::causes::with_causes;
use hamlet_runtime::{Backoff, Clock, Shutdown};
use http::header::CONTENT_TYPE;
use hyper::client::conn::http2::SendRequest;
use tonic::Code;
use tonic::body::Body;

use super::{Connected, DialError, Dialler};
use crate::kind::LinkJudge;
use crate::session::{PeerClass, StreamEnd};
use crate::transport;

/// Longest time between two looks at whether a connection is to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First delay after a renewal that failed; full jitter.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Longest delay after renewals that failed.
const AGAIN_CAP: Duration = Duration::from_secs(60);
/// One in so many parts of a connection's time is kept for renewing it.
const KEPT_FOR_RENEWAL: u32 = 5;
/// One in so many parts of what is left passes before certificates that had no successor are asked
/// for again: files may be replaced late in a long life.
const NO_LATER_WAIT: u32 = 20;
/// Nobody serves it: any answer shows that the peer took our certificate and speaks HTTP/2.
const KNOCK: &str = "/hamlet.federation.v1.Renewal/Knock";

/// How long a connection may live, in running time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    began: Duration,
    /// When the first certificate that was shown ends.
    ends: Duration,
    /// When its certificates make a new connection due.
    due: Duration,
}

impl Life {
    /// Of a connection whose certificates, ours and the peer's, end at these times since the epoch.
    pub(crate) fn new(clock: &dyn Clock, ours: Duration, theirs: Duration) -> Life {
        let (began, left) = (clock.now(), ours.min(theirs).saturating_sub(clock.wall()));
        // Not all peers in the same instant.
        let kept = left / KEPT_FOR_RENEWAL;
        let spread = Backoff::new(kept, kept).next_delay();
        let ends = began.saturating_add(left);
        Life { began, ends, due: ends.saturating_sub(spread) }
    }

    /// How long it has from `now` until its certificates end.
    pub(crate) fn left(&self, now: Duration) -> Duration {
        self.ends.saturating_sub(now)
    }

    /// When it is to be renewed, if streams of its kind live at most `most`.
    fn due(&self, most: Option<Duration>) -> Duration {
        let by_age = most.map_or(Duration::MAX, |most| self.began.saturating_add(most));
        self.due.min(by_age)
    }
}

/// Why a connection is left.
pub(super) enum Renewal {
    /// This one works and takes its place.
    Ready(Box<Connected>),
    /// No other was to be had before its certificates ended.
    Ended,
}

/// What an attempt ends with: why, what the peer was, and whether the stream was healthy.
pub(super) type Ended = (StreamEnd, PeerClass, bool);

impl<J: LinkJudge> Dialler<J> {
    /// Streams on one connection after the other, to the end of the last one.
    pub(super) async fn attempt(&self, address: &str, shutdown: &Shutdown) -> Ended {
        let unknown = |end| (end, PeerClass::Unknown, false);
        let connected = match shutdown.or_begun(self.connect(address)).await {
            Some(Ok(connected)) => connected,
            Some(Err(error)) => return unknown(self.link.after_goodbye(error.end())),
            None => return unknown(StreamEnd::new(Code::Unavailable, "the agent is stopping")),
        };
        let mut life = connected.life;
        let mut talking = Box::pin(self.talk(connected, address));
        loop {
            let renewal = tokio::select! {
                ended = &mut talking => return ended,
                renewal = self.renewal(life, address) => renewal,
            };
            let next = match renewal {
                Renewal::Ready(next) => *next,
                Renewal::Ended => {
                    let text = "the certificates of this connection have ended, and no other was to be had";
                    self.link.end_stream(StreamEnd::new(Code::Unavailable, text));
                    return talking.await;
                }
            };
            let next_life = next.life;
            let mut successor = Box::pin(self.talk(next, address));
            // The link ends the old stream when the new one takes its place.
            tokio::select! {
                _ = &mut talking => {
                    tracing::info!(peer = %self.link.peer(), "stream renewed on a new connection");
                    (talking, life) = (successor, next_life);
                }
                ended = &mut successor => {
                    if self.link.active().is_none() {
                        return ended;
                    }
                    tracing::debug!(peer = %self.link.peer(), reason = %ended.0.message, "renewal refused");
                    tokio::time::sleep(Backoff::new(AGAIN_FIRST, AGAIN_FIRST).next_delay()).await;
                }
            }
        }
    }

    /// Waits until the connection is to be renewed, and for one that works.
    async fn renewal(&self, life: Life, address: &str) -> Renewal {
        let clock = self.link.context().clock.clone();
        let mut again = Backoff::new(AGAIN_FIRST, AGAIN_CAP.min(life.left(life.due) / 4).max(AGAIN_FIRST));
        'waiting: loop {
            let now = clock.now();
            if now >= life.ends {
                return Renewal::Ended;
            }
            let due = life.due(self.most());
            if now < due {
                tokio::time::sleep((due - now).min(LOOK_EVERY)).await;
                continue 'waiting;
            }
            match self.proven_connection(address).await {
                // For its age, any that is as good; for its certificates, only one with later ones.
                Ok(next) if next.life.ends > life.ends || now < life.due => {
                    return Renewal::Ready(Box::new(next));
                }
                Ok(_) => {
                    tracing::debug!(peer = %self.link.peer(), "no later certificates for a new connection yet");
                    let left = life.left(clock.now());
                    tokio::time::sleep((left / NO_LATER_WAIT).max(AGAIN_FIRST).min(left)).await;
                    continue 'waiting;
                }
                Err(error) => {
                    tracing::warn!(peer = %self.link.peer(), %error, "renewing the connection failed; tried again");
                }
            }
            tokio::time::sleep(again.next_delay().min(life.left(clock.now()))).await;
        }
    }

    /// How long a stream to this peer may live, if that is limited: streams of others are ended for
    /// their certificates only, because they drop what they imported with each.
    fn most(&self) -> Option<Duration> {
        let hello = self.link.active()?.look(|s| matches!(s.class(), PeerClass::Hello(_)));
        hello.then(|| self.limits.load().stream_life)
    }

    /// A connection on which the peer has answered: in TLS 1.3 a client learns only then that its
    /// certificate was taken.
    async fn proven_connection(&self, address: &str) -> Result<Connected, DialError> {
        let connected = self.connect(address).await?;
        let knocking =
            tokio::time::timeout(transport::HANDSHAKE_DEADLINE, knock(connected.sender.clone(), address));
        match knocking.await {
            Ok(Ok(())) => Ok(connected),
            Ok(Err(why)) => Err(match connected.gauge.refused() {
                Some(refused) => DialError::Refused(address.to_owned(), refused),
                None => DialError::Http(address.to_owned(), why),
            }),
            Err(_) => Err(DialError::Http(address.to_owned(), "no answer within 5 s".to_owned())),
        }
    }
}

async fn knock(mut sender: SendRequest<Body>, address: &str) -> Result<(), String> {
    let uri = http::Uri::builder().scheme("https").authority(address).path_and_query(KNOCK).build();
    let request = http::Request::post(uri.map_err(|e| e.to_string())?)
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(Body::empty())
        .map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| with_causes(&e))?;
    sender.send_request(request).await.map(|_| ()).map_err(|e| with_causes(&e))
}

#[cfg(test)]
mod tests {
    use hamlet_runtime::ManualClock;

    use super::*;

    #[test]
    fn a_connection_is_due_while_a_tenth_of_its_certificates_is_left_whatever_the_clock_does() {
        let (s, wall) = (Duration::from_secs, Duration::from_secs(1_700_000_000));
        for _ in 0..50 {
            let clock = ManualClock::at(wall);
            clock.advance(s(50));
            let now = clock.wall();
            let life = Life::new(&*clock, now + s(1000), now + s(4000));
            clock.set_wall(wall * 2);
            assert_eq!(life.left(clock.now()), s(1000));
            let due = life.due(None) - clock.now();
            assert!((s(800)..=s(900)).contains(&due), "{due:?}");
            assert_eq!(life.due(Some(s(100))) - clock.now(), s(100), "its age comes first");
            clock.advance(s(1001));
            assert_eq!(life.left(clock.now()), Duration::ZERO);
        }
        let clock = ManualClock::at(wall);
        let expired = Life::new(&*clock, wall - s(1), wall + s(10));
        assert_eq!(expired.left(clock.now()), Duration::ZERO);
    }
}
