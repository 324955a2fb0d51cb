//! What a busy task also waits for. A task that is woken for each message would look each time at
//! everything that hardly ever happens: shutdown, a change of policy, the clock. Each look takes a
//! lock or two; behind [`rarely`] it takes none. Not a scheduler: it decides nothing.
//!
//! Invariant: the future behind it is polled whenever it asked to be, and once at the beginning.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// The same future, which is polled only when it was itself woken, however often its task is.
pub fn rarely<F: Future>(future: F) -> Rarely<F> {
    let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
    Rarely { future: Box::pin(future), waker: bell.clone().into(), bell, task: None }
}

/// See [`rarely`].
#[derive(Debug)]
#[must_use = "futures do nothing unless they are polled"]
pub struct Rarely<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
    /// Whom the bell is sure to wake until it has rung.
    task: Option<Waker>,
}

/// Notes that the future wants to be polled, and wakes its task.
#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Bell>) {
        self.rung.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl<F: Future> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let known = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if known && !self.bell.rung.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        // Registered before the look, so that no ring falls between.
        self.bell.task.register(cx.waker());
        if !self.bell.rung.swap(false, Ordering::SeqCst) {
            self.task = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // The ring may have used up what was just registered; then this task is polled once more.
        self.task = None;
        let Rarely { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn it_is_polled_at_first_and_when_it_was_woken_and_else_not() {
        let (polls, notify) = (AtomicU32::new(0), Notify::new());
        let mut notified = Box::pin(notify.notified());
        let mut rare = rarely(std::future::poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            notified.as_mut().poll(cx)
        }));
        for _ in 0..10 {
            assert!(futures::poll!(&mut rare).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        notify.notify_one();
        assert!(futures::poll!(&mut rare).is_ready());
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn whoever_polled_it_last_is_woken_also_at_the_second_ring() {
        #[derive(Default)]
        struct Count(AtomicU32);
        impl Wake for Count {
            fn wake(self: Arc<Count>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let tasks = [Arc::new(Count::default()), Arc::new(Count::default())];
        let woken = || tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        let inner = std::sync::Mutex::new(None);
        let mut rare = rarely(std::future::poll_fn(|cx| {
            *inner.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        let ring = || inner.lock().unwrap().clone().unwrap().wake();
        for (task, wanted) in [(0, [1, 0]), (0, [2, 0]), (1, [2, 1]), (0, [3, 1])] {
            let waker = tasks[task].clone().into();
            for _ in 0..3 {
                assert!(Pin::new(&mut rare).poll(&mut Context::from_waker(&waker)).is_pending());
            }
            ring();
            assert_eq!(woken(), wanted);
        }
    }

    #[tokio::test]
    async fn a_future_that_wakes_itself_goes_on_and_its_task_is_woken() {
        let mut left = 100;
        rarely(std::future::poll_fn(|cx| {
            left -= 1;
            cx.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }))
        .await;
        assert_eq!(left, 0);
    }
}
