//! How things start, report, back off and stop.
//!
//! Every task has one parent: the [`Supervisor`] starts, names, watches and ends all of them, and
//! nothing is detached. This crate is the only home of `tokio::spawn` and of the system's clocks.

pub mod backoff;
pub mod clock;
pub mod rarely;
pub mod shutdown;
pub mod supervisor;

pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SystemClock};
pub use rarely::rarely;
pub use shutdown::Shutdown;
pub use supervisor::{Executor, Spawner, Supervisor, Task, TaskReport, TaskState};
