//! A connection whose frames are counted on their way: between TLS and HTTP/2. *Hardened to
//! untrusted peer.* It decides nothing ([`crate::frames`] does) and changes no byte.
//!
//! It also keeps TLS's last word, because HTTP/2 makes a broken connection of whatever ends one: in TLS
//! 1.3 the peer's refusal of our certificate comes only here.
//!
//! Invariants: once a budget is overdrawn nothing more is read, so HTTP/2 ends the connection. A refusal
//! that the kernel has is known before HTTP/2 hears of the end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hamlet_identity::CertificateRefused;
use hamlet_runtime::Clock;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::frames::{FrameFlood, FrameLimits, FrameMeter, Side};

/// Most reads for the peer's last word on a connection that can't be written to any more.
const LAST_READS: usize = 64;
/// One of these reads, in bytes.
const LAST_READ: usize = 1024;
/// How long that last word may take to be there to be read.
const LAST_WORD_WAIT: Duration = Duration::from_secs(1);
/// How long a call may take to hear that its connection is gone.
const CALL_ENDS: Duration = Duration::from_secs(1);

/// The meter of a connection, for those who want to know why it ended.
#[derive(Debug, Clone)]
pub(crate) struct Gauge {
    meter: Arc<Mutex<FrameMeter>>,
    refused: Arc<OnceLock<CertificateRefused>>,
    /// The peer has refused us, or the connection is gone.
    over: CancellationToken,
}

impl Gauge {
    /// The budget that was overdrawn, if one was.
    pub(crate) fn flood(&self) -> Option<FrameFlood> {
        self.meter.lock().flood()
    }

    /// That the peer's TLS has refused our certificate, if it has said so.
    pub(crate) fn refused(&self) -> Option<CertificateRefused> {
        self.refused.get().copied()
    }

    /// Runs `work` to its end, or until the peer is known to have refused us, or, a moment after the
    /// connection is gone: HTTP/2 can leave a call waiting that it took while its connection ended.
    pub(crate) async fn while_connected<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let over = async {
            self.over.cancelled().await;
            if self.refused().is_none() {
                tokio::time::sleep(CALL_ENDS).await;
            }
        };
        futures::pin_mut!(work, over);
        match futures::future::select(work, over).await {
            futures::future::Either::Left((done, _)) => Some(done),
            futures::future::Either::Right(_) => None,
        }
    }
}

/// A stream of bytes with HTTP/2 in it.
pub(crate) struct Metered<S> {
    io: S,
    meter: Arc<Mutex<FrameMeter>>,
    refused: Arc<OnceLock<CertificateRefused>>,
    over: CancellationToken,
    /// We dialled, and the peer has said nothing yet: it may still refuse us.
    unheard: bool,
    /// Writing has failed; nothing is written any more.
    failed: Option<Box<Failed>>,
    clock: Arc<dyn Clock>,
}

impl<S> Drop for Metered<S> {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// A write that failed, while the peer is heard out.
struct Failed {
    error: io::Error,
    reads: usize,
    patience: Pin<Box<Sleep>>,
}

impl<S> Metered<S> {
    /// Counts what goes through `io`, which has carried no HTTP/2 yet.
    pub(crate) fn new(io: S, limits: FrameLimits, side: Side, clock: Arc<dyn Clock>) -> (Metered<S>, Gauge) {
        let meter = Arc::new(Mutex::new(FrameMeter::new(limits, side, clock.now())));
        let refused = Arc::default();
        let over = CancellationToken::new();
        let gauge = Gauge { meter: meter.clone(), refused: Arc::clone(&refused), over: over.clone() };
        let unheard = side == Side::Dialled;
        (Metered { io, meter, refused, over, unheard, failed: None, clock }, gauge)
    }

    /// Keeps what the peer's TLS says of us with this error, if it does.
    fn note(&self, error: &io::Error) {
        if let Some(refused) = CertificateRefused::found_in(error) {
            let _ = self.refused.set(refused);
            self.over.cancel();
        }
    }

    /// Counts what was written: the first `accepted` bytes of `parts`.
    fn wrote<'a>(&self, parts: impl Iterator<Item = &'a [u8]>, mut accepted: usize) -> io::Result<usize> {
        let written = accepted;
        let now = self.clock.now();
        let mut meter = self.meter.lock();
        for part in parts {
            let part = &part[..part.len().min(accepted)];
            accepted -= part.len();
            meter.outbound(part, now).map_err(flooded)?;
            if accepted == 0 {
                break;
            }
        }
        Ok(written)
    }
}

impl<S: AsyncRead + Unpin> Metered<S> {
    /// The outcome of a write. HTTP/2 ends the connection with one that failed and reads no more, but the
    /// kernel keeps what the peer said before it closed: from a peer that we dialled, and that has said
    /// nothing yet, that is waited for and looked at first.
    fn written<T>(&mut self, outcome: io::Result<T>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match outcome {
            Err(error) if self.unheard => {
                let patience = Box::pin(tokio::time::sleep(LAST_WORD_WAIT));
                self.failed = Some(Box::new(Failed { error, reads: 0, patience }));
                self.poll_failed(cx).map(Err)
            }
            outcome => Poll::Ready(outcome),
        }
    }

    /// The error of a write that failed, once the peer was heard out. Whatever comes but its last word is
    /// thrown away: the connection is lost.
    fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(mut failed) = self.failed.take() else {
            return Poll::Ready(io::ErrorKind::BrokenPipe.into());
        };
        let mut scratch = [0; LAST_READ];
        'reading: while failed.reads < LAST_READS {
            failed.reads += 1;
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(Ok(())) => break 'reading,
                Poll::Ready(Err(error)) => {
                    self.note(&error);
                    break 'reading;
                }
                Poll::Pending if failed.patience.as_mut().poll(cx).is_pending() => {
                    self.failed = Some(failed);
                    return Poll::Pending;
                }
                Poll::Pending => break 'reading,
            }
        }
        self.unheard = false;
        Poll::Ready(failed.error)
    }
}

fn flooded(flood: FrameFlood) -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, flood)
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf)).inspect_err(|error| self.note(error))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        self.unheard &= read.is_empty();
        let counted = self.meter.lock().inbound(read, self.clock.now());
        Poll::Ready(counted.map_err(flooded))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return self.poll_failed(cx).map(Err);
        }
        let outcome = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        let accepted = ready!(self.written(outcome, cx))?;
        Poll::Ready(self.wrote(std::iter::once(buf), accepted))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return self.poll_failed(cx).map(Err);
        }
        let outcome = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        let accepted = ready!(self.written(outcome, cx))?;
        Poll::Ready(self.wrote(bufs.iter().map(|b| &**b), accepted))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return self.poll_failed(cx).map(Err);
        }
        let outcome = ready!(Pin::new(&mut self.io).poll_flush(cx));
        self.written(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use hamlet_runtime::ManualClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::{self, AlertDescription};

    use super::*;

    /// A connection whose writes fail with the first error of these, and whose reads give `bytes` and
    /// then the second.
    struct Broken {
        write: Option<io::ErrorKind>,
        bytes: Vec<u8>,
        read: Option<io::Error>,
    }

    impl AsyncRead for Broken {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.bytes.is_empty() {
                return self.read.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
            }
            let most = self.bytes.len().min(buf.remaining());
            let part: Vec<u8> = self.bytes.drain(..most).collect();
            buf.put_slice(&part);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(self.write.map_or(Ok(buf.len()), |kind| Err(kind.into())))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(self.write.map_or(Ok(()), |kind| Err(kind.into())))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn alert(alert: AlertDescription) -> Option<io::Error> {
        Some(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert)))
    }

    fn metered(io: Broken) -> (Metered<Broken>, Gauge) {
        Metered::new(io, FrameLimits::default(), Side::Dialled, ManualClock::at(Duration::ZERO))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_soon_after_its_connection_whatever_http_2_does_with_it() {
        let clock = hamlet_runtime::SystemClock::shared();
        let (io, _other) = tokio::io::duplex(64);
        let (metered, gauge) = Metered::new(io, FrameLimits::default(), Side::Dialled, clock);
        assert_eq!(gauge.while_connected(std::future::ready(7)).await, Some(7));
        let waiting = gauge.while_connected(std::future::pending::<()>());
        futures::pin_mut!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(metered);
        let before = tokio::time::Instant::now();
        assert_eq!(waiting.await, None);
        assert_eq!(before.elapsed(), CALL_ENDS);
        // What is done anyway counts.
        assert_eq!(gauge.while_connected(std::future::ready(7)).await, Some(7));
    }

    #[tokio::test]
    async fn a_refusal_is_known_once_it_was_read_and_another_alert_is_none() {
        let cases = [
            (AlertDescription::CertificateUnknown, true),
            (AlertDescription::InternalError, false),
            (AlertDescription::CloseNotify, false),
        ];
        for (said, refuses) in cases {
            let (mut io, gauge) = metered(Broken { write: None, bytes: vec![0; 9], read: alert(said) });
            assert_eq!(io.read(&mut [0; 9]).await.unwrap(), 9);
            assert_eq!(gauge.refused(), None);
            assert!(io.read(&mut [0; 9]).await.is_err(), "the error stays what it is");
            assert_eq!(gauge.refused(), CertificateRefused::by(said));
            assert_eq!(gauge.refused().is_some(), refuses, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_closed_is_heard_out_when_a_write_fails_first() {
        let refused = CertificateRefused::by(AlertDescription::AccessDenied);
        let broken = |bytes: usize, read| Broken {
            write: Some(io::ErrorKind::ConnectionReset),
            bytes: vec![0; bytes],
            read,
        };
        for flush in [false, true] {
            let (mut io, gauge) = metered(broken(5_000, alert(AlertDescription::AccessDenied)));
            let failed = if flush { io.flush().await } else { io.write_all(b"PRI").await };
            assert_eq!(
                failed.unwrap_err().kind(),
                io::ErrorKind::ConnectionReset,
                "the error stays what it is"
            );
            assert_eq!(gauge.refused(), refused);
        }
        // Nothing comes: it is waited for, not for ever.
        let began = tokio::time::Instant::now();
        let (mut io, gauge) = metered(broken(0, None));
        assert!(io.write_all(b"PRI").await.is_err() && gauge.refused().is_none());
        assert_eq!(began.elapsed(), LAST_WORD_WAIT);
        assert!(io.write_all(b"PRI").await.is_err(), "it stays broken");
        assert_eq!(began.elapsed(), LAST_WORD_WAIT, "and is heard out once");
        // More comes than is worth reading.
        let endless = LAST_READS * LAST_READ;
        let (mut io, gauge) = metered(broken(endless, alert(AlertDescription::AccessDenied)));
        assert!(io.write_all(b"PRI").await.is_err() && gauge.refused().is_none());
        assert!(io.io.bytes.is_empty() && io.io.read.is_some(), "read up to the bound");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_who_has_spoken_or_who_dialled_us() {
        for side in [Side::Dialled, Side::Accepted] {
            let broken = Broken { write: Some(io::ErrorKind::BrokenPipe), bytes: vec![0; 9], read: None };
            let clock = ManualClock::at(Duration::ZERO);
            let (mut io, _gauge) = Metered::new(broken, FrameLimits::default(), side, clock);
            let began = tokio::time::Instant::now();
            if side == Side::Dialled {
                io.read_exact(&mut [0; 9]).await.unwrap();
            }
            assert!(io.write_all(b"PRI").await.is_err());
            assert_eq!(began.elapsed(), Duration::ZERO);
        }
    }
}
