//! A connection whose frames are counted on their way: between TLS and HTTP/2. *Hardened to
//! untrusted peer.* It decides nothing ([`crate::frames`] does) and changes no byte.
//!
//! Invariant: once a budget is overdrawn nothing more is read, so HTTP/2 ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hamlet_runtime::Clock;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{FrameFlood, FrameLimits, FrameMeter, Side};

/// The meter of a connection, for those who want to know why it ended.
#[derive(Debug, Clone)]
pub(crate) struct Gauge(Arc<Mutex<FrameMeter>>);

impl Gauge {
    /// The budget that was overdrawn, if one was.
    pub(crate) fn flood(&self) -> Option<FrameFlood> {
        self.0.lock().flood()
    }
}

/// A stream of bytes with HTTP/2 in it.
pub(crate) struct Metered<S> {
    io: S,
    meter: Arc<Mutex<FrameMeter>>,
    clock: Arc<dyn Clock>,
}

impl<S> Metered<S> {
    /// Counts what goes through `io`, which has carried no HTTP/2 yet.
    pub(crate) fn new(io: S, limits: FrameLimits, side: Side, clock: Arc<dyn Clock>) -> (Metered<S>, Gauge) {
        let meter = Arc::new(Mutex::new(FrameMeter::new(limits, side, clock.now())));
        (Metered { io, meter: meter.clone(), clock }, Gauge(meter))
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
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().get(before..).unwrap_or_default();
        let counted = self.meter.lock().inbound(read, self.clock.now());
        Poll::Ready(counted.map_err(flooded))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let accepted = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        Poll::Ready(self.wrote(std::iter::once(buf), accepted))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let accepted = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        Poll::Ready(self.wrote(bufs.iter().map(|b| &**b), accepted))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
