//! Connections between meshes: two pipes, the real session and stream loop at each Hamlet end,
//! the real codec in between, and the model looking at everything that passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read, status_code};
use hamlet_protocol::dialect::{Dialect, Incoming, Operation, Outgoing, Secret};
use hamlet_protocol::session::StreamEnd;
use hamlet_protocol::stream::{Outbound, StreamCell};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::{Code, Status};

use crate::model::{Model, Read, Shared, Stream as StreamModel, WayId};
use crate::pipe::Pipe;
use crate::truth::MeshId;
use crate::world::{CONTEXT, Sets, Sim, pair};

/// How long the last words of a stream may take.
const FLUSH: Duration = Duration::from_millis(500);
/// Who leaves its peer's word unread for so long can't blame it for silence.
const BLAME: Duration = Duration::from_secs(5);
/// How long a connection must have been up, without trouble, to be well.
const WELL: Duration = Duration::from_secs(20);

/// One connection.
pub(crate) struct Conn {
    pub(crate) number: u64,
    dialler: MeshId,
    acceptor: MeshId,
    to_acceptor: Arc<Pipe>,
    to_dialler: Arc<Pipe>,
    /// What the dialler offers, and what the acceptor offers.
    streams: [Mutex<StreamModel>; 2],
    trouble: Mutex<Duration>,
    vanished: AtomicBool,
}

impl Conn {
    fn new(number: u64, dialler: MeshId, acceptor: MeshId, delay: Duration, now: Duration) -> Arc<Conn> {
        let stream = || Mutex::new(StreamModel::new(number));
        Arc::new(Conn {
            number,
            dialler,
            acceptor,
            to_acceptor: Pipe::new(delay),
            to_dialler: Pipe::new(delay),
            streams: [stream(), stream()],
            trouble: Mutex::new(now),
            vanished: AtomicBool::new(false),
        })
    }

    pub(crate) fn joins(&self, mesh: MeshId) -> bool {
        self.dialler == mesh || self.acceptor == mesh
    }

    /// The direction in which `owner` offers.
    pub(crate) fn stream(&self, owner: MeshId) -> &Mutex<StreamModel> {
        &self.streams[usize::from(owner != self.dialler)]
    }

    /// The pipe that a mesh writes to.
    pub(crate) fn pipe_of(&self, writer: MeshId) -> &Arc<Pipe> {
        if writer == self.dialler { &self.to_acceptor } else { &self.to_dialler }
    }

    /// The mesh at the other end.
    pub(crate) fn other(&self, mesh: MeshId) -> MeshId {
        if mesh == self.dialler { self.acceptor } else { self.dialler }
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.to_acceptor.set_delay(delay);
        self.to_dialler.set_delay(delay);
    }

    /// Both ends learn that it is gone.
    pub(crate) fn break_off(&self) {
        self.to_acceptor.break_off();
        self.to_dialler.break_off();
    }

    /// Everything vanishes from now on, both ways.
    pub(crate) fn vanish(&self, more: u32) {
        self.note_vanished();
        self.to_acceptor.vanish(more);
        self.to_dialler.vanish(more);
    }

    /// Some of it vanishes: it won't be well again.
    pub(crate) fn note_vanished(&self) {
        self.vanished.store(true, Ordering::Relaxed);
    }

    /// Something happened now that may delay what passes.
    pub(crate) fn note_trouble(&self, now: Duration) {
        *self.trouble.lock() = now;
    }

    pub(crate) fn is_well(&self, now: Duration) -> bool {
        let still = self.to_acceptor.is_stalled() || self.to_dialler.is_stalled();
        !still && !self.vanished.load(Ordering::Relaxed) && now.saturating_sub(*self.trouble.lock()) >= WELL
    }
}

/// The codec of every stream.
pub(crate) fn codec() -> V2Codec {
    V2Codec {
        resource_url: hamlet_protocol::dialect::service::TYPE_URL,
        context: Secret::new(CONTEXT),
        message_bytes: 65_536,
    }
}

/// What a Hamlet end needs beside its session.
struct End {
    sim: Sim,
    conn: Arc<Conn>,
    me: MeshId,
    sets: Shared<Sets>,
    flushed: Arc<Notify>,
}

impl End {
    fn model(&self) -> Shared<Model> {
        self.sim.lock().model.clone()
    }

    /// The model sees what is written.
    fn written(&self, out: &Outgoing) {
        let other = self.conn.other(self.me);
        let (mine, theirs): (WayId, WayId) = ((self.me, other), (other, self.me));
        match out {
            Outgoing::Offer { change, .. } => {
                let mut stream = self.conn.stream(self.me).lock();
                let (key, value) = (&change.offer.key, &change.offer.value);
                let set = self.sets.lock().get(&other).copied().flatten();
                let value = (!change.deleted).then_some(&value[..]);
                self.model().lock().offer_written(mine, &mut stream, key, value, set);
            }
            Outgoing::Answer { nonce, answer } => {
                self.sim.lock().observe(self.me);
                let refusal = answer.as_ref().err().map(|r| status_code(r.code));
                let mut stream = self.conn.stream(other).lock();
                self.model().lock().answered(theirs, &mut stream, nonce, refusal);
            }
            Outgoing::Control(ext::Control { kind: Some(kind) }) => self.control_written(kind, mine, theirs),
            Outgoing::Control(_) | Outgoing::Subscribe { .. } => {}
        }
    }

    fn control_written(&self, kind: &ext::control::Kind, mine: WayId, theirs: WayId) {
        match kind {
            ext::control::Kind::Bookmark(bookmark) => {
                let set = self.sets.lock().get(&mine.1).copied().flatten();
                let mut stream = self.conn.stream(self.me).lock();
                self.model().lock().bookmark_written(mine, &mut stream, bookmark.seq, bookmark.round, set);
            }
            ext::control::Kind::Proof(proof) => {
                let verdict = match ext::proof::Verdict::try_from(proof.verdict) {
                    Ok(ext::proof::Verdict::Equal) => true,
                    Ok(ext::proof::Verdict::Different) => false,
                    _ => return,
                };
                let mut stream = self.conn.stream(theirs.0).lock();
                self.model().lock().proved(theirs, &mut stream, proof.seq, verdict);
            }
            other => {
                if let ext::control::Kind::Begin(_) = other {
                    self.conn.stream(self.me).lock().excused_in_round = false;
                }
                let what = match other {
                    ext::control::Kind::Begin(begin) => match begin.mode {
                        m if m == ext::begin::Mode::Equal as i32 => "resumed, equal",
                        m if m == ext::begin::Mode::All as i32 => "rounds over all",
                        m if m == ext::begin::Mode::Scope as i32 => "rounds over some",
                        _ => "buckets wanted",
                    },
                    ext::control::Kind::Goodbye(_) => "goodbyes",
                    ext::control::Kind::Beat(_) => "beats",
                    ext::control::Kind::Held(_) => "rounds asked for",
                    _ => "other controls",
                };
                let model = self.model();
                let mut model = model.lock();
                model.tally.count(what);
                model.log(&[10], || format!("{mine:?}#{} says {other:?}", self.conn.number));
            }
        }
    }

    /// The model sees what is read.
    fn read(&self, incoming: &Incoming) {
        let other = self.conn.other(self.me);
        let way: WayId = (other, self.me);
        if let Some(offer) = &incoming.offer {
            let value = match offer.operation {
                Operation::Upsert => offer.resource.as_ref().map(|(_, value)| value.clone()),
                _ => None,
            };
            let read = Read { nonce: offer.nonce.clone(), key: offer.key.as_str().into(), value };
            let mut stream = self.conn.stream(other).lock();
            self.model().lock().offer_read(way, &mut stream, read);
        }
        let control = incoming.request.as_ref().and_then(|r| r.control.as_ref()?.kind.as_ref());
        if let Some(ext::control::Kind::Bookmark(bookmark)) = control {
            let mut stream = self.conn.stream(other).lock();
            self.model().lock().bookmark_read(way, &mut stream, bookmark.seq);
        }
    }
}

/// Tells its end that the writer is done, however it ended.
struct WriterLeft(Arc<Notify>);

impl Drop for WriterLeft {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct ReaderLeft(Arc<Pipe>);

impl Drop for ReaderLeft {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// W's end of a pipe: takes a message from the stream only when there is room for it.
async fn pump<S>(end: End, outbound: S)
where
    S: Stream<Item = Result<Outgoing, Status>> + Send + 'static,
{
    let pipe = end.conn.pipe_of(end.me).clone();
    let _left = WriterLeft(end.flushed.clone());
    let mut outbound = Box::pin(outbound);
    let codec = codec();
    while pipe.room().await {
        let next = tokio::select! {
            biased;
            () = pipe.gone() => return,
            next = outbound.next() => next,
        };
        match next {
            Some(Ok(out)) => {
                end.written(&out);
                let mut bytes = vec![];
                codec.write(&out, &mut bytes);
                pipe.put(bytes);
            }
            Some(Err(status)) => return pipe.finish(Some(status)),
            None => return pipe.finish(None),
        }
    }
}

/// R's end of a pipe.
fn inbound(end: End) -> impl Stream<Item = Result<Incoming, Status>> + Send + Unpin {
    let pipe = end.conn.pipe_of(end.conn.other(end.me)).clone();
    let left = ReaderLeft(pipe.clone());
    Box::pin(futures::stream::unfold((pipe, end, left, false), |(pipe, end, left, done)| async move {
        if done {
            return None;
        }
        let item = match pipe.take().await {
            Ok(Some(bytes)) => {
                let read = read(&bytes[..], codec().message_bytes);
                if let Ok(incoming) = &read {
                    end.read(incoming);
                }
                read
            }
            Ok(None) => return None,
            Err(status) => Err(status),
        };
        let done = item.is_err();
        Some((item, (pipe, end, left, done)))
    }))
}

fn end_of(sim: &Sim, conn: &Arc<Conn>, me: MeshId, flushed: &Arc<Notify>) -> Option<End> {
    let sets = sim.lock().meshes[me].process.as_ref()?.sets.clone();
    Some(End { sim: sim.clone(), conn: conn.clone(), me, sets, flushed: flushed.clone() })
}

/// Runs one end until its stream is over, and lets its last words out.
async fn run_end(
    sim: &Sim,
    conn: &Arc<Conn>,
    me: MeshId,
    cell: Arc<StreamCell>,
    views: tokio::sync::watch::Receiver<Arc<hamlet_core::view::View>>,
) -> StreamEnd {
    let gone = || StreamEnd::new(Code::Unavailable, "the process is gone");
    let other = conn.other(me);
    let flushed = Arc::new(Notify::new());
    let (Some(writing), Some(reading)) = (end_of(sim, conn, me, &flushed), end_of(sim, conn, me, &flushed))
    else {
        return gone();
    };
    let (link, spawner) = {
        let world = sim.lock();
        let Some(process) = &world.meshes[me].process else { return gone() };
        let Some(link) = process.links.get(&other).cloned() else { return gone() };
        let mut model = world.model.lock();
        model.begin_stream((other, me), conn.number);
        (link, process.spawner.clone())
    };
    let outbound = Outbound::new(cell.clone());
    if me == conn.dialler {
        spawner.spawn("pump", pump(writing, outbound.without_status().map(Ok)));
    } else {
        spawner.spawn("pump", pump(writing, outbound));
    }
    let opening = std::future::ready(Ok(inbound(reading)));
    let end = cell.run(opening, views, link.shutdown().clone()).await;
    cell.end(end.clone());
    link.close(&cell, &end);
    {
        let waits = conn.pipe_of(other).waiting();
        let world = sim.lock();
        let mut model = world.model.lock();
        let blames = ["no answer", "no sign of life"].iter().any(|t| end.message.starts_with(t));
        if blames && waits > BLAME {
            let what = format!(
                "mesh {me} gives {other} up ({}), whose word it has left unread for {waits:?}",
                end.message
            );
            model.complain("I10", what);
        }
        model.tally.count("streams ended");
        model.log(&[11, me as u64, other as u64], || {
            format!("mesh {me}: stream #{} with {other} ended: {:?} {}", conn.number, end.code, end.message)
        });
    }
    let _ = tokio::time::timeout(FLUSH, flushed.notified()).await;
    end
}

/// One attempt of `from` to have a stream with `to`, to its end.
async fn connect(sim: &Sim, from: MeshId, to: MeshId) -> Option<()> {
    let (link, proven, net) = {
        let world = sim.lock();
        let link = world.meshes[from].process.as_ref()?.links.get(&to)?.clone();
        (link, world.proven(to), *world.nets.get(&pair(from, to))?)
    };
    if !net.up {
        return None;
    }
    tokio::time::sleep(net.delay).await;
    let runs = {
        let world = sim.lock();
        let there = &world.meshes[to];
        there.foreign.is_some() || there.process.as_ref().is_some_and(|p| p.is_up())
    };
    if !runs {
        return None;
    }
    let (cell, views) = link.open(Dialect::V1alpha2, true, &proven).await.ok()?;
    let conn = {
        let mut world = sim.lock();
        let number = world.number();
        let conn = Conn::new(number, from, to, net.delay, world.start.elapsed());
        world.conns.push(conn.clone());
        world.model.lock().tally.count("streams opened");
        conn
    };
    accept(sim, &conn, from, to);
    run_end(sim, &conn, from, cell, views).await;
    conn.break_off();
    sim.lock().forget(&conn);
    Some(())
}

/// The other end of an attempt, as a task of the mesh that is dialled.
fn accept(sim: &Sim, conn: &Arc<Conn>, from: MeshId, to: MeshId) {
    let world = sim.lock();
    let there = &world.meshes[to];
    if let Some(foreign) = &there.foreign {
        let (reading, writing) = (conn.pipe_of(from).clone(), conn.pipe_of(to).clone());
        let task =
            crate::foreign::serve(sim.clone(), foreign.clone(), conn.clone(), reading, writing, (to, from));
        world.spawner.spawn("foreign", task);
        return;
    }
    let Some(process) = &there.process else { return conn.break_off() };
    let Some(link) = process.links.get(&from).cloned() else { return conn.break_off() };
    let proven = world.proven(from);
    let (sim, conn) = (sim.clone(), conn.clone());
    process.spawner.spawn("accept", async move {
        match link.open(Dialect::V1alpha2, false, &proven).await {
            Ok((cell, views)) => {
                run_end(&sim, &conn, to, cell, views).await;
                conn.pipe_of(to).finish(None);
                tokio::time::sleep(FLUSH).await;
                conn.break_off();
            }
            Err(end) => {
                sim.lock().model.lock().tally.count("streams refused");
                conn.pipe_of(to).finish(Some(Status::new(end.code, end.message)));
            }
        }
    });
}

/// Keeps a stream up, as a mesh that is configured to dial does.
pub(crate) async fn keep_dialling(sim: Sim, from: MeshId, to: MeshId, number: u64) {
    let mut draw = sim.lock().draw.fork();
    loop {
        let link = {
            let world = sim.lock();
            let process = world.meshes[from].process.as_ref().filter(|p| p.number == number);
            let Some(process) = process else { return };
            let Some(link) = process.links.get(&to) else { return };
            link.clone()
        };
        if link.active().is_none() {
            connect(&sim, from, to).await;
        }
        let delay = Duration::from_millis(draw.between(100, 3_000));
        tokio::time::sleep(delay).await;
    }
}

/// A second stream while the first may still be up, as after a half-open connection.
pub(crate) fn connect_again(sim: &Sim, from: MeshId, to: MeshId) {
    let world = sim.lock();
    let Some(process) = &world.meshes[from].process else { return };
    let again = sim.clone();
    process.spawner.spawn("dial again", async move {
        connect(&again, from, to).await;
    });
}
