//! Bytes both ways between two streams, with half-close and an idle timeout.
//!
//! Invariant: a side that ends cleanly is ended cleanly on the other; anything else (an error, a
//! truncated TLS stream, the idle timeout, a cut) resets both, so that a cut stream never looks
//! like a whole one.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

const BUFFER: usize = 16 * 1024;

/// How a copy ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Both sides closed cleanly.
    Done,
    /// No byte for the idle timeout.
    Idle,
    /// One side failed.
    Failed(io::Error),
}

/// A stream that can be reset.
pub(crate) trait Reset {
    /// Makes the coming close a reset (RST) where the transport can say so.
    fn reset(&self);
}
impl Reset for TcpStream {
    fn reset(&self) {
        let _ = self.set_zero_linger();
    }
}
impl Reset for server::TlsStream<TcpStream> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}
impl Reset for client::TlsStream<TcpStream> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}
impl<S: Reset> Reset for Counted<S> {
    fn reset(&self) {
        self.stream.reset();
    }
}

/// Bytes seen on one stream, and how to notice that there are none.
#[derive(Default)]
pub(crate) struct Activity {
    read: Counter,
    written: Counter,
    bytes: AtomicU64,
}

impl Activity {
    /// Counts into the two metrics as well.
    pub(crate) fn new(read: Counter, written: Counter) -> Arc<Activity> {
        Arc::new(Activity { read, written, bytes: AtomicU64::new(0) })
    }

    /// Completes after a time without a byte, between `timeout` and one and a half times of it.
    pub(crate) async fn idle(&self, timeout: Duration) {
        let (mut seen, mut quiet) = (self.bytes.load(Ordering::Relaxed), 0);
        while quiet < 3 {
            tokio::time::sleep(timeout / 2).await;
            let bytes = self.bytes.load(Ordering::Relaxed);
            // The first quiet half may have begun with a byte: two more make a whole timeout.
            quiet = if bytes == seen { quiet + 1 } else { 1 };
            seen = bytes;
        }
    }
}

/// A stream whose bytes are counted.
pub(crate) struct Counted<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Counted<S> {
        Counted { stream, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let out = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = (buf.filled().len() - before) as u64;
        if read > 0 {
            self.activity.read.inc_by(read);
            self.activity.bytes.fetch_add(read, Ordering::Relaxed);
        }
        out
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn wrote(&self, out: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = out {
            self.activity.written.inc_by(*written as u64);
            self.activity.bytes.fetch_add(*written as u64, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let out = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&out);
        out
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let out = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&out);
        out
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Resets both streams unless told that they ended well; also when its task is cut.
struct Pair<A: Reset, B: Reset> {
    a: A,
    b: B,
    whole: bool,
}

impl<A: Reset, B: Reset> Drop for Pair<A, B> {
    fn drop(&mut self) {
        if !self.whole {
            self.a.reset();
            self.b.reset();
        }
    }
}

/// Copies both ways until both sides closed, one fails, or no byte moves for `idle`.
pub(crate) async fn splice<A, B>(a: A, b: B, activity: Arc<Activity>, idle: Duration) -> Ended
where
    A: AsyncRead + AsyncWrite + Unpin + Reset,
    B: AsyncRead + AsyncWrite + Unpin + Reset,
{
    let mut pair = Pair { a: Counted::new(a, activity.clone()), b, whole: false };
    let Pair { a, b, whole } = &mut pair;
    let copy = pin!(tokio::io::copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER));
    tokio::select! {
        out = copy => match out {
            Ok(_) => {
                *whole = true;
                Ended::Done
            }
            Err(error) => Ended::Failed(error),
        },
        () = activity.idle(idle) => Ended::Idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_idle_only_after_a_whole_timeout_without_a_byte() {
        let activity = Activity::default();
        let timeout = Duration::from_secs(60);
        let start = tokio::time::Instant::now();
        {
            let mut idle = pin!(activity.idle(timeout));
            assert!(tokio::time::timeout(Duration::from_secs(55), &mut idle).await.is_err());
            activity.bytes.fetch_add(1, Ordering::Relaxed);
            idle.await;
        }
        let took = start.elapsed() - Duration::from_secs(55);
        assert!(took >= timeout && took <= timeout * 3 / 2 + Duration::from_millis(10), "{took:?}");
    }
}
