//! The parent of every task: starts it under a name, notices how it ends, stops all in order.
//!
//! A task is an `async fn run(self, ..., shutdown)`. One that panics or ends with an error is
//! logged and shown in the task list; a critical one takes the process down cleanly.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::rarely::rarely;
use crate::shutdown::Shutdown;

/// How a task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It failed; the text says how. Only failed tasks stay in the list after their end.
    Failed(String),
}

/// One line of the task list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskReport {
    /// Its name, for example `peer/acme`.
    pub name: String,
    /// How it is doing.
    pub state: TaskState,
}

/// A task as an [`Executor`] gets it.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks instead of the runtime: a simulation decides itself whose turn it is.
pub trait Executor: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a task, to be polled whenever it is woken.
    fn start(&self, task: Task);
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    /// Who polls the tasks; the runtime if nobody else does.
    executor: Option<Arc<dyn Executor>>,
    shutdown: Shutdown,
    tasks: Mutex<BTreeMap<u64, TaskReport>>,
    next: AtomicU64,
}

/// Most failed tasks that stay in the list.
const FAILED_MAX: usize = 64;

/// Owns all tasks. Dropping it does not stop them; call [`Supervisor::stop`].
#[derive(Debug)]
pub struct Supervisor {
    spawner: Spawner,
}

/// Starts tasks for a [`Supervisor`]; clonable, to be handed to those who need children.
#[derive(Debug, Clone)]
pub struct Spawner {
    inner: Arc<Inner>,
}

impl Supervisor {
    /// A supervisor whose tasks stop on `shutdown`.
    pub fn new(shutdown: Shutdown) -> Supervisor {
        Supervisor::made(shutdown, None)
    }

    /// The same, with tasks polled by `executor`; blocking work still goes to the runtime.
    pub fn on(executor: Arc<dyn Executor>, shutdown: Shutdown) -> Supervisor {
        Supervisor::made(shutdown, Some(executor))
    }

    fn made(shutdown: Shutdown, executor: Option<Arc<dyn Executor>>) -> Supervisor {
        let (tracker, next) = (TaskTracker::new(), AtomicU64::new(0));
        let inner = Inner { tracker, executor, shutdown, tasks: Mutex::default(), next };
        Supervisor { spawner: Spawner { inner: Arc::new(inner) } }
    }

    /// A handle to start tasks with.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Begins the shutdown, waits up to `drain` for the tasks, then forces and waits up to
    /// `force` more. Returns the names of tasks that still ran then (they are abandoned with the
    /// runtime).
    pub async fn stop(&self, drain: Duration, force: Duration) -> Vec<String> {
        let inner = &self.spawner.inner;
        inner.shutdown.begin();
        inner.tracker.close();
        if tokio::time::timeout(drain, inner.tracker.wait()).await.is_err() {
            inner.shutdown.force();
            let _ = tokio::time::timeout(force, inner.tracker.wait()).await;
        }
        let running = |r: &&TaskReport| r.state == TaskState::Running;
        inner.tasks.lock().values().filter(running).map(|r| r.name.clone()).collect()
    }
}

impl Spawner {
    /// The signal the tasks stop on.
    pub fn shutdown(&self) -> Shutdown {
        self.inner.shutdown.clone()
    }

    /// All running tasks and the last failed ones.
    pub fn tasks(&self) -> Vec<TaskReport> {
        self.inner.tasks.lock().values().cloned().collect()
    }

    /// Starts a task that ends without a result.
    pub fn spawn(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, task.map(Ok::<(), std::convert::Infallible>));
    }

    /// Starts a task whose error is logged and listed. It is dropped at its next await when the
    /// second stage of shutdown begins.
    #[allow(clippy::disallowed_methods)] // the one home of tokio::spawn
    pub fn spawn_fallible<E: Display>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let name = name.into();
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let report = TaskReport { name: name.clone(), state: TaskState::Running };
        self.inner.tasks.lock().insert(id, report);
        let inner = self.inner.clone();
        let forced = self.inner.shutdown.clone();
        let mut forced = rarely(async move { forced.forced().await });
        // On the heap once: moved into the block below, it would take its place there twice.
        let mut task = Box::pin(std::panic::AssertUnwindSafe(task).catch_unwind());
        let guarded = async move {
            let outcome = tokio::select! {
                biased;
                () = &mut forced => Ok(()),
                out = &mut task => match out {
                    Ok(result) => result.map_err(|e| e.to_string()),
                    Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
                },
            };
            drop(task);
            let mut tasks = inner.tasks.lock();
            match outcome {
                Ok(()) => {
                    tasks.remove(&id);
                }
                Err(error) => {
                    tracing::error!(task = %name, %error, "task failed");
                    if let Some(task) = tasks.get_mut(&id) {
                        task.state = TaskState::Failed(error);
                    }
                    trim_failed(&mut tasks);
                }
            }
        };
        match &self.inner.executor {
            Some(executor) => executor.start(Box::pin(self.inner.tracker.track_future(guarded))),
            None => drop(self.inner.tracker.spawn(guarded)),
        }
    }

    /// Starts a task on the blocking pool, for work that would hold up others.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.inner.tracker.spawn_blocking(work)
    }
}

fn trim_failed(tasks: &mut BTreeMap<u64, TaskReport>) {
    let failed: Vec<u64> =
        tasks.iter().filter(|(_, r)| r.state != TaskState::Running).map(|(id, _)| *id).collect();
    for id in failed.iter().take(failed.len().saturating_sub(FAILED_MAX)) {
        tasks.remove(id);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_task_is_listed_as_failed_and_others_run_on() {
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let (done, wait) = tokio::sync::oneshot::channel::<()>();
        let stopping = shutdown.clone();
        spawner.spawn("good", async move {
            stopping.begun().await;
            let _ = done.send(());
        });
        spawner.spawn("bad", async { panic!("on purpose") });
        let stuck = supervisor.stop(Duration::from_secs(5), Duration::from_secs(1)).await;
        assert!(stuck.is_empty());
        wait.await.unwrap();
        let failed = TaskState::Failed("panicked: on purpose".into());
        assert_eq!(spawner.tasks(), [TaskReport { name: "bad".into(), state: failed }]);
    }

    #[tokio::test]
    async fn a_task_that_ignores_the_drain_is_forced() {
        let supervisor = Supervisor::new(Shutdown::new());
        supervisor.spawner().spawn("deaf", std::future::pending());
        let stuck = supervisor.stop(Duration::from_millis(1), Duration::from_secs(5)).await;
        assert!(stuck.is_empty());
    }
}
