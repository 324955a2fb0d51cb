//! Whose turn it is: of all tasks that were woken, the seed chooses the next. The runtime's own
//! order isn't the same in two runs, because its channels wake their waiters in random order.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use hamlet_runtime::{Executor, Task};
use parking_lot::Mutex;

use crate::draw::Draw;

/// Most turns before time and the script are looked at again.
const TURNS: u64 = 10_000;

#[derive(Debug, Default)]
struct Woken {
    tasks: BTreeSet<u64>,
    all: Option<Waker>,
}

struct Woke {
    task: u64,
    woken: Arc<Mutex<Woken>>,
}

impl Wake for Woke {
    fn wake(self: Arc<Woke>) {
        let mut woken = self.woken.lock();
        woken.tasks.insert(self.task);
        let all = woken.all.clone();
        drop(woken);
        if let Some(all) = all {
            all.wake();
        }
    }
}

struct Turns {
    tasks: BTreeMap<u64, (Task, Waker)>,
    next: u64,
    draw: Draw,
}

/// Polls tasks in the order that a seed chooses.
#[derive(Clone)]
pub(crate) struct SeededExecutor {
    turns: Arc<Mutex<Turns>>,
    woken: Arc<Mutex<Woken>>,
}

impl std::fmt::Debug for SeededExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeededExecutor")
    }
}

impl SeededExecutor {
    pub(crate) fn new(draw: Draw) -> SeededExecutor {
        let turns = Turns { tasks: BTreeMap::new(), next: 0, draw };
        SeededExecutor { turns: Arc::new(Mutex::new(turns)), woken: Arc::default() }
    }

    /// Runs a script, and all tasks while it waits.
    pub(crate) async fn run<T>(&self, script: impl Future<Output = T>) -> T {
        let mut script = pin!(tokio::task::unconstrained(script));
        let outcome = std::future::poll_fn(|cx| {
            self.woken.lock().all = Some(cx.waker().clone());
            if let Poll::Ready(outcome) = script.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            for _ in 0..TURNS {
                if !self.turn() {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let outcome = outcome.await;
        // Tasks hold what holds them.
        let left = std::mem::take(&mut self.turns.lock().tasks);
        drop(left);
        outcome
    }

    /// Polls one of the tasks that were woken; `false` if there is none.
    fn turn(&self) -> bool {
        let task = {
            let mut woken = self.woken.lock();
            let nth = self.turns.lock().draw.below(woken.tasks.len() as u64) as usize;
            let Some(task) = woken.tasks.iter().nth(nth).copied() else { return false };
            woken.tasks.remove(&task);
            task
        };
        // Taken out: it may start others, or wake itself.
        let Some((mut future, waker)) = self.turns.lock().tasks.remove(&task) else { return true };
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.turns.lock().tasks.insert(task, (future, waker));
        }
        true
    }
}

impl Executor for SeededExecutor {
    fn start(&self, task: Task) {
        let mut turns = self.turns.lock();
        turns.next += 1;
        let number = turns.next;
        let woke = Arc::new(Woke { task: number, woken: self.woken.clone() });
        let future: Pin<Box<_>> = Box::pin(tokio::task::unconstrained(task));
        turns.tasks.insert(number, (future, Waker::from(woke.clone())));
        drop(turns);
        woke.wake();
    }
}
