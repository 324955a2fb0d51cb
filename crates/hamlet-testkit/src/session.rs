//! One session against anything: what property tests and fuzzers feed it with differs, what it owes
//! for it is the same, and is written down here once.
//!
//! No generator of steps and no judge of a catalogue. The laws: each change is answered once and in
//! order, no nonce is used twice, no more is in flight than the peer allowed, controls go to peers
//! with extensions only, whatever is said can be read by the other end, and nothing grows beyond
//! its quota. A broken law is a panic.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{Rejection, RejectionCode};
use hamlet_protocol::bundles::StreamBundle;
use hamlet_protocol::dialect::service::{TYPE_URL, decode};
use hamlet_protocol::dialect::v1alpha1::{End, V1Codec};
use hamlet_protocol::dialect::v1alpha2::{self, V2Codec};
use hamlet_protocol::dialect::{Dialect, Incoming, Outgoing, Secret};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamSession, WINDOW_MESSAGES_MAX};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

/// How a session is to be.
#[derive(Debug, Clone)]
pub struct FedOptions {
    /// The version that is spoken.
    pub dialect: Dialect,
    /// Whether we dialled; in v1alpha1 this is the consumer's end.
    pub dialled: bool,
    /// Our hello; `None` switches extensions off.
    pub hello: Option<ext::Hello>,
    /// What the peer may have imported.
    pub rules: Arc<ImportRules>,
    /// How many services it may have in force.
    pub quota: usize,
    /// Largest message that is decoded whole, in bytes.
    pub message_bytes: usize,
}

/// A session, its slice and its view, with the model of what it owes.
#[derive(Debug)]
pub struct FedSession {
    options: FedOptions,
    session: StreamSession,
    slice: ImportedSlice,
    view: Arc<View>,
    versions: VersionCounter,
    now: Duration,
    owed: VecDeque<String>,
    in_flight: Vec<u64>,
    highest: u64,
}

impl FedSession {
    /// A stream that has just begun.
    pub fn new(options: FedOptions) -> FedSession {
        let mut slice =
            ImportedSlice::new(options.rules.peer.clone(), TYPE_URL, Arc::new(decode), NameLeases::new());
        let limits = ImportLimits { services: options.quota, ..ImportLimits::default() };
        slice.set_rules(Some(options.rules.clone()), limits, GuardSettings::default());
        let view = View::new(options.dialect.type_url());
        let config = SessionConfig {
            peer: options.rules.peer.to_string(),
            dialect: options.dialect,
            dialled: options.dialled,
            context: Secret::default(),
            hello: options.hello.clone(),
            extensions_required: false,
            view: view.clone(),
            foreign_window: 1,
        };
        let mut session = StreamSession::new(config, Duration::ZERO);
        // It wants to say its bundle from the beginning: never to a foreign peer.
        let (trust_domain, jwks) = ("bank.example".to_owned(), Bytes::from_static(b"{}"));
        session.bundles.set_ours(Some(Arc::new(StreamBundle { trust_domain, sequence: 1, jwks })));
        FedSession {
            options,
            session,
            slice,
            view,
            versions: VersionCounter::default(),
            now: Duration::ZERO,
            owed: VecDeque::new(),
            in_flight: vec![],
            highest: 0,
        }
    }

    /// Nonces of what we said and the peer hasn't answered, as far as it was told apart.
    pub fn in_flight(&self) -> &[u64] {
        &self.in_flight
    }

    /// We publish exactly these: keys and values of the session's dialect.
    pub fn publish(&self, offers: impl IntoIterator<Item = (String, Bytes)>, ready: bool) {
        let url = self.options.dialect.type_url();
        let offer =
            |(key, value): (String, Bytes)| (Arc::from(key.as_str()), Arc::new(Offer::new(url, &key, value)));
        let set: BTreeMap<Arc<str>, Arc<Offer>> = offers.into_iter().map(offer).collect();
        self.view.set(&set, ready, &self.versions);
    }

    /// The peer says this, as the wire has it. `false` when the stream has ended, here and below.
    pub fn hear_bytes(&mut self, message: &[u8]) -> bool {
        match self.read(message, self.options.dialled) {
            Ok(incoming) => self.hear(incoming),
            Err(_) => false,
        }
    }

    /// The peer says this. As the stream's reader does it: a message is taken while there is room.
    pub fn hear(&mut self, incoming: Incoming) -> bool {
        if !self.session.consumer.has_room() {
            return true;
        }
        let nonce = incoming.offer.as_ref().map(|o| o.nonce.clone());
        if let Some(request) = &incoming.request {
            // An answer without a nonce may be to any of them.
            self.in_flight.retain(|n| n.to_string() != request.nonce && !request.nonce.is_empty());
        }
        let taken = self.session.receive(incoming, self.now);
        if taken.is_ok() {
            self.owed.extend(nonce);
        }
        taken.is_ok()
    }

    /// The committer takes a batch, and the disk keeps it or not.
    pub fn commit(&mut self, durable: bool) {
        let Some(batch) = self.session.consumer.batch(&mut self.slice, self.now) else { return };
        let full = || Rejection::new(RejectionCode::Unavailable, "not-persisted", "resource", "full");
        let outcome = if durable { Ok(()) } else { Err(full()) };
        self.session.consumer.finish(&mut self.slice, batch, outcome, self.now);
    }

    /// Says up to so many messages, as far as there is something to say.
    pub fn speak(&mut self, messages: usize) -> bool {
        for _ in 0..messages {
            match self.session.next(self.now) {
                Ok(Some(said)) => self.check(&said),
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        true
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) -> bool {
        self.now += time;
        let due = self.slice.due(self.now);
        self.slice.apply(due, self.now);
        self.session.consumer.tick(&mut self.slice, self.now);
        self.session.tick(self.now).is_ok()
    }

    /// The import's rules are looked at anew.
    pub fn reevaluate(&mut self) {
        let staged = self.slice.reevaluate(self.now);
        self.slice.apply(staged, self.now);
    }

    /// Nothing is beyond its quota. To be called after each step.
    pub fn check_bounds(&self) {
        let (counts, quota) = (self.slice.counts(), self.options.quota);
        assert!(counts.in_force as usize <= quota, "{} in force", counts.in_force);
        assert!(counts.heard as usize <= 2 * quota, "{} heard", counts.heard);
        assert!(self.session.consumer.stats().round_seen.unwrap_or(0) <= counts.heard);
    }

    /// The stream lives, and all that was heard is committed: then all of it is answered.
    pub fn finish(&mut self) {
        while self.session.consumer.has_work() {
            self.commit(true);
        }
        let lives = self.speak(usize::MAX);
        // A stream on which we haven't spoken yet says nothing at all.
        let speaks = self.options.dialled || *self.session.class() != PeerClass::Unknown;
        assert!(!lives || !speaks || self.owed.is_empty(), "every change has its answer");
    }

    /// Reads a message as one end does.
    fn read(&self, message: &[u8], dialled: bool) -> Result<Incoming, String> {
        let message_bytes = self.options.message_bytes;
        let end = if dialled { End::Consumer } else { End::Owner };
        let read = match self.options.dialect {
            Dialect::V1alpha1 => V1Codec { end, message_bytes }.read(message),
            Dialect::V1alpha2 => v1alpha2::read(message, message_bytes),
        };
        read.map_err(|status| status.to_string())
    }

    fn write(&self, said: &Outgoing) -> Vec<u8> {
        let message_bytes = self.options.message_bytes;
        let mut bytes = vec![];
        match self.options.dialect {
            Dialect::V1alpha1 => {
                let end = if self.options.dialled { End::Consumer } else { End::Owner };
                V1Codec { end, message_bytes }.write(said, &mut bytes);
            }
            Dialect::V1alpha2 => {
                let codec = V2Codec { resource_url: TYPE_URL, context: Secret::default(), message_bytes };
                codec.write(said, &mut bytes);
            }
        }
        bytes
    }

    fn check(&mut self, said: &Outgoing) {
        let window = match self.session.class() {
            PeerClass::Hello(hello) => Some(hello.window_messages.clamp(1, WINDOW_MESSAGES_MAX)),
            _ => None,
        };
        match said {
            Outgoing::Answer { nonce, .. } => {
                assert_eq!(Some(nonce), self.owed.pop_front().as_ref(), "answers in order");
            }
            Outgoing::Control(_) => assert!(window.is_some(), "a control to a foreign peer"),
            Outgoing::Offer { nonce, .. } => {
                assert!(*nonce > self.highest, "a nonce is used once");
                self.highest = *nonce;
                self.in_flight.push(*nonce);
                let (most, are) = (window.unwrap_or(1) as usize, self.in_flight.len());
                assert!(are <= most, "{are} in flight, and the peer allowed {most}");
            }
            Outgoing::Subscribe { .. } => {}
        }
        let bytes = self.write(said);
        let heard = self.read(&bytes, !self.options.dialled).expect("what we say can be read");
        assert!(heard.offer.is_some() != heard.request.is_some(), "one member in a message");
    }
}
