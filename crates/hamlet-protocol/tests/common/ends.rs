//! Two ends of a stream that are fed by hand: no sockets, a perfect disk, and what was said as text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::durable::PeerState;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{PeerName, Rejection};
use hamlet_protocol::consumer::held_of;
use hamlet_protocol::dialect::service::{TYPE_URL, decode};
use hamlet_protocol::dialect::{Dialect, Incoming, Outgoing, Secret};
use hamlet_protocol::session::{SessionConfig, StreamSession, our_hello};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

use super::{rules, service};

/// One end of a stream: its session, its view and its imports.
pub struct End {
    pub name: &'static str,
    pub session: StreamSession,
    pub view: Arc<View>,
    pub versions: VersionCounter,
    pub slice: ImportedSlice,
    pub now: Duration,
}

pub fn slice_of(peer: &str) -> ImportedSlice {
    let mut slice =
        ImportedSlice::new(PeerName::parse(peer).unwrap(), TYPE_URL, Arc::new(decode), NameLeases::new());
    slice.set_rules(Some(rules(peer)), ImportLimits::default(), GuardSettings::default());
    slice
}

impl End {
    pub fn new(name: &'static str, peer: &str, dialled: bool, hello: bool, slice: ImportedSlice) -> End {
        let view = View::new(TYPE_URL);
        End::with_view(name, peer, dialled, hello, slice, view, VersionCounter::default())
    }

    pub fn with_view(
        name: &'static str,
        peer: &str,
        dialled: bool,
        hello: bool,
        mut slice: ImportedSlice,
        view: Arc<View>,
        versions: VersionCounter,
    ) -> End {
        let held = held_of(&mut slice, &PeerState::default());
        let hello = hello.then(|| our_hello("test", 1, [7; 16], view.head(), 65_536, Some(held)));
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
        let session = StreamSession::new(config, Duration::ZERO);
        End { name, session, view, versions, slice, now: Duration::ZERO }
    }

    pub fn publish(&self, names: &[&str]) {
        let offer = |n: &&str| {
            let value = hamlet_protocol::dialect::service::encode(&service(self.name, n));
            (Arc::from(*n), Arc::new(Offer::new(TYPE_URL, n, value)))
        };
        let wanted: BTreeMap<Arc<str>, Arc<Offer>> = names.iter().map(offer).collect();
        self.view.set(&wanted, true, &self.versions);
    }

    /// Commits whatever came (the disk is perfect here) and returns what is to be written.
    pub fn speak(&mut self) -> Vec<Outgoing> {
        while let Some(batch) = self.session.consumer.batch(&mut self.slice, self.now) {
            self.session.consumer.finish(&mut self.slice, batch, Ok(()), self.now);
        }
        let mut out = vec![];
        while let Some(message) = self.session.next(self.now).unwrap() {
            out.push(message);
        }
        out
    }

    pub fn hear(&mut self, message: &Outgoing) {
        self.session.receive(heard(message), self.now).unwrap();
    }

    pub fn in_force(&self) -> u64 {
        self.slice.counts().in_force
    }
}

/// What a message looks like at the other end, through the real encoding.
pub fn heard(message: &Outgoing) -> Incoming {
    use prost::Message;
    let codec = hamlet_protocol::dialect::v1alpha2::V2Codec {
        resource_url: TYPE_URL,
        context: Secret::default(),
        message_bytes: hamlet_core::service::limits::MESSAGE_BYTES,
    };
    let mut bytes = vec![];
    codec.write(message, &mut bytes);
    let decoded =
        hamlet_protocol::wire::federation::resourcediscovery::v1alpha2::BidirectionalStream::decode(
            &bytes[..],
        )
        .unwrap();
    hamlet_protocol::dialect::v1alpha2::incoming(decoded, bytes.len())
}

pub fn tell(name: &str, message: &Outgoing) -> Option<String> {
    let text = match message {
        Outgoing::Subscribe { control: Some(_) } => "subscribe, hello".to_owned(),
        Outgoing::Subscribe { control: None } => "subscribe".to_owned(),
        Outgoing::Answer { nonce, answer: Ok(()) } => format!("ack #{nonce}"),
        Outgoing::Answer { nonce, answer: Err(Rejection { rule, .. }) } => format!("nack #{nonce} {rule}"),
        Outgoing::Offer { nonce, change, .. } => {
            format!("{} {} #{nonce}", if change.deleted { "delete" } else { "upsert" }, change.offer.key)
        }
        Outgoing::Control(c) => match c.kind.as_ref()? {
            ext::control::Kind::Begin(b) => {
                format!("begin {}", ext::begin::Mode::try_from(b.mode).unwrap().as_str_name())
            }
            ext::control::Kind::Bookmark(b) => format!("bookmark of {}", b.count),
            ext::control::Kind::Proof(p) => {
                format!("proof {}", ext::proof::Verdict::try_from(p.verdict).unwrap().as_str_name())
            }
            ext::control::Kind::Beat(_) => return None,
            ext::control::Kind::Buckets(b) => format!("{} hashes of level {}", b.hashes.len() / 8, b.level),
            ext::control::Kind::Applied(a) => format!("applied, {} changes", a.changes.len()),
            ext::control::Kind::Held(_) => "held, asks for a round".to_owned(),
            ext::control::Kind::Bundle(b) => format!("bundle {}", b.sequence),
            ext::control::Kind::BundleAck(a) => format!("bundle ack {}", a.sequence),
            ext::control::Kind::Goodbye(_) => "goodbye".to_owned(),
            ext::control::Kind::Hello(_) => "hello".to_owned(),
        },
    };
    Some(format!("{name}: {text}"))
}

/// Lets two ends talk until both are silent; returns what was said.
pub fn talk(a: &mut End, b: &mut End) -> Vec<String> {
    let mut log = vec![];
    for _ in 0..10_000 {
        let (from_a, from_b) = (a.speak(), b.speak());
        if from_a.is_empty() && from_b.is_empty() {
            return log;
        }
        log.extend(from_a.iter().filter_map(|m| tell(a.name, m)));
        log.extend(from_b.iter().filter_map(|m| tell(b.name, m)));
        from_a.iter().for_each(|m| b.hear(m));
        from_b.iter().for_each(|m| a.hear(m));
    }
    panic!("they never fell silent: {log:#?}");
}

pub fn said_by<'a>(log: &'a [String], name: &str) -> Vec<&'a str> {
    log.iter().filter_map(|l| l.strip_prefix(&format!("{name}: "))).collect()
}

/// A new stream between the same two, each with what it kept.
pub fn reconnect(bank: End, shop: End) -> (End, End) {
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let again = End::with_view("bank", "shop", false, true, bank.slice, view, versions);
    let (view, versions) = (shop.view.clone(), shop.versions.clone());
    (again, End::with_view("shop", "bank", true, true, shop.slice, view, versions))
}

pub fn many(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s{i:04}")).collect()
}

pub fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
