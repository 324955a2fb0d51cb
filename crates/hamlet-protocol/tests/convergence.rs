//! Two honest sessions over a scheduler that reads, writes, commits, fails to commit, changes
//! views, breaks the stream and restarts either side whenever it likes. Whatever it does: what is
//! said is true at the time, and when it stops both sides hold what the other one offers.
//!
//! Everything is compared with a model that knows both sides; failures print their seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::digest::{DigestTree, leaf};
use hamlet_core::durable::{Hash32, ImportChange, ImportRecord, PeerState};
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice, SliceChanges, Staged};
use hamlet_core::lease::NameLeases;
use hamlet_core::service::limits::MESSAGE_BYTES;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{Fqdn, ImportedService, PeerName, Rejection, RejectionCode};
use hamlet_protocol::consumer::{Batch, held_of};
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read};
use hamlet_protocol::dialect::{Dialect, Operation, Outgoing, Secret};
use hamlet_protocol::session::{SessionConfig, StreamSession, our_hello};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use proptest::prelude::*;

mod common;
use common::{rules, service};

const MESHES: [&str; 2] = ["bank", "shop"];
const KEYS: usize = 8;
const SHARED: usize = KEYS;

/// How one service looks in a view: nothing, one of three good versions, or one that no peer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    Gone,
    Good(u8),
    Refused,
}

/// All services of one mesh; at most one of them has the name that they share.
#[derive(Debug, Clone)]
struct Published {
    looks: Vec<Look>,
    shared: usize,
    ready: bool,
}

#[derive(Debug, Clone)]
enum Op {
    Publish(usize, Published),
    Write(usize, u8),
    Read(usize, u8),
    Begin(usize),
    Finish(usize, bool),
    Wait(u16),
    Reconnect { dialler: usize, restart: [bool; 2], committed: [bool; 2] },
}

/// What happens between the two at random.
#[derive(Debug, Clone)]
struct Story {
    hello: bool,
    guarded: bool,
    ops: Vec<Op>,
}

fn look() -> impl Strategy<Value = Look> {
    prop_oneof![3 => Just(Look::Gone), 6 => (0u8..3).prop_map(Look::Good), 1 => Just(Look::Refused)]
}

fn published(unread: bool) -> impl Strategy<Value = Published> {
    let ready = if unread { prop::bool::weighted(0.8).boxed() } else { Just(true).boxed() };
    (prop::collection::vec(look(), KEYS), 0..=SHARED, ready).prop_map(|(looks, shared, ready)| Published {
        looks,
        shared,
        ready,
    })
}

fn op(hello: bool) -> impl Strategy<Value = Op> {
    let restart = move |dialler, restart, committed| Op::Reconnect { dialler, restart, committed };
    let finish = if hello { prop::bool::weighted(0.8).boxed() } else { Just(true).boxed() };
    let breaks = u32::from(hello);
    prop_oneof![
        4 => (0..2usize, published(hello)).prop_map(|(side, p)| Op::Publish(side, p)),
        10 => (0..2usize, 1u8..6).prop_map(|(side, n)| Op::Write(side, n)),
        10 => (0..2usize, 1u8..6).prop_map(|(side, n)| Op::Read(side, n)),
        8 => (0..2usize).prop_map(Op::Begin),
        8 => (0..2usize, finish).prop_map(|(side, ok)| Op::Finish(side, ok)),
        3 => (0u16..15_000).prop_map(Op::Wait),
        breaks => (0..2usize, any::<[bool; 2]>(), any::<[bool; 2]>()).prop_map(move |(d, r, c)| restart(d, r, c)),
    ]
}

fn story() -> impl Strategy<Value = Story> {
    (prop::bool::weighted(0.85), any::<bool>()).prop_flat_map(|(hello, guarded)| {
        prop::collection::vec(op(hello), 1..160).prop_map(move |ops| Story { hello, guarded, ops })
    })
}

/// One mesh, with what the model knows of it.
struct Side {
    mesh: &'static str,
    peer: &'static str,
    hello: bool,
    guard: GuardSettings,
    published: Published,
    view: Arc<View>,
    versions: VersionCounter,
    slice: ImportedSlice,
    /// What survives a restart.
    store: BTreeMap<String, ImportRecord>,
    /// What readers see.
    catalogue: BTreeMap<Arc<str>, Arc<ImportedService>>,
    session: StreamSession,
    batch: Option<Batch>,
    /// What is on the way here.
    wire: VecDeque<Vec<u8>>,
    /// Versions sent on this stream.
    sent: BTreeMap<Arc<str>, u64>,
    /// Offers read on this stream and not answered: nonce, key, value (none: a deletion).
    unanswered: VecDeque<(String, String, Option<Bytes>)>,
    /// Roots of the view at the bookmarks sent on this stream.
    bookmarks: BTreeMap<u64, Hash32>,
    /// Roots of what was durably heard, on this stream.
    heard: BTreeSet<Hash32>,
    /// What was durably heard of each key, on this stream.
    kept: BTreeSet<(String, Option<Bytes>)>,
    /// When each value was first offered, and when each key was last known to be absent.
    offered_at: BTreeMap<(String, Bytes), u64>,
    absent_at: BTreeMap<String, u64>,
    publishings: u64,
}

fn fresh_slice(peer: &str, guard: GuardSettings) -> ImportedSlice {
    let mut slice =
        ImportedSlice::new(PeerName::parse(peer).unwrap(), TYPE_URL, Arc::new(decode), NameLeases::new());
    slice.set_rules(Some(rules(peer)), ImportLimits::default(), guard);
    slice
}

fn root_of(entries: impl IntoIterator<Item = (String, Bytes)>) -> Hash32 {
    let mut tree = DigestTree::new(TYPE_URL);
    for (key, value) in entries {
        tree.insert(&key, leaf(TYPE_URL, &key, &value));
    }
    tree.root()
}

fn codec() -> V2Codec {
    V2Codec { resource_url: TYPE_URL, context: Secret::default(), message_bytes: MESSAGE_BYTES }
}

impl Side {
    fn new(side: usize, story: &Story) -> Side {
        let (mesh, peer) = (MESHES[side], MESHES[1 - side]);
        let guard = match story.guarded {
            true => GuardSettings { percent: 30, floor: 1, wait: Duration::from_secs(120) },
            false => GuardSettings { percent: 100, ..GuardSettings::default() },
        };
        let view = View::new(TYPE_URL);
        let mut slice = fresh_slice(peer, guard);
        let session = session_of(peer, side == 0, story.hello, &view, &mut slice, Duration::ZERO);
        Side {
            mesh,
            peer,
            hello: story.hello,
            guard,
            published: Published { looks: vec![Look::Gone; KEYS], shared: SHARED, ready: true },
            view,
            versions: VersionCounter::default(),
            slice,
            store: BTreeMap::new(),
            catalogue: BTreeMap::new(),
            session,
            batch: None,
            wire: VecDeque::new(),
            sent: BTreeMap::new(),
            unanswered: VecDeque::new(),
            bookmarks: BTreeMap::new(),
            heard: BTreeSet::new(),
            kept: BTreeSet::new(),
            offered_at: BTreeMap::new(),
            absent_at: BTreeMap::new(),
            publishings: 0,
        }
    }

    fn wanted(&self) -> BTreeMap<Arc<str>, Arc<Offer>> {
        let offer = |(i, look): (usize, &Look)| {
            let key = format!("s{i}");
            let mut offered = service(self.mesh, &key);
            match look {
                Look::Gone => return None,
                Look::Good(n) => offered.description = n.to_string(),
                Look::Refused => offered.fqdn = Fqdn::parse("s.elsewhere.example").unwrap(),
            }
            if self.published.shared == i && *look != Look::Refused {
                offered.fqdn = Fqdn::parse(&format!("shared.{}.example", self.mesh)).unwrap();
            }
            Some((Arc::from(key.as_str()), Arc::new(Offer::new(TYPE_URL, &key, encode(&offered)))))
        };
        self.published.looks.iter().enumerate().filter_map(offer).collect()
    }

    fn publish(&mut self, published: Published) {
        self.publishings += 1;
        self.published = published;
        let wanted = self.wanted();
        for (key, offer) in &wanted {
            let at = (key.to_string(), offer.value.clone());
            self.offered_at.entry(at).or_insert(self.publishings);
        }
        self.view.set(&wanted, self.published.ready, &self.versions);
        if self.published.ready {
            for key in (0..KEYS).map(|i| format!("s{i}")).filter(|k| !wanted.contains_key(k.as_str())) {
                self.absent_at.insert(key, self.publishings);
            }
        }
    }

    fn live(&self) -> BTreeMap<String, Bytes> {
        self.view.live().into_iter().map(|(_, o)| (o.key.to_string(), o.value.clone())).collect()
    }

    fn commit(&mut self, changes: &[ImportChange]) {
        for change in changes {
            match &change.record {
                Some(record) => self.store.insert(change.key.clone(), record.clone()),
                None => self.store.remove(&change.key),
            };
        }
        for (_, key, _) in &self.unanswered {
            let heard = self.store.get(key).and_then(|r| r.heard.as_ref()).map(|h| h.value.clone());
            self.kept.insert((key.clone(), heard));
        }
        let heard = self.store.iter().filter_map(|(k, r)| Some((k.clone(), r.heard.as_ref()?.value.clone())));
        self.heard.insert(root_of(heard));
    }

    fn local(&mut self, staged: Vec<Staged>, now: Duration) -> SliceChanges {
        let changes: Vec<ImportChange> = staged.iter().filter_map(|s| self.slice.change(s, now)).collect();
        self.commit(&changes);
        self.slice.apply(staged, now)
    }

    /// Shows changes to readers. `owner` judges whether a withdrawal is true: the value in force
    /// was offered before the key was known to be absent.
    fn show(&mut self, changes: SliceChanges, values: &BTreeMap<String, Bytes>, owner: &Side) {
        for (key, service) in changes {
            match service {
                Some(service) => {
                    self.catalogue.insert(key, service);
                }
                None => {
                    let value = values.get(&*key).cloned();
                    let offered = value.and_then(|v| owner.offered_at.get(&(key.to_string(), v)));
                    let gone = owner.absent_at.get(&*key);
                    assert!(offered < gone || offered.is_none(), "{key} was withdrawn but never gone");
                    assert!(self.catalogue.remove(&key).is_some(), "{key} was not in force");
                }
            }
        }
        assert_eq!(self.catalogue.len() as u64, self.slice.counts().in_force);
    }

    /// Raw values in force, from the durable records.
    fn values_in_force(&self) -> BTreeMap<String, Bytes> {
        let value = |r: &ImportRecord| match (&r.in_force, &r.heard) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(heard)) if heard.verdict == hamlet_core::durable::Verdict::Admitted => {
                Some(heard.value.clone())
            }
            _ => None,
        };
        self.store.iter().filter_map(|(k, r)| Some((k.clone(), value(r)?))).collect()
    }

    fn begin(&mut self, now: Duration) {
        if self.batch.is_none() {
            self.batch = self.session.consumer.batch(&mut self.slice, now);
        }
    }

    fn finish(&mut self, committed: bool, owner: &Side, now: Duration) {
        let Some(batch) = self.batch.take() else { return };
        let values = self.values_in_force();
        let outcome = match committed {
            true => {
                let changes = batch.changes.clone();
                self.commit(&changes);
                Ok(())
            }
            false => Err(Rejection::new(RejectionCode::Unavailable, "not-persisted", "resource", "full")),
        };
        let changes = self.session.consumer.finish(&mut self.slice, batch, outcome, now);
        self.show(changes, &values, owner);
    }

    /// Notes what is about to be said, and checks that it is true.
    fn check_said(&mut self, said: &Outgoing) {
        match said {
            Outgoing::Offer { change, .. } => {
                let before = self.sent.insert(change.offer.key.clone(), change.version);
                assert!(before.is_none_or(|v| v <= change.version), "a version went back");
            }
            Outgoing::Answer { nonce, answer } => {
                let (expected, key, value) = self.unanswered.pop_front().expect("an answer without an offer");
                assert_eq!(*nonce, expected, "answers come in order of receipt");
                let heard = self.store.get(&key).and_then(|r| r.heard.as_ref()).map(|h| h.value.clone());
                // What came later may be durable before the first answer is written.
                let kept = heard == value || self.kept.contains(&(key.clone(), value.clone()));
                match answer {
                    Err(rejection) if rejection.code == RejectionCode::Unavailable => {}
                    _ => assert!(kept, "{key} was answered before it was durable: {heard:?}, not {value:?}"),
                }
            }
            Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Bookmark(b)) }) => {
                let root = root_of(self.live());
                assert_eq!(b.root[..], root[..], "a bookmark is about the view as it is");
                self.bookmarks.insert(b.seq, root);
            }
            _ => {}
        }
    }

    fn expected(&self) -> BTreeMap<String, String> {
        let rules = rules(self.mesh);
        let admitted = |(key, value): (String, Bytes)| {
            let service = decode(&key, &value).ok().and_then(|s| rules.admit(&s).ok())?;
            Some((key, format!("{service:?}")))
        };
        self.live().into_iter().filter_map(admitted).collect()
    }
}

fn session_of(
    peer: &str,
    dialled: bool,
    hello: bool,
    view: &Arc<View>,
    slice: &mut ImportedSlice,
    now: Duration,
) -> StreamSession {
    let held = held_of(slice, &PeerState::default());
    let hello = hello.then(|| our_hello("", 1, [7; 16], view.head(), MESSAGE_BYTES, Some(held)));
    let config = SessionConfig {
        peer: peer.to_owned(),
        dialect: Dialect::V1alpha2,
        dialled,
        context: Secret::default(),
        hello,
        extensions_required: false,
        view: view.clone(),
        foreign_window: 1,
    };
    StreamSession::new(config, now)
}

struct World {
    sides: [Side; 2],
    now: Duration,
    broken: bool,
    streams: usize,
}

impl World {
    fn new(story: &Story) -> World {
        let sides = [Side::new(0, story), Side::new(1, story)];
        World { sides, now: Duration::ZERO, broken: false, streams: 1 }
    }

    fn pair(&mut self, side: usize) -> (&mut Side, &mut Side) {
        let [a, b] = &mut self.sides;
        if side == 0 { (a, b) } else { (b, a) }
    }

    fn write(&mut self, side: usize) -> bool {
        if self.broken {
            return false;
        }
        let now = self.now;
        let (me, other) = self.pair(side);
        match me.session.next(now) {
            Ok(Some(said)) => {
                me.check_said(&said);
                if let Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Proof(proof)) }) =
                    &said
                    && proof.verdict == ext::proof::Verdict::Equal as i32
                {
                    let theirs = other.bookmarks[&proof.seq];
                    assert_eq!(proof.root[..], theirs[..], "EQUAL is about the set at that bookmark");
                    assert!(me.heard.contains(&theirs), "EQUAL is about what was durably heard");
                }
                let mut bytes = vec![];
                codec().write(&said, &mut bytes);
                other.wire.push_back(bytes);
                true
            }
            Ok(None) => false,
            Err(end) => self.ended(&end),
        }
    }

    /// Two honest sessions end a stream only because one of them was too slow.
    fn ended(&mut self, end: &hamlet_protocol::session::StreamEnd) -> bool {
        assert_eq!(end.code, tonic::Code::Unavailable, "{end}");
        self.broken = true;
        false
    }

    fn read(&mut self, side: usize) -> bool {
        if self.broken {
            return false;
        }
        let now = self.now;
        let (me, _) = self.pair(side);
        if !me.session.consumer.has_room() {
            return false;
        }
        let Some(bytes) = me.wire.pop_front() else { return false };
        let incoming = read(&bytes[..], MESSAGE_BYTES).unwrap();
        if let Some(offer) = &incoming.offer {
            let value = offer.resource.as_ref().map(|(_, v)| v.clone());
            let value = value.filter(|_| offer.operation == Operation::Upsert);
            me.unanswered.push_back((offer.nonce.clone(), offer.key.clone(), value));
        }
        let received = me.session.receive(incoming, now);
        assert_eq!(me.session.violations(), 0);
        if let Err(end) = received {
            self.ended(&end);
        }
        true
    }

    fn finish(&mut self, side: usize, committed: bool) {
        let now = self.now;
        let (me, other) = self.pair(side);
        me.finish(committed, other, now);
    }

    fn wait(&mut self, by: Duration) {
        self.now += by;
        for side in 0..2 {
            let now = self.now;
            let (me, other) = self.pair(side);
            // The committer does what is due only between batches.
            if me.batch.is_none() {
                let values = me.values_in_force();
                let due = me.slice.due(now);
                let changes = me.local(due, now);
                // An older version beside a refusal goes by time: that is policy.
                let policy: BTreeSet<Arc<str>> = me.slice.refused().map(|(k, _, _)| k.clone()).collect();
                let (mine, owners): (SliceChanges, SliceChanges) =
                    changes.into_iter().partition(|(k, v)| v.is_none() && policy.contains(k));
                mine.iter().for_each(|(k, _)| drop(me.catalogue.remove(k)));
                me.show(owners, &values, other);
                me.session.consumer.tick(&mut me.slice, now);
            }
            if let Err(end) = me.session.tick(now) {
                self.ended(&end);
            }
        }
    }

    fn reconnect(&mut self, dialler: usize, restart: [bool; 2], committed: [bool; 2]) {
        let now = self.now;
        for side in 0..2 {
            let (me, other) = self.pair(side);
            match restart[side] {
                false => me.finish(committed[side], other, now),
                true => {
                    if let Some(batch) = me.batch.take().filter(|_| committed[side]) {
                        me.commit(&batch.changes);
                    }
                    me.slice = fresh_slice(me.peer, me.guard);
                    let (changes, distrusted) = me.slice.load(me.store.clone(), now);
                    assert_eq!(distrusted, 0);
                    me.catalogue = changes.into_iter().filter_map(|(k, s)| Some((k, s?))).collect();
                    let anew = me.slice.reevaluate(now);
                    let changes = me.local(anew, now);
                    me.show(changes, &BTreeMap::new(), other);
                    (me.view, me.versions) = (View::new(TYPE_URL), VersionCounter::default());
                    let published = me.published.clone();
                    me.publish(published);
                }
            }
        }
        for side in 0..2 {
            let (me, _) = self.pair(side);
            me.session = session_of(me.peer, side == dialler, me.hello, &me.view, &mut me.slice, now);
            me.wire.clear();
            me.sent.clear();
            me.unanswered.clear();
            me.bookmarks.clear();
            me.heard.clear();
            me.kept.clear();
            me.commit(&[]);
        }
        self.broken = false;
        self.streams += 1;
    }

    fn act(&mut self, op: &Op) {
        match op {
            Op::Publish(side, published) => self.sides[*side].publish(published.clone()),
            Op::Write(side, n) => while_more(*n, || self.write(*side)),
            Op::Read(side, n) => while_more(*n, || self.read(*side)),
            Op::Begin(side) => self.sides[*side].begin(self.now),
            Op::Finish(side, ok) => self.finish(*side, *ok),
            Op::Wait(ms) => self.wait(Duration::from_millis((*ms).into())),
            Op::Reconnect { dialler, restart, committed } => self.reconnect(*dialler, *restart, *committed),
        }
        if self.broken {
            self.reconnect(0, [false; 2], [true; 2]);
        }
    }

    /// Lets everything happen that can happen without more time.
    fn settle(&mut self) {
        let mut moved = true;
        while moved {
            moved = false;
            for side in 0..2 {
                while self.write(side) {
                    moved = true;
                }
                while self.read(side) {
                    moved = true;
                }
                self.sides[side].begin(self.now);
                moved |= self.sides[side].batch.is_some();
                self.finish(side, true);
            }
            if self.broken {
                self.reconnect(1, [false; 2], [true; 2]);
            }
        }
    }

    fn is_converged(&self) -> bool {
        let [a, b] = &self.sides;
        [(a, b), (b, a)].iter().all(|(consumer, owner)| {
            let shown = consumer.catalogue.iter().map(|(k, s)| (k.to_string(), format!("{s:?}")));
            let proven = !consumer.hello || owner.session.owner.as_ref().is_some_and(|o| o.proven());
            shown.collect::<BTreeMap<_, _>>() == owner.expected() && proven
        })
    }
}

/// Does a step up to `n` times, as long as there is something to do.
fn while_more(n: u8, mut step: impl FnMut() -> bool) {
    for _ in 0..n {
        if !step() {
            return;
        }
    }
}

fn play(story: &Story) {
    let mut world = World::new(story);
    for op in &story.ops {
        world.act(op);
    }
    // From here on the disk works, every source is read, and nothing changes any more.
    for side in 0..2 {
        let published = Published { ready: true, ..world.sides[side].published.clone() };
        world.sides[side].publish(published);
        world.finish(side, true);
    }
    let mut waited = 0;
    while !world.is_converged() {
        world.settle();
        // A version beside a refusal stays for a day.
        world.wait(if waited < 300 { Duration::from_secs(20) } else { Duration::from_secs(6 * 3600) });
        world.settle();
        waited += 1;
        if waited > 330 {
            let of = |s: &Side| (s.catalogue.keys().cloned().collect::<Vec<_>>(), s.slice.counts());
            let [a, b] = &world.sides;
            panic!(
                "never the same: {:?} has {:?} and should have {:?}; {:?} has {:?} and should have {:?}",
                a.mesh,
                of(a),
                b.expected().keys(),
                b.mesh,
                of(b),
                a.expected().keys()
            );
        }
    }
    assert_eq!(world.sides[0].session.violations() + world.sides[1].session.violations(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..common::cases(192) })]

    #[test]
    fn two_agents_agree_in_the_end_and_never_say_what_is_not_so(story in story()) {
        play(&story);
    }
}
