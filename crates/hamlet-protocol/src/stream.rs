//! The one loop that talks: a reader R, a writer W, and the committer C (in [`crate::importer`]).
//!
//! R waits only for inbox space, C only for the disk, W only for HTTP/2. R never waits for W nor C
//! for W, so two busy peers can't deadlock. W is a stream that HTTP/2 polls; it keeps no queue.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::view::View;
use hamlet_identity::ProvenPeer;
use hamlet_runtime::{Clock, Shutdown, rarely};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::bundles::BundleExchange;
use crate::dialect::{Incoming, Outgoing};
use crate::gather::{BEHIND, Gather, Ring};
use crate::session::{PeerClass, StreamEnd, StreamSession};
use crate::transcript::Transcript;
use crate::wire::hamlet::federation::v1::goodbye::Reason;

/// Shortest and longest time between two looks at the clock.
const TICK_MIN: Duration = Duration::from_millis(50);
const TICK_MAX: Duration = Duration::from_secs(5);
/// How long the peer's last word may take to arrive once HTTP/2 takes nothing more of ours.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a goodbye may take to leave.
const GOODBYE_WAIT: Duration = Duration::from_millis(200);

/// One live stream, shared by its reader, its writer and the committer.
pub struct StreamCell {
    /// Unique in this process.
    pub id: u64,
    /// Whether we opened it.
    pub dialled: bool,
    session: Mutex<StreamSession>,
    writer: AtomicWaker,
    /// Something may be there to be written since the writer looked last.
    asked: AtomicBool,
    /// The peer has as many unanswered changes as it may: a further one is no reason to look, and
    /// its next answer is.
    filled: AtomicBool,
    /// The peer has several changes yet to answer.
    behind: AtomicBool,
    gather: Gather,
    /// Which view is the peer's.
    views: Mutex<Option<watch::Receiver<Arc<View>>>>,
    room: Notify,
    /// The clock is to be looked at sooner than at `next_tick`, in milliseconds of running time.
    rearm: Notify,
    next_tick: AtomicU64,
    work: Arc<Notify>,
    end: Mutex<Option<StreamEnd>>,
    ended: CancellationToken,
    /// Nobody polls for what we write any more.
    unheard: CancellationToken,
    clock: Arc<dyn Clock>,
    transcript: Arc<Transcript>,
    /// Who is at the other end, and who is to know that it spoke of bundles.
    attached: OnceLock<(Arc<ProvenPeer>, BundleExchange)>,
}

impl std::fmt::Debug for StreamCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamCell").field("id", &self.id).field("dialled", &self.dialled).finish()
    }
}

impl StreamCell {
    /// A stream around a session; `work` wakes the committer.
    pub fn new(
        id: u64,
        dialled: bool,
        session: StreamSession,
        work: Arc<Notify>,
        clock: Arc<dyn Clock>,
    ) -> Arc<StreamCell> {
        StreamCell::recorded(id, dialled, session, work, clock, Arc::default())
    }

    /// The same, and what is said goes into the link's transcript.
    pub fn recorded(
        id: u64,
        dialled: bool,
        session: StreamSession,
        work: Arc<Notify>,
        clock: Arc<dyn Clock>,
        transcript: Arc<Transcript>,
    ) -> Arc<StreamCell> {
        transcript.opened(id, dialled, clock.now());
        Arc::new(StreamCell {
            id,
            dialled,
            session: Mutex::new(session),
            writer: AtomicWaker::new(),
            asked: AtomicBool::new(true),
            filled: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            gather: Gather::default(),
            views: Mutex::new(None),
            room: Notify::new(),
            rearm: Notify::new(),
            next_tick: AtomicU64::new(0),
            work,
            end: Mutex::new(None),
            ended: CancellationToken::new(),
            unheard: CancellationToken::new(),
            clock,
            transcript,
            attached: OnceLock::new(),
        })
    }

    /// Says who is at the other end, once, before the stream runs.
    pub(crate) fn attach(&self, proven: &ProvenPeer, bundles: &BundleExchange) {
        let _ = self.attached.set((Arc::new(proven.clone()), bundles.clone()));
    }

    /// Who is at the other end, as proven when the connection was made.
    pub(crate) fn proven(&self) -> Option<Arc<ProvenPeer>> {
        self.attached.get().map(|(proven, _)| proven.clone())
    }

    /// Looks at the session, wakes nobody.
    pub fn look<R>(&self, f: impl FnOnce(&StreamSession) -> R) -> R {
        f(&self.session.lock())
    }

    /// Changes the session and lets the writer look again.
    pub fn change<R>(&self, f: impl FnOnce(&mut StreamSession) -> R) -> R {
        let out = f(&mut self.session.lock());
        self.wake_writer();
        out
    }

    /// Takes something from the session's inbox; the writer looks again only if there is an answer.
    pub fn take<R>(&self, f: impl FnOnce(&mut StreamSession) -> R) -> R {
        let (out, writes) = {
            let mut session = self.session.lock();
            (f(&mut session), session.consumer.has_out())
        };
        if writes {
            self.wake_writer();
        }
        out
    }

    /// The peer's view, if it is another than when this was asked last.
    fn moved(&self) -> Option<Arc<View>> {
        let mut views = self.views.lock();
        let views = views.as_mut().filter(|views| views.has_changed().unwrap_or(false))?;
        Some(views.borrow_and_update().clone())
    }

    fn note_unanswered(&self, session: &StreamSession) {
        let Some(owner) = &session.owner else { return };
        self.filled.store(!owner.has_credit(), Ordering::SeqCst);
        self.behind.store(owner.in_flight() >= BEHIND, Ordering::SeqCst);
    }

    fn wake_writer(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.writer.wake();
    }

    /// The committer took something from the inbox.
    pub fn made_room(&self) {
        self.room.notify_one();
    }

    /// Ends the stream; the first reason counts.
    pub fn end(&self, end: StreamEnd) {
        {
            let mut first = self.end.lock();
            if first.is_none() {
                self.transcript.ended(self.id, &end, self.clock.now());
                *first = Some(end);
            }
        }
        self.ended.cancel();
        self.wake_writer();
        self.work.notify_one();
    }

    /// Why it ended, if it did.
    pub fn ended(&self) -> Option<StreamEnd> {
        self.end.lock().clone()
    }

    /// Completes when the stream ends.
    pub async fn wait_ended(&self) {
        self.ended.cancelled().await;
    }

    fn poll_out(&self) -> Poll<Result<Outgoing, StreamEnd>> {
        // HTTP/2 polls several times for each message, and nobody has said anything since.
        if !self.asked.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        if let Some(end) = self.ended() {
            return Poll::Ready(Err(end));
        }
        let now = self.clock.now();
        let moved = self.moved();
        let (next, due) = {
            let mut session = self.session.lock();
            // Before anything more is read from a view that may be others' by now.
            if let Some(view) = moved {
                session.move_to(&view);
            }
            let next = session.next(now);
            let due = matches!(next, Ok(None)).then(|| session.wake_at()).flatten();
            self.note_unanswered(&session);
            (next, due)
        };
        // What was just said may have something follow it sooner than the next look was planned.
        if due.is_some_and(|due| millis(due) < self.next_tick.load(Ordering::Relaxed)) {
            self.rearm.notify_one();
        }
        match next {
            Ok(Some(out)) => {
                self.asked.store(true, Ordering::SeqCst);
                if matches!(out, Outgoing::Offer { .. }) {
                    self.gather.looked(true);
                }
                self.transcript.sent(self.id, &out, now);
                Poll::Ready(Ok(out))
            }
            Ok(None) => {
                self.gather.looked(false);
                Poll::Pending
            }
            Err(end) => {
                self.end(end.clone());
                Poll::Ready(Err(end))
            }
        }
    }

    /// R: takes messages while there is room for them.
    async fn read(&self, inbound: &mut (impl Stream<Item = Result<Incoming, Status>> + Unpin)) -> StreamEnd {
        'reading: loop {
            // Armed before the look, so that no wake-up falls between.
            let room = self.room.notified();
            if !self.look(|s| s.consumer.has_room()) && !is_on(SeededBug::DropOnOverflow) {
                self.session.lock().pause_reading(self.clock.now());
                room.await;
                self.session.lock().resume_reading(self.clock.now());
                continue 'reading;
            }
            if is_on(SeededBug::ReaderWaitsForWriter) && self.look(|s| s.consumer.has_out()) {
                tokio::time::sleep(TICK_MIN).await;
                continue 'reading;
            }
            match inbound.next().await.transpose() {
                Ok(Some(message)) => {
                    let now = self.clock.now();
                    self.transcript.received(self.id, &message, now);
                    let (taken, writes, works, news) = {
                        let mut session = self.session.lock();
                        // A full window hasn't let the writer look, so there is nothing gathered.
                        let gathering = self.gather.is_gathering() && !self.filled.load(Ordering::SeqCst);
                        let taken = session.receive(message, now);
                        // Noted before the look at the view: a change that came too early to wake
                        // the writer is seen by that look.
                        self.note_unanswered(&session);
                        let news = session.bundles.take_news();
                        let writes = session.wants_write(now, !gathering);
                        (taken, writes, session.consumer.has_work(), news)
                    };
                    if let Some((_, bundles)) = self.attached.get().filter(|_| news) {
                        bundles.note();
                    }
                    if let Err(end) = taken {
                        return end;
                    }
                    // Most answers leave nothing to do: waking for each would cost more than they do.
                    if writes {
                        self.wake_writer();
                    }
                    if works {
                        self.work.notify_one();
                    }
                }
                Ok(None) => return self.silent_end(),
                Err(status) => return self.failed(&status),
            }
        }
    }

    fn silent_end(&self) -> StreamEnd {
        if self.dialled && self.look(|s| *s.class() == PeerClass::Unknown) {
            // What the Go implementation does when the context differs (protocol text, section 4).
            let text = "the peer ended the stream without a word; check the context value on both sides";
            return StreamEnd::new(Code::Unauthenticated, text);
        }
        StreamEnd::new(Code::Unavailable, "the peer ended the stream")
    }

    fn failed(&self, status: &Status) -> StreamEnd {
        let text = match status.message() {
            "" => format!("the stream failed: {:?}", status.code()),
            message => message.to_owned(),
        };
        match status.code() {
            // What broken connections look like through HTTP/2 is not the peer's word.
            Code::Unknown | Code::Internal | Code::Cancelled => StreamEnd::new(Code::Unavailable, text),
            code => StreamEnd::new(code, text),
        }
    }

    /// Runs the stream to its end. `opening` gives what to read: at once, or when the peer's
    /// headers come, which may be with its first message. `views` follows the peer's view through
    /// policy changes.
    pub async fn run<S>(
        self: &Arc<StreamCell>,
        opening: impl Future<Output = Result<S, StreamEnd>>,
        mut views: watch::Receiver<Arc<View>>,
        shutdown: Shutdown,
    ) -> StreamEnd
    where
        S: Stream<Item = Result<Incoming, Status>> + Unpin,
    {
        // The view may have been replaced since the session was made.
        let view = views.borrow_and_update().clone();
        *self.views.lock() = Some(views.clone());
        let mut watching = view.watched_by(self.clone().into());
        self.change(|s| s.move_to(&view));
        let end = {
            let reading = async {
                match opening.await {
                    Ok(mut inbound) => self.read(&mut inbound).await,
                    Err(end) => end,
                }
            };
            tokio::pin!(reading);
            'watching: loop {
                // Most of what wakes this task is for the reader.
                let mut rare = rarely(self.rare(&mut views, &shutdown));
                let rare = tokio::select! {
                    // What came is read before anything is held against the peer.
                    biased;
                    end = &mut reading => break 'watching end,
                    rare = &mut rare => rare,
                };
                match rare {
                    Rare::Ended => {
                        let gone = || StreamEnd::new(Code::Unavailable, "ended");
                        break 'watching self.ended().unwrap_or_else(gone);
                    }
                    Rare::Unheard => {
                        // A peer that refuses a call stops reading it and says why at the same time.
                        let lost = StreamEnd::new(Code::Unavailable, "the connection to the peer was lost");
                        let last = tokio::time::timeout(LAST_WORD, &mut reading).await;
                        break 'watching last.unwrap_or(lost);
                    }
                    Rare::Rearm => {}
                    Rare::View(view) => {
                        watching = view.watched_by(self.clone().into());
                        self.change(|s| s.move_to(&view));
                    }
                    Rare::Tick => {
                        if let Err(end) = self.change(|s| s.tick(self.clock.now())) {
                            break 'watching end;
                        }
                        self.work.notify_one();
                    }
                    Rare::Stopping => {
                        let leaves = is_on(SeededBug::RestartLeaves);
                        let reason = if leaves { Reason::Leaving } else { Reason::Restarting };
                        self.change(|s| s.say_goodbye(reason, Duration::ZERO));
                        tokio::time::sleep(GOODBYE_WAIT).await;
                        break 'watching StreamEnd::new(Code::Unavailable, "the agent is restarting");
                    }
                }
            }
        };
        drop(watching);
        self.end(end);
        self.ended().unwrap_or_else(|| StreamEnd::new(Code::Unavailable, "ended"))
    }

    /// Waits for anything but a message.
    async fn rare(&self, views: &mut watch::Receiver<Arc<View>>, shutdown: &Shutdown) -> Rare {
        let wait = self.time_to_tick();
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Rare::Ended,
            () = self.unheard.cancelled() => Rare::Unheard,
            () = self.rearm.notified() => Rare::Rearm,
            Ok(()) = views.changed() => Rare::View(views.borrow_and_update().clone()),
            () = tokio::time::sleep(wait) => Rare::Tick,
            () = shutdown.begun() => Rare::Stopping,
        }
    }

    fn time_to_tick(&self) -> Duration {
        let now = self.clock.now();
        let wake = self.look(StreamSession::wake_at);
        let wait = wake.map_or(TICK_MAX, |at| at.saturating_sub(now).clamp(TICK_MIN, TICK_MAX));
        self.next_tick.store(millis(now + wait), Ordering::Relaxed);
        wait
    }
}

/// What a stream's task waits for beside messages.
enum Rare {
    Ended,
    Unheard,
    /// The time to look at the clock has come nearer.
    Rearm,
    /// The peer has another view.
    View(Arc<View>),
    Tick,
    Stopping,
}

/// A view wakes the stream's writer, if it may write.
impl Wake for StreamCell {
    fn wake(self: Arc<StreamCell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<StreamCell>) {
        if self.filled.load(Ordering::SeqCst) {
            return;
        }
        let behind = self.behind.load(Ordering::SeqCst);
        match self.gather.ring(self.clock.now(), behind) {
            Ring::Look => self.wake_writer(),
            // It isn't asked to look, only to wait for the time.
            Ring::Later => self.writer.wake(),
            Ring::Expected => {}
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// W: what HTTP/2 polls for the next message. Dropping it ends the stream.
#[derive(Debug)]
pub struct Outbound {
    cell: Arc<StreamCell>,
    /// Until when changes are gathered, and the timer for it.
    gathering: Option<(Duration, Pin<Box<Sleep>>)>,
    done: bool,
}

impl Outbound {
    /// The writing half of a stream.
    pub fn new(cell: Arc<StreamCell>) -> Outbound {
        Outbound { cell, gathering: None, done: false }
    }

    /// Lets the writer look once the time to gather changes is over.
    fn poll_gathering(&mut self, cx: &mut Context<'_>) {
        let Some(until) = self.cell.gather.until() else { return };
        if self.gathering.as_ref().is_none_or(|(armed, _)| *armed != until) {
            let wait = until.saturating_sub(self.cell.clock.now());
            let sleep = match self.gathering.take() {
                Some((_, mut sleep)) => {
                    sleep.as_mut().reset(tokio::time::Instant::now() + wait);
                    sleep
                }
                None => Box::pin(tokio::time::sleep(wait)),
            };
            self.gathering = Some((until, sleep));
        }
        if let Some((_, sleep)) = &mut self.gathering
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.cell.gather.over(self.cell.clock.now());
            self.cell.asked.store(true, Ordering::SeqCst);
        }
    }

    /// For a client, whose side ends without a status.
    pub fn without_status(self) -> impl Stream<Item = Outgoing> + Send + 'static {
        self.take_while(|item| std::future::ready(item.is_ok()))
            .filter_map(|item| std::future::ready(item.ok()))
    }
}

impl Stream for Outbound {
    type Item = Result<Outgoing, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        // Registered first: changes that begin to be gathered after this look wake again.
        self.cell.writer.register(cx.waker());
        if self.cell.gather.is_gathering() {
            self.poll_gathering(cx);
        }
        match self.cell.poll_out() {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(out)) => Poll::Ready(Some(Ok(out))),
            Poll::Ready(Err(end)) => {
                self.done = true;
                Poll::Ready(Some(Err(Status::new(end.code, end.message))))
            }
        }
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.cell.unheard.cancel();
    }
}
