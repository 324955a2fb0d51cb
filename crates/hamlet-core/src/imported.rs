//! One peer's imports: what it said last (*heard*), what we serve of it (*in force*), and every
//! recorded difference between the two. *Hardened to untrusted peer.*
//!
//! Every change is staged, made durable by the caller, and only then applied; what was staged and
//! could not be committed is abandoned and leaves no trace. Within one batch a key is staged at
//! most once.

mod hold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::digest::{DigestTree, Scope, bucket_of, key_hash, leaf};
use crate::durable::{Hash32, HeardRecord, ImportChange, ImportRecord, Verdict};
use crate::guard::{Guard, GuardSettings};
use crate::import::ImportRules;
pub use crate::judge::{Decoder, Judge, ServiceJudge};
use crate::lease::NameLeases;
use crate::name::PeerName;
use crate::rejection::{Rejection, RejectionCode};
use crate::seeded::{SeededBug, is_on};
use crate::service::ImportedService;

/// What one peer may make us hold (threat T7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Most services in force.
    pub services: usize,
    /// Most bytes of encoded services heard.
    pub bytes: u64,
    /// Largest message with one service, in bytes.
    pub message_bytes: usize,
    /// How long an older version stays in force beside a refused newer one, running time.
    pub refused_hold: Duration,
}

impl Default for ImportLimits {
    fn default() -> Self {
        ImportLimits {
            services: 20_000,
            bytes: 64 << 20,
            message_bytes: crate::service::limits::MESSAGE_BYTES,
            refused_hold: Duration::from_secs(24 * 3600),
        }
    }
}

/// Least time between looks at refusals that wait for a name or for room, when some was let go.
const RECHECK_FREED: Duration = Duration::from_secs(5);
/// The same when nothing was let go here: another peer's names are let go without a word.
const RECHECK_IDLE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq)]
struct Heard {
    value: Bytes,
    leaf: Hash32,
    verdict: Verdict,
    since: Duration,
    bucket: u16,
    // The owner's version of it on the stream that brought it; 0 if it said none. Not kept.
    version: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct InForce<V> {
    value: Bytes,
    service: Arc<V>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry<V> {
    heard: Option<Heard>,
    in_force: Option<InForce<V>>,
    withheld_until: Option<Duration>,
}

impl<V> Default for Entry<V> {
    fn default() -> Self {
        Entry { heard: None, in_force: None, withheld_until: None }
    }
}

impl<V> Entry<V> {
    fn is_empty(&self) -> bool {
        self.heard.is_none() && self.in_force.is_none() && self.withheld_until.is_none()
    }
}

/// A decision that isn't in effect yet: commit [`Staged::change`], then
/// [`apply`](ImportedSlice::apply) or [`abandon`](ImportedSlice::abandon).
#[derive(Debug)]
pub struct Staged<V = ImportedService> {
    /// The key it is about.
    pub key: Arc<str>,
    /// What the owner is told once it is durable.
    pub answer: Result<(), Rejection>,
    next: Option<Entry<V>>,
    changed: bool,
    /// Whether the owner said it just now, as opposed to a decision of ours.
    said: bool,
    reserved: Reserved,
}

impl<V> Staged<V> {
    /// An answer without any change.
    fn unchanged(key: Arc<str>, answer: Result<(), Rejection>) -> Staged<V> {
        Staged { key, answer, next: None, changed: false, said: false, reserved: Reserved::default() }
    }

    /// A change that takes no more room than the entry has.
    fn to(key: Arc<str>, next: Option<Entry<V>>) -> Staged<V> {
        Staged { key, answer: Ok(()), next, changed: true, said: false, reserved: Reserved::default() }
    }
}

/// Room that staged changes will take: one batch must not admit more than the quota leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reserved {
    services: u64,
    heard: u64,
    bytes: u64,
}

/// Changes for the catalogue's slice: `None` withdraws.
pub type SliceChanges<V = ImportedService> = Vec<(Arc<str>, Option<Arc<V>>)>;

/// How many entries are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Keys of the owner's last word.
    pub heard: u64,
    /// Keys we serve.
    pub in_force: u64,
    /// Keys whose last word was refused.
    pub refused: u64,
    /// Refused keys of which an older version is in force.
    pub older_in_force: u64,
    /// Withdrawals that the guard holds back.
    pub withheld: u64,
}

/// All of one peer's imports. One session writes it at a time.
pub struct ImportedSlice<J: Judge = ServiceJudge> {
    peer: PeerName,
    type_url: String,
    /// Who decides. Given other rules, it decides anew with [`reevaluate`](Self::reevaluate).
    pub judge: J,
    limits: ImportLimits,
    guard: Guard,
    entries: BTreeMap<Arc<str>, Entry<J::Value>>,
    digest: DigestTree,
    bytes: u64,
    reserved: Reserved,
    /// A name or room was let go since refusals for want of one were last looked at.
    freed: bool,
    rechecked: Option<Duration>,
    /// Since the hold time ended: what the owner has said again, which alone is shown to readers.
    expired: Option<BTreeSet<Arc<str>>>,
    counts: ImportCounts,
    /// A seeded bug's: what was repeated on any stream.
    #[cfg(feature = "seeded-bugs")]
    survivors: BTreeSet<Arc<str>>,
}

impl<J: Judge> std::fmt::Debug for ImportedSlice<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportedSlice").field("peer", &self.peer).field("counts", &self.counts).finish()
    }
}

impl ImportedSlice {
    /// An empty slice that admits nothing until [`set_rules`](Self::set_rules).
    pub fn new(peer: PeerName, type_url: &str, decoder: Decoder, leases: NameLeases) -> ImportedSlice {
        ImportedSlice::judged_by(peer, type_url, ServiceJudge { rules: None, decoder, leases })
    }

    /// Sets policy and limits. Existing entries are judged anew only by
    /// [`reevaluate`](Self::reevaluate).
    pub fn set_rules(&mut self, rules: Option<Arc<ImportRules>>, limits: ImportLimits, guard: GuardSettings) {
        self.judge.rules = rules;
        self.set_limits(limits, guard);
    }
}

impl<J: Judge> ImportedSlice<J> {
    /// An empty slice of anything that a judge can decide on.
    pub fn judged_by(peer: PeerName, type_url: &str, judge: J) -> ImportedSlice<J> {
        ImportedSlice {
            peer,
            type_url: type_url.to_owned(),
            judge,
            limits: ImportLimits::default(),
            guard: Guard::new(GuardSettings::default()),
            entries: BTreeMap::new(),
            digest: DigestTree::new(type_url),
            bytes: 0,
            reserved: Reserved::default(),
            freed: false,
            rechecked: None,
            expired: None,
            counts: ImportCounts::default(),
            #[cfg(feature = "seeded-bugs")]
            survivors: BTreeSet::new(),
        }
    }

    /// Whose imports these are.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// The type of the resources.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// Sets quotas and the brake.
    pub fn set_limits(&mut self, limits: ImportLimits, guard: GuardSettings) {
        self.limits = limits;
        self.guard.set(guard);
    }

    /// The counts by state.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }

    /// Root and count over what was heard.
    pub fn heard_root(&mut self) -> (Hash32, u64) {
        (self.digest.root(), self.digest.count())
    }

    /// Hashes of some nodes of the digest of what was heard, in order, cut to
    /// [`CUT_BYTES`](crate::digest::CUT_BYTES) each.
    pub fn heard_hashes(&mut self, among: &Scope) -> Vec<u8> {
        self.digest.cut_hashes(among)
    }

    /// The owner's version of what was heard last under a key; 0 if it said none.
    pub fn heard_version(&self, key: &str) -> u64 {
        self.entries.get(key).and_then(|e| e.heard.as_ref()).map_or(0, |h| h.version)
    }

    /// The marks that a new round begins with: none.
    #[cfg(not(feature = "seeded-bugs"))]
    pub fn surviving_marks(&mut self, _repeated: &[Arc<str>], _deleted: &[Arc<str>]) -> BTreeSet<Arc<str>> {
        BTreeSet::new()
    }

    /// What a seeded bug lets survive the stream: marks of rounds that never ended. Empty without it.
    #[cfg(feature = "seeded-bugs")]
    pub fn surviving_marks(&mut self, repeated: &[Arc<str>], deleted: &[Arc<str>]) -> BTreeSet<Arc<str>> {
        if is_on(SeededBug::MarksSurvive) {
            self.survivors.extend(repeated.iter().cloned());
            deleted.iter().for_each(|key| _ = self.survivors.remove(key));
        }
        self.survivors.clone()
    }

    /// The keys heard.
    pub fn heard_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().filter(|(_, e)| e.heard.is_some()).map(|(k, _)| k)
    }

    /// Whether a key is among them.
    pub fn hears(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|e| e.heard.is_some())
    }

    /// Refused keys with their rejections, in key order.
    pub fn refused(&self) -> impl Iterator<Item = (&Arc<str>, &Rejection, bool)> {
        self.entries.iter().filter_map(|(k, e)| match &e.heard {
            Some(Heard { verdict: Verdict::Refused(r), .. }) => Some((k, r, e.in_force.is_some())),
            _ => None,
        })
    }

    /// Why what was heard under a key is refused, if it is.
    pub fn refusal(&self, key: &str) -> Option<&Rejection> {
        match &self.entries.get(key)?.heard {
            Some(Heard { verdict: Verdict::Refused(r), .. }) => Some(r),
            _ => None,
        }
    }

    /// Keys that the guard holds, with the running time at which they go.
    pub fn withheld(&self) -> impl Iterator<Item = (&Arc<str>, Duration)> {
        self.entries.iter().filter_map(|(k, e)| e.withheld_until.map(|until| (k, until)))
    }

    /// Puts back what the store kept. Leaves are computed anew from the raw bytes; one that
    /// doesn't match leaves *heard* (the owner will send it again) but stays in force. Returns
    /// what is in force, and how many records were not believed.
    pub fn load(
        &mut self,
        records: BTreeMap<String, ImportRecord>,
        now: Duration,
    ) -> (SliceChanges<J::Value>, usize) {
        let mut distrusted = 0;
        let mut changes = vec![];
        for (key, record) in records {
            let key: Arc<str> = key.into();
            let mut entry = Entry::default();
            let mut serve = record.in_force;
            if let Some(h) = record.heard {
                if serve.is_none() && h.verdict == Verdict::Admitted {
                    serve = Some(h.value.clone());
                }
                if leaf(&self.type_url, &key, &h.value) == h.leaf {
                    let since = now.saturating_sub(Duration::from_millis(h.refused_ms));
                    let bucket = bucket_of(&key_hash(&key));
                    let (value, leaf, verdict) = (h.value, h.leaf, h.verdict);
                    entry.heard = Some(Heard { value, leaf, verdict, since, bucket, version: 0 });
                } else {
                    distrusted += 1;
                }
            }
            entry.withheld_until = record.withheld_ms.map(|ms| now + Duration::from_millis(ms));
            if let Some(value) = serve {
                match self.judge.judge(&key, &value, now) {
                    Ok(service) => entry.in_force = Some(InForce { value, service }),
                    Err(rejection) => {
                        if let Some(heard) = entry.heard.as_mut().filter(|h| h.value == value) {
                            heard.verdict = Verdict::Refused(rejection);
                        }
                    }
                }
            }
            let service = entry.in_force.as_ref().map(|f| f.service.clone());
            self.put(&key, Some(entry));
            changes.push((key, service));
        }
        self.guard.observe(self.counts.in_force as usize, now);
        (changes, distrusted)
    }

    /// Stages an offer; `version` is the owner's, 0 if it said none.
    pub fn offer(&mut self, key: &str, value: Bytes, version: u64, now: Duration) -> Staged<J::Value> {
        Staged { said: true, ..self.stage_offer(key, value, version, now) }
    }

    fn stage_offer(&mut self, key: &str, value: Bytes, version: u64, now: Duration) -> Staged<J::Value> {
        let key: Arc<str> = key.into();
        if let Some(heard) = self.entries.get_mut(&key).and_then(|e| e.heard.as_mut())
            && heard.value == value
        {
            heard.version = version;
        }
        let old = self.entries.get(&key);
        if let Some(Entry { heard: Some(h), withheld_until: None, .. }) = old
            && h.value == value
        {
            let answer = match &h.verdict {
                Verdict::Admitted => Ok(()),
                Verdict::Refused(r) => Err(r.clone()),
            };
            return Staged::unchanged(key, answer);
        }
        let mut next = old.cloned().unwrap_or_default();
        // Twice the quota is recorded, refused or not, so that the set can still be compared; what
        // is beyond is refused without a trace.
        if let Err(rejection) = self.check_quota(&next, value.len(), 2) {
            return Staged::unchanged(key, Err(rejection));
        }
        self.guard.offered_again(&key);
        next.withheld_until = None;
        let judged = match self.check_quota(&next, value.len(), 1) {
            Ok(()) => self.judge.judge(&key, &value, now),
            Err(rejection) => Err(rejection),
        };
        self.stage_heard(key, next, value, version, judged, now)
    }

    /// Whether `entry` fits with a value of `bytes`: within the quota, the services in force are
    /// counted; within a multiple of it, all that is heard.
    fn check_quota(&self, entry: &Entry<J::Value>, bytes: usize, times: u64) -> Result<(), Rejection> {
        let held = entry.heard.as_ref().map_or(0, |h| h.value.len() as u64);
        let quota =
            |rule: &str, message: String| Rejection::new(RejectionCode::Quota, rule, "resource_id", message);
        let (new, count) = match times {
            1 => (entry.in_force.is_none(), self.counts.in_force + self.reserved.services),
            _ => (entry.heard.is_none(), self.counts.heard + self.reserved.heard),
        };
        if new && count >= (self.limits.services as u64).saturating_mul(times) {
            let message =
                format!("the importing mesh takes at most {} services from this peer", self.limits.services);
            return Err(quota("quota-services", message));
        }
        if entry.heard.is_some() && is_on(SeededBug::QuotaBypass) {
            return Ok(());
        }
        let total = (self.bytes + self.reserved.bytes).saturating_sub(held) + bytes as u64;
        if total > self.limits.bytes.saturating_mul(times) {
            let message =
                format!("the importing mesh takes at most {} bytes from this peer", self.limits.bytes);
            return Err(quota("quota-bytes", message));
        }
        Ok(())
    }

    fn stage_heard(
        &mut self,
        key: Arc<str>,
        mut next: Entry<J::Value>,
        value: Bytes,
        version: u64,
        judged: Result<Arc<J::Value>, Rejection>,
        now: Duration,
    ) -> Staged<J::Value> {
        let leaf = match &judged {
            Ok(served) if is_on(SeededBug::LeafAfterAlias) => {
                leaf(&self.type_url, &key, format!("{served:?}").as_bytes())
            }
            _ => leaf(&self.type_url, &key, &value),
        };
        let bucket = bucket_of(&key_hash(&key));
        if is_on(SeededBug::LeafOutsideTransaction) {
            self.digest.insert(&key, leaf);
        }
        let old = self.entries.get(&key);
        let held = old.and_then(|e| e.heard.as_ref()).map_or(0, |h| h.value.len());
        let reserved = Reserved {
            services: (judged.is_ok() && next.in_force.is_none()).into(),
            heard: next.heard.is_none().into(),
            bytes: value.len().saturating_sub(held) as u64,
        };
        self.reserve(reserved);
        let (verdict, answer) = match judged {
            Ok(service) => {
                next.in_force = Some(InForce { value: value.clone(), service });
                (Verdict::Admitted, Ok(()))
            }
            Err(rejection) => {
                if is_on(SeededBug::NackRemovesOld) {
                    next.in_force = None;
                }
                (Verdict::Refused(rejection.clone()), Err(rejection))
            }
        };
        next.heard = Some(Heard { value, leaf, verdict, since: now, bucket, version });
        Staged { key, answer, next: Some(next), changed: true, said: false, reserved }
    }

    fn reserve(&mut self, more: Reserved) {
        self.reserved.services += more.services;
        self.reserved.heard += more.heard;
        self.reserved.bytes += more.bytes;
    }

    fn unreserve(&mut self, less: Reserved) {
        self.reserved.services -= less.services;
        self.reserved.heard -= less.heard;
        self.reserved.bytes -= less.bytes;
    }

    /// Stages an explicit deletion; unknown keys are fine.
    pub fn delete(&mut self, key: &str, now: Duration) -> Staged<J::Value> {
        let key: Arc<str> = key.into();
        match self.entries.get(&key) {
            None => Staged::unchanged(key, Ok(())),
            Some(entry) if entry.heard.is_none() && entry.withheld_until.is_some() => {
                Staged::unchanged(key, Ok(()))
            }
            Some(entry) => {
                let counts = entry.in_force.is_some();
                let held = self.counts.in_force as usize;
                let pass = !counts || self.guard.allow(std::slice::from_ref(&key), held, now);
                self.stage_withdrawal(key, pass, now)
            }
        }
    }

    /// Stages the end of every heard key in `scope` (all if none is given) that is not in
    /// `marked`: all of them go, or all are withheld.
    pub fn sweep(
        &mut self,
        marked: &BTreeSet<Arc<str>>,
        scope: Option<&Scope>,
        now: Duration,
    ) -> Vec<Staged<J::Value>> {
        let inside = |h: &Heard| scope.is_none_or(|s| s.contains(h.bucket));
        let unmarked = self.entries.iter().filter(|(k, _)| !marked.contains(*k));
        let gone = unmarked.filter(|(_, e)| e.heard.as_ref().is_some_and(inside));
        self.end_all(gone.map(|(k, _)| k.clone()).collect(), now)
    }

    /// Stages the end of the given keys, as far as they are heard: all of them go, or all are
    /// withheld.
    pub fn end_all(&mut self, gone: Vec<Arc<str>>, now: Duration) -> Vec<Staged<J::Value>> {
        let gone: Vec<Arc<str>> = gone.into_iter().filter(|k| self.hears(k)).collect();
        if is_on(SeededBug::GuardPerRound) {
            self.guard = Guard::new(self.guard.settings());
        }
        let serving: Vec<Arc<str>> = gone
            .iter()
            .filter(|k| self.entries.get(*k).is_some_and(|e| e.in_force.is_some()))
            .cloned()
            .collect();
        let pass = serving.is_empty() || self.guard.allow(&serving, self.counts.in_force as usize, now);
        gone.into_iter().map(|key| self.stage_withdrawal(key, pass, now)).collect()
    }

    fn stage_withdrawal(&self, key: Arc<str>, pass: bool, now: Duration) -> Staged<J::Value> {
        let mut next = None;
        if !pass
            && let Some(entry) = self.entries.get(&key)
            && let Some(in_force) = entry.in_force.clone()
        {
            let until = now + self.guard.settings().wait;
            let heard = entry.heard.clone().filter(|_| is_on(SeededBug::WithheldCounted));
            next = Some(Entry { heard, in_force: Some(in_force), withheld_until: Some(until) });
        }
        Staged::to(key, next)
    }

    /// Stages what is due by time: withheld withdrawals past their wait, older versions that
    /// stood beside a refusal for too long, and what was refused for want of a name or of room
    /// that has since been let go.
    pub fn due(&mut self, now: Duration) -> Vec<Staged<J::Value>> {
        let mut staged = vec![];
        if self.counts.withheld == 0 && self.counts.older_in_force == 0 {
            return self.recheck(&BTreeSet::new(), now);
        }
        for (key, entry) in &self.entries {
            if entry.withheld_until.is_some_and(|until| until <= now) {
                staged.push(Staged::to(key.clone(), None));
            } else if let (Some(Heard { verdict: Verdict::Refused(_), since, .. }), Some(_)) =
                (&entry.heard, &entry.in_force)
                && now.saturating_sub(*since) >= self.limits.refused_hold
            {
                let next = Entry { in_force: None, ..entry.clone() };
                staged.push(Staged::to(key.clone(), Some(next)));
            }
        }
        let taken: BTreeSet<Arc<str>> = staged.iter().map(|s| s.key.clone()).collect();
        staged.extend(self.recheck(&taken, now));
        staged
    }

    /// Judges anew what waits for a name or for room: soon after something was let go here, and
    /// now and then because names are let go elsewhere too.
    fn recheck(&mut self, except: &BTreeSet<Arc<str>>, now: Duration) -> Vec<Staged<J::Value>> {
        let wait = if self.freed { RECHECK_FREED } else { RECHECK_IDLE };
        if self.counts.refused == 0 || self.rechecked.is_some_and(|at| now.saturating_sub(at) < wait) {
            return vec![];
        }
        (self.freed, self.rechecked) = (false, Some(now));
        let waiting = |e: &Entry<J::Value>| match &e.heard {
            Some(Heard { verdict: Verdict::Refused(r), .. }) => {
                matches!(r.code, RejectionCode::NameTaken | RejectionCode::Quota)
            }
            _ => false,
        };
        let keys: Vec<Arc<str>> = self
            .entries
            .iter()
            .filter(|(k, e)| waiting(e) && !except.contains(*k))
            .map(|(k, _)| k.clone())
            .collect();
        let admitted = |s: &Staged<J::Value>| {
            let heard = s.next.as_ref().and_then(|e| e.heard.as_ref());
            heard.is_some_and(|h| h.verdict == Verdict::Admitted)
        };
        let mut staged = vec![];
        for key in keys {
            match self.judge_anew(key, now) {
                Some(s) if admitted(&s) => staged.push(s),
                Some(s) => self.unreserve(s.reserved),
                None => {}
            }
        }
        staged
    }

    /// Judges every entry anew under the current rules and names, from the raw bytes we keep:
    /// what is now refused is withdrawn at once, what was refused and now passes comes in force.
    pub fn reevaluate(&mut self, now: Duration) -> Vec<Staged<J::Value>> {
        let keys: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        keys.into_iter().filter_map(|key| self.judge_anew(key, now)).collect()
    }

    /// Stages what an entry becomes under the current rules; `None` if it stays as it is.
    fn judge_anew(&mut self, key: Arc<str>, now: Duration) -> Option<Staged<J::Value>> {
        let entry = self.entries.get(&key)?.clone();
        let Some(heard) = &entry.heard else {
            // Withheld: it must pass the rules for as long as it is served.
            let value = entry.in_force.as_ref()?.value.clone();
            let next = match self.judge.judge(&key, &value, now) {
                Ok(service) => Some(Entry { in_force: Some(InForce { value, service }), ..entry.clone() }),
                Err(_) => None,
            };
            return (next.as_ref() != Some(&entry)).then(|| Staged::to(key, next));
        };
        let over_quota = matches!(&heard.verdict, Verdict::Refused(r) if r.code == RejectionCode::Quota);
        let judged = match self.check_quota(&entry, heard.value.len(), 1) {
            Err(rejection) if over_quota || entry.in_force.is_none() => Err(rejection),
            _ => self.judge.judge(&key, &heard.value, now),
        };
        let (verdict, in_force) = match judged {
            Ok(service) => (Verdict::Admitted, Some(InForce { value: heard.value.clone(), service })),
            Err(r) if heard.verdict == Verdict::Admitted => (Verdict::Refused(r), None),
            // It was refused before: an older version in force must pass the rules as well.
            Err(r) => {
                let older = entry.in_force.as_ref().and_then(|f| {
                    let service = self.judge.judge(&key, &f.value, now).ok()?;
                    Some(InForce { value: f.value.clone(), service })
                });
                (Verdict::Refused(r), older)
            }
        };
        let next = Entry { heard: Some(Heard { verdict, ..heard.clone() }), in_force, ..entry.clone() };
        if next == entry {
            return None;
        }
        let services = (entry.in_force.is_none() && next.in_force.is_some()).into();
        let reserved = Reserved { services, ..Reserved::default() };
        self.reserve(reserved);
        Some(Staged { key, answer: Ok(()), next: Some(next), changed: true, said: false, reserved })
    }

    /// Whether what is staged turns an admission into a refusal or the other way round.
    pub fn changes_verdict(&self, staged: &Staged<J::Value>) -> bool {
        let admitted = |entry: &Entry<J::Value>| Some(entry.heard.as_ref()?.verdict == Verdict::Admitted);
        let (old, new) =
            (self.entries.get(&staged.key).and_then(admitted), staged.next.as_ref().and_then(admitted));
        old.zip(new).is_some_and(|(old, new)| old != new)
    }

    /// The durable form of what is staged; empty for what changes nothing.
    pub fn change(&self, staged: &Staged<J::Value>, now: Duration) -> Option<ImportChange> {
        staged.changed.then(|| ImportChange {
            peer: self.peer.clone(),
            key: staged.key.to_string(),
            record: staged.next.as_ref().map(|e| record(e, now)),
        })
    }

    /// The durable form of a key as it is now; for when the disk may hold something else.
    pub fn present(&self, key: &str, now: Duration) -> ImportChange {
        let record = self.entries.get(key).map(|e| record(e, now));
        ImportChange { peer: self.peer.clone(), key: key.to_owned(), record }
    }

    /// Puts staged decisions in effect, after they became durable. Returns what changes in the
    /// catalogue.
    pub fn apply(&mut self, staged: Vec<Staged<J::Value>>, now: Duration) -> SliceChanges<J::Value> {
        let mut changes = vec![];
        for s in staged {
            let revealed = self.reveal(&s);
            let before = self.entries.get(&s.key).and_then(|e| e.in_force.clone());
            if !s.changed {
                changes.extend(before.filter(|_| revealed).map(|f| (s.key, Some(f.service))));
                continue;
            }
            self.unreserve(s.reserved);
            let after = s.next.as_ref().and_then(|e| e.in_force.clone());
            if let Some(old) = &before
                && after.is_none()
            {
                self.judge.release(&old.service, now);
            }
            if before != after || revealed {
                let hidden = self.is_hidden(&s.key);
                changes.push((s.key.clone(), after.filter(|_| !hidden).map(|f| f.service)));
            }
            // What goes or changes may leave room or a name to others.
            self.freed |= self.entries.contains_key(&s.key);
            self.put(&s.key, s.next);
        }
        self.guard.observe(self.counts.in_force as usize, now);
        changes
    }

    /// Takes back what could not be committed: names go back to what is in force. Last first, as
    /// one change of a batch may have taken the name that another let go.
    pub fn abandon(&mut self, staged: Vec<Staged<J::Value>>, now: Duration) {
        if is_on(SeededBug::UnavailableHeard) {
            self.apply(staged, now);
            return;
        }
        for s in staged.into_iter().rev() {
            self.unreserve(s.reserved);
            if s.changed && s.next.as_ref().is_none_or(|e| e.heard.is_none()) {
                // It was not withdrawn after all.
                self.guard.offered_again(&s.key);
            }
            let Some(new) = s.next.and_then(|e| e.in_force) else { continue };
            match self.entries.get(&s.key).and_then(|e| e.in_force.as_ref()) {
                Some(old) => self.judge.reclaim(&old.service, now),
                None => self.judge.release(&new.service, now),
            }
        }
    }

    /// Forgets everything and releases all names; the peer was removed.
    pub fn forget(&mut self, now: Duration) {
        for entry in std::mem::take(&mut self.entries).into_values() {
            if let Some(f) = entry.in_force {
                self.judge.release(&f.service, now);
            }
        }
        self.digest = DigestTree::new(&self.type_url);
        self.bytes = 0;
        self.counts = ImportCounts::default();
    }

    fn put(&mut self, key: &Arc<str>, next: Option<Entry<J::Value>>) {
        if let Some(old) = self.entries.get(key) {
            tally(&mut self.counts, old, |n, by| *n -= by);
            self.bytes -= old.heard.as_ref().map_or(0, |h| h.value.len() as u64);
        }
        match next {
            Some(entry) if !entry.is_empty() => {
                tally(&mut self.counts, &entry, |n, by| *n += by);
                self.bytes += entry.heard.as_ref().map_or(0, |h| h.value.len() as u64);
                match &entry.heard {
                    Some(h) => self.digest.insert(key, h.leaf),
                    None => self.digest.remove(key),
                }
                self.entries.insert(key.clone(), entry);
            }
            _ => {
                self.digest.remove(key);
                self.entries.remove(key);
            }
        }
    }
}

fn tally<V>(counts: &mut ImportCounts, entry: &Entry<V>, add: impl Fn(&mut u64, u64)) {
    let refused = matches!(&entry.heard, Some(h) if h.verdict != Verdict::Admitted);
    add(&mut counts.heard, entry.heard.is_some().into());
    add(&mut counts.in_force, entry.in_force.is_some().into());
    add(&mut counts.refused, refused.into());
    add(&mut counts.older_in_force, (refused && entry.in_force.is_some()).into());
    add(&mut counts.withheld, entry.withheld_until.is_some().into());
}

fn record<V>(entry: &Entry<V>, now: Duration) -> ImportRecord {
    let heard = entry.heard.as_ref().map(|h| HeardRecord {
        value: h.value.clone(),
        leaf: h.leaf,
        verdict: h.verdict.clone(),
        refused_ms: match h.verdict {
            Verdict::Admitted => 0,
            Verdict::Refused(_) => now.saturating_sub(h.since).as_millis() as u64,
        },
    });
    let same = |value: &Bytes| entry.heard.as_ref().is_some_and(|h| h.value == *value);
    ImportRecord {
        heard,
        in_force: entry.in_force.as_ref().map(|f| f.value.clone()).filter(|v| !same(v)),
        withheld_ms: entry.withheld_until.map(|until| until.saturating_sub(now).as_millis() as u64),
    }
}

#[cfg(test)]
#[path = "imported_tests.rs"]
mod tests;
