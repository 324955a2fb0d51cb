//! Laws of the session machines: whatever is heard, each change is answered once and in order, no
//! nonce is used twice, controls go to peers with extensions only, and nothing grows beyond its
//! bound. Messages pass through the wire's encoding, so that nothing is fed that can't be said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{PeerName, Rejection, RejectionCode};
use hamlet_protocol::dialect::service::{TYPE_URL, decode};
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read};
use hamlet_protocol::dialect::{Dialect, Outgoing, Secret};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamSession};
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use prost::Message;

use crate::codecs::rules;
use crate::seeds::offered;

/// Services that fit the import's quota.
const QUOTA: usize = 6;
/// Most messages in flight towards a peer with extensions, whatever window it names.
const WINDOW_MAX: usize = 16_384;
/// Largest message.
const MESSAGE: usize = 64 * 1024;

/// What happens to a session.
#[derive(Debug, Arbitrary)]
enum Step {
    Offer { nonce: u8, key: u8, value: Value, operation: u8, url: u8 },
    Answer { nonce: Nonce, status: Option<(i8, u8)> },
    Subscribe { url: u8, control: Option<Control> },
    Say(Control),
    Both { nonce: u8, key: u8, answer: Nonce },
    Commit { durable: bool },
    Speak { messages: u8 },
    Wait { ms: u32 },
    Publish { names: u16, ready: bool },
    Reevaluate,
}

#[derive(Debug, Arbitrary)]
enum Nonce {
    /// One of those in flight.
    Known(u8),
    Small(u8),
    None,
}

#[derive(Debug, Arbitrary)]
enum Value {
    Good(u8),
    Foreign(u8),
    Bytes([u8; 5]),
    Long,
    None,
}

#[derive(Debug, Arbitrary)]
enum Control {
    Hello {
        version: u32,
        held: Option<(u32, u8)>,
        window: u32,
    },
    Held {
        round: u32,
        root: u8,
        full: bool,
    },
    Begin {
        round: u32,
        mode: i8,
        level: u32,
    },
    Bookmark {
        seq: u64,
        round: u32,
        root: u8,
        count: u64,
    },
    Proof {
        seq: u64,
        verdict: i8,
        refused: u64,
    },
    Goodbye {
        reason: i8,
    },
    /// A control as the wire has it, whatever it is: the kinds that other versions know, too.
    Wire([u8; 12]),
    Empty,
}

fn root(kind: u8) -> Bytes {
    match kind {
        0..=99 => Bytes::from(vec![0; 32]),
        100..=199 => Bytes::from(vec![kind; 32]),
        _ => Bytes::from(vec![kind; usize::from(kind) - 200]),
    }
}

impl Control {
    fn wire(self) -> ext::Control {
        use ext::control::Kind;
        let held = |round, of, full| ext::Held { round, root: root(of), full, ..ext::Held::default() };
        let kind = match self {
            Control::Hello { version, held: said, window } => Kind::Hello(ext::Hello {
                version,
                held: said.map(|(round, of)| held(round, of, false)),
                window_messages: window,
                ..ext::Hello::default()
            }),
            Control::Held { round, root, full } => Kind::Held(held(round, root, full)),
            Control::Begin { round, mode, level } => {
                Kind::Begin(ext::Begin { round, mode: mode.into(), level, ..ext::Begin::default() })
            }
            Control::Bookmark { seq, round, root: of, count } => Kind::Bookmark(ext::Bookmark {
                seq,
                round,
                root: root(of),
                count,
                ..ext::Bookmark::default()
            }),
            Control::Proof { seq, verdict, refused } => {
                Kind::Proof(ext::Proof { seq, verdict: verdict.into(), refused, ..ext::Proof::default() })
            }
            Control::Goodbye { reason } => {
                Kind::Goodbye(ext::Goodbye { reason: reason.into(), ..ext::Goodbye::default() })
            }
            Control::Wire(bytes) => return ext::Control::decode(&bytes[..]).unwrap_or_default(),
            Control::Empty => return ext::Control::default(),
        };
        ext::Control { kind: Some(kind) }
    }
}

fn url(of: u8) -> String {
    match of {
        0 => String::new(),
        1 => "other".to_owned(),
        _ => TYPE_URL.to_owned(),
    }
}

fn value(of: Value) -> Option<Bytes> {
    Some(match of {
        Value::Good(n) => offered("bank", &format!("s{}", n % 8)),
        Value::Foreign(n) => offered("evil", &format!("s{}", n % 8)),
        Value::Bytes(bytes) => Bytes::copy_from_slice(&bytes),
        Value::Long => Bytes::from(vec![0; MESSAGE]),
        Value::None => return None,
    })
}

/// One session against anything, with the model of what it owes.
struct Fed {
    session: StreamSession,
    slice: ImportedSlice,
    view: Arc<View>,
    versions: VersionCounter,
    now: Duration,
    owed: VecDeque<String>,
    in_flight: Vec<u64>,
    highest: u64,
}

impl Fed {
    fn new(dialled: bool, extensions: bool) -> Fed {
        let peer = PeerName::parse("bank").expect("a name");
        let mut slice = ImportedSlice::new(peer, TYPE_URL, Arc::new(decode), NameLeases::new());
        let limits = ImportLimits { services: QUOTA, ..ImportLimits::default() };
        slice.set_rules(Some(rules()), limits, GuardSettings::default());
        let view = View::new(TYPE_URL);
        let hello = || ext::Hello { version: 1, held: Some(ext::Held::default()), ..ext::Hello::default() };
        let config = SessionConfig {
            peer: "bank".to_owned(),
            dialect: Dialect::V1alpha2,
            dialled,
            context: Secret::default(),
            hello: extensions.then(hello),
            extensions_required: false,
            view: view.clone(),
            foreign_window: 1,
        };
        let now = Duration::ZERO;
        let session = StreamSession::new(config, now);
        let versions = VersionCounter::default();
        Fed { session, slice, view, versions, now, owed: VecDeque::new(), in_flight: vec![], highest: 0 }
    }

    /// `false` when the stream has ended.
    fn step(&mut self, step: Step) -> bool {
        let request = |request| pb::BidirectionalStream { request: Some(request), response: None };
        match step {
            Step::Offer { nonce, key, value: of, operation, url: kind } => {
                let offer = pb::StreamResponse {
                    nonce: nonce.to_string(),
                    resource_url: url(kind),
                    resource_id: if key == 255 { String::new() } else { format!("s{}", key % 8) },
                    resource: value(of).map(|value| Any { type_url: url(kind), value }),
                    operation: i32::from(operation % 4),
                    ..pb::StreamResponse::default()
                };
                self.hear(&pb::BidirectionalStream { request: None, response: Some(offer) })
            }
            Step::Answer { nonce, status } => {
                let status = status.map(|(code, n)| rpc::Status {
                    code: code.into(),
                    message: "m".repeat(n.into()),
                    ..rpc::Status::default()
                });
                let response_nonce = self.nonce(&nonce);
                self.hear(&request(pb::StreamRequest {
                    response_nonce,
                    status,
                    ..pb::StreamRequest::default()
                }))
            }
            Step::Subscribe { url: kind, control } => {
                let (resource_url, control) = (url(kind), control.map(Control::wire));
                self.hear(&request(pb::StreamRequest {
                    resource_url,
                    control,
                    ..pb::StreamRequest::default()
                }))
            }
            Step::Say(control) => {
                let control = Some(control.wire());
                self.hear(&request(pb::StreamRequest { control, ..pb::StreamRequest::default() }))
            }
            Step::Both { nonce, key, answer } => {
                let response_nonce = self.nonce(&answer);
                let status = Some(rpc::Status::default());
                let offer = pb::StreamResponse {
                    nonce: nonce.to_string(),
                    resource_url: TYPE_URL.to_owned(),
                    resource_id: format!("s{}", key % 8),
                    operation: 2,
                    ..pb::StreamResponse::default()
                };
                let answer = pb::StreamRequest { response_nonce, status, ..pb::StreamRequest::default() };
                self.hear(&pb::BidirectionalStream { request: Some(answer), response: Some(offer) })
            }
            Step::Commit { durable } => {
                self.commit(durable);
                true
            }
            Step::Speak { messages } => (0..messages % 32).all(|_| self.speak() != Some(false)),
            Step::Wait { ms } => self.wait(ms),
            Step::Publish { names, ready } => {
                self.publish(names, ready);
                true
            }
            Step::Reevaluate => {
                let staged = self.slice.reevaluate(self.now);
                self.slice.apply(staged, self.now);
                true
            }
        }
    }

    fn nonce(&self, of: &Nonce) -> String {
        match of {
            Nonce::Known(n) if !self.in_flight.is_empty() => {
                self.in_flight[usize::from(*n) % self.in_flight.len()].to_string()
            }
            Nonce::Known(n) | Nonce::Small(n) => n.to_string(),
            Nonce::None => String::new(),
        }
    }

    fn publish(&mut self, names: u16, ready: bool) {
        let offer = |n: u16| {
            let key = format!("o{n}");
            (Arc::from(key.as_str()), Arc::new(Offer::new(TYPE_URL, &key, offered("shop", &key))))
        };
        let set: BTreeMap<_, _> = (0..16).filter(|n| names >> n & 1 == 1).map(offer).collect();
        self.view.set(&set, ready, &self.versions);
    }

    fn wait(&mut self, ms: u32) -> bool {
        self.now += Duration::from_millis(ms.into());
        let due = self.slice.due(self.now);
        self.slice.apply(due, self.now);
        self.session.consumer.tick(&mut self.slice, self.now);
        self.session.tick(self.now).is_ok()
    }

    fn hear(&mut self, message: &pb::BidirectionalStream) -> bool {
        self.hear_bytes(&message.encode_to_vec())
    }

    /// As the stream's reader does it: a message is taken while there is room for one.
    fn hear_bytes(&mut self, message: &[u8]) -> bool {
        if !self.session.consumer.has_room() {
            return true;
        }
        let Ok(incoming) = read(message, MESSAGE) else { return false };
        let nonce = incoming.offer.as_ref().map(|o| o.nonce.clone());
        if let Some(request) = &incoming.request {
            self.in_flight.retain(|n| n.to_string() != request.nonce && !request.nonce.is_empty());
        }
        let taken = self.session.receive(incoming, self.now);
        if taken.is_ok() {
            self.owed.extend(nonce);
        }
        taken.is_ok()
    }

    fn commit(&mut self, durable: bool) {
        let Some(batch) = self.session.consumer.batch(&mut self.slice, self.now) else { return };
        let full = || Rejection::new(RejectionCode::Unavailable, "not-persisted", "resource", "full");
        let outcome = if durable { Ok(()) } else { Err(full()) };
        self.session.consumer.finish(&mut self.slice, batch, outcome, self.now);
    }

    /// `None`: nothing to say; `Some(false)`: the stream has ended.
    fn speak(&mut self) -> Option<bool> {
        match self.session.next(self.now) {
            Ok(Some(said)) => {
                self.check(&said);
                Some(true)
            }
            Ok(None) => None,
            Err(_) => Some(false),
        }
    }

    fn check(&mut self, said: &Outgoing) {
        let hello = matches!(self.session.class(), PeerClass::Hello(_));
        match said {
            Outgoing::Answer { nonce, .. } => {
                assert_eq!(Some(nonce), self.owed.pop_front().as_ref(), "answers in order");
            }
            Outgoing::Control(_) => assert!(hello, "a control to a foreign peer"),
            Outgoing::Offer { nonce, .. } => {
                assert!(*nonce > self.highest, "a nonce is used once");
                self.highest = *nonce;
                self.in_flight.push(*nonce);
                assert!(self.in_flight.len() <= if hello { WINDOW_MAX } else { 1 }, "too many in flight");
            }
            Outgoing::Subscribe { .. } => {}
        }
        let codec = V2Codec { resource_url: TYPE_URL, context: Secret::default(), message_bytes: MESSAGE };
        let mut bytes = vec![];
        codec.write(said, &mut bytes);
        let heard = read(&bytes[..], MESSAGE).expect("what we say can be read");
        assert!(heard.offer.is_some() != heard.request.is_some(), "one member in a message");
    }

    fn check_bounds(&self) {
        let counts = self.slice.counts();
        assert!(counts.in_force as usize <= QUOTA, "{} in force", counts.in_force);
        assert!(counts.heard as usize <= 2 * QUOTA, "{} heard", counts.heard);
        assert!(self.session.consumer.stats().round_seen.unwrap_or(0) <= counts.heard);
    }

    /// All that was heard is committed and answered.
    fn finish(&mut self, dialled: bool) {
        while self.session.consumer.has_work() {
            self.commit(true);
        }
        while self.speak() == Some(true) {}
        // A stream on which we haven't spoken yet says nothing at all.
        if dialled || *self.session.class() != PeerClass::Unknown {
            assert!(self.owed.is_empty(), "every change has its answer");
        }
    }
}

/// A session of either side in any sequence of steps.
pub fn session(input: &[u8]) {
    let mut bytes = Unstructured::new(input);
    let Ok((dialled, extensions)) = bytes.arbitrary::<(bool, bool)>() else { return };
    let mut fed = Fed::new(dialled, extensions);
    let mut lives = true;
    while lives && !bytes.is_empty() {
        let Ok(step) = Step::arbitrary(&mut bytes) else { break };
        lives = fed.step(step);
        fed.check_bounds();
    }
    if lives {
        fed.finish(dialled);
    }
}

/// The same fed with messages as the wire has them: each begins with its length in two bytes, whose
/// highest bit has the session commit and speak first.
pub fn exchange(input: &[u8]) {
    let Some((first, mut rest)) = input.split_first() else { return };
    let dialled = first & 1 == 1;
    let mut fed = Fed::new(dialled, first & 2 == 2);
    fed.publish(u16::from(*first), true);
    let mut lives = true;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = u16::from_be_bytes(*length);
        if length & 0x8000 != 0 {
            fed.commit(true);
            lives = lives && fed.speak() != Some(false) && fed.wait(1_000);
        }
        let (message, more) = more.split_at(more.len().min(usize::from(length & 0x7fff)));
        lives = lives && fed.hear_bytes(message);
        fed.check_bounds();
        if !lives {
            return;
        }
        rest = more;
    }
    fed.finish(dialled);
}
