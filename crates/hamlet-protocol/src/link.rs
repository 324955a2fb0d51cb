//! A link: everything between us and one peer, over all of its streams.
//!
//! It holds at most one active stream. When both sides dial, the stream dialled by the smaller
//! SPIFFE id wins; a newer stream dialled by the same side replaces the older, which is then
//! half-open or about to end. In v1alpha1 a stream goes one way only, so there may be two: one that
//! we dialled to import, which is the active one, and one that the peer dialled to be served.

mod bundles;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::durable::{ImportStore, LoadedPeer};
use hamlet_core::import::ImportRules;
use hamlet_core::imported::ServiceJudge;
use hamlet_core::settle::Settle;
use hamlet_core::view::View;
use hamlet_core::{PeerName, SpiffeId};
use hamlet_identity::{ProvenId, ProvenPeer};
use hamlet_runtime::{Clock, Shutdown, Spawner};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::Code;

use crate::bundles::BundleExchange;
use crate::dialect::codec::WireCodec;
use crate::dialect::v1alpha1::{End, V1Codec};
use crate::dialect::v1alpha2::V2Codec;
use crate::dialect::{Dialect, Secret};
use crate::importer::{CatalogueOf, ImportSettings, ImportState, Importer, ImporterParts, Request};
use crate::kind::{LinkJudge, PeerViews};
use crate::session::{SessionConfig, StreamEnd, StreamSession, our_hello};
use crate::stream::StreamCell;
use crate::transcript::Transcript;
use crate::wire::hamlet::federation::v1 as ext;

pub use status::{AppliedReport, LinkStatus};

/// Most connections that one peer may have open to us (threat T14).
pub const CONNECTIONS_MAX: usize = 4;

/// A stream that lived so long begins the hold time anew.
const HELD_AGAIN: Duration = Duration::from_secs(1);

/// How long a removed peer's streams may take to take our goodbye (extensions text, section 9).
const LEAVING_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether they have.
const LEAVING_LOOK: Duration = Duration::from_millis(10);
/// How long the transport has then to write it.
const LEAVING_FLUSH: Duration = Duration::from_millis(100);

/// What is shown of a peer that said goodbye for good.
const LEFT: &str =
    "the peer said goodbye for good: it has removed us; remove it here too, or peer anew with its operators";

/// Longest refused key as it is shown, in bytes: what is refused may hold anything.
const KEY_SHOWN: usize = 512;

/// How a peer is to be met.
#[derive(Debug)]
pub struct LinkConfig<R: ?Sized = ImportRules> {
    /// Where it is, `host:port`; `None` if it dials us.
    pub address: Option<String>,
    /// The only version to speak; `None` finds out which one the peer speaks.
    pub version: Option<Dialect>,
    /// The v1alpha2 context value; empty if none.
    pub context: Secret,
    /// Refuse the peer unless it speaks the extensions.
    pub extensions_required: bool,
    /// How many unanswered changes it may have if it is no Hamlet agent; 1 is what anyone takes.
    pub foreign_window: usize,
    /// Known, but not to be talked to.
    pub paused: bool,
    /// What we accept from it; `None` imports nothing.
    pub import: Option<ImportSettings<R>>,
}

impl<R: ?Sized> Clone for LinkConfig<R> {
    fn clone(&self) -> Self {
        LinkConfig {
            address: self.address.clone(),
            version: self.version,
            context: self.context.clone(),
            extensions_required: self.extensions_required,
            foreign_window: self.foreign_window,
            paused: self.paused,
            import: self.import.clone(),
        }
    }
}

impl<R: ?Sized> LinkConfig<R> {
    /// Largest message with one service that we take, in bytes.
    fn message_bytes(&self) -> usize {
        self.import.as_ref().map(|i| i.limits).unwrap_or_default().message_bytes
    }

    /// The codec of a v1alpha2 stream with this peer, for resources of one type.
    pub(crate) fn v2_codec(&self, resource_url: &'static str) -> WireCodec<V2Codec> {
        let (context, message_bytes) = (self.context.clone(), self.message_bytes());
        WireCodec(V2Codec { resource_url, context, message_bytes })
    }

    /// The codec of our end of a v1alpha1 stream with this peer.
    pub(crate) fn v1_codec(&self, end: End) -> WireCodec<V1Codec> {
        WireCodec(V1Codec { end, message_bytes: self.message_bytes() })
    }

    /// Whether we import from the peer at all.
    pub fn imports(&self) -> bool {
        self.import.as_ref().is_some_and(|i| i.rules.is_some())
    }

    /// Whether a version may be spoken with this peer, or why not. v1alpha1 has neither
    /// extensions nor a context value, so it must not be a way around either.
    pub fn may_speak(&self, dialect: Dialect) -> Result<(), StreamEnd> {
        if let Some(only) = self.version.filter(|only| *only != dialect) {
            let text = format!("this agent speaks {only} only with this peer; see spec.version there");
            return Err(StreamEnd::new(Code::Unimplemented, text));
        }
        if dialect == Dialect::V1alpha2 {
            return Ok(());
        }
        if self.extensions_required {
            let text = "this peer is configured with extensions: required, and v1alpha1 has none";
            return Err(StreamEnd::new(Code::FailedPrecondition, text));
        }
        if !self.context.is_empty() {
            let text = "this peer is configured with a context value, which v1alpha1 can't carry; use v1alpha2, or remove spec.context";
            return Err(StreamEnd::new(Code::Unauthenticated, text));
        }
        Ok(())
    }
}

/// What all links share.
pub struct LinkContext<J: LinkJudge = ServiceJudge> {
    /// Our own id as it is now: where certificates come from outside, it can come late or change.
    pub our_id: Arc<dyn Fn() -> SpiffeId + Send + Sync>,
    /// Program and version, for the hello.
    pub agent: String,
    /// Random for this process.
    pub instance: u64,
    /// Names the log that our versions count in: 16 bytes.
    pub log_id: [u8; 16],
    /// What peers are offered.
    pub publications: Arc<J::Views>,
    /// Where imports go.
    pub catalogue: CatalogueOf<J>,
    /// What judges share: for services, who holds which name.
    pub leases: J::Shared,
    /// What outlives us.
    pub store: Arc<dyn ImportStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Starts the link's tasks.
    pub spawner: Spawner,
    /// What is said and heard of bundles.
    pub bundles: BundleExchange,
}

impl<J: LinkJudge> Clone for LinkContext<J> {
    fn clone(&self) -> Self {
        LinkContext {
            our_id: self.our_id.clone(),
            agent: self.agent.clone(),
            instance: self.instance,
            log_id: self.log_id,
            publications: self.publications.clone(),
            catalogue: self.catalogue.clone(),
            leases: self.leases.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            spawner: self.spawner.clone(),
            bundles: self.bundles.clone(),
        }
    }
}

impl<J: LinkJudge> std::fmt::Debug for LinkContext<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkContext").field("our_id", &(self.our_id)()).finish_non_exhaustive()
    }
}

/// How the link is doing, apart from any stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Switched off by configuration.
    Paused,
    /// We don't know its address and it hasn't dialled us.
    Waiting,
    /// We are dialling.
    Connecting,
    /// A stream is up.
    Up,
    /// It can't be reached; the next attempt is at this running time, if we are the one to dial.
    Down {
        /// When we dial again.
        next_attempt: Option<Duration>,
    },
    /// It, or we, refuse: soon dialling again is pointless.
    Refused {
        /// When we probe again.
        next_attempt: Option<Duration>,
    },
}

#[derive(Debug)]
struct Slot {
    connection: Connection,
    since: Duration,
    last_error: Option<String>,
    attempts: u64,
}

/// One peer.
pub struct Link<J: LinkJudge = ServiceJudge> {
    peer: PeerName,
    context: LinkContext<J>,
    config: ArcSwap<LinkConfig<J::Rules>>,
    state: Arc<ImportState<J>>,
    /// The v1alpha1 stream on which the peer imports from us.
    served: Mutex<Option<Arc<StreamCell>>>,
    /// The version that worked last, for as long as we run.
    pinned: Mutex<Option<Dialect>>,
    /// What the last stream's certificate proved.
    proven_by: Mutex<Option<ProvenId>>,
    requests: mpsc::Sender<Request<J::Rules>>,
    slot: Mutex<Slot>,
    changed: watch::Sender<u64>,
    work: Arc<Notify>,
    streams: AtomicU64,
    /// Numbers the attempts to open a stream; the last one may take the place.
    opening: AtomicU64,
    connections: AtomicU64,
    /// Connections that were closed because of what the peer sent beside the protocol.
    floods: AtomicU64,
    transcript: Arc<Transcript>,
    /// We have removed the peer, and are saying goodbye.
    leaving: AtomicBool,
    /// The peer's last stream ended with its goodbye for good.
    left: AtomicBool,
    shutdown: Shutdown,
}

static NEXT_STREAM: AtomicU64 = AtomicU64::new(1);

impl<J: LinkJudge> std::fmt::Debug for Link<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl<J: LinkJudge> Link<J> {
    /// Starts a link: what the store kept is in force before the peer is reached.
    pub async fn start(
        peer: PeerName,
        config: LinkConfig<J::Rules>,
        context: LinkContext<J>,
        loaded: LoadedPeer,
        shutdown: Shutdown,
    ) -> Result<Arc<Link<J>>, hamlet_core::catalogue::SliceTaken> {
        let writer = context.catalogue.writer(peer.clone())?;
        let now = context.clock.now();
        let mut slice = J::slice(&peer, &context.leases);
        if let Some(import) = &config.import {
            J::set_rules(&mut slice, import.rules.clone(), import.limits, import.guard);
        }
        let (changes, distrusted) = slice.load(loaded.records, now);
        if distrusted > 0 {
            tracing::warn!(%peer, records = distrusted, "stored imports with a wrong digest; they will be asked for again");
        }
        let hold = config.import.as_ref().and_then(|i| i.hold);
        let down = Duration::from_millis(loaded.state.down_ms);
        if hold.is_some_and(|h| down >= h) {
            slice.set_expired(true);
        } else {
            writer.apply(changes);
        }
        let state = Arc::new(ImportState {
            slice: Mutex::new(slice),
            stream: Mutex::new(None),
            down_ms: AtomicU64::new(loaded.state.down_ms),
            opened_ms: AtomicU64::new(0),
            closed_ms: AtomicU64::new(now.as_millis() as u64),
            commit_error: Mutex::new(None),
            last_end: Mutex::new(None),
            settle: Mutex::new(Settle::new()),
            farewells: Mutex::default(),
            committing: Mutex::new(None),
        });
        let work = Arc::new(Notify::new());
        let (requests, inbox) = mpsc::channel(16);
        let importer = Importer::new(ImporterParts {
            peer: peer.clone(),
            state: state.clone(),
            shared: context.leases.clone(),
            writer,
            store: context.store.clone(),
            clock: context.clock.clone(),
            work: work.clone(),
            requests: inbox,
            stored: loaded.state,
        });
        context.spawner.spawn(format!("importer/{peer}"), importer.run(shutdown.clone()));
        let slot = Slot { connection: initial(&config), since: now, last_error: None, attempts: 0 };
        let link = Arc::new(Link {
            peer,
            context,
            config: ArcSwap::from_pointee(config.clone()),
            state,
            served: Mutex::new(None),
            pinned: Mutex::new(None),
            proven_by: Mutex::new(None),
            requests,
            slot: Mutex::new(slot),
            changed: watch::Sender::new(0),
            work,
            streams: AtomicU64::new(0),
            opening: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            floods: AtomicU64::new(0),
            transcript: Arc::default(),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            shutdown,
        });
        link.demand_view();
        if let Some(import) = config.import {
            link.ask(|done| Request::Configure(Box::new(import), done)).await;
        }
        Ok(link)
    }

    /// The peer's name.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// The configuration in use.
    pub fn config(&self) -> Arc<LinkConfig<J::Rules>> {
        self.config.load_full()
    }

    /// What ends this link's tasks.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// What the links share.
    pub fn context(&self) -> &LinkContext<J> {
        &self.context
    }

    /// Woken when the link's state or configuration changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn bump(&self) {
        self.changed.send_modify(|v| *v += 1);
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request<J::Rules>) {
        let (done, wait) = oneshot::channel();
        if self.requests.send(request(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Takes a new configuration: policy is in effect when this returns.
    pub async fn configure(&self, config: LinkConfig<J::Rules>) {
        let old = self.config.swap(Arc::new(config.clone()));
        // Whether we import at all is said in the hello.
        let rejoin = old.imports() != config.imports()
            || old.context != config.context
            || old.version != config.version
            || old.extensions_required != config.extensions_required;
        if old.version != config.version {
            *self.pinned.lock() = None;
        }
        self.demand_view();
        let settings = config.import.clone().unwrap_or_else(|| ImportSettings {
            rules: None,
            limits: hamlet_core::imported::ImportLimits::default(),
            guard: hamlet_core::guard::GuardSettings::default(),
            hold: None,
            resync: None,
        });
        self.ask(|done| Request::Configure(Box::new(settings), done)).await;
        if config.paused || rejoin {
            self.end_stream(StreamEnd::new(Code::Unavailable, "the configuration of this peer changed"));
        }
        if config.paused != old.paused || config.address != old.address {
            let mut slot = self.slot.lock();
            if slot.connection != Connection::Up {
                slot.connection = initial(&self.config.load());
                slot.since = self.context.clock.now();
            }
        }
        self.bump();
    }

    /// Withdraws and forgets everything imported, and ends the link; for a removed peer.
    pub async fn remove(&self) {
        self.end_stream(StreamEnd::new(Code::Unauthenticated, "the peer was removed"));
        self.ask(Request::Forget).await;
        self.shutdown.force();
    }

    /// From now on no stream is opened, and the connection outlives the trust in it for as long as
    /// a goodbye takes. For a peer that was removed, before its trust is.
    pub fn begin_leaving(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether the peer was removed and is being told.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Says goodbye for good (LEAVING): the peer withdraws at once what it has of us. Returns whether
    /// a stream took it in time; then, and otherwise, [`Link::remove`] is due.
    pub async fn leave(&self) -> bool {
        self.begin_leaving();
        let cells: Vec<Arc<StreamCell>> = self.active().into_iter().collect();
        for cell in &cells {
            cell.change(|s| s.say_goodbye(ext::goodbye::Reason::Leaving, Duration::ZERO));
        }
        let told = async {
            while cells.iter().any(|cell| cell.look(StreamSession::has_goodbye)) {
                tokio::time::sleep(LEAVING_LOOK).await;
            }
        };
        let heard = cells.iter().any(|cell| cell.look(StreamSession::is_hello));
        let told = tokio::time::timeout(LEAVING_MAX, told).await.is_ok() && heard;
        self.end_stream(StreamEnd::new(Code::Unauthenticated, "the peer was removed"));
        tokio::time::sleep(LEAVING_FLUSH).await;
        told
    }

    /// Ends the peer's streams, if any.
    pub fn end_stream(&self, end: StreamEnd) {
        for cell in self.active().into_iter().chain(self.served()) {
            cell.end(end.clone());
        }
    }

    /// The v1alpha1 stream on which the peer imports from us.
    pub fn served(&self) -> Option<Arc<StreamCell>> {
        self.served.lock().clone()
    }

    /// The version that worked last since we started, with a peer whose version is found out.
    pub fn pinned(&self) -> Option<Dialect> {
        *self.pinned.lock()
    }

    /// A stream of this version worked: it is tried first from now on, because the versions have
    /// different keys and changing between them renames everything.
    pub(crate) fn pin(&self, dialect: Dialect) {
        if self.config.load().version.is_none() && self.pinned.lock().replace(dialect) != Some(dialect) {
            tracing::info!(peer = %self.peer, version = %dialect, "protocol version found");
        }
    }

    /// The versions to try, in order. The next one is tried only if the peer doesn't know the one
    /// before.
    pub(crate) fn versions(&self) -> Vec<Dialect> {
        if let Some(only) = self.config.load().version {
            return vec![only];
        }
        let mut versions = J::DIALECTS.to_vec();
        let pinned = self.pinned();
        versions.sort_by_key(|v| Some(*v) != pinned);
        versions
    }

    /// Where to dial, if there is something to dial for. In v1alpha1 who imports dials, so
    /// without an import there is not.
    pub(crate) fn to_dial(&self) -> Option<String> {
        let config = self.config.load();
        let served_all =
            !config.imports() && (config.version == Some(Dialect::V1alpha1) || self.served.lock().is_some());
        config.address.clone().filter(|_| !config.paused && !served_all && self.active().is_none())
    }

    /// A peer that is configured to speak v1alpha1 has its view before it comes, so that what
    /// can't be said is known.
    fn demand_view(&self) {
        if self.config.load().version == Some(Dialect::V1alpha1) {
            let _ = self.context.publications.view(Dialect::V1alpha1, &self.peer);
        }
    }

    /// The active stream.
    pub fn active(&self) -> Option<Arc<StreamCell>> {
        self.state.stream.lock().clone()
    }

    /// Counts a connection of the peer for as long as the guard lives, or refuses it if there are
    /// `most` already.
    pub fn count_connection(self: &Arc<Self>, most: usize) -> Option<ConnectionGuard<J>> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let guard = ConnectionGuard(self.clone());
        ((before as usize) < most).then_some(guard)
    }

    /// Counts a connection that was closed for a flood of streams or frames, or for a breach of HTTP/2
    /// (threat T14).
    pub fn count_flood(&self) {
        self.floods.fetch_add(1, Ordering::Relaxed);
        self.bump();
    }

    /// Opens a stream with an authenticated peer, taking the link's only place, or says why not.
    pub async fn open(
        &self,
        dialect: Dialect,
        dialled: bool,
        proven: &ProvenPeer,
    ) -> Result<(Arc<StreamCell>, watch::Receiver<Arc<View>>), StreamEnd> {
        let config = self.config();
        if self.is_leaving() {
            return Err(StreamEnd::new(Code::Unauthenticated, "the peer was removed"));
        }
        if config.paused {
            return Err(StreamEnd::new(
                Code::Unauthenticated,
                "this peer is paused here, or its context value cannot be read; ask the operators",
            ));
        }
        config.may_speak(dialect)?;
        if !J::DIALECTS.contains(&dialect) {
            let text = format!("{dialect} carries services only; speak another version with this peer");
            return Err(StreamEnd::new(Code::Unimplemented, text));
        }
        let Some(views) = self.context.publications.view(dialect, &self.peer) else {
            return Err(StreamEnd::new(Code::Unavailable, "the agent is starting; connect again"));
        };
        if dialect == Dialect::V1alpha1 && !dialled {
            *self.proven_by.lock() = Some(proven.id.clone());
            return Ok((self.serve(&views), views));
        }
        self.make_place(dialect, dialled, proven)?;
        *self.proven_by.lock() = Some(proven.id.clone());
        // What is heard must not change between the question and the new stream's place: nothing
        // more is taken from an older stream, and of two that open at once the later one counts.
        let opening = self.opening.fetch_add(1, Ordering::SeqCst) + 1;
        let old = self.state.stream.lock().take();
        if let Some(old) = &old {
            self.note_gone();
            old.end(StreamEnd::new(Code::Aborted, "replaced by a newer stream of the same peer"));
        }
        let held = self.held().await?;
        let view = views.borrow().clone();
        let (agent, instance, log_id) = (&self.context.agent, self.context.instance, self.context.log_id);
        let (message_bytes, held) = (config.message_bytes(), config.imports().then_some(held));
        let hello = our_hello(agent, instance, log_id, view.head(), message_bytes, held);
        let session = SessionConfig {
            peer: self.peer.to_string(),
            dialect,
            dialled,
            context: config.context.clone(),
            hello: (dialect == Dialect::V1alpha2).then_some(hello),
            extensions_required: config.extensions_required,
            view,
            foreign_window: config.foreign_window,
        };
        let cell = self.cell(session, config.message_bytes());
        if let Some(old) = old {
            old.change(|old| cell.change(|new| new.consumer.continue_from(&mut old.consumer)));
        }
        cell.attach(proven, &self.context.bundles);
        self.occupy(&cell, opening)?;
        self.begin_bundles(&cell);
        if !dialled {
            self.pin(dialect);
        }
        Ok((cell, views))
    }

    fn cell(&self, config: SessionConfig, message_bytes: usize) -> Arc<StreamCell> {
        let dialled = config.dialled;
        let id = NEXT_STREAM.fetch_add(1, Ordering::Relaxed);
        let mut session = StreamSession::new(config, self.context.clock.now());
        session.consumer.set_message_limit(message_bytes);
        if let Some(observer) = J::observer(&self.context.leases, &self.peer) {
            session.observe(observer);
        }
        let (work, clock, transcript) =
            (self.work.clone(), self.context.clock.clone(), self.transcript.clone());
        StreamCell::recorded(id, dialled, session, work, clock, transcript)
    }

    /// A v1alpha1 stream that the peer dialled: we are its owner, and import nothing on it. A newer
    /// one takes the place of the older.
    fn serve(&self, views: &watch::Receiver<Arc<View>>) -> Arc<StreamCell> {
        let config = self.config();
        let session = SessionConfig {
            peer: self.peer.to_string(),
            dialect: Dialect::V1alpha1,
            dialled: false,
            context: Secret::default(),
            hello: None,
            extensions_required: false,
            view: views.borrow().clone(),
            foreign_window: 1,
        };
        let cell = self.cell(session, config.message_bytes());
        let old = self.served.lock().replace(cell.clone());
        if let Some(old) = old {
            old.end(StreamEnd::new(Code::Aborted, "replaced by a newer stream of the same peer"));
        }
        self.streams.fetch_add(1, Ordering::Relaxed);
        // Unless there is one to dial as well: then the connection is as that one is.
        if self.active().is_none() && self.to_dial().is_none() {
            self.set_connection(Connection::Up, None);
        }
        self.bump();
        cell
    }

    /// Whether a new stream may take the place of the active one.
    fn make_place(&self, dialect: Dialect, dialled: bool, proven: &ProvenPeer) -> Result<(), StreamEnd> {
        let Some(active) = self.active() else { return Ok(()) };
        // A stream that carries both roles is worth more than one that only imports.
        match (active.look(StreamSession::dialect), dialect) {
            (Dialect::V1alpha1, Dialect::V1alpha2) => return Ok(()),
            (Dialect::V1alpha2, Dialect::V1alpha1) => {
                let text = "a v1alpha2 stream with this peer is active; this one is a duplicate";
                return Err(StreamEnd::new(Code::AlreadyExists, text));
            }
            _ => {}
        }
        // Both sides compare the same two ids, and find opposite answers. A peer without SPIFFE ids
        // doesn't compare: its own stream is kept.
        let ours_wins = proven.id.spiffe().is_some_and(|theirs| (self.context.our_id)() < *theirs);
        if active.dialled != dialled && dialled != ours_wins {
            return Err(StreamEnd::new(
                Code::AlreadyExists,
                "a stream with this peer is active; this one is a duplicate",
            ));
        }
        Ok(())
    }

    fn occupy(&self, cell: &Arc<StreamCell>, opening: u64) -> Result<(), StreamEnd> {
        let mut place = self.state.stream.lock();
        if self.opening.load(Ordering::SeqCst) != opening {
            return Err(StreamEnd::new(Code::Aborted, "replaced by a newer stream of the same peer"));
        }
        *place = Some(cell.clone());
        self.state.opened_ms.store(self.context.clock.now().as_millis() as u64, Ordering::Relaxed);
        drop(place);
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.set_connection(Connection::Up, None);
        Ok(())
    }

    async fn held(&self) -> Result<ext::Held, StreamEnd> {
        let (reply, answer) = oneshot::channel();
        let stopping = || StreamEnd::new(Code::Unavailable, "the agent is stopping");
        self.requests.send(Request::Held(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// From now on the peer counts as away, unless another stream takes the place.
    fn note_gone(&self) {
        let now = self.context.clock.now();
        let opened = Duration::from_millis(self.state.opened_ms.load(Ordering::Relaxed));
        self.state.closed_ms.store(now.as_millis() as u64, Ordering::Relaxed);
        if now.saturating_sub(opened) >= HELD_AGAIN {
            // The committer may have been at the disk all the while, and not have seen the peer.
            self.state.down_ms.store(0, Ordering::Relaxed);
        }
    }

    /// The stream ended: frees the place if it was still the active one.
    pub fn close(&self, cell: &Arc<StreamCell>, end: &StreamEnd) {
        let mut served = self.served.lock();
        if served.as_ref().is_some_and(|served| served.id == cell.id) {
            *served = None;
            drop(served);
            return self.served_no_more(end);
        }
        drop(served);
        let mut stream = self.state.stream.lock();
        if stream.as_ref().is_none_or(|active| active.id != cell.id) {
            return;
        }
        *stream = None;
        *self.state.last_end.lock() = Some(end.message.clone());
        // A stream that we dialled has its place before the peer has let us in: only what it says
        // shows that it is back.
        let (goodbye, heard) = cell.look(|s| (s.peer_goodbye(), s.has_heard()));
        if heard {
            self.left.store(goodbye == Some(ext::goodbye::Reason::Leaving), Ordering::Relaxed);
        }
        self.note_gone();
        drop(stream);
        let connection = if self.config.load().paused {
            Connection::Paused
        } else if end.is_refusal() {
            Connection::Refused { next_attempt: None }
        } else {
            Connection::Down { next_attempt: None }
        };
        self.set_connection(connection, Some(end.message.clone()));
        tracing::info!(peer = %self.peer, reason = %end.message, "stream ended");
    }

    fn served_no_more(&self, end: &StreamEnd) {
        tracing::info!(peer = %self.peer, reason = %end.message, "v1alpha1 stream to the peer ended");
        let up = self.slot.lock().connection == Connection::Up;
        if up && self.active().is_none() {
            let paused = self.config.load().paused;
            let connection =
                if paused { Connection::Paused } else { Connection::Down { next_attempt: None } };
            self.set_connection(connection, Some(end.message.clone()));
        }
        self.bump();
    }

    /// How often the peer said goodbye for good (LEAVING) since we started, and how many entries were
    /// withdrawn with the last one.
    pub fn farewells(&self) -> (u64, u64) {
        *self.state.farewells.lock()
    }

    /// Streams so far.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Why the last stream or attempt ended; `None` while a stream is up.
    pub fn last_error(&self) -> Option<String> {
        self.slot.lock().last_error.clone()
    }

    /// Notes how the connection is doing; a repeated state keeps its age.
    pub fn set_connection(&self, connection: Connection, error: Option<String>) {
        let (connection, error) = match connection {
            // Whatever its closed door looks like: it has removed us.
            Connection::Down { next_attempt } if self.left.load(Ordering::Relaxed) => {
                (Connection::Refused { next_attempt }, error.map(|_| LEFT.to_owned()))
            }
            other => (other, error),
        };
        let mut slot = self.slot.lock();
        let away = matches!(connection, Connection::Down { .. } | Connection::Refused { .. });
        // Late news of an older stream: another one has taken the place meanwhile.
        if away && self.active().is_some() {
            return;
        }
        let kind = std::mem::discriminant(&slot.connection);
        let was_away = matches!(slot.connection, Connection::Down { .. } | Connection::Refused { .. });
        let still_away = matches!(connection, Connection::Connecting) && was_away;
        if kind != std::mem::discriminant(&connection) && !still_away {
            slot.since = self.context.clock.now();
        }
        match connection {
            Connection::Connecting => slot.attempts += 1,
            Connection::Up => slot.attempts = 0,
            _ => {}
        }
        // Dialling again doesn't make a peer less down: it is shown so until a stream is up.
        if !still_away {
            slot.connection = connection;
        }
        if error.is_some() || slot.connection == Connection::Up {
            slot.last_error = error;
        }
        drop(slot);
        self.bump();
    }
}

fn initial<R: ?Sized>(config: &LinkConfig<R>) -> Connection {
    let must_wait = config.version == Some(Dialect::V1alpha1) && !config.imports();
    match (config.paused, &config.address) {
        (true, _) => Connection::Paused,
        (false, Some(_)) if !must_wait => Connection::Connecting,
        (false, _) => Connection::Waiting,
    }
}

/// Counts one connection of a peer until it is dropped.
#[derive(Debug)]
pub struct ConnectionGuard<J: LinkJudge = ServiceJudge>(Arc<Link<J>>);

impl<J: LinkJudge> Drop for ConnectionGuard<J> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
