//! Calls of one mesh's workloads to the other mesh's services: on new connections, on kept ones,
//! and streams that hardly pause. None is tried again, whatever fails.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hamlet_runtime::{Shutdown, Spawner};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::book::{Book, Kind};
use super::http;
use super::mesh::Doors;
use super::rotations::Generation;

/// A call without an answer after this has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of each kind that are kept.
const KEPT: u32 = 2;
/// So often a stream carries a piece each way.
const PIECE_EVERY: Duration = Duration::from_millis(50);
/// Bytes of a call and of a piece.
const PAYLOAD: usize = 64;

/// The workloads of one mesh.
#[derive(Clone)]
pub(super) struct Callers {
    /// Their mesh.
    pub(super) from: &'static str,
    /// Where they call.
    pub(super) doors: Doors,
    /// What is noted.
    pub(super) book: Book,
    /// Grows with every new certificate of either gateway.
    pub(super) generation: Generation,
    /// How long a connection to a service's own address is kept before its user opens the next one.
    pub(super) keep: Duration,
    /// When they end.
    pub(super) stop: Shutdown,
}

/// A kept connection.
struct Kept {
    stream: BufReader<TcpStream>,
    opened: Duration,
    generation: u64,
    outlived: bool,
}

impl Callers {
    /// Starts all of them: `rate` calls a second, half of them on new connections, and the streams.
    pub(super) fn start(&self, rate: u32, spawner: &Spawner) {
        let half = f64::from(rate) / 2.0;
        spawner.spawn("calls/new", self.clone().new_connections(half, spawner.clone()));
        let each = Duration::from_secs_f64(f64::from(2 * KEPT) / half);
        for _ in 0..KEPT {
            for kind in [Kind::KeptRaw, Kind::KeptShared] {
                spawner.spawn("calls/kept", self.clone().kept(kind, each));
            }
            spawner.spawn("calls/stream", self.clone().kept(Kind::Stream, PIECE_EVERY));
        }
    }

    /// A call on a new connection so many times a second, each in a task of its own.
    async fn new_connections(self, rate: f64, spawner: Spawner) {
        let began = self.book.now();
        let kinds = [Kind::NewRaw, Kind::NewWeb, Kind::NewShared];
        for (number, kind) in (0_u32..).zip(kinds.into_iter().cycle()) {
            let due = began + Duration::from_secs_f64(f64::from(number) / rate);
            let wait = due.saturating_sub(self.book.now());
            if self.stop.or_begun(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            let caller = self.clone();
            spawner.spawn("calls/new/call", async move {
                let began = caller.book.now();
                let outcome = within(caller.once(kind, number)).await;
                caller.book.called(kind, caller.from, began, outcome);
            });
        }
    }

    async fn once(&self, kind: Kind, number: u32) -> anyhow::Result<()> {
        let mut stream = self.open(kind).await?;
        self.call(kind, &mut stream, number, true).await
    }

    async fn open(&self, kind: Kind) -> anyhow::Result<BufReader<TcpStream>> {
        let at: SocketAddr = match kind {
            Kind::NewRaw | Kind::KeptRaw | Kind::Stream => self.doors.raw,
            Kind::NewWeb => self.doors.web,
            Kind::NewShared | Kind::KeptShared => self.doors.shared,
        };
        self.book.connected(kind);
        let stream = TcpStream::connect(at).await.context("connecting to our egress")?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    async fn call(
        &self,
        kind: Kind,
        stream: &mut BufReader<TcpStream>,
        number: u32,
        last: bool,
    ) -> anyhow::Result<()> {
        match kind {
            Kind::NewRaw | Kind::KeptRaw | Kind::Stream => echo(stream, number, last).await,
            Kind::NewWeb | Kind::NewShared | Kind::KeptShared => {
                let path = format!("/{}/{number}", self.from);
                http::get(stream, &self.doors.host, &path, last).await
            }
        }
    }

    /// Calls on a kept connection; the next one is opened before the old one is left.
    async fn kept(self, kind: Kind, every: Duration) {
        let mut kept: Option<Kept> = None;
        let mut due = self.book.now();
        for number in 0_u32.. {
            due += every;
            let wait = due.saturating_sub(self.book.now());
            if self.stop.or_begun(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            // Calls that a long one held up are made up for, so that the load is what it is said to be.
            if kind == Kind::Stream {
                due = due.max(self.book.now());
            }
            let began = self.book.now();
            let outcome = within(self.on_kept(kind, &mut kept, number)).await;
            if outcome.is_err() {
                kept = None;
            }
            self.book.called(kind, self.from, began, outcome);
        }
    }

    async fn on_kept(&self, kind: Kind, kept: &mut Option<Kept>, number: u32) -> anyhow::Result<()> {
        let now = self.book.now();
        // Requests are moved by the gateway: a workload's own connection to it may stay.
        let keep = if kind == Kind::KeptShared { Duration::MAX } else { self.keep };
        if kept.as_ref().is_none_or(|kept| now - kept.opened >= keep) {
            let generation = self.generation.now();
            let stream = self.open(kind).await?;
            *kept = Some(Kept { stream, opened: now, generation, outlived: false });
        }
        let Some(kept) = kept else { bail!("no connection") };
        self.call(kind, &mut kept.stream, number, false).await?;
        if !kept.outlived && kept.generation != self.generation.now() {
            kept.outlived = true;
            self.book.outlived(kind);
        }
        Ok(())
    }
}

async fn within(call: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::time::timeout(PATIENCE, call).await.with_context(|| format!("no answer within {PATIENCE:?}"))?
}

/// Sends a few bytes and expects them back; with `last`, the end of the connection after them.
async fn echo(stream: &mut BufReader<TcpStream>, number: u32, last: bool) -> anyhow::Result<()> {
    let mut sent = [0; PAYLOAD];
    for (byte, i) in sent.iter_mut().zip(0_u32..) {
        *byte = number.wrapping_mul(31).wrapping_add(i).to_le_bytes()[0];
    }
    stream.get_mut().write_all(&sent).await.context("sending")?;
    let mut received = [0; PAYLOAD];
    stream.read_exact(&mut received).await.context("receiving")?;
    ensure!(received == sent, "other bytes came back than were sent");
    if last {
        stream.get_mut().shutdown().await.context("closing")?;
        let more = stream.read(&mut received).await.context("waiting for the end")?;
        ensure!(more == 0, "{more} bytes that nobody sent");
    }
    Ok(())
}
