//! Steps for the session machines, of both versions; their laws are [`FedSession`]'s. Messages pass
//! through the wire's encoding, so that nothing is fed that can't be said.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use hamlet_protocol::dialect::Dialect;
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::dialect::translate::TYPE_URL as V1_URL;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha1 as v1;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use hamlet_testkit::session::{FedOptions, FedSession};
use prost::Message;

use crate::codecs::rules;
use crate::seeds::{offered, offered_v1};

/// Services that fit the import's quota.
const QUOTA: usize = 6;
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
    /// Hashes of so many nodes below those of level 1 or 2.
    Buckets {
        round: u32,
        level: u8,
        first: u16,
        nodes: u8,
        last: bool,
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

/// What a consumer says it holds: nothing, or so much that it is compared down to some level.
fn held(round: u32, of: u8, full: bool) -> ext::Held {
    let holds = (100..=199).contains(&of);
    ext::Held {
        round,
        root: root(of),
        full,
        digest_version: u32::from(holds),
        count: if holds { u64::from(of - 99) * 100 } else { 0 },
        hashes: Bytes::from(vec![of & 1; if holds { 256 } else { 0 }]),
        ..ext::Held::default()
    }
}

/// Some nodes of a level, of as many as it has; or of another one.
fn scope(level: u32) -> Bytes {
    Bytes::from(match level {
        1 => vec![3; 4],
        2 => vec![1; 128],
        3 => vec![0; 4_096],
        other => vec![1; other as usize % 200],
    })
}

impl Control {
    fn wire(self) -> ext::Control {
        use ext::control::Kind;
        let kind = match self {
            Control::Hello { version, held: said, window } => Kind::Hello(ext::Hello {
                version,
                held: said.map(|(round, of)| held(round, of, false)),
                window_messages: window,
                ..ext::Hello::default()
            }),
            Control::Held { round, root, full } => Kind::Held(held(round, root, full)),
            Control::Begin { round, mode, level } => {
                Kind::Begin(ext::Begin { round, mode: mode.into(), level, scope: scope(level) })
            }
            Control::Buckets { round, level, first, nodes, last } => Kind::Buckets(ext::Buckets {
                round,
                level: level.into(),
                first: first.into(),
                hashes: Bytes::from(vec![1; usize::from(nodes) * 256]),
                last,
            }),
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

fn begun(dialect: Dialect, dialled: bool, extensions: bool) -> FedSession {
    let hello = || ext::Hello { version: 1, held: Some(ext::Held::default()), ..ext::Hello::default() };
    FedSession::new(FedOptions {
        dialect,
        dialled,
        hello: extensions.then(hello),
        rules: rules(),
        quota: QUOTA,
        message_bytes: MESSAGE,
    })
}

fn nonce(fed: &FedSession, of: &Nonce) -> String {
    let known = fed.in_flight();
    match of {
        Nonce::Known(n) if !known.is_empty() => known[usize::from(*n) % known.len()].to_string(),
        Nonce::Known(n) | Nonce::Small(n) => n.to_string(),
        Nonce::None => String::new(),
    }
}

fn status(of: Option<(i8, u8)>) -> Option<rpc::Status> {
    of.map(|(code, n)| rpc::Status {
        code: code.into(),
        message: "m".repeat(n.into()),
        ..rpc::Status::default()
    })
}

/// Publishes those of 16 services whose bit is set.
fn publish(fed: &FedSession, names: u16, ready: bool, of: fn(&str, &str) -> Bytes, keys: fn(u16) -> String) {
    let offer = |n: u16| (keys(n), of("shop", &format!("o{n}")));
    fed.publish((0..16).filter(|n| names >> n & 1 == 1).map(offer), ready);
}

fn key(n: u16) -> String {
    format!("o{n}")
}

/// `false` when the stream has ended.
fn step(fed: &mut FedSession, step: Step) -> bool {
    let request = |request| pb::BidirectionalStream { request: Some(request), response: None };
    let message = match step {
        Step::Offer { nonce, key, value: of, operation, url: kind } => {
            let offer = pb::StreamResponse {
                nonce: nonce.to_string(),
                resource_url: url(kind),
                resource_id: if key == 255 { String::new() } else { format!("s{}", key % 8) },
                resource: value(of).map(|value| Any { type_url: url(kind), value }),
                operation: i32::from(operation % 4),
                ..pb::StreamResponse::default()
            };
            pb::BidirectionalStream { request: None, response: Some(offer) }
        }
        Step::Answer { nonce: of, status: said } => request(pb::StreamRequest {
            response_nonce: nonce(fed, &of),
            status: status(said),
            ..pb::StreamRequest::default()
        }),
        Step::Subscribe { url: kind, control } => {
            let (resource_url, control) = (url(kind), control.map(Control::wire));
            request(pb::StreamRequest { resource_url, control, ..pb::StreamRequest::default() })
        }
        Step::Say(control) => {
            let control = Some(control.wire());
            request(pb::StreamRequest { control, ..pb::StreamRequest::default() })
        }
        Step::Both { nonce: said, key, answer } => {
            let response_nonce = nonce(fed, &answer);
            let status = Some(rpc::Status::default());
            let offer = pb::StreamResponse {
                nonce: said.to_string(),
                resource_url: TYPE_URL.to_owned(),
                resource_id: format!("s{}", key % 8),
                operation: 2,
                ..pb::StreamResponse::default()
            };
            let answer = pb::StreamRequest { response_nonce, status, ..pb::StreamRequest::default() };
            pb::BidirectionalStream { request: Some(answer), response: Some(offer) }
        }
        Step::Commit { durable } => {
            fed.commit(durable);
            return true;
        }
        Step::Speak { messages } => return fed.speak(usize::from(messages % 32)),
        Step::Wait { ms } => return fed.wait(Duration::from_millis(ms.into())),
        Step::Publish { names, ready } => {
            publish(fed, names, ready, offered, key);
            return true;
        }
        Step::Reevaluate => {
            fed.reevaluate();
            return true;
        }
    };
    fed.hear_bytes(&message.encode_to_vec())
}

/// A session of either side in any sequence of steps.
pub(crate) fn session(input: &[u8]) {
    let mut bytes = Unstructured::new(input);
    let Ok((dialled, extensions)) = bytes.arbitrary::<(bool, bool)>() else { return };
    let mut fed = begun(Dialect::V1alpha2, dialled, extensions);
    let mut lives = true;
    while lives && !bytes.is_empty() {
        let Ok(next) = Step::arbitrary(&mut bytes) else { break };
        lives = step(&mut fed, next);
        fed.check_bounds();
    }
    if lives {
        fed.finish();
    }
}

/// The same fed with messages as the wire has them: each begins with its length in two bytes, whose
/// highest bit has the session commit and speak first.
pub(crate) fn exchange(input: &[u8]) {
    let Some((first, mut rest)) = input.split_first() else { return };
    let dialect = if first & 4 == 4 { Dialect::V1alpha1 } else { Dialect::V1alpha2 };
    let mut fed = begun(dialect, first & 1 == 1, first & 2 == 2);
    match dialect {
        Dialect::V1alpha1 => publish(&fed, u16::from(*first), true, offered_v1, key_v1),
        Dialect::V1alpha2 => publish(&fed, u16::from(*first), true, offered, key),
    }
    let mut lives = true;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = u16::from_be_bytes(*length);
        if length & 0x8000 != 0 {
            fed.commit(true);
            lives = lives && fed.speak(1) && fed.wait(Duration::from_secs(1));
        }
        let (message, more) = more.split_at(more.len().min(usize::from(length & 0x7fff)));
        lives = lives && fed.hear_bytes(message);
        fed.check_bounds();
        if !lives {
            return;
        }
        rest = more;
    }
    fed.finish();
}

/// What happens to a session of v1alpha1.
#[derive(Debug, Arbitrary)]
enum StepV1 {
    Offer { nonce: Nonce, key: u8, value: Value, operation: u8, url: u8 },
    Answer { nonce: Nonce, url: u8, status: Option<(i8, u8)> },
    Subscribe { url: u8 },
    Wire([u8; 12]),
    Commit { durable: bool },
    Speak { messages: u8 },
    Wait { ms: u32 },
    Publish { names: u16, ready: bool },
    Reevaluate,
}

fn key_v1(n: u16) -> String {
    hamlet_protocol::dialect::translate::up(&offered_v1("shop", &key(n)))
        .map_or_else(|_| key(n), |(key, _)| key)
}

fn url_v1(of: u8) -> String {
    match of {
        0..=2 => url(of),
        _ => V1_URL.to_owned(),
    }
}

fn value_v1(of: Value, key: u8) -> Option<Bytes> {
    match of {
        Value::Good(_) => Some(offered_v1("bank", &format!("s{}", key % 8))),
        Value::Foreign(n) => Some(offered_v1("evil", &format!("s{}", n % 8))),
        other => value(other),
    }
}

fn step_v1(fed: &mut FedSession, step: StepV1, dialled: bool) -> bool {
    let message = match step {
        // Each end has a message of its own; what the other one says is not of this stream.
        StepV1::Offer { .. } if !dialled => return true,
        StepV1::Answer { .. } | StepV1::Subscribe { .. } if dialled => return true,
        StepV1::Offer { nonce: of, key, value: what, operation, url: kind } => v1::StreamResponse {
            nonce: nonce(fed, &of),
            resource_url: url_v1(kind),
            resource: value_v1(what, key).map(|value| Any { type_url: url_v1(kind), value }),
            operation: i32::from(operation % 5),
        }
        .encode_to_vec(),
        StepV1::Answer { nonce: of, url: kind, status: said } => v1::StreamRequest {
            resource_url: url_v1(kind),
            response_nonce: nonce(fed, &of),
            status: status(said),
        }
        .encode_to_vec(),
        StepV1::Subscribe { url: kind } => {
            v1::StreamRequest { resource_url: url_v1(kind), ..v1::StreamRequest::default() }.encode_to_vec()
        }
        StepV1::Wire(bytes) => bytes.to_vec(),
        StepV1::Commit { durable } => {
            fed.commit(durable);
            return true;
        }
        StepV1::Speak { messages } => return fed.speak(usize::from(messages % 32)),
        StepV1::Wait { ms } => return fed.wait(Duration::from_millis(ms.into())),
        StepV1::Publish { names, ready } => {
            publish(fed, names, ready, offered_v1, key_v1);
            return true;
        }
        StepV1::Reevaluate => {
            fed.reevaluate();
            return true;
        }
    };
    fed.hear_bytes(&message)
}

/// A session of v1alpha1, either end, in any sequence of steps.
pub(crate) fn session_v1(input: &[u8]) {
    let mut bytes = Unstructured::new(input);
    let Ok(dialled) = bytes.arbitrary::<bool>() else { return };
    let mut fed = begun(Dialect::V1alpha1, dialled, false);
    let mut lives = true;
    while lives && !bytes.is_empty() {
        let Ok(next) = StepV1::arbitrary(&mut bytes) else { break };
        lives = step_v1(&mut fed, next, dialled);
        fed.check_bounds();
    }
    if lives {
        fed.finish();
    }
}
