//! Requests on their way to the disk: bounded, in order, handed out in batches.
//!
//! Invariants: a request is answered exactly once; requests leave in the order they entered, and
//! they enter in the order of the calls as long as there is room, else in the order in which the
//! waiting futures are first polled. Who waits for room is never overtaken by a later call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hamlet_core::durable::{CommitError, CommitFuture};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::tables::Table;

/// Most requests that wait for the disk; further callers wait for room. 100 peers with 100 offers
/// in flight each fit.
pub const QUEUE_REQUESTS_MAX: usize = 16 * 1024;
/// Most requests in one batch.
pub const BATCH_REQUESTS_MAX: usize = 4 * 1024;
/// A batch takes no further request when it has this many bytes.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// One change of the file.
#[derive(Debug)]
pub(crate) enum Write {
    Put {
        table: Table,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Remove {
        table: Table,
        key: Vec<u8>,
    },
    /// All keys from the first one up to, but without, the second.
    RemoveRange {
        table: Table,
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

impl Write {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Remove { key, .. } => key.len(),
            Write::RemoveRange { from, to, .. } => from.len() + to.len(),
        }
    }
}

/// Changes that are made together, and who waits for them.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) writes: Vec<Write>,
    pub(crate) bytes: usize,
    done: oneshot::Sender<Result<(), CommitError>>,
}

impl Request {
    /// A request, and where its answer comes.
    pub(crate) fn new(writes: Vec<Write>) -> (Request, Answer) {
        let (done, answer) = oneshot::channel();
        let bytes = writes.iter().map(Write::bytes).sum();
        (Request { writes, bytes, done }, answer)
    }

    /// Answers the caller. One that no longer waits is fine.
    pub(crate) fn answer(self, outcome: Result<(), CommitError>) {
        let _ = self.done.send(outcome);
    }
}

/// Where the answer to a request comes.
pub(crate) type Answer = oneshot::Receiver<Result<(), CommitError>>;

#[derive(Debug, Default)]
struct Line {
    requests: VecDeque<(Request, OwnedSemaphorePermit)>,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    line: Mutex<Line>,
    ready: Condvar,
    room: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Counts one caller that waits for room.
struct Waiting(Arc<Queue>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(crate) fn closed() -> CommitError {
    CommitError { message: "it is closed".to_owned() }
}

pub(crate) fn stopped() -> CommitError {
    CommitError { message: "its writer has stopped".to_owned() }
}

impl Queue {
    pub(crate) fn new() -> Arc<Queue> {
        Queue::with_room(QUEUE_REQUESTS_MAX)
    }

    fn with_room(requests: usize) -> Arc<Queue> {
        Arc::new(Queue {
            line: Mutex::default(),
            ready: Condvar::new(),
            room: Arc::new(Semaphore::new(requests)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Requests in the queue now.
    pub(crate) fn len(&self) -> usize {
        self.line.lock().requests.len()
    }

    /// Queues changes; the future is done when they are durable or failed. Dropping the future
    /// takes back nothing that is already queued.
    pub(crate) fn submit(self: &Arc<Queue>, writes: Vec<Write>) -> CommitFuture {
        let (request, answer) = Request::new(writes);
        let free = self.waiting.load(Ordering::Acquire) == 0;
        let permit = if free { self.room.clone().try_acquire_owned().ok() } else { None };
        if let Some(permit) = permit {
            self.push(request, permit);
            return Box::pin(async move { answer.await.unwrap_or_else(|_| Err(stopped())) });
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting(self.clone());
        Box::pin(async move {
            let room = waiting.0.room.clone();
            let Ok(permit) = room.acquire_owned().await else { return Err(closed()) };
            waiting.0.push(request, permit);
            drop(waiting);
            answer.await.unwrap_or_else(|_| Err(stopped()))
        })
    }

    fn push(&self, request: Request, permit: OwnedSemaphorePermit) {
        let mut line = self.line.lock();
        if line.closed {
            drop(line);
            return request.answer(Err(closed()));
        }
        line.requests.push_back((request, permit));
        self.ready.notify_one();
    }

    /// Blocks until there is something to do, then takes what is there, up to the batch limits.
    /// `None` when the queue is closed and empty.
    pub(crate) fn next_batch(&self) -> Option<Vec<Request>> {
        let mut line = self.line.lock();
        while line.requests.is_empty() {
            if line.closed {
                return None;
            }
            self.ready.wait(&mut line);
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_REQUESTS_MAX && bytes < BATCH_BYTES_MAX {
            let Some((request, permit)) = line.requests.pop_front() else { break };
            drop(permit);
            bytes += request.bytes;
            batch.push(request);
        }
        Some(batch)
    }

    /// Takes no further request and fails those that are queued: nobody will serve them.
    pub(crate) fn abandon(&self) {
        self.close();
        self.line.lock().requests.clear();
    }

    /// Takes no further request. What is queued is still handed out.
    pub(crate) fn close(&self) {
        self.line.lock().closed = true;
        self.room.close();
        self.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn write(name: &str) -> Vec<Write> {
        vec![Write::Remove { table: Table::Documents, key: name.as_bytes().to_vec() }]
    }

    fn names(batch: &[Request]) -> Vec<String> {
        let name = |request: &Request| match &request.writes[..] {
            [Write::Remove { key, .. }] => String::from_utf8(key.clone()).unwrap(),
            _ => String::new(),
        };
        batch.iter().map(name).collect()
    }

    #[test]
    fn a_full_queue_makes_callers_wait_and_nobody_overtakes_them() {
        let queue = Queue::with_room(2);
        let mut first: Vec<_> = ["a", "b", "c"].into_iter().map(|name| queue.submit(write(name))).collect();
        assert!(first.iter_mut().all(|future| future.now_or_never().is_none()));
        let batch = queue.next_batch().unwrap();
        assert_eq!(names(&batch), ["a", "b"]);
        // There is room again, but "c" asked before "d".
        let mut late = queue.submit(write("d"));
        assert!((&mut first[2]).now_or_never().is_none());
        assert!((&mut late).now_or_never().is_none());
        assert_eq!(names(&queue.next_batch().unwrap()), ["c", "d"]);
        for request in batch {
            request.answer(Ok(()));
        }
        assert_eq!((&mut first[0]).now_or_never(), Some(Ok(())));
    }

    #[test]
    fn a_closed_queue_hands_out_the_rest_and_refuses_new_and_waiting_requests() {
        let queue = Queue::with_room(1);
        let queued = queue.submit(write("a"));
        let waiting = queue.submit(write("b"));
        queue.close();
        assert_eq!(queue.submit(write("c")).now_or_never(), Some(Err(closed())));
        assert_eq!(waiting.now_or_never(), Some(Err(closed())));
        assert_eq!(names(&queue.next_batch().unwrap()), ["a"]);
        assert!(queue.next_batch().is_none());
        assert_eq!(queued.now_or_never(), Some(Err(stopped())));
    }

    #[test]
    fn a_batch_ends_when_it_has_its_bytes() {
        let queue = Queue::with_room(8);
        let value = vec![0; BATCH_BYTES_MAX];
        let put = || vec![Write::Put { table: Table::Documents, key: vec![1], value: value.clone() }];
        let _futures: Vec<_> = (0..2).map(|_| queue.submit(put())).collect();
        assert_eq!(queue.next_batch().unwrap().len(), 1);
        assert_eq!(queue.next_batch().unwrap().len(), 1);
    }
}
