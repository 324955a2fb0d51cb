//! A line between two ends that behaves badly on request: a TCP proxy with delay, jitter, limited
//! bandwidth, stalls, half-open directions and resets, and a count of the bytes it carried.
//!
//! It never changes, reorders or loses bytes of a connection unless told to swallow them. Delay
//! alone doesn't limit bandwidth: chunks wait in a queue with the time when they are due, and the
//! queue holds [`QUEUE_BYTES`]. Times are kept to half a millisecond either way.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_runtime::{Clock, Spawner, SystemClock};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};

/// Most bytes that are under way in one direction of one connection: room for 1 GB/s at a delay of
/// 64 ms. Beyond it the proxy stops reading, as a full router queue would.
pub const QUEUE_BYTES: usize = 64 << 20;
/// Most chunks under way in one direction of one connection.
const QUEUE_CHUNKS: usize = 1 << 16;
/// Largest chunk that is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// The timer's ticks are a millisecond and late on average by half: due times are met from half
/// a tick before.
const HALF_TICK: Duration = Duration::from_micros(500);

/// What becomes of the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    #[default]
    Open,
    /// They wait, and nothing more is read: the sender's buffers fill up.
    Stalled,
    /// They are read and never arrive: the sender believes that all is well (half-open).
    Swallowed,
}

/// How the line behaves. The default is a good line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Delay of every byte, one way: half of the round trip that it adds.
    pub delay: Duration,
    /// Further delay of each chunk, random up to this; the order stays.
    pub jitter: Duration,
    /// Bandwidth of each direction of each connection; `None` doesn't limit it.
    pub bytes_a_second: Option<NonZeroU64>,
    /// Largest piece that is written at once; with one byte a second and pieces of one byte a
    /// message trickles. `None` writes whole chunks.
    pub piece: Option<usize>,
    /// From the client to the target.
    pub up: Flow,
    /// From the target to the client.
    pub down: Flow,
}

impl Weather {
    /// A good line with that round trip.
    pub fn round_trip(time: Duration) -> Weather {
        Weather { delay: time / 2, ..Weather::default() }
    }

    /// A line that lets through so many bytes a second, one at a time.
    pub fn trickle(bytes_a_second: NonZeroU64) -> Weather {
        Weather { bytes_a_second: Some(bytes_a_second), piece: Some(1), ..Weather::default() }
    }

    /// A line on which nothing moves either way.
    pub fn stalled() -> Weather {
        Weather { up: Flow::Stalled, down: Flow::Stalled, ..Weather::default() }
    }

    /// A line that takes everything and delivers nothing either way.
    pub fn half_open() -> Weather {
        Weather { up: Flow::Swallowed, down: Flow::Swallowed, ..Weather::default() }
    }
}

/// What the proxy has carried since the last [`ChaosProxy::take_counts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes delivered to the target.
    pub up: u64,
    /// Bytes delivered to the clients.
    pub down: u64,
    /// Connections accepted.
    pub connections: u64,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    weather: watch::Sender<Weather>,
    /// Counts how often all connections were to be reset.
    resets: watch::Sender<u64>,
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
    clock: SystemClock,
    dice: Mutex<u64>,
}

/// A running proxy. Its tasks end with their supervisor.
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl ChaosProxy {
    /// Listens on a free port of loopback and carries each connection to `target`.
    pub async fn start(target: SocketAddr, weather: Weather, spawner: &Spawner) -> io::Result<ChaosProxy> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            weather: watch::Sender::new(weather),
            resets: watch::Sender::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            clock: SystemClock::new(),
            dice: Mutex::new(0x9e37_79b9_7f4a_7c15),
        });
        spawner.spawn("chaos", accept(listener, shared.clone(), spawner.clone()));
        Ok(ChaosProxy { address, shared })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections from now on go.
    pub fn set_target(&self, target: SocketAddr) {
        *self.shared.target.lock() = target;
    }

    /// From now on the line behaves like this, for living connections too. What is under way keeps
    /// its due time.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Resets all connections: both ends see RST.
    pub fn reset(&self) {
        self.shared.resets.send_modify(|n| *n += 1);
    }

    /// What was carried so far.
    pub fn counts(&self) -> Carried {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Carried {
            up: of(&self.shared.up),
            down: of(&self.shared.down),
            connections: of(&self.shared.connections),
        }
    }

    /// What was carried since the last call of this.
    pub fn take_counts(&self) -> Carried {
        let of = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Carried {
            up: of(&self.shared.up),
            down: of(&self.shared.down),
            connections: of(&self.shared.connections),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, spawner: Spawner) {
    let shutdown = spawner.shutdown();
    while let Some(Ok((client, _))) = shutdown.or_begun(listener.accept()).await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let carrying = carry(client, shared.clone());
        let stop = shutdown.clone();
        spawner.spawn("chaos/connection", async move {
            // Either end going away in the middle is what this is for.
            let _ = stop.or_begun(carrying).await;
        });
    }
}

/// One connection, until both directions have ended or all are reset.
async fn carry(mut client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let mut resets = shared.resets.subscribe();
    let target = *shared.target.lock();
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let was_reset = {
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        let up = Direction { shared: &shared, flow: |w| w.up, carried: &shared.up };
        let down = Direction { shared: &shared, flow: |w| w.down, carried: &shared.down };
        let both = async { tokio::try_join!(up.run(client_in, server_out), down.run(server_in, client_out)) };
        tokio::pin!(both);
        tokio::select! {
            _ = &mut both => false,
            changed = resets.changed() => changed.is_ok(),
        }
    };
    if was_reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// A piece of the stream and when it is due; an empty one is its end.
struct Chunk {
    due: Duration,
    bytes: Vec<u8>,
}

struct Direction<'a> {
    shared: &'a Shared,
    flow: fn(&Weather) -> Flow,
    carried: &'a AtomicU64,
}

impl Direction<'_> {
    async fn run(&self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<()> {
        let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
        let room = Semaphore::new(QUEUE_BYTES);
        tokio::try_join!(self.take(from, queue, &room), self.deliver(to, chunks, &room))?;
        Ok(())
    }

    /// Reads, and notes when each chunk is due.
    async fn take(
        &self,
        mut from: ReadHalf<'_>,
        queue: mpsc::Sender<Chunk>,
        room: &Semaphore,
    ) -> io::Result<()> {
        let mut weather = self.shared.weather.subscribe();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut last = Duration::ZERO;
        'taking: loop {
            self.until_not_stalled(&mut weather).await;
            let read = from.read(&mut buffer).await?;
            let now = *weather.borrow();
            let due = self.shared.clock.now() + now.delay + self.random_up_to(now.jitter);
            // Jitter never reorders.
            last = last.max(due);
            if let Ok(taken) = room.acquire_many(read as u32).await {
                taken.forget();
            }
            let chunk = Chunk { due: last, bytes: buffer[..read].to_vec() };
            if queue.send(chunk).await.is_err() || read == 0 {
                break 'taking Ok(());
            }
        }
    }

    /// Writes what is due.
    async fn deliver(
        &self,
        mut to: WriteHalf<'_>,
        mut chunks: mpsc::Receiver<Chunk>,
        room: &Semaphore,
    ) -> io::Result<()> {
        let mut weather = self.shared.weather.subscribe();
        let mut free = Duration::ZERO;
        while let Some(Chunk { due, bytes }) = chunks.recv().await {
            self.wait_until(due).await;
            if bytes.is_empty() {
                if (self.flow)(&weather.borrow()) != Flow::Swallowed {
                    to.shutdown().await?;
                }
                continue;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                self.until_not_stalled(&mut weather).await;
                let now = *weather.borrow();
                let (piece, after) = rest.split_at(now.piece.unwrap_or(rest.len()).clamp(1, rest.len()));
                rest = after;
                if let Some(rate) = now.bytes_a_second {
                    let takes = Duration::from_secs_f64(piece.len() as f64 / rate.get() as f64);
                    free = free.max(self.shared.clock.now()) + takes;
                    self.wait_until(free).await;
                }
                if (self.flow)(&now) != Flow::Swallowed {
                    to.write_all(piece).await?;
                    self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            }
            room.add_permits(bytes.len());
        }
        Ok(())
    }

    async fn until_not_stalled(&self, weather: &mut watch::Receiver<Weather>) {
        // An error means that the proxy is gone: nobody will ever open the line again.
        let _ = weather.wait_for(|w| (self.flow)(w) != Flow::Stalled).await;
    }

    async fn wait_until(&self, due: Duration) {
        while let Some(left) =
            due.checked_sub(self.shared.clock.now() + HALF_TICK).filter(|left| !left.is_zero())
        {
            tokio::time::sleep(left).await;
        }
    }

    fn random_up_to(&self, most: Duration) -> Duration {
        if most.is_zero() {
            return most;
        }
        let mut dice = self.shared.dice.lock();
        // xorshift64: any spread will do, and the same one in every run.
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        most.mul_f64((*dice >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use hamlet_runtime::{Shutdown, Supervisor};

    use super::*;
    use crate::{GENEROUS, eventually};

    /// A proxy before an echo server, and a connection through it.
    async fn line(weather: Weather) -> (Supervisor, ChaosProxy, TcpStream) {
        let supervisor = Supervisor::new(Shutdown::new());
        let spawner = supervisor.spawner();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let children = spawner.clone();
        spawner.spawn("echo", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                children.spawn("echo/one", async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        let proxy = ChaosProxy::start(target, weather, &spawner).await.unwrap();
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        (supervisor, proxy, stream)
    }

    async fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
        let clock = SystemClock::new();
        stream.write_all(bytes).await.unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, bytes);
        clock.now()
    }

    #[tokio::test]
    async fn a_delayed_line_takes_its_round_trip_and_counts_its_bytes() {
        let (_all, proxy, mut stream) = line(Weather::round_trip(Duration::from_millis(20))).await;
        let taken = echoed(&mut stream, b"hello").await;
        assert!(taken >= Duration::from_millis(18), "{taken:?}");
        assert_eq!(proxy.take_counts(), Carried { up: 5, down: 5, connections: 1 });
        assert_eq!(proxy.counts(), Carried::default());
    }

    #[tokio::test]
    async fn delay_does_not_limit_what_is_under_way() {
        let (_all, proxy, stream) = line(Weather::round_trip(Duration::from_millis(200))).await;
        // Far more than any one chunk: with one chunk a delay this would take minutes.
        let (mut from, mut to) = stream.into_split();
        let size = 32 << 20;
        let clock = SystemClock::new();
        let (_, read) = tokio::join!(
            async {
                to.write_all(&vec![7; size]).await.unwrap();
                to.shutdown().await.unwrap();
            },
            async { tokio::io::copy(&mut from, &mut tokio::io::sink()).await.unwrap() }
        );
        assert_eq!(read, size as u64);
        assert!(clock.now() < GENEROUS);
        assert_eq!(proxy.counts().down, size as u64);
    }

    #[tokio::test]
    async fn a_trickle_keeps_to_its_bandwidth() {
        let (_all, _proxy, mut stream) = line(Weather::trickle(NonZeroU64::new(1000).unwrap())).await;
        let taken = echoed(&mut stream, &[7; 50]).await;
        assert!(taken >= Duration::from_millis(45), "{taken:?}");
    }

    #[tokio::test]
    async fn jitter_keeps_the_order() {
        let (_all, _proxy, mut stream) =
            line(Weather { jitter: Duration::from_millis(5), ..Weather::default() }).await;
        for round in 0..20u8 {
            echoed(&mut stream, &[round; 300]).await;
        }
    }

    #[tokio::test]
    async fn a_stalled_line_delivers_when_it_opens_and_a_swallowing_one_never() {
        let (_all, proxy, mut stream) = line(Weather::stalled()).await;
        stream.write_all(b"later").await.unwrap();
        let mut back = [0; 5];
        let early = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut back)).await;
        assert!(early.is_err());
        proxy.set(Weather::default());
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"later");
        proxy.set(Weather { up: Flow::Swallowed, ..Weather::default() });
        stream.write_all(b"never").await.unwrap();
        let never = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut back)).await;
        assert!(never.is_err());
        assert_eq!(proxy.counts().up, 5);
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_one_and_the_next_connection_is_good() {
        let (_all, proxy, mut stream) = line(Weather::default()).await;
        echoed(&mut stream, b"good").await;
        proxy.reset();
        let mut byte = [0];
        let error = stream.read_exact(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut again = TcpStream::connect(proxy.address()).await.unwrap();
        echoed(&mut again, b"good").await;
        eventually("both were counted", GENEROUS, || proxy.counts().connections == 2).await;
    }

    #[tokio::test]
    async fn an_end_travels_through() {
        let (_all, _proxy, mut stream) = line(Weather::round_trip(Duration::from_millis(4))).await;
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last");
    }
}
