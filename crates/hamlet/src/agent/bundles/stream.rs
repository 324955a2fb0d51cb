//! Bundles on streams: what a peer's agent says of its own, what we answer, and which peers have ours.
//! *Hardened to untrusted peer.*
//!
//! Source: `spec/extensions.md`, section 9. Invariants: a bundle from a stream counts for the
//! authenticated peer's own trust domain only, from a configured agent, if the peer is configured to be
//! followed so, and over a chain that the bundle in force and the new one both prove; "in force" is
//! answered when it is so and not before; our own authority is told that all peers have a new root only
//! if each has said so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::{AuthorityStatus, MissingPeer, OursThere};
use hamlet_core::PeerName;
use hamlet_core::rejection::one_line;
use hamlet_identity::authority::state::Root;
use hamlet_identity::{
    Authorities, BundleRefusal, Channel, HeldBundle, PeerTrust, SpiffeBundle, TrustBundle, Usage,
    proven_agent_under,
};
use hamlet_protocol::bundles::{BundleAnswer, HeardBundle, NotInForce, StreamBundle};
use hamlet_protocol::link::Link;
use hamlet_runtime::Shutdown;
use parking_lot::Mutex;

use super::super::Agent;
use super::{Followed, note_change};
use crate::config::{Follow, PeerConfig};
use crate::hex::hex;

/// A refresh hint on a stream never lets an announced CA wait longer than this.
const HINT_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether something is due that nobody announced.
const LOOK: Duration = Duration::from_secs(2);
/// Longest reason that is told of a refused bundle, in bytes.
const WHY_BYTES: usize = 400;

/// A certificate of the stream that doesn't outlive the change: a new stream shows a new one.
const LEAF: &str = "BUNDLE_LEAF";

/// What streams brought, and what they took.
#[derive(Default)]
pub(in crate::agent) struct StreamBundles {
    heard: Mutex<BTreeMap<PeerName, Heard>>,
    ours: Mutex<BTreeMap<PeerName, OursAt>>,
}

/// A peer's newest bundle on its present stream.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    stream: u64,
    number: u64,
    /// The content's fingerprint, if it can be read.
    print: Option<[u8; 32]>,
    /// Why it was not taken when it came.
    taken: Result<(), NotInForce>,
    /// How it stood when the peer was told last.
    told: Option<Result<(), NotInForce>>,
}

/// Our bundle at a peer.
#[derive(Debug, Clone, Default)]
struct OursAt {
    /// Its last answer, perhaps of a stream that has ended.
    answer: Option<BundleAnswer>,
    /// The sequence for which a stream was renewed, so that it shows our present certificate.
    renewed: Option<u64>,
}

impl Agent {
    /// How long a CA waits that a stream announces.
    pub(super) fn additions_wait(&self, hint: Option<Duration>) -> Duration {
        self.config().mesh.bundle_wait.max(hint.unwrap_or_default().min(HINT_MAX))
    }

    /// Has all streams say our bundle as it is now.
    pub(super) fn say_own_bundle(&self) {
        let ours = self.own_bundle().ok().and_then(|bundle| {
            let trust_domain = bundle.domain.to_string();
            let jwks = bundle.to_jwks().inspect_err(|error| {
                tracing::error!(%error, "our own bundle can't be said on streams");
            });
            Some(StreamBundle { trust_domain, sequence: bundle.sequence?, jwks: jwks.ok()?.into() })
        });
        if self.link_context.bundles.publish(ours) {
            for link in self.links() {
                link.say_bundle();
            }
        }
    }

    /// Takes and answers what peers say, puts announced CAs in force when they are due, and tells our
    /// authority when all peers have its new root.
    pub(super) async fn keep_stream_bundles(self: Arc<Agent>, shutdown: Shutdown) {
        let mut news = self.link_context.bundles.news();
        let mut trusted = self.trust.changed();
        'keeping: loop {
            news.borrow_and_update();
            trusted.borrow_and_update();
            self.ripen_bundles().await;
            let links = self.links();
            for link in &links {
                if let Some(heard) = link.heard_bundle() {
                    self.hear_bundle(link, &heard).await;
                }
                self.note_answer(link);
            }
            let is_there = |peer: &PeerName| links.iter().any(|l| l.peer() == peer);
            self.streams.heard.lock().retain(|peer, _| is_there(peer));
            self.streams.ours.lock().retain(|peer, _| is_there(peer));
            self.release_root().await;
            let due = self.bundles.due().map_or(LOOK, |due| due.saturating_sub(self.clock.now()));
            tokio::select! {
                Ok(()) = news.changed() => {}
                Ok(()) = trusted.changed() => {}
                () = tokio::time::sleep(due.min(LOOK)) => {}
                () = shutdown.begun() => break 'keeping,
            }
        }
    }

    /// Puts in force what was announced and has waited long enough.
    async fn ripen_bundles(&self) {
        let (config, now) = (self.config(), self.clock.now());
        let mut any = false;
        for peer in config.peers.values().filter(|p| p.follow.is_some()) {
            let ripe = self.bundles.entry(&peer.name, |entry| {
                let added = entry.held.as_mut().map(|held| held.ripen(now)).unwrap_or_default();
                (!added.is_empty()).then(|| (added, entry.to_bytes()))
            });
            let Some((added, bytes)) = ripe else { continue };
            self.keep_bundle(peer, bytes).await;
            let change = hamlet_identity::BundleChange { added, ..hamlet_identity::BundleChange::default() };
            note_change(peer, Channel::Stream, &change);
            any = true;
        }
        if any {
            self.believe();
            self.bundles.changed.send_modify(|v| *v += 1);
            self.bump();
        }
    }

    /// Takes a bundle that is new, and answers if there is something new to say.
    async fn hear_bundle(&self, link: &Link, heard: &HeardBundle) {
        let config = self.config();
        let Some(peer) = config.peers.get(link.peer()) else { return };
        let known = self.streams.heard.lock().get(&peer.name).cloned();
        let known = known.filter(|k| (k.stream, k.number) == (heard.stream, heard.number));
        let mut entry = match known {
            Some(known) => known,
            None => {
                let read = read_heard(peer, &heard.bundle);
                let print = read.as_ref().ok().map(|found| found.authorities.fingerprint());
                let taken = match read {
                    Ok(found) => self.take_heard(peer, heard, found).await,
                    Err(why) => Err(why),
                };
                self.note_taken(peer, heard, &taken);
                Heard { stream: heard.stream, number: heard.number, print, taken, told: None }
            }
        };
        let outcome = self.standing(peer, &entry);
        // How long it still waits is told once.
        let told_alike = match (&entry.told, &outcome) {
            (Some(Err(NotInForce::Waiting(_))), Err(NotInForce::Waiting(_))) => true,
            (told, outcome) => told.as_ref() == Some(outcome),
        };
        if !told_alike {
            link.answer_bundle(heard, &outcome);
            if entry.taken.is_err() && outcome.is_ok() {
                self.bundles.entry(&peer.name, Followed::mended);
            }
            entry.told = Some(outcome);
            self.bump();
        }
        self.streams.heard.lock().insert(peer.name.clone(), entry);
    }

    /// How it stands with what a peer said.
    fn standing(&self, peer: &PeerConfig, heard: &Heard) -> Result<(), NotInForce> {
        let in_force = heard.print.map(|print| self.is_in_force(peer, print));
        match (&heard.taken, in_force) {
            (Ok(()), Some(standing)) => standing,
            // What was in force stood in the way, and this very bundle has replaced it since: by an
            // operator's hand, or on another way.
            (Err(NotInForce::NothingLeft(_) | NotInForce::Leaf(_)), Some(Ok(()))) => Ok(()),
            (taken, _) => taken.clone(),
        }
    }

    /// Offers what a peer said to what is held of it.
    async fn take_heard(
        &self,
        peer: &PeerConfig,
        heard: &HeardBundle,
        found: SpiffeBundle,
    ) -> Result<(), NotInForce> {
        if peer.follow != Some(Follow::Stream) {
            // It may be in force all the same: from the peer's file or endpoint.
            return Ok(());
        }
        if let Some(bundle) = found.authorities.bundle() {
            let trusted = self.trust.peer(&peer.name);
            let trusted =
                trusted.ok_or_else(|| NotInForce::Leaf("nothing proves the peer here".to_owned()))?;
            self.prove_by_both(&trusted, bundle, heard)?;
        }
        self.take_bundle(peer, found, Channel::Stream).await.map(|_| ()).map_err(|refusal| refused(&refusal))
    }

    /// Whether the stream's certificate is proven by the bundle in force, as the peer is configured now,
    /// and by the new one.
    fn prove_by_both(
        &self,
        trusted: &PeerTrust,
        new: &TrustBundle,
        heard: &HeardBundle,
    ) -> Result<(), NotInForce> {
        let usage = if heard.dialled { Usage::Server } else { Usage::Client };
        let chain = &heard.proven.chain;
        for (which, bundle) in [("in force", trusted.bundle.clone()), ("new", Arc::new(new.clone()))] {
            if let Err(error) = proven_agent_under(trusted, bundle, chain, usage, &self.clock) {
                let why = format!("the bundle {which} doesn't prove the certificate of this stream: {error}");
                return Err(NotInForce::Leaf(one_line(&why, WHY_BYTES)));
            }
        }
        Ok(())
    }

    /// Whether exactly this is in force of a peer now.
    fn is_in_force(&self, peer: &PeerConfig, print: [u8; 32]) -> Result<(), NotInForce> {
        let trusted = self.trust.peer(&peer.name);
        let now = trusted.map(|t| Authorities::Certificates((*t.bundle).clone()).fingerprint());
        if now == Some(print) {
            return Ok(());
        }
        if peer.follow != Some(Follow::Stream) {
            return Err(NotInForce::NotFollowed);
        }
        let due = self.bundles.entry(&peer.name, |entry| entry.held.as_ref().and_then(HeldBundle::due));
        match due {
            Some(due) => Err(NotInForce::Waiting(due.saturating_sub(self.clock.now()))),
            None => Err(NotInForce::Overridden),
        }
    }

    /// For people: the status, and the log.
    fn note_taken(&self, peer: &PeerConfig, heard: &HeardBundle, taken: &Result<(), NotInForce>) {
        let sequence = heard.bundle.sequence;
        let Err(why) = taken else {
            tracing::debug!(peer = %peer.name, sequence, "the peer said its bundle");
            return;
        };
        let (now, rejection) = (self.clock.now(), why.rejection());
        if peer.follow.is_some() {
            self.bundles.entry(&peer.name, |entry| {
                entry.failures += 1;
                entry.last_error = Some((one_line(&rejection.to_string(), 1024), now));
                entry.refused = rule(why);
            });
        }
        if let Some(rule) = rule(why) {
            self.audit.bundle_refused(peer, Channel::Stream, rule, Some(sequence));
        }
        let domain = one_line(&heard.bundle.trust_domain, 255);
        let by = &heard.proven.id;
        match why {
            NotInForce::Fork(_) | NotInForce::ForeignDomain => {
                tracing::error!(peer = %peer.name, %by, domain, sequence, error = %rejection, "ALARM: a bundle on a stream is refused");
            }
            _ => {
                tracing::warn!(peer = %peer.name, %by, domain, sequence, error = %rejection, "a bundle on a stream is refused");
            }
        }
    }

    /// Remembers what a peer said of ours, and renews the stream if its certificate is in the way.
    fn note_answer(&self, link: &Link) {
        let Some(answer) = link.bundle_answer() else { return };
        let mut ours = self.streams.ours.lock();
        let at = ours.entry(link.peer().clone()).or_default();
        if at.answer.as_ref() == Some(&answer) {
            return;
        }
        let (peer, sequence) = (link.peer(), answer.sequence);
        match &answer.problem {
            None => tracing::info!(%peer, sequence, "the peer has our bundle in force"),
            Some(why) if why.is_waiting() => {
                tracing::info!(%peer, sequence, why = why.message, "the peer has taken our bundle");
            }
            Some(why) => {
                tracing::warn!(%peer, sequence, reason = why.reason, why = why.message, "the peer doesn't take our bundle");
            }
        }
        let blocked = answer.problem.as_ref().is_some_and(|why| why.reason == LEAF);
        let renew = blocked && at.renewed != Some(sequence);
        if renew {
            at.renewed = Some(sequence);
        }
        at.answer = Some(answer);
        drop(ours);
        if renew {
            link.show_certificate_anew();
        }
        self.bump();
    }

    /// What a peer said of our bundle, for people.
    pub(in crate::agent) fn ours_at(&self, peer: &PeerName) -> Option<OursThere> {
        let answer = self.streams.ours.lock().get(peer)?.answer.clone()?;
        Some(OursThere {
            sequence: answer.sequence,
            in_force: answer.problem.is_none(),
            reason: answer.problem.as_ref().map(|p| p.reason.clone()),
            message: answer.problem.map(|p| p.message).filter(|m| !m.is_empty()),
        })
    }

    /// The root that waits to issue, and whether what we say on streams has it.
    fn staged(&self) -> Option<(Root, bool)> {
        let state = self.keeper.as_ref()?.authority().seen()?;
        let (root, _) = state.staged()?;
        let own = self.own_bundle().ok()?;
        let prints = own.authorities.bundle().map(TrustBundle::fingerprints).unwrap_or_default();
        // What the streams say may be older than what was read last.
        let present = self.link_context.bundles.ours().map(|ours| ours.sequence) == own.sequence;
        let said = present && prints.iter().any(|print| hex(print) == root.sha256);
        Some((root.clone(), said))
    }

    /// The peers that a new root waits for. One whose words nobody has confirmed, or that is paused, is
    /// none of them.
    fn waited_for(&self) -> Vec<PeerName> {
        let (config, ledger) = (self.config(), self.peering.ledger());
        let confirmed = |name: &PeerName| ledger.peers.get(name).is_none_or(|made| made.confirmed);
        let peers = config.peers.values().filter(|peer| !peer.paused && confirmed(&peer.name));
        peers.map(|peer| peer.name.clone()).collect()
    }

    /// Which of them don't have in force what we say now.
    fn missing_peers(&self) -> Vec<MissingPeer> {
        let ours = self.link_context.bundles.ours().map(|ours| ours.sequence);
        let answers = self.streams.ours.lock();
        let missing = |peer: PeerName| {
            let answer = answers.get(&peer).and_then(|at| at.answer.as_ref());
            let why = match answer.filter(|a| Some(a.sequence) == ours) {
                None => "it has not said that it has our present bundle".to_owned(),
                Some(BundleAnswer { problem: None, .. }) => return None,
                Some(BundleAnswer { problem: Some(why), .. }) => {
                    one_line(&format!("{}: {}", why.reason, why.message), 512)
                }
            };
            Some(MissingPeer { peer: peer.to_string(), why })
        };
        self.waited_for().into_iter().filter_map(missing).collect()
    }

    /// The authority's status with the peers that a new root waits for.
    pub(in crate::agent) fn with_missing(&self, authority: AuthorityStatus) -> AuthorityStatus {
        let missing = self.staged().map(|_| self.missing_peers()).unwrap_or_default();
        AuthorityStatus { missing, ..authority }
    }

    /// Lets a new root issue before the overlap ends, if every peer has said that it has it in force.
    /// Without peers, or with one that doesn't say so, the overlap decides.
    async fn release_root(&self) {
        let Some((root, true)) = self.staged() else { return };
        if self.waited_for().is_empty() || !self.missing_peers().is_empty() {
            return;
        }
        let Some(keeper) = self.keeper.clone() else { return };
        let number = root.number;
        let released = self.spawner.spawn_blocking(move || {
            let released = keeper.authority().all_peers_hold(number);
            // Its error is told by the keeper.
            let _ = keeper.look();
            released
        });
        match released.await {
            Ok(Ok(true)) => {
                tracing::info!(root = number, "all peers have the new root; it issues from now on")
            }
            Ok(Ok(false)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the new root can't begin yet; the overlap's end decides");
            }
        }
    }
}

impl super::PeerBundles {
    /// When the next announced CA may be used.
    fn due(&self) -> Option<Duration> {
        let followed = self.followed.lock();
        followed.values().filter_map(|entry: &Followed| entry.held.as_ref()?.due()).min()
    }
}

fn refused(refusal: &BundleRefusal) -> NotInForce {
    let why = one_line(&refusal.to_string(), WHY_BYTES);
    match refusal {
        BundleRefusal::Stale { .. } => NotInForce::Stale(why),
        BundleRefusal::Fork(_) => NotInForce::Fork(why),
        BundleRefusal::Jump { .. } => NotInForce::Jump(why),
        BundleRefusal::NothingLeft => NotInForce::NothingLeft(why),
        BundleRefusal::OtherDomain { .. } => NotInForce::ForeignDomain,
    }
}

/// The bundle that a peer said, of its own trust domain.
fn read_heard(peer: &PeerConfig, said: &StreamBundle) -> Result<SpiffeBundle, NotInForce> {
    if said.trust_domain != peer.trust_domain.as_str() {
        return Err(NotInForce::ForeignDomain);
    }
    let unreadable = |why: &str| NotInForce::Unreadable(one_line(why, WHY_BYTES));
    let mut found = SpiffeBundle::from_jwks(peer.trust_domain.clone(), &said.jwks)
        .map_err(|e| unreadable(&e.to_string()))?;
    if found.sequence.is_some_and(|own| own != said.sequence) {
        return Err(unreadable("its own sequence is another one than that of the message; send the same"));
    }
    found.sequence = Some(said.sequence);
    Ok(found)
}

/// The rule as status and metrics name it.
fn rule(why: &NotInForce) -> Option<&'static str> {
    match why {
        NotInForce::ForeignDomain => Some("foreign-domain"),
        NotInForce::Unreadable(_) => Some("unreadable"),
        NotInForce::Stale(_) => Some("stale"),
        NotInForce::Fork(_) => Some("fork"),
        NotInForce::Jump(_) => Some("jump"),
        NotInForce::NothingLeft(_) => Some("nothing-left"),
        NotInForce::Leaf(_) => Some("leaf"),
        NotInForce::NotFollowed | NotInForce::Waiting(_) | NotInForce::Overridden => None,
    }
}
