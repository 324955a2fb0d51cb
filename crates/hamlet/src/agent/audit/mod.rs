//! The agent's audit: one handle that takes entries from anywhere, and one task that writes them.
//!
//! Files and chain are `crate::audit`, what is told of the agent's parts is [`events`]. Invariants: to
//! record never blocks and never fails; entries are written in the order in which they came; what can't
//! be written is counted and told in the audit itself as soon as it can be; the agent goes on meanwhile
//! (decision 22).

mod events;
mod limiter;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::AuditStatus;
use hamlet_core::rejection::one_line;
use hamlet_runtime::{Clock, Shutdown, Spawner};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::audit::{Action, Actor, AuditLog, Bounds, Draft, Head, Known, folder_in};
use limiter::Limiter;

pub(super) use events::{Taken, asked_for, operator};

/// Most entries of the audit that wait to be written; further ones are counted as lost.
const AUDIT_QUEUE: usize = 1024;
/// Most entries of the audit that are made durable at once.
const AUDIT_BATCH: usize = 64;
/// How long after a failed write of the audit the next attempt is made.
const AUDIT_RETRY: Duration = Duration::from_secs(5);
/// How often it is looked whether counted entries are due, and whether something happened that nobody
/// announces.
const AUDIT_LOOK: Duration = Duration::from_millis(500);

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Draft>,
    limiter: Limiter,
    /// Entries that had no place, and of which nobody was told yet.
    lost: u64,
}

/// What is open, and what could not be written yet.
#[derive(Default)]
struct Writer {
    log: Option<AuditLog>,
    batch: Vec<Draft>,
}

/// What operators see.
#[derive(Default)]
struct Shown {
    head: Head,
    lost: u64,
    failures: u64,
    error: Option<String>,
}

/// What the audit holds of the agent's parts, to compare them with.
#[derive(Default)]
struct Compared {
    known: Known,
    /// Whether it differs from what is on disk.
    dirty: bool,
    /// Refused logins so far.
    refused_logins: u64,
}

/// The handle.
pub(super) struct Audit {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
    due: Notify,
    /// Only for those who may block.
    writer: Mutex<Writer>,
    shown: Mutex<Shown>,
    compared: Mutex<Compared>,
    /// Whose request is under way.
    asked: Mutex<Option<Actor>>,
}

impl Audit {
    /// The audit of a data folder, whose lock we hold. What can't be opened is tried again. Blocks.
    pub(super) fn open(data: &Path, clock: Arc<dyn Clock>) -> Arc<Audit> {
        let folder = folder_in(data);
        let known = Known::read(&folder).unwrap_or_else(|error| {
            tracing::error!(%error, "what the audit said last of roots can't be read; all roots are told anew");
            Known::default()
        });
        let audit = Arc::new(Audit {
            folder,
            clock,
            waiting: Mutex::default(),
            due: Notify::new(),
            writer: Mutex::default(),
            shown: Mutex::default(),
            compared: Mutex::new(Compared { known, ..Compared::default() }),
            asked: Mutex::new(None),
        });
        audit.flush();
        audit
    }

    /// An entry of now, to be filled and recorded.
    pub(super) fn draft(&self, actor: Actor, action: Action) -> Draft {
        Draft::new(self.clock.wall(), actor, action)
    }

    /// Takes an entry.
    pub(super) fn record(&self, draft: Draft) {
        let mut waiting = self.waiting.lock();
        let now = self.clock.now();
        if let Some(draft) = waiting.limiter.admit(draft, now) {
            waiting.push(draft);
            self.due.notify_one();
        }
    }

    /// Takes what was only counted until now and is due.
    fn ripen(&self) {
        let mut waiting = self.waiting.lock();
        let due = waiting.limiter.due(self.clock.now());
        if !due.is_empty() {
            due.into_iter().for_each(|draft| waiting.push(draft));
            self.due.notify_one();
        }
    }

    /// While `work` runs, what comes of it was asked for by `actor`.
    pub(super) async fn asked_by<T>(&self, actor: Actor, work: impl Future<Output = T>) -> T {
        *self.asked.lock() = Some(actor);
        let done = work.await;
        *self.asked.lock() = None;
        done
    }

    /// Whoever asked for what is under way.
    fn asker(&self) -> Option<Actor> {
        self.asked.lock().clone()
    }

    /// Writes what waits. Blocks. Returns whether all of it is durable.
    fn flush(&self) -> bool {
        let mut writer = self.writer.lock();
        let done = 'writing: loop {
            if writer.log.is_none() {
                match self.reopen() {
                    Ok(log) => writer.log = Some(log),
                    Err(error) => break 'writing Err(error),
                }
            }
            if writer.batch.is_empty() {
                writer.batch = self.next_batch();
            }
            if writer.batch.is_empty() {
                break 'writing Ok(());
            }
            let Writer { log: Some(log), batch } = &mut *writer else { continue };
            if let Err(error) = log.append(batch) {
                break 'writing Err(error);
            }
            batch.clear();
        };
        let done = done.and_then(|()| self.keep_known(writer.log.as_ref()));
        let mut shown = self.shown.lock();
        if let Some(log) = &writer.log {
            shown.head = log.head();
        }
        match done {
            Ok(()) => {
                if shown.error.take().is_some() {
                    tracing::info!(head = %shown.head, "the audit is written again");
                }
                true
            }
            Err(error) => {
                writer.log = None;
                shown.failures += 1;
                let text = one_line(&error.to_string(), 512);
                if shown.error.as_ref() != Some(&text) {
                    tracing::error!(%error, folder = %self.folder.display(), "the audit can't be written; the agent goes on, and entries wait");
                }
                shown.error = Some(text);
                false
            }
        }
    }

    fn reopen(&self) -> std::io::Result<AuditLog> {
        let remembered = self.compared.lock().known.head.as_ref().and_then(|head| head.parse().ok());
        let log = AuditLog::open(&self.folder, Bounds::default(), self.clock.wall(), remembered)?;
        // Kept with the log, it is what shows later that the files' end was cut off.
        tracing::info!(head = %log.head(), "audit");
        Ok(log)
    }

    fn next_batch(&self) -> Vec<Draft> {
        let mut waiting = self.waiting.lock();
        let lost = std::mem::take(&mut waiting.lost);
        let most = waiting.queue.len().min(AUDIT_BATCH);
        let mut batch: Vec<Draft> = waiting.queue.drain(..most).collect();
        drop(waiting);
        if lost > 0 {
            let mut draft = self.draft(Actor::Agent, Action::EntriesLost);
            draft.subject.count = Some(lost);
            batch.push(draft);
            self.shown.lock().lost += lost;
        }
        batch
    }

    /// Only after the entries themselves: at worst a change is told twice.
    fn keep_known(&self, log: Option<&AuditLog>) -> std::io::Result<()> {
        let mut compared = self.compared.lock();
        let head = log.map(|log| log.head().to_string());
        if compared.known.head != head {
            compared.known.head = head;
            compared.dirty = true;
        }
        if compared.dirty {
            compared.known.write(&self.folder)?;
            compared.dirty = false;
        }
        Ok(())
    }

    /// Writes whenever there is something, until `shutdown` begins; what comes later is for
    /// [`Self::close`].
    async fn run(self: Arc<Self>, spawner: Spawner, shutdown: Shutdown) {
        let mut good = true;
        'writing: loop {
            tokio::select! {
                () = self.due.notified(), if good => {}
                () = tokio::time::sleep(AUDIT_RETRY), if !good => {}
                () = shutdown.begun() => break 'writing,
            }
            let audit = self.clone();
            match spawner.spawn_blocking(move || audit.flush()).await {
                Ok(written) => good = written,
                Err(_) => break 'writing,
            }
        }
    }

    /// Writes the last entries. Blocks.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        let rest = waiting.limiter.rest();
        rest.into_iter().for_each(|draft| waiting.push(draft));
        waiting.push(self.draft(Actor::Agent, Action::AgentStopped));
        drop(waiting);
        if self.flush() {
            tracing::info!(head = %self.shown.lock().head, "audit closed");
        }
    }

    /// For operators.
    pub(super) fn status(&self) -> AuditStatus {
        let waiting = self.waiting.lock();
        let (queued, lost) = (waiting.queue.len() as u64, waiting.lost);
        drop(waiting);
        let shown = self.shown.lock();
        AuditStatus {
            folder: self.folder.display().to_string(),
            sequence: shown.head.sequence,
            head: shown.head.to_string(),
            waiting: queued,
            lost: shown.lost + lost,
            failures: shown.failures,
            error: shown.error.clone(),
        }
    }
}

impl Waiting {
    fn push(&mut self, draft: Draft) {
        if self.queue.len() < AUDIT_QUEUE {
            self.queue.push_back(draft);
        } else {
            self.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Entry, walk};
    use hamlet_runtime::ManualClock;

    fn entries(folder: &Path) -> Vec<Entry> {
        let mut all = vec![];
        let report = walk(folder, None, &mut |entry| all.push(entry.clone())).unwrap();
        assert!(report.breaks.is_empty(), "{report:?}");
        all
    }

    #[test]
    fn what_can_t_be_written_waits_in_order_and_what_has_no_place_is_counted_in_the_audit_itself() {
        let data = tempfile::tempdir().unwrap();
        let folder = folder_in(data.path());
        std::fs::write(&folder, "in the way").unwrap();
        let clock = ManualClock::at(Duration::from_secs(1_795_420_800));
        let audit = Audit::open(data.path(), clock.clone());
        let more = 7;
        for n in 0..AUDIT_QUEUE as u64 + more {
            let mut draft = audit.draft(Actor::Operator { uid: Some(0) }, Action::PeerPaused);
            draft.subject.count = Some(n);
            audit.record(draft);
        }
        assert!(!audit.flush());
        let status = audit.status();
        assert!(status.error.is_some() && status.failures >= 2 && status.sequence == 0, "{status:?}");
        assert_eq!((status.waiting, status.lost), (AUDIT_QUEUE as u64, more));

        std::fs::remove_file(&folder).unwrap();
        assert!(audit.flush());
        let (all, status) = (entries(&folder), audit.status());
        assert_eq!((status.waiting, status.lost, status.error), (0, more, None));
        let counts = all.iter().filter(|e| e.action == "peer-paused").map(|e| e.subject.count.unwrap());
        assert!(counts.eq(0..AUDIT_QUEUE as u64), "all that had a place, in order");
        let lost: Vec<&Entry> = all.iter().filter(|e| e.action == "entries-lost").collect();
        assert_eq!(lost.iter().map(|e| e.subject.count).collect::<Vec<_>>(), [Some(more)]);

        // What is only counted is told at the latest at the end.
        for _ in 0..100 {
            let mut draft = audit.draft(Actor::Stranger { address: None }, Action::LoginsRefused);
            draft.subject.reason = Some("unknown-issuer".into());
            audit.record(draft);
        }
        audit.close();
        let all = entries(&folder);
        let logins: Vec<u64> = all.iter().filter(|e| e.action == "logins-refused").map(|e| e.times).collect();
        assert_eq!((logins.iter().sum::<u64>(), logins.len() as u64), (100, limiter::AUDIT_STRANGERS + 1));
        assert_eq!(all.last().unwrap().action, "agent-stopped");
        assert_eq!(audit.status().head.split(':').next(), Some(all.len().to_string().as_str()));
    }
}
