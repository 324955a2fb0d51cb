//! A view: what one peer should have of us, as a snapshot and a compacted change feed.
//!
//! Each key stands once, at its latest version; deletions are tombstones. A [`Subscription`]
//! holds a position and two versions, never a queue of payloads, so memory per consumer is O(1),
//! a slow consumer costs a fast one nothing, and a superseded change is never sent.
//!
//! Delivery is in passes in key order (a purely version-ordered feed starves keys under churn).
//! The walk of a pass uses the index by version when few keys are behind, and the keys otherwise;
//! both visit in key order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;

use crate::digest::{DigestTree, Scope, bucket_of, key_hash, leaf};
use crate::durable::Hash32;
use crate::seeded::{SeededBug, is_on};

/// Most tombstones a view keeps for consumers that are behind; beyond it the slowest are
/// resynchronised from the whole set.
pub const TOMBSTONES_MAX: usize = 16_384;

/// Up to this many keys behind, a pass is planned from the index by version.
const PLAN_MAX: usize = 256;

/// One encoded entry, shared by all views and streams.
#[derive(Debug, PartialEq, Eq)]
pub struct Offer {
    /// The key on the wire.
    pub key: Arc<str>,
    /// `Any.value`, encoded once.
    pub value: Bytes,
    /// Its digest leaf.
    pub leaf: Hash32,
    /// What places the key in the digest.
    key_hash: Hash32,
}

impl Offer {
    /// Hashes the leaf of an encoded entry.
    pub fn new(type_url: &str, key: &str, value: Bytes) -> Offer {
        Offer { key: key.into(), leaf: leaf(type_url, key, &value), key_hash: key_hash(key), value }
    }

    /// The bucket of the key in the digest.
    pub fn bucket(&self) -> u16 {
        bucket_of(&self.key_hash)
    }
}

/// One change to send: the latest state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its version from the agent-wide counter.
    pub version: u64,
    /// The entry; for a deletion the last one that was visible.
    pub offer: Arc<Offer>,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Whether the key became live after all that its subscription handed out before: what
    /// v1alpha1 calls CREATE instead of UPDATE. Receivers treat both alike.
    pub fresh: bool,
}

/// The whole set at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The head version.
    pub version: u64,
    /// Digest root.
    pub root: Hash32,
    /// Number of live keys.
    pub count: u64,
}

/// Numbers every change of every view of the agent, so that positions survive when a view splits.
#[derive(Debug, Clone, Default)]
pub struct VersionCounter(Arc<AtomicU64>);

impl VersionCounter {
    /// The next version.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[derive(Debug, Clone)]
struct Slot {
    version: u64,
    /// The version at which the key became live.
    created: u64,
    offer: Arc<Offer>,
    deleted: bool,
}

#[derive(Debug)]
struct State {
    slots: BTreeMap<Arc<str>, Slot>,
    by_version: BTreeMap<u64, Arc<str>>,
    tombstones: BTreeSet<u64>,
    digest: DigestTree,
    head: u64,
    // Deletions at or below this version may be forgotten already.
    purged: u64,
    cursors: BTreeMap<u64, Cursor>,
    ready: bool,
    /// Whose subscriptions may read; `None` is everybody's.
    readers: Option<BTreeSet<Arc<str>>>,
}

#[derive(Debug, Clone)]
struct Cursor {
    owner: Arc<str>,
    at: u64,
}

// Subscriptions and who is woken are numbered over all views, so that a subscription keeps its number
// when it moves to a fork.
static NEXT_SUBSCRIPTION: AtomicU64 = AtomicU64::new(1);

/// What one group of peers should have.
#[derive(Debug)]
pub struct View {
    type_url: Arc<str>,
    state: Mutex<State>,
    /// Who is woken at a change; never locked together with the state.
    watching: Mutex<BTreeMap<u64, Waker>>,
}

impl View {
    /// An empty view of resources of one type. It is not ready: no bookmarks, no deletions.
    pub fn new(type_url: &str) -> Arc<View> {
        Arc::new(View {
            type_url: type_url.into(),
            state: Mutex::new(State {
                slots: BTreeMap::new(),
                by_version: BTreeMap::new(),
                tombstones: BTreeSet::new(),
                digest: DigestTree::new(type_url),
                head: 0,
                purged: 0,
                cursors: BTreeMap::new(),
                ready: false,
                readers: None,
            }),
            watching: Mutex::default(),
        })
    }

    /// A copy with the same versions and tombstones, so that a subscription can move to it
    /// without losing its place; for when a policy change splits a view. The tombstones that
    /// subscriptions of `moving` still need are kept for them.
    pub fn fork(&self, moving: &BTreeSet<Arc<str>>) -> Arc<View> {
        let state = self.lock();
        Arc::new(View {
            type_url: self.type_url.clone(),
            state: Mutex::new(State {
                slots: state.slots.clone(),
                by_version: state.by_version.clone(),
                tombstones: state.tombstones.clone(),
                digest: state.digest.clone(),
                head: state.head,
                purged: state.purged,
                cursors: state
                    .cursors
                    .iter()
                    .filter(|(_, c)| moving.contains(&c.owner))
                    .map(|(id, c)| (*id, c.clone()))
                    .collect(),
                ready: state.ready,
                readers: None,
            }),
            watching: Mutex::default(),
        })
    }

    /// Lets only subscriptions of these owners read from now on; others hear that there is nothing
    /// until they have moved to their own view. A policy change that parts a group says so before it
    /// changes what is in the views: a writer that is just about to read would hand out what its
    /// peer may not see.
    pub fn admit_only<'a>(&self, owners: impl Iterator<Item = &'a str> + Clone) {
        let mut state = self.lock();
        let same = state.readers.as_ref().is_some_and(|now| now.iter().map(|o| &**o).eq(owners.clone()));
        if !same {
            state.readers = Some(owners.map(Arc::from).collect());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The type of its resources.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// Wakes `waker` at every change, for as long as what is returned lives. The writer of a stream
    /// is woken by nobody between: with many consumers each hop costs as often as there are streams.
    pub fn watched_by(self: &Arc<View>, waker: Waker) -> Watching {
        let id = NEXT_SUBSCRIPTION.fetch_add(1, Ordering::Relaxed);
        self.watchers().insert(id, waker);
        Watching { view: self.clone(), id }
    }

    fn watchers(&self) -> MutexGuard<'_, BTreeMap<u64, Waker>> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.watchers().values().for_each(Waker::wake_by_ref);
    }

    /// Number of live keys.
    pub fn count(&self) -> u64 {
        self.lock().digest.count()
    }

    /// Whether every source behind this view has been read, so that absence means absence.
    pub fn is_ready(&self) -> bool {
        self.lock().ready
    }

    /// The head version.
    pub fn head(&self) -> u64 {
        self.lock().head
    }

    /// The latest state of one key, a tombstone included.
    pub fn latest(&self, key: &str) -> Option<Change> {
        let state = self.lock();
        let slot = state.slots.get(key)?;
        let (version, offer, deleted) = (slot.version, slot.offer.clone(), slot.deleted);
        Some(Change { version, offer, deleted, fresh: slot.created == version })
    }

    /// The whole set as of now.
    pub fn summary(&self) -> Summary {
        self.lock().summary()
    }

    /// Live keys with their latest version and entry, in key order.
    pub fn live(&self) -> Vec<(u64, Arc<Offer>)> {
        self.lock().slots.values().filter(|s| !s.deleted).map(|s| (s.version, s.offer.clone())).collect()
    }

    /// Makes the view equal to `wanted` with versioned changes, in one step. Entries whose value
    /// is unchanged keep their version. While `ready` is false nothing is deleted, because what
    /// is missing may only be unread. Returns how many keys changed.
    pub fn set(
        &self,
        wanted: &BTreeMap<Arc<str>, Arc<Offer>>,
        ready: bool,
        versions: &VersionCounter,
    ) -> usize {
        let mut state = self.lock();
        let mut changes = 0;
        for offer in wanted.values() {
            let same = state.slots.get(&offer.key).is_some_and(|s| {
                !s.deleted && (Arc::ptr_eq(&s.offer, offer) || s.offer.value == offer.value)
            });
            if !same {
                state.put(offer.clone(), false, versions.next());
                changes += 1;
            }
        }
        let whole = ready || is_on(SeededBug::EmptyBookmark);
        if whole && state.digest.count() as usize > wanted.len() {
            let gone: Vec<Arc<Offer>> = state
                .slots
                .values()
                .filter(|s| !s.deleted && !wanted.contains_key(&s.offer.key))
                .map(|s| s.offer.clone())
                .collect();
            changes += gone.len();
            for offer in gone {
                state.put(offer, true, versions.next());
            }
        }
        let became_ready = ready && !state.ready;
        state.ready = ready;
        state.trim_tombstones();
        drop(state);
        if changes > 0 || became_ready {
            self.wake();
        }
        changes
    }

    /// Puts one entry, whatever else the view holds; for owners that know their changes. Returns the
    /// entry's version, which is an older one if nothing changed.
    pub fn put(&self, offer: Arc<Offer>, versions: &VersionCounter) -> u64 {
        let mut state = self.lock();
        let held = state.slots.get(&offer.key).filter(|s| !s.deleted && s.offer.value == offer.value);
        if let Some(version) = held.map(|s| s.version) {
            return version;
        }
        let version = versions.next();
        state.put(offer, false, version);
        drop(state);
        self.wake();
        version
    }

    /// Removes one entry, also while the view isn't ready: this one is known to be gone. Returns the
    /// deletion's version; `None` if there was no such entry.
    pub fn remove(&self, key: &str, versions: &VersionCounter) -> Option<u64> {
        let mut state = self.lock();
        let offer = state.slots.get(key).filter(|s| !s.deleted).map(|s| s.offer.clone())?;
        let version = versions.next();
        state.put(offer, true, version);
        state.trim_tombstones();
        drop(state);
        self.wake();
        Some(version)
    }

    /// Says whether all that is to be offered is there, so that absence means absence.
    pub fn set_ready(&self, ready: bool) {
        let before = std::mem::replace(&mut self.lock().ready, ready);
        if ready && !before {
            self.wake();
        }
    }

    /// A new subscription of `owner` (a peer's name), placed before everything.
    pub fn subscribe(self: &Arc<View>, owner: &str) -> Subscription {
        let mut state = self.lock();
        let id = NEXT_SUBSCRIPTION.fetch_add(1, Ordering::Relaxed);
        state.cursors.insert(id, Cursor { owner: owner.into(), at: 0 });
        let born = state.head;
        drop(state);
        Subscription {
            view: self.clone(),
            id,
            owner: owner.into(),
            cursor: 0,
            born,
            pass: None,
            walk: None,
            ahead: BTreeMap::new(),
            late: false,
        }
    }
}

impl State {
    fn summary(&mut self) -> Summary {
        Summary { version: self.head, root: self.digest.root(), count: self.digest.count() }
    }

    fn put(&mut self, offer: Arc<Offer>, deleted: bool, version: u64) {
        if deleted {
            self.digest.remove(&offer.key);
            self.tombstones.insert(version);
        } else {
            self.digest.insert_hashed(offer.key_hash, offer.leaf);
        }
        let key = offer.key.clone();
        let live = self.slots.get(&key).filter(|old| !old.deleted);
        let created = live.map_or(version, |old| old.created);
        if let Some(old) = self.slots.insert(key.clone(), Slot { version, created, offer, deleted }) {
            self.by_version.remove(&old.version);
            self.tombstones.remove(&old.version);
        }
        self.by_version.insert(version, key);
        self.head = version;
    }

    /// Forgets tombstones that every cursor has passed, and the oldest beyond the cap.
    fn trim_tombstones(&mut self) {
        if self.tombstones.is_empty() {
            // Most of the time; and there may be a thousand cursors to compare.
            return;
        }
        let slowest = self.cursors.values().map(|c| c.at).min().unwrap_or(self.head);
        let slowest = if is_on(SeededBug::TombstonePurged) { self.head } else { slowest };
        while let Some(&oldest) = self.tombstones.first() {
            if oldest > slowest && self.tombstones.len() <= TOMBSTONES_MAX {
                break;
            }
            self.tombstones.remove(&oldest);
            if let Some(key) = self.by_version.remove(&oldest) {
                self.slots.remove(&key);
            }
            if !is_on(SeededBug::TombstonePurged) {
                self.purged = oldest;
            }
        }
    }

    fn admits(&self, owner: &str) -> bool {
        self.readers.as_ref().is_none_or(|readers| readers.contains(owner))
    }

    /// A seeded bug's question.
    fn another_is_behind(&self, id: u64) -> bool {
        self.cursors.iter().any(|(other, cursor)| *other < id && cursor.at < self.head)
    }

    /// Up to [`PLAN_MAX`] keys with a version above `cursor`, in key order; `None` if there are more.
    fn plan(&self, cursor: u64) -> Option<BTreeSet<Arc<str>>> {
        let mut keys = BTreeSet::new();
        for (_, key) in self.by_version.range((Bound::Excluded(cursor), Bound::Unbounded)) {
            if keys.len() == PLAN_MAX {
                return None;
            }
            keys.insert(key.clone());
        }
        Some(keys)
    }
}

#[derive(Debug)]
struct Pass {
    /// Head when the pass began: what it brings the cursor to.
    target: u64,
    /// Last key visited.
    position: Option<Arc<str>>,
    /// The keys to visit, when few were behind; else all keys are walked.
    plan: Option<BTreeSet<Arc<str>>>,
}

/// What a subscription has to say next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Change(Change),
    /// Everything up to the head was handed out.
    AtHead,
    /// Deletions that this subscription hasn't passed were forgotten: begin again with the whole set.
    Resync,
}

/// Somebody who is woken at every change of a view; dropping it ends that.
#[derive(Debug)]
#[must_use = "nobody is woken once it is dropped"]
pub struct Watching {
    view: Arc<View>,
    id: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let waker = self.view.watchers().remove(&self.id);
        // Whatever it holds is let go of outside of the lock.
        drop(waker);
    }
}

/// One consumer's place in a view. Dropping it lets go of the tombstones kept for it.
#[derive(Debug)]
pub struct Subscription {
    view: Arc<View>,
    id: u64,
    owner: Arc<str>,
    /// Everything at or below this version was handed out.
    cursor: u64,
    /// Head at the start of a fresh subscription: older tombstones were never announced on it.
    born: u64,
    pass: Option<Pass>,
    /// What a round repeats, before the changes go on.
    walk: Option<Walk>,
    /// Versions handed out in this pass beyond its target, so that the next one doesn't repeat
    /// them; bounded by [`PLAN_MAX`], beyond which a repetition is harmless.
    ahead: BTreeMap<Arc<str>, u64>,
    /// A seeded bug's: the cursor is yet to be set.
    late: bool,
}

/// One pass over some buckets.
#[derive(Debug)]
struct Walk {
    scope: Scope,
    /// Last key visited.
    position: Option<Arc<str>>,
}

impl Subscription {
    /// The view it reads.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Moves to a fork of the view without losing the place. The fork must stem from this view
    /// (or this from it): versions are compared across them.
    pub fn move_to(&mut self, view: &Arc<View>) {
        if Arc::ptr_eq(&self.view, view) {
            return;
        }
        view.lock().cursors.insert(self.id, self.place());
        let old = std::mem::replace(&mut self.view, view.clone());
        old.lock().cursors.remove(&self.id);
        // The pass begins anew at the cursor: at worst some keys are sent twice. The walk goes on
        // by keys, which are the same here.
        self.pass = None;
    }

    fn place_at(&mut self, state: &mut State, cursor: u64) {
        self.cursor = cursor;
        state.cursors.insert(self.id, self.place());
        self.pass = None;
        self.ahead.clear();
    }

    /// If `root` is the root of exactly what the view holds now, places the subscription at the
    /// head. Comparing and placing are one step, so no change falls between. Needs a view that is
    /// ready.
    pub fn resume(&mut self, root: &Hash32) -> bool {
        let view = self.view.clone();
        let mut state = view.lock();
        let equal = state.admits(&self.owner) && state.ready && *root == state.summary().root;
        if equal && is_on(SeededBug::EqualThenCursor) {
            self.late = true;
        } else if equal {
            let head = state.head;
            self.place_at(&mut state, head);
        }
        equal
    }

    /// Which of some nodes of the digest differ from a consumer's hashes, and places a fresh
    /// subscription at the head in the same step: what changes from now on comes after whatever a
    /// round repeats. `None` if the hashes are not those of `among`.
    pub fn place_differing(&mut self, among: &Scope, hashes: &[u8]) -> Option<Scope> {
        let view = self.view.clone();
        let mut state = view.lock();
        let scope = state.digest.differing(among, hashes)?;
        // In a view that isn't ours any more its head means nothing: everything is sent then.
        let head = if state.admits(&self.owner) { state.head } else { 0 };
        self.place_at(&mut state, head);
        Some(scope)
    }

    /// The same without moving: for a subscription that is under way, and for the finer steps of a
    /// comparison. What was left out by an earlier step was equal then, and whatever changed since
    /// is above the place.
    pub fn differing(&self, among: &Scope, hashes: &[u8]) -> Option<Scope> {
        let mut state = self.view.lock();
        let scope = state.digest.differing(among, hashes)?;
        // A view that isn't ours any more can make nothing equal.
        Some(if state.admits(&self.owner) { scope } else { among.clone() })
    }

    /// Hands out what lies in some nodes of the digest at its latest, before the changes go on.
    pub fn repeat_scope(&mut self, scope: Scope) {
        self.walk = Some(Walk { scope, position: None });
    }

    /// Whether everything up to the head was handed out.
    pub fn is_at_head(&self) -> bool {
        self.walk.is_none() && self.pass.is_none() && self.cursor >= self.view.lock().head
    }

    fn place(&self) -> Cursor {
        Cursor { owner: self.owner.clone(), at: self.cursor }
    }

    /// Starts over with the whole set.
    pub fn restart(&mut self) {
        let mut state = self.view.lock();
        self.cursor = 0;
        self.born = state.head;
        state.cursors.insert(self.id, self.place());
        drop(state);
        self.pass = None;
        self.walk = None;
        self.ahead.clear();
    }

    /// Hands out every live key once more. Unlike after [`restart`](Self::restart), deletions that
    /// were not handed out yet still are, so nothing needs to be swept.
    pub fn repeat(&mut self) {
        let mut state = self.view.lock();
        self.born = self.born.max(self.cursor);
        self.cursor = 0;
        state.cursors.insert(self.id, self.place());
        drop(state);
        self.pass = None;
        self.walk = None;
        self.ahead.clear();
    }

    /// Whether everything up to a version was handed out.
    pub fn has_passed(&self, version: u64) -> bool {
        version <= self.cursor
    }

    /// How many keys are behind the cursor, at most `max`.
    pub fn behind(&self, max: usize) -> usize {
        let state = self.view.lock();
        state.by_version.range((Bound::Excluded(self.cursor), Bound::Unbounded)).take(max).count()
    }

    /// The next change, at its latest value.
    pub fn take_next(&mut self) -> Next {
        let view = self.view.clone();
        let mut state = view.lock();
        if !state.admits(&self.owner) {
            return Next::AtHead;
        }
        if std::mem::take(&mut self.late) {
            self.cursor = state.head;
        }
        if is_on(SeededBug::StopAtFirstFailing) && state.another_is_behind(self.id) {
            return Next::AtHead;
        }
        if is_on(SeededBug::VersionOrder) {
            return self.take_oldest(&mut state);
        }
        let walked = self.walk.is_some();
        if let Some(change) = self.walk(&state) {
            return Next::Change(change);
        }
        let tail = self.cursor < state.head;
        if walked && tail && is_on(SeededBug::BookmarkBeforeTail) {
            return Next::AtHead;
        }
        loop {
            // A fresh subscription needs only tombstones younger than itself.
            if state.purged > self.cursor.max(self.born) {
                return Next::Resync;
            }
            if self.pass.is_none() {
                if self.cursor >= state.head {
                    return Next::AtHead;
                }
                self.pass = Some(Pass { target: state.head, position: None, plan: state.plan(self.cursor) });
            }
            match self.advance(&state) {
                Some(change) => {
                    // With its last change a pass is over: nobody has to ask only to hear that.
                    if self.pass.as_ref().and_then(|p| p.plan.as_ref()).is_some_and(BTreeSet::is_empty) {
                        self.end_pass(&mut state);
                    }
                    return Next::Change(change);
                }
                None => self.end_pass(&mut state),
            }
            if is_on(SeededBug::BookmarkBeforeTail) {
                return Next::AtHead;
            }
        }
    }

    /// The set as of now, if everything up to the head was handed out and absence means absence.
    /// One step under the view's lock: what a bookmark may say.
    pub fn bookmark(&self) -> Option<Summary> {
        let mut state = self.view.lock();
        if !state.admits(&self.owner) {
            return None;
        }
        let ready = state.ready || is_on(SeededBug::EmptyBookmark);
        let passed = self.cursor >= state.head || is_on(SeededBug::BookmarkBeforeTail);
        (ready && self.walk.is_none() && self.pass.is_none() && passed).then(|| state.summary())
    }

    /// The next key of the walk, at its latest; the walk ends with the last.
    fn walk(&mut self, state: &State) -> Option<Change> {
        let walk = self.walk.as_mut()?;
        let from = match &walk.position {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Unbounded,
        };
        let mut rest = state.slots.range((from, Bound::Unbounded));
        let next = rest.find(|(_, slot)| !slot.deleted && walk.scope.contains(slot.offer.bucket()));
        let Some((key, slot)) = next else {
            self.walk = None;
            return None;
        };
        walk.position = Some(key.clone());
        let fresh = slot.created > self.cursor && !self.ahead.contains_key(key);
        if slot.version > self.cursor && self.ahead.len() < PLAN_MAX {
            self.ahead.insert(key.clone(), slot.version);
        }
        Some(Change { version: slot.version, offer: slot.offer.clone(), deleted: false, fresh })
    }

    /// A seeded bug's delivery: the oldest change first.
    fn take_oldest(&mut self, state: &mut State) -> Next {
        self.walk = None;
        loop {
            let range = (Bound::Excluded(self.cursor), Bound::Unbounded);
            let Some((&version, key)) = state.by_version.range(range).next() else { return Next::AtHead };
            let slot = state.slots.get(key).cloned();
            let before = std::mem::replace(&mut self.cursor, version);
            state.cursors.insert(self.id, self.place());
            let Some(slot) = slot.filter(|s| !s.deleted || s.version > self.born) else { continue };
            let fresh = slot.created > before;
            return Next::Change(Change { version, offer: slot.offer, deleted: slot.deleted, fresh });
        }
    }

    fn advance(&mut self, state: &State) -> Option<Change> {
        let pass = self.pass.as_mut()?;
        loop {
            let key = match &mut pass.plan {
                Some(plan) => plan.pop_first()?,
                None => {
                    let from = match &pass.position {
                        Some(key) => Bound::Excluded(key.clone()),
                        None => Bound::Unbounded,
                    };
                    let mut rest = state.slots.range((from, Bound::Unbounded));
                    rest.find(|(_, slot)| slot.version > self.cursor)?.0.clone()
                }
            };
            pass.position = Some(key.clone());
            let Some(slot) = state.slots.get(&key) else { continue };
            let announced = !slot.deleted || slot.version > self.born;
            let repeated = self.ahead.get(&key) == Some(&slot.version);
            if slot.version <= self.cursor || !announced || repeated {
                continue;
            }
            let fresh = slot.created > self.cursor && !self.ahead.contains_key(&key);
            if slot.version > pass.target && self.ahead.len() < PLAN_MAX {
                self.ahead.insert(key, slot.version);
            }
            let (version, offer, deleted) = (slot.version, slot.offer.clone(), slot.deleted);
            return Some(Change { version, offer, deleted, fresh });
        }
    }

    fn end_pass(&mut self, state: &mut State) {
        let Some(pass) = self.pass.take() else { return };
        self.cursor = if is_on(SeededBug::CursorToHead) { state.head } else { pass.target };
        self.ahead.retain(|_, version| *version > pass.target);
        match state.cursors.get_mut(&self.id) {
            Some(place) => place.at = self.cursor,
            None => drop(state.cursors.insert(self.id, self.place())),
        }
        state.trim_tombstones();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.view.lock();
        state.cursors.remove(&self.id);
        state.trim_tombstones();
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
