//! The model that judges: it knows what is true, sees every message as it is written and as it
//! is read, every commit and every change that readers see, and complains when an invariant is
//! broken. It never asks the code under test what that believes of itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::durable::{ImportChange, ImportRecord, Verdict};
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;
use tokio::time::Instant;

mod passing;

use crate::tally::Tally;
use crate::truth::{Key, MeshId, Offered, mark};

/// The direction from an owner to a consumer.
pub(crate) type WayId = (MeshId, MeshId);

/// How long a change may take to a healthy consumer.
const DELIVERY_BUDGET: Duration = Duration::from_secs(8);
/// How much later than the rules say the code may look at the time.
const SLACK: Duration = Duration::from_secs(3);
/// How long a decision may wait for the disk.
const COMMIT_SLACK: Duration = Duration::from_secs(10);
/// The guard's sliding hour, with the minute by which it counts.
const GUARD_WINDOW: Duration = Duration::from_secs(3600);

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// As the texts name it: `I1`, `P2`, `crash`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
    /// When, since the beginning of the simulation.
    pub at: Duration,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// Import policy of one consumer towards one owner, as its operators mean it.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) imports: bool,
    pub(crate) takes_aliens: bool,
    pub(crate) limits: ImportLimits,
    pub(crate) guard: GuardSettings,
    pub(crate) hold: Option<Duration>,
}

/// One direction between two meshes.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) offered: Offered,
    pub(crate) policy: Policy,
    /// The owner is not a Hamlet agent.
    pub(crate) foreign_owner: bool,
    /// The consumer is not a Hamlet agent.
    pub(crate) foreign_consumer: bool,
    /// Acknowledged by the disk.
    pub(crate) durable: BTreeMap<Key, ImportRecord>,
    heard_mark: u128,
    /// When the durable set came to be which.
    heard_log: VecDeque<(Duration, u128)>,
    /// What readers see: revisions by key.
    visible: BTreeMap<Key, u64>,
    newest: BTreeMap<Key, u64>,
    /// Changes that the disk refused, and may have kept.
    failed: BTreeMap<Key, Vec<Option<ImportRecord>>>,
    /// How much of the hold time was over could not be kept.
    hold_unknown: bool,
    /// What was read on the stream that counts.
    current: BTreeSet<(Key, u128)>,
    /// A commit was so late that it may have outlived its stream.
    late_commit: bool,
    /// When the offers that were read had been written by their owner.
    written: BTreeMap<(Key, u128), Duration>,
    /// When the offer that is durable was written by its owner.
    applied_since: BTreeMap<Key, Duration>,
    /// When the consumer learned that the owner has the key no more.
    told_gone: BTreeMap<Key, Duration>,
    /// When the end of a round was read last.
    round_read: Duration,
    /// Keys of which the last word that was read is a deletion.
    deleted: BTreeSet<Key>,
    withdrawn: BTreeMap<Key, Duration>,
    peaks: VecDeque<(Duration, usize)>,
    /// Last time a stream had been up for a while, and how long the consumer ran since.
    up_since: Option<Duration>,
    down_run: Duration,
    looked: Option<Duration>,
    /// Set while nothing is wrong that could delay a change on this way.
    pub(crate) healthy_since: Option<Duration>,
    /// Keys whose change is not visible yet, since when.
    late: BTreeMap<Key, Duration>,
    policy_changed: Duration,
    /// Changes of policy that the agent hasn't taken yet.
    configuring: u32,
    /// The owner says that it leaves for good.
    pub(crate) left: bool,
    /// The number of the stream that counts.
    pub(crate) stream: u64,
    pub(crate) seen_expired: bool,
    /// Since when the last word on a key is refused.
    refused: BTreeMap<Key, Duration>,
    /// More was offered at some time than the quota takes.
    ever_over: bool,
}

/// One offer as the consumer's end read it.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) nonce: String,
    pub(crate) key: Key,
    /// `None` is a deletion.
    pub(crate) value: Option<bytes::Bytes>,
}

/// One stream in the direction from owner to consumer.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) number: u64,
    read: Vec<Read>,
    answered: usize,
    written: BTreeMap<(Key, u128), Duration>,
    /// What was said last of each key.
    last: BTreeMap<Key, Option<bytes::Bytes>>,
    /// What was offered at the instant of each bookmark; `None` if the owner had no right to one.
    bookmarks: BTreeMap<u64, (Option<u128>, u32)>,
    bookmark_read: BTreeMap<u64, Duration>,
    /// Why a difference is no surprise.
    pub(crate) excused: bool,
    /// The same since the present round began.
    pub(crate) excused_in_round: bool,
    /// Offers written so far, and at which count each dirty key became so.
    sent: u64,
    dirty: BTreeMap<Key, u64>,
    keys_read: BTreeSet<Key>,
}

impl Stream {
    /// From now on a difference is no surprise.
    pub(crate) fn excuse(&mut self) {
        (self.excused, self.excused_in_round) = (true, true);
    }

    pub(crate) fn new(number: u64) -> Stream {
        Stream { number, ..Stream::default() }
    }

    /// These are to be sent, and what is sent from now on is sent before them.
    pub(crate) fn note_dirty(&mut self, keys: &[Key]) {
        for key in keys {
            self.dirty.entry(key.clone()).or_insert(self.sent);
        }
    }
}

/// The judge.
#[derive(Debug)]
pub(crate) struct Model {
    start: Instant,
    pub(crate) ways: BTreeMap<WayId, Way>,
    pub(crate) tally: Tally,
    violation: Option<Violation>,
    log: Option<Vec<String>>,
    /// A number over everything that happened.
    story: u64,
}

impl Model {
    pub(crate) fn new(start: Instant, keep_log: bool) -> Model {
        Model {
            start,
            ways: BTreeMap::new(),
            tally: Tally::default(),
            violation: None,
            log: keep_log.then(Vec::new),
            story: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes an event. `numbers` go into the story of every run, the text only where it is kept.
    pub(crate) fn log(&mut self, numbers: &[u64], text: impl FnOnce() -> String) {
        let at = self.now();
        for n in [at.as_millis() as u64].iter().chain(numbers) {
            self.story = (self.story ^ n).wrapping_mul(0x100_0000_01b3);
        }
        if let Some(log) = &mut self.log {
            log.push(format!("{:9.3} {}", at.as_secs_f64(), text()));
        }
    }

    pub(crate) fn story(&self) -> u64 {
        self.story
    }

    pub(crate) fn take_log(&mut self) -> Vec<String> {
        self.log.take().unwrap_or_default()
    }

    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// The first complaint counts.
    pub(crate) fn complain(&mut self, invariant: &'static str, what: String) {
        let at = self.now();
        self.log(&[0xbad], || format!("BROKEN {invariant}: {what}"));
        self.violation.get_or_insert(Violation { invariant, what, at });
    }

    pub(crate) fn add_way(&mut self, id: WayId, policy: Policy, foreign_owner: bool, foreign_consumer: bool) {
        let way = Way {
            offered: Offered::default(),
            policy,
            foreign_owner,
            foreign_consumer,
            durable: BTreeMap::new(),
            heard_mark: 0,
            heard_log: [(Duration::ZERO, 0)].into(),
            visible: BTreeMap::new(),
            newest: BTreeMap::new(),
            failed: BTreeMap::new(),
            hold_unknown: false,
            current: BTreeSet::new(),
            late_commit: false,
            written: BTreeMap::new(),
            applied_since: BTreeMap::new(),
            told_gone: BTreeMap::new(),
            round_read: Duration::ZERO,
            deleted: BTreeSet::new(),
            withdrawn: BTreeMap::new(),
            peaks: VecDeque::new(),
            up_since: None,
            down_run: Duration::ZERO,
            looked: None,
            healthy_since: None,
            late: BTreeMap::new(),
            policy_changed: Duration::ZERO,
            configuring: 0,
            left: false,
            stream: 0,
            seen_expired: false,
            refused: BTreeMap::new(),
            ever_over: false,
        };
        self.ways.insert(id, way);
    }

    /// From now on this stream counts, and no older one.
    pub(crate) fn begin_stream(&mut self, id: WayId, number: u64) {
        if let Some(way) = self.ways.get_mut(&id) {
            way.stream = number;
            way.current.clear();
        }
    }

    /// What is offered on a way changed.
    pub(crate) fn offer(&mut self, id: WayId, wanted: BTreeMap<Key, crate::truth::Meant>) -> Vec<Key> {
        let now = self.now();
        let Some(way) = self.ways.get_mut(&id) else { return vec![] };
        let changed = way.offered.set(wanted, now);
        way.ever_over |= !way.fits();
        for key in &changed {
            way.late.insert(key.clone(), now);
        }
        let many = changed.len() as u64;
        if many > 0 {
            self.tally.add("changes of offers", many);
            self.log(&[1, id.0 as u64, id.1 as u64, many], || format!("{id:?} offers: {changed:?} changed"));
        }
        changed
    }

    /// The consumer's operators changed their minds.
    pub(crate) fn set_policy(&mut self, id: WayId, policy: Policy) {
        let now = self.now();
        if let Some(way) = self.ways.get_mut(&id) {
            way.policy = policy;
            way.policy_changed = now;
            way.configuring += 1;
        }
    }

    /// The consumer's agent has taken a change of its policy; until then the older one may act.
    pub(crate) fn configured(&mut self, id: WayId) {
        let now = self.now();
        if let Some(way) = self.ways.get_mut(&id) {
            way.policy_changed = now;
            way.configuring -= 1;
        }
    }
}

impl Way {
    /// What the disk refused it may have kept after all: whoever was told so offers it again.
    fn adopt_failed(&mut self, found: &BTreeMap<String, ImportRecord>) {
        for (key, tried) in std::mem::take(&mut self.failed) {
            let found = found.get(&*key).cloned();
            if found.as_ref() == self.durable.get(&key) || !tried.contains(&found) {
                continue;
            }
            let heard = |record: &ImportRecord| record.heard.as_ref().map(|h| mark(&key, &h.value));
            if let Some(number) = self.durable.get(&key).and_then(heard) {
                self.heard_mark = self.heard_mark.wrapping_sub(number);
            }
            match found {
                Some(record) => {
                    self.heard_mark = self.heard_mark.wrapping_add(heard(&record).unwrap_or(0));
                    self.durable.insert(key, record);
                }
                None => _ = self.durable.remove(&key),
            }
        }
    }

    /// Whether anything could delay a change.
    pub(crate) fn set_health(&mut self, healthy: bool, now: Duration) {
        match (healthy, self.healthy_since) {
            (true, None) => self.healthy_since = Some(now),
            (false, Some(_)) => self.healthy_since = None,
            _ => {}
        }
    }

    /// Whether the disk has more than readers see: the hold time may have ended.
    pub(crate) fn may_be_expired(&self) -> bool {
        self.durable.values().filter(|r| in_force(r)).count() > self.visible.len()
    }

    /// The revisions of raw values, as this way's owner meant them.
    pub(crate) fn revisions(&self, values: &BTreeMap<Key, bytes::Bytes>) -> BTreeMap<Key, u64> {
        let revision =
            |(k, v): (&Key, &bytes::Bytes)| (k.clone(), self.offered.revision_of(k, v).unwrap_or(0));
        values.iter().map(revision).collect()
    }

    /// Whether all that is offered is within the quota.
    pub(crate) fn fits(&self) -> bool {
        let bytes: u64 = self.offered.now().values().map(|m| m.value.len() as u64).sum();
        bytes <= self.policy.limits.bytes && self.offered.now().len() <= self.policy.limits.services
    }

    fn admits(&self, meant: &crate::truth::Meant) -> bool {
        self.policy.imports && (self.policy.takes_aliens || !meant.alien)
    }

    /// A set of keys that were changed on the way but whose change isn't visible, or is no more.
    fn settle_late(&mut self) {
        let Way { late, offered, visible, policy, foreign_owner, .. } = self;
        late.retain(|key, _| match offered.now().get(key) {
            // What a foreign owner took back while nobody listened is settled much later.
            None => visible.contains_key(key) && !*foreign_owner,
            Some(meant) if policy.imports && (policy.takes_aliens || !meant.alien) => {
                visible.get(key) != Some(&meant.revision)
            }
            Some(_) => false,
        });
    }

    fn guard_limit(&self) -> usize {
        let peak = self.peaks.iter().map(|(_, p)| *p).max().unwrap_or(0);
        self.policy.guard.floor.max(peak * usize::from(self.policy.guard.percent) / 100)
    }

    fn observe_peak(&mut self, now: Duration) {
        let in_force = self.durable.values().filter(|r| in_force(r)).count();
        let from = now.saturating_sub(GUARD_WINDOW);
        self.withdrawn.retain(|_, at| *at >= from);
        while self.peaks.front().is_some_and(|(at, _)| *at + Duration::from_secs(61) < from) {
            self.peaks.pop_front();
        }
        match self.peaks.back_mut() {
            Some((at, peak)) if now.saturating_sub(*at) < Duration::from_secs(1) => {
                *peak = (*peak).max(in_force);
            }
            _ => self.peaks.push_back((now, in_force)),
        }
    }
}

fn in_force(record: &ImportRecord) -> bool {
    record.in_force.is_some() || record.heard.as_ref().is_some_and(|h| h.verdict == Verdict::Admitted)
}

/// What the disk says.
impl Model {
    /// A commit became durable.
    pub(crate) fn committed(&mut self, consumer: MeshId, changes: &[(MeshId, ImportChange)], late: bool) {
        let now = self.now();
        for (owner, _) in changes.iter().filter(|_| late) {
            if let Some(way) = self.ways.get_mut(&(*owner, consumer)) {
                way.late_commit = true;
            }
        }
        self.tally.count("commits");
        let mut complaints = vec![];
        for (owner, change) in changes {
            let id = (*owner, consumer);
            let Some(way) = self.ways.get_mut(&id) else { continue };
            let key: Key = change.key.as_str().into();
            let before = way.durable.get(&key).and_then(|r| r.heard.as_ref()).map(|h| h.value.clone());
            let after = change.record.as_ref().and_then(|r| r.heard.as_ref()).map(|h| h.value.clone());
            if before != after {
                if let Some(value) = &before {
                    way.heard_mark = way.heard_mark.wrapping_sub(mark(&key, value));
                }
                if let Some(value) = &after {
                    // Offered again, admitted or not: it doesn't count any more.
                    way.withdrawn.remove(&key);
                    let number = mark(&key, value);
                    way.heard_mark = way.heard_mark.wrapping_add(number);
                    if !way.deleted.contains(&key) {
                        way.told_gone.remove(&key);
                    }
                    if let Some(at) = way.written.remove(&(key.clone(), number)) {
                        way.applied_since.insert(key.clone(), at);
                    }
                }
            }
            if change.record.as_ref().is_some_and(|r| r.heard.is_none() && r.withheld_ms.is_some()) {
                way.told_gone.entry(key.clone()).or_insert(way.round_read);
            }
            match change.record.as_ref().and_then(|r| r.heard.as_ref()).map(|h| &h.verdict) {
                Some(Verdict::Refused(_)) if before == after => {
                    way.refused.entry(key.clone()).or_insert(now);
                }
                Some(Verdict::Refused(_)) => {
                    way.refused.insert(key.clone(), now);
                }
                _ => {
                    way.refused.remove(&key);
                }
            }
            way.failed.remove(&key);
            match &change.record {
                Some(record) => {
                    way.durable.insert(key.clone(), record.clone());
                }
                None => {
                    way.durable.remove(&key);
                }
            }
            if let (Some(value), true) = (&after, before != after)
                && !way.late_commit
                && !way.current.contains(&(key.clone(), mark(&key, value)))
            {
                let what = format!(
                    "{id:?} keeps {key} as an older stream brought it, after a newer one said what is held"
                );
                complaints.push(("P4", what));
            }
            if let (Some(value), true) = (&after, before != after)
                && way.offered.revision_of(&key, value).is_none()
            {
                complaints.push(("I4", format!("{id:?} keeps {key} as it was never offered on this way")));
            }
        }
        let ways: BTreeSet<WayId> = changes.iter().map(|(owner, _)| (*owner, consumer)).collect();
        for id in ways {
            let Some(way) = self.ways.get_mut(&id) else { continue };
            way.heard_log.push_back((now, way.heard_mark));
            if way.heard_log.len() > 4096 {
                way.heard_log.pop_front();
            }
            way.observe_peak(now);
            let heard: u64 =
                way.durable.values().filter_map(|r| r.heard.as_ref()).map(|h| h.value.len() as u64).sum();
            let heard_keys = way.durable.values().filter(|r| r.heard.is_some()).count();
            let limits = way.policy.limits;
            if heard > 2 * limits.bytes {
                let what = format!("{id:?}: {heard} bytes are kept, the quota is {}", limits.bytes);
                complaints.push(("I7", what));
            }
            if heard_keys > 2 * limits.services {
                let what =
                    format!("{id:?}: {heard_keys} services are kept, the quota is {}", limits.services);
                complaints.push(("I7", what));
            }
        }
        for (owner, change) in changes {
            let kind = match &change.record {
                None => 0,
                Some(r) => 1 + u64::from(r.heard.is_some()) + 2 * u64::from(in_force(r)),
            };
            let id = (*owner, consumer);
            self.log(&[2, id.0 as u64, id.1 as u64, kind], || {
                let what = ["removed", "withheld", "?", "in force without heard", "heard and in force"];
                let what = match kind {
                    2 => "heard, refused",
                    k => what[k as usize],
                };
                let verdict = change.record.as_ref().and_then(|r| r.heard.as_ref()).map(|h| &h.verdict);
                let rule = match verdict {
                    Some(Verdict::Refused(rejection)) => rejection.rule.as_str(),
                    _ => "",
                };
                format!("{id:?} commit {}: {what} {rule}", change.key)
            });
        }
        for (invariant, what) in complaints {
            self.complain(invariant, what);
        }
    }

    /// The disk refused a commit.
    pub(crate) fn refused_by_disk(&mut self, consumer: MeshId, changes: &[(MeshId, ImportChange)]) {
        self.tally.count("commits refused by the disk");
        self.log(&[20, consumer as u64], || format!("mesh {consumer}: a commit failed"));
        for (owner, change) in changes {
            if let Some(way) = self.ways.get_mut(&(*owner, consumer)) {
                way.failed.entry(change.key.as_str().into()).or_default().push(change.record.clone());
            }
        }
    }

    /// A process ends while its disk takes nothing: how long its peers were away may be lost.
    pub(crate) fn hold_unknown(&mut self, consumer: MeshId) {
        for (_, way) in self.ways.iter_mut().filter(|((_, c), _)| *c == consumer) {
            way.hold_unknown = true;
        }
    }

    /// An answer of the disk came so late that its commit counts as failed, and isn't.
    pub(crate) fn late(&mut self, consumer: MeshId) {
        for (_, way) in self.ways.iter_mut().filter(|((_, c), _)| *c == consumer) {
            way.late_commit = true;
        }
    }

    /// A process starts with what the disk gave it.
    pub(crate) fn loaded(&mut self, id: WayId, records: &BTreeMap<String, ImportRecord>) {
        let Some(way) = self.ways.get_mut(&id) else { return };
        way.adopt_failed(records);
        let kept: BTreeMap<&str, &ImportRecord> = way.durable.iter().map(|(k, r)| (&**k, r)).collect();
        let found: BTreeMap<&str, &ImportRecord> = records.iter().map(|(k, r)| (k.as_str(), r)).collect();
        if kept != found {
            let missing = kept.iter().filter(|(k, r)| found.get(**k) != Some(r)).map(|(k, _)| *k);
            let missing: Vec<&str> = missing.collect();
            let extra: Vec<_> = found.keys().filter(|k| !kept.contains_key(**k)).copied().collect();
            let what = format!("{id:?}: after a restart the disk lost {missing:?} and has {extra:?} besides");
            self.complain("I2", what);
        }
        let now = self.now();
        if let Some(way) = self.ways.get_mut(&id) {
            // The guard counts anew in a new process.
            way.withdrawn.clear();
            way.observe_peak(now);
            way.visible.clear();
            way.seen_expired = false;
            way.late_commit = false;
            way.looked = Some(now);
            way.up_since = None;
        }
    }

    /// A foreign consumer forgets what it had when its stream ends; that is its way.
    pub(crate) fn foreign_dropped(&mut self, id: WayId) {
        if let Some(way) = self.ways.get_mut(&id) {
            way.visible.clear();
            way.newest.clear();
        }
    }

    /// A peer's records are gone on purpose.
    pub(crate) fn forgotten(&mut self, id: WayId) {
        let now = self.now();
        if let Some(way) = self.ways.get_mut(&id) {
            way.durable.clear();
            way.heard_mark = 0;
            way.heard_log.push_back((now, 0));
        }
    }
}

/// What readers see.
impl Model {
    /// Looks at what a consumer's readers see of one owner.
    pub(crate) fn look(&mut self, id: WayId, seen: Option<BTreeMap<Key, u64>>, expired: bool, up: bool) {
        let now = self.now();
        let mut complaints = vec![];
        let mut trips = 0;
        let Some(way) = self.ways.get_mut(&id) else { return };
        let passed = way.looked.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        way.looked = Some(now);
        if up {
            let since = *way.up_since.get_or_insert(now);
            if now.saturating_sub(since) >= Duration::from_secs(2) {
                way.down_run = Duration::ZERO;
                way.hold_unknown = false;
            }
        } else {
            way.up_since = None;
            way.down_run += passed;
        }
        let Some(seen) = seen else {
            way.seen_expired |= expired;
            way.check_late(id, now, &mut complaints);
            self.finish(complaints);
            return;
        };
        // Also once more, if it had spoken since.
        let expired_now = expired && (!way.seen_expired || seen.is_empty());
        way.seen_expired = expired;
        if seen == way.visible {
            way.check_late(id, now, &mut complaints);
            self.finish(complaints);
            return;
        }
        // What is offered again doesn't count.
        way.withdrawn.retain(|key, _| !seen.contains_key(key));
        let gone: Vec<Key> = way.visible.keys().filter(|k| !seen.contains_key(*k)).cloned().collect();
        if expired_now {
            let early = way.policy.hold.is_none_or(|hold| way.down_run + SLACK < hold);
            // What the owner or policy took away goes for that reason, not for the time.
            let by_time = |way: &mut Way| gone.iter().any(|k| way.judge_withdrawal(id, k, now).is_some());
            if early && !way.hold_unknown && by_time(way) {
                let (hold, down) = (way.policy.hold, way.down_run);
                let what = format!("{id:?}: the hold time of {hold:?} ended after {down:?} without the peer");
                complaints.push(("I5", what));
            }
        } else {
            for key in &gone {
                if let Some(complaint) = way.judge_withdrawal(id, key, now) {
                    complaints.push(complaint);
                }
            }
        }
        trips += gone.len() as u64;
        for (key, revision) in &seen {
            if way.visible.get(key) == Some(revision) {
                continue;
            }
            let newest = way.newest.entry(key.clone()).or_default();
            if revision < newest {
                let what = format!("{id:?}: {key} goes back from revision {newest} to {revision}");
                complaints.push(("I1", what));
            }
            *newest = (*newest).max(*revision);
            if !way.offered.ever(key, *revision) {
                let what = format!("{id:?}: {key} revision {revision} is served and was never offered here");
                complaints.push(("I4", what));
            }
        }
        way.visible = seen;
        let Way { told_gone, visible, durable, .. } = way;
        told_gone.retain(|key, _| visible.contains_key(key) || durable.contains_key(key));
        way.check_late(id, now, &mut complaints);
        self.tally.add("withdrawals seen", trips);
        self.log(&[3, id.0 as u64, id.1 as u64, trips], || {
            format!("{id:?} readers see a change, gone {gone:?}")
        });
        self.finish(complaints);
    }

    fn finish(&mut self, complaints: Vec<(&'static str, String)>) {
        for (invariant, what) in complaints {
            self.complain(invariant, what);
        }
    }
}

impl Way {
    /// Whether policy takes everything away, or may just be about to.
    fn may_all_go(&self, now: Duration) -> bool {
        let settling = self.configuring > 0 || now < self.policy_changed + Duration::from_millis(100);
        self.left || !self.policy.imports || settling
    }

    /// Whether an entry may go now, and why not.
    fn judge_withdrawal(&mut self, id: WayId, key: &Key, now: Duration) -> Option<(&'static str, String)> {
        let revision = self.visible.get(key).copied().unwrap_or_default();
        if self.may_all_go(now) {
            return None;
        }
        let refused = self.refused.get(key).copied();
        // It counts from the decision, which a slow commit makes known only later.
        let long =
            |at: Duration| now.saturating_sub(at) + SLACK + COMMIT_SLACK >= self.policy.limits.refused_hold;
        let refused_long = [self.offered.alien_since(key), refused].into_iter().flatten().any(long);
        let alien = !self.policy.takes_aliens && self.was_alien(key, revision);
        if refused_long || alien {
            return None;
        }
        // A foreign owner queues what it says: when it wrote it says little.
        let since = match self.foreign_owner {
            true => self.offered.first_at(key, revision),
            false => self.applied_since.get(key).copied(),
        };
        let since = since.unwrap_or_default();
        if !self.offered.withdrawn_since(key, since) {
            let what = format!("{id:?}: {key} (revision {revision}) was withdrawn; its owner offers it");
            return Some(("I5", what));
        }
        let waited = self
            .told_gone
            .get(key)
            .is_some_and(|at| now.saturating_sub(*at) + SLACK >= self.policy.guard.wait);
        if self.policy.guard.percent < 100 && !waited {
            self.withdrawn.insert(key.clone(), now);
            let limit = self.guard_limit();
            if self.withdrawn.len() > limit {
                let what = format!(
                    "{id:?}: {} withdrawals within the hour, the guard lets {limit} go",
                    self.withdrawn.len()
                );
                return Some(("I5", what));
            }
        }
        None
    }

    fn was_alien(&self, key: &str, revision: u64) -> bool {
        self.offered.alien_of(key, revision)
    }

    fn check_late(&mut self, id: WayId, now: Duration, complaints: &mut Vec<(&'static str, String)>) {
        self.settle_late();
        let Some(healthy) = self.healthy_since else { return };
        if self.ever_over
            || self.seen_expired
            || self.policy.guard.percent < 100 && !self.told_gone.is_empty()
        {
            return;
        }
        for (key, since) in &self.late {
            let since = (*since).max(healthy);
            if now.saturating_sub(since) > DELIVERY_BUDGET {
                let what = format!(
                    "{id:?}: a change of {key} is not there after {DELIVERY_BUDGET:?}, and nothing is wrong between the two"
                );
                complaints.push(("I10", what));
                return;
            }
        }
    }
}

impl Model {
    /// The first way that isn't as it should be.
    pub(crate) fn unsettled_way(&self) -> Option<String> {
        self.ways.keys().find_map(|id| self.unsettled(*id))
    }

    /// At the end, when everything has been well for long: what should be there, and is it?
    /// `None` if all is as it should be.
    pub(crate) fn unsettled(&self, id: WayId) -> Option<String> {
        let way = self.ways.get(&id)?;
        if !way.policy.imports {
            let left = way.visible.len();
            return (left > 0).then(|| format!("{id:?}: {left} services are served without an import"));
        }
        let offered = way.offered.now();
        // What was refused for want of room a foreign owner doesn't say again.
        let fits = way.fits() && !(way.foreign_owner && way.ever_over);
        for (key, meant) in offered {
            let seen = way.visible.get(key).copied();
            if way.admits(meant) {
                if fits && seen != Some(meant.revision) {
                    return Some(format!(
                        "{id:?}: {key} is offered in revision {}, readers see {seen:?}",
                        meant.revision
                    ));
                }
                if seen.is_some_and(|seen| seen > meant.revision) {
                    return Some(format!("{id:?}: {key} is served in a revision that isn't offered"));
                }
            } else if seen.is_some_and(|seen| way.was_alien(key, seen)) {
                return Some(format!("{id:?}: {key} is served against policy"));
            }
        }
        if !way.foreign_owner
            && let Some(key) = way.visible.keys().find(|k| !offered.contains_key(*k))
        {
            return Some(format!("{id:?}: {key} is served and no longer offered"));
        }
        let hello = !way.foreign_owner && !way.foreign_consumer;
        if fits && hello && way.heard_mark != way.offered.mark() {
            return Some(format!("{id:?}: what was heard is not what is offered"));
        }
        None
    }
}

/// Shared by everything that runs in one simulation.
pub(crate) type Shared<T> = Arc<parking_lot::Mutex<T>>;
