//! One way of a connection: room for a single encoded message. It can be slow, stand still, lose
//! everything from some moment on (half-open), or break. Bytes are never lost in the middle: TCP
//! doesn't do that.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

#[derive(Debug, Default)]
struct State {
    slot: Option<(Vec<u8>, Instant)>,
    /// How the writer ended, if it did.
    end: Option<Option<Status>>,
    broken: bool,
    reader_gone: bool,
    stalled: bool,
    /// How many messages vanish before the writer blocks as well.
    hole: Option<u32>,
    delay: Duration,
}

/// A pipe of capacity one.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    state: Mutex<State>,
    room: Notify,
    data: Notify,
}

impl Pipe {
    pub(crate) fn new(delay: Duration) -> Arc<Pipe> {
        let pipe = Pipe::default();
        pipe.state.lock().delay = delay;
        Arc::new(pipe)
    }

    /// How long a message travels from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.state.lock().delay = delay;
    }

    /// Stands still, or goes on.
    pub(crate) fn stall(&self, stalled: bool) {
        self.state.lock().stalled = stalled;
        self.data.notify_one();
    }

    /// For how long a message has been there that the reader could take.
    pub(crate) fn waiting(&self) -> Duration {
        let state = self.state.lock();
        match &state.slot {
            Some((_, due)) if !state.stalled => Instant::now().saturating_duration_since(*due),
            _ => Duration::ZERO,
        }
    }

    /// Whether it stands still.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state.lock().stalled
    }

    /// From now on everything vanishes; after `more` messages the writer finds no room either.
    pub(crate) fn vanish(&self, more: u32) {
        let mut state = self.state.lock();
        state.hole = Some(more);
        state.slot = None;
        drop(state);
        self.room.notify_one();
    }

    /// Both ends learn at once that the connection is gone.
    pub(crate) fn break_off(&self) {
        self.state.lock().broken = true;
        self.room.notify_one();
        self.data.notify_one();
    }

    /// Waits until a message may be put; `false` if nobody will ever take one.
    pub(crate) async fn room(&self) -> bool {
        loop {
            {
                let state = self.state.lock();
                if state.broken || state.reader_gone {
                    return false;
                }
                if state.slot.is_none() && state.hole != Some(0) {
                    return true;
                }
            }
            self.room.notified().await;
        }
    }

    /// Completes when nobody will ever take a message.
    pub(crate) async fn gone(&self) {
        loop {
            {
                let state = self.state.lock();
                if state.broken || state.reader_gone {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// Puts a message; there must be [room](Self::room).
    pub(crate) fn put(&self, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        match &mut state.hole {
            Some(left) => *left = left.saturating_sub(1),
            None => {
                let due = Instant::now() + state.delay;
                state.slot = Some((bytes, due));
            }
        }
        drop(state);
        self.data.notify_one();
    }

    /// The writer has nothing more to say: an end, or an end with a status.
    pub(crate) fn finish(&self, status: Option<Status>) {
        let mut state = self.state.lock();
        if state.hole.is_none() {
            state.end.get_or_insert(status);
        }
        drop(state);
        self.data.notify_one();
    }

    /// The reader takes nothing more.
    pub(crate) fn leave(&self) {
        self.state.lock().reader_gone = true;
        self.room.notify_one();
    }

    /// The next message, or how it ended (`Ok(None)`: in order).
    pub(crate) async fn take(&self) -> Result<Option<Vec<u8>>, Status> {
        loop {
            let mut due = None;
            {
                let mut state = self.state.lock();
                if state.broken {
                    return Err(Status::unknown("the connection was reset"));
                }
                if !state.stalled {
                    match &state.slot {
                        Some((_, at)) if *at <= Instant::now() => {
                            let bytes = state.slot.take().map(|(bytes, _)| bytes);
                            drop(state);
                            self.room.notify_one();
                            return Ok(bytes);
                        }
                        Some((_, at)) => due = Some(*at),
                        None => match &state.end {
                            Some(Some(status)) => return Err(status.clone()),
                            Some(None) => return Ok(None),
                            None => {}
                        },
                    }
                }
            }
            match due {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = self.data.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.data.notified().await,
            }
        }
    }
}
