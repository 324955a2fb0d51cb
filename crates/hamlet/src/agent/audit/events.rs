//! What the agent's parts tell the audit, and what it finds by comparing.
//!
//! Roots are compared with what was told last, wherever they came from: no way of changing them is
//! forgotten, and what changed while the agent was stopped is told at its start. What is announced,
//! refused or asked for has a call of its own where it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hamlet_admin::Caller;
use hamlet_admin::api::{ApiError, BundleSet, BundleSetError, PeeringAnswer, PeeringRequest, RootsChange};
use hamlet_core::PeerName;
use hamlet_core::rejection::one_line;
use hamlet_identity::authority::state::{Stage, State};
use hamlet_identity::{Channel, SpiffeBundle, TrustBundle};
use hamlet_peering::{Redemption, Refusal, short_id};
use hamlet_runtime::Shutdown;

use super::super::Agent;
use super::super::peering::fingerprints;
use super::{AUDIT_LOOK, Audit};
use crate::audit::{Action, Actor, Draft, Outcome, RootsKnown};
use crate::config::{Config, PeerConfig};
use crate::hex::hex;

/// Longest name that an operator typed, as the audit keeps it, in bytes.
const TYPED_BYTES: usize = 128;

/// Whoever sent a request to the admin socket.
pub(in crate::agent) fn operator(caller: Caller) -> Actor {
    Actor::Operator { uid: caller.uid }
}

fn of_peer(peer: &PeerName, channel: &str) -> Actor {
    Actor::Peer { name: peer.to_string(), channel: channel.to_owned() }
}

impl Audit {
    /// An entry about a peer.
    fn about(&self, peer: &PeerName, actor: Actor, action: Action) -> Draft {
        Draft { peer: Some(peer.to_string()), ..self.draft(actor, action) }
    }

    /// Whoever speaks for a peer's bundle on this way.
    fn speaker(&self, peer: &PeerName, source: &str) -> Actor {
        let is = |channel: Channel| source == channel.word();
        match source {
            _ if is(Channel::Stream) || is(Channel::Endpoint) => of_peer(peer, source),
            super::super::bundles::WORKLOAD_API => Actor::WorkloadApi,
            _ if is(Channel::Operator) => self.asker().unwrap_or(Actor::Operator { uid: None }),
            // A file, or what came with a token that somebody confirmed.
            _ => self.asker().unwrap_or(Actor::Files),
        }
    }

    /// The last change of what proves a peer.
    pub(in crate::agent) fn roots_change(&self, peer: &PeerName) -> Option<RootsChange> {
        let compared = self.compared.lock();
        let known = compared.known.peers.get(peer.as_str())?;
        Some(RootsChange {
            at_s: known.at_s,
            source: known.source.clone(),
            added: known.added.clone(),
            removed: known.removed.clone(),
        })
    }

    /// Tells how a peer's roots differ from what was told last; `in_force` is empty if nothing proves it.
    fn compare_roots(&self, peer: &str, in_force: BTreeSet<String>, change: impl FnOnce(Draft) -> Draft) {
        let mut compared = self.compared.lock();
        let told = compared.known.peers.get(peer).map(|known| known.roots.clone()).unwrap_or_default();
        if told == in_force {
            return;
        }
        let mut draft = self.draft(Actor::Agent, Action::PeerRootsChanged);
        draft.peer = Some(peer.to_owned());
        draft.subject.added = in_force.difference(&told).cloned().collect();
        draft.subject.removed = told.difference(&in_force).cloned().collect();
        let draft = change(draft);
        let known = RootsKnown {
            roots: in_force,
            at_s: draft.at.as_secs(),
            source: draft.subject.source.clone().unwrap_or_default(),
            added: draft.subject.added.clone(),
            removed: draft.subject.removed.clone(),
        };
        compared.known.peers.insert(peer.to_owned(), known);
        compared.dirty = true;
        // Under the lock: entries stand in the order of the changes.
        self.record(draft);
    }

    /// The roots of our authority, each with what it is for, against what was told last.
    fn compare_authority(&self, state: &State) {
        let stage = |stage: &Stage| match stage {
            Stage::Staged { .. } => "staged",
            Stage::Issuing => "issuing",
            Stage::Leaving { .. } => "leaving",
        };
        let now: BTreeMap<String, String> =
            state.roots.iter().map(|root| (root.sha256.clone(), stage(&root.stage).to_owned())).collect();
        let mut compared = self.compared.lock();
        let told = compared.known.authority.clone();
        if told.as_ref() == Some(&now) {
            return;
        }
        let told = told.unwrap_or_default();
        let draft = |action: Action, root: &String| {
            let mut draft = self.draft(Actor::Authority, action);
            draft.subject.trust_domain = Some(state.trust_domain.clone());
            draft.subject.bundle_sequence = Some(state.sequence);
            draft.subject.roots = vec![root.clone()];
            draft
        };
        for (root, stage) in &now {
            let before = told.get(root).map(String::as_str);
            if stage == "staged" && before.is_none() {
                self.record(draft(Action::RootStaged, root));
            }
            if stage == "issuing" && before != Some("issuing") {
                self.record(draft(Action::RootSwitched, root));
            }
        }
        for root in told.keys().filter(|root| !now.contains_key(*root)) {
            self.record(draft(Action::RootDropped, root));
        }
        compared.known.authority = Some(now);
        compared.dirty = true;
    }

    /// Our own bundle as it is published from now on.
    pub(in crate::agent) fn own_roots(&self, bundle: &SpiffeBundle, actor: Actor) {
        let prints = bundle.authorities.bundle().map(TrustBundle::fingerprints).unwrap_or_default();
        let now: BTreeSet<String> = prints.iter().map(|print| hex(print)).collect();
        let mut compared = self.compared.lock();
        if compared.known.own.as_ref() == Some(&now) {
            return;
        }
        let told = compared.known.own.clone().unwrap_or_default();
        let mut draft = self.draft(actor, Action::OwnRootsChanged);
        draft.subject.trust_domain = Some(bundle.domain.to_string());
        draft.subject.bundle_sequence = bundle.sequence;
        draft.subject.added = now.difference(&told).cloned().collect();
        draft.subject.removed = told.difference(&now).cloned().collect();
        compared.known.own = Some(now);
        compared.dirty = true;
        self.record(draft);
    }

    /// CAs that a peer announced.
    pub(in crate::agent) fn announced(&self, peer: &PeerConfig, channel: Channel, roots: &[[u8; 32]]) {
        if roots.is_empty() {
            return;
        }
        let actor = self.speaker(&peer.name, channel.word());
        let mut draft = self.about(&peer.name, actor, Action::PeerRootsAnnounced);
        draft.subject.trust_domain = Some(peer.trust_domain.to_string());
        draft.subject.source = Some(channel.word().to_owned());
        draft.subject.announced = roots.iter().map(|print| hex(print)).collect();
        self.record(draft);
    }

    /// A bundle of a peer that was refused by a rule.
    pub(in crate::agent) fn bundle_refused(
        &self,
        peer: &PeerConfig,
        channel: Channel,
        rule: &str,
        sequence: Option<u64>,
    ) {
        let actor = self.speaker(&peer.name, channel.word());
        let mut draft = self.about(&peer.name, actor, Action::PeerRootsRefused);
        draft.outcome = Outcome::Refused;
        draft.subject.trust_domain = Some(peer.trust_domain.to_string());
        draft.subject.source = Some(channel.word().to_owned());
        draft.subject.reason = Some(rule.to_owned());
        draft.subject.bundle_sequence = sequence;
        self.record(draft);
    }

    /// An operator's bundle for a peer, and what became of it.
    pub(in crate::agent) fn bundle_set(
        &self,
        actor: Actor,
        peer: &str,
        outcome: &Result<BundleSet, BundleSetError>,
    ) {
        let mut draft = self.draft(actor, Action::PeerBundleSet);
        draft.peer = Some(one_line(peer, TYPED_BYTES));
        match outcome {
            Ok(set) => {
                draft.subject.trust_domain = Some(set.trust_domain.clone());
                draft.subject.bundle_sequence = set.sequence;
                draft.subject.added.clone_from(&set.added);
                draft.subject.removed.clone_from(&set.removed);
            }
            Err(error) => {
                draft.outcome = Outcome::Refused;
                draft.subject.reason = Some(match error {
                    BundleSetError::NoPeer => "no-peer".to_owned(),
                    BundleSetError::Refused(_) => "refused".to_owned(),
                });
            }
        }
        self.record(draft);
    }

    /// What an operator asked for about peering, and what became of it. To list is no action.
    pub(in crate::agent) fn peering(
        &self,
        actor: Actor,
        (action, name): (Action, Option<String>),
        outcome: &Result<PeeringAnswer, ApiError>,
    ) {
        let mut draft = self.draft(actor, action);
        draft.peer = name.map(|name| one_line(&name, TYPED_BYTES));
        let subject = &mut draft.subject;
        match outcome {
            Ok(PeeringAnswer::Invited(invited)) => {
                subject.invitation = Some(invited.invitation.id.clone());
                subject.count = Some(invited.invitation.uses as u64);
            }
            Ok(PeeringAnswer::Peer(peer)) => {
                draft.peer = Some(peer.name.clone());
                subject.trust_domain = Some(peer.trust_domain.clone());
                subject.roots.clone_from(&peer.roots);
            }
            Ok(PeeringAnswer::Removed(removed)) => subject.told = Some(removed.told),
            Ok(PeeringAnswer::List(_)) => {}
            Err(error) => {
                draft.outcome = Outcome::Refused;
                // Our own words: a token is never quoted in them.
                subject.note = Some(error.message.clone());
            }
        }
        self.record(draft);
    }

    /// Somebody used an invitation, and is a peer now.
    pub(in crate::agent) fn invitation_used(&self, peer: Option<&PeerName>, redemption: &Redemption) {
        let name = peer.map(ToString::to_string);
        let actor = Actor::Peer { name: name.clone().unwrap_or_default(), channel: "token".to_owned() };
        let mut draft = self.draft(actor, Action::InvitationUsed);
        draft.peer = name;
        draft.subject.invitation = Some(short_id(&redemption.id));
        draft.subject.trust_domain = Some(redemption.document.trust_domain.to_string());
        draft.subject.bundle_sequence = Some(redemption.document.sequence);
        draft.subject.roots = fingerprints(&redemption.document.roots);
        self.record(draft);
    }

    /// Somebody came with a token that isn't good.
    pub(in crate::agent) fn exchange_refused(&self, address: IpAddr, refusal: Refusal) {
        let actor = Actor::Stranger { address: Some(address.to_string()) };
        let mut draft = self.draft(actor, Action::PeeringRefused);
        draft.outcome = Outcome::Refused;
        draft.subject.reason = Some(refusal.word().to_owned());
        self.record(draft);
    }

    /// A configuration was taken, and what differs; lists its peers' comings and goings too.
    pub(in crate::agent) fn configured(&self, old: &Config, new: &Config, taken: Taken<'_>) {
        let actor = self.asker().unwrap_or(Actor::Files);
        if !taken.changes.is_empty() {
            let mut draft = self.draft(actor.clone(), Action::ConfigurationApplied);
            draft.subject.configuration = taken.files.map(|files| hex(&files));
            draft.subject.changes = taken.changes.to_vec();
            self.record(draft);
        }
        let by_token = |name: &PeerName| taken.made.contains(name);
        let tell = |peer: &PeerConfig, action: Action| {
            let mut draft = self.about(&peer.name, actor.clone(), action);
            draft.subject.trust_domain = Some(peer.trust_domain.to_string());
            self.record(draft);
        };
        // Of peers made by token the operator's request is told.
        for peer in new.peers.values().filter(|peer| !by_token(&peer.name)) {
            match old.peers.get(&peer.name) {
                None => tell(peer, Action::PeerAdded),
                Some(before) if before.paused != peer.paused => {
                    tell(peer, if peer.paused { Action::PeerPaused } else { Action::PeerResumed });
                }
                Some(_) => {}
            }
        }
        for peer in old.peers.values().filter(|peer| !new.peers.contains_key(&peer.name)) {
            tell(peer, Action::PeerRemoved);
        }
    }

    /// A configuration can't be used.
    pub(in crate::agent) fn not_configured(&self, files: Option<[u8; 32]>, problems: usize) {
        let actor = self.asker().unwrap_or(Actor::Files);
        let mut draft = self.draft(actor, Action::ConfigurationRefused);
        draft.outcome = Outcome::Refused;
        draft.subject.configuration = files.map(|files| hex(&files));
        draft.subject.count = Some(problems as u64);
        self.record(draft);
    }
}

/// A configuration that was taken.
pub(in crate::agent) struct Taken<'t> {
    /// SHA-256 of its files.
    pub(in crate::agent) files: Option<[u8; 32]>,
    /// What differs, one line each.
    pub(in crate::agent) changes: &'t [String],
    /// The peers made by token.
    pub(in crate::agent) made: BTreeSet<PeerName>,
}

/// What a request would do, for the audit; `None` if nothing.
pub(in crate::agent) fn asked_for(request: &PeeringRequest) -> Option<(Action, Option<String>)> {
    let named = |action, name: &String| Some((action, Some(name.clone())));
    match request {
        PeeringRequest::Invite { name, .. } => named(Action::PeerInvited, name),
        PeeringRequest::Accept { name, .. } => Some((Action::PeerAccepted, name.clone())),
        PeeringRequest::List => None,
        PeeringRequest::Confirm { name, .. } => named(Action::PeerConfirmed, name),
        PeeringRequest::Pause { name } => named(Action::PeerPaused, name),
        PeeringRequest::Resume { name } => named(Action::PeerResumed, name),
        PeeringRequest::Remove { name } => named(Action::PeerRemoved, name),
    }
}

impl Agent {
    /// Begins to write, and to look for what nobody announces.
    pub(in crate::agent) fn start_audit(self: &Arc<Agent>, files: [u8; 32]) {
        let mut draft = self.audit.draft(Actor::Agent, Action::AgentStarted);
        draft.subject.configuration = Some(hex(&files));
        draft.subject.note = Some(self.link_context.agent.clone());
        self.audit.record(draft);
        self.audit_roots();
        let spawner = self.spawner.clone();
        spawner.spawn("audit", self.audit.clone().run(spawner.clone(), spawner.shutdown()));
        let (agent, shutdown) = (self.clone(), spawner.shutdown());
        spawner.spawn("audit/look", async move { agent.watch_for_audit(shutdown).await });
    }

    async fn watch_for_audit(self: Arc<Agent>, shutdown: Shutdown) {
        let mut left: BTreeMap<PeerName, u64> = BTreeMap::new();
        'looking: loop {
            self.look_for_audit(&mut left);
            if shutdown.or_begun(tokio::time::sleep(AUDIT_LOOK)).await.is_none() {
                // What came since the last look.
                self.look_for_audit(&mut left);
                break 'looking;
            }
        }
    }

    /// Goodbyes for good, our authority's roots, refused logins, and counts that are due.
    fn look_for_audit(&self, left: &mut BTreeMap<PeerName, u64>) {
        let links = self.links();
        left.retain(|peer, _| links.iter().any(|link| link.peer() == peer));
        for link in links {
            let (times, entries) = link.farewells();
            let before = left.insert(link.peer().clone(), times).unwrap_or(0);
            if times > before {
                let actor = of_peer(link.peer(), Channel::Stream.word());
                let mut draft = self.audit.about(link.peer(), actor, Action::PeerLeft);
                draft.subject.count = Some(entries);
                draft.times = times - before;
                self.audit.record(draft);
            }
        }
        if let Some(state) = self.keeper.as_ref().and_then(|keeper| keeper.authority().seen()) {
            self.audit.compare_authority(&state);
        }
        self.audit_logins();
        self.audit.ripen();
    }

    /// Refused handshakes since the last look, by rule.
    fn audit_logins(&self) {
        let failures = self.trust.failures();
        let (total, list) = (failures.total(), failures.list());
        let new = {
            let mut compared = self.audit.compared.lock();
            total.saturating_sub(std::mem::replace(&mut compared.refused_logins, total))
        };
        let kept = usize::try_from(new).unwrap_or(usize::MAX).min(list.len());
        let mut by_rule: BTreeMap<&'static str, (u64, &str)> = BTreeMap::new();
        for refusal in list.iter().skip(list.len() - kept) {
            let told = by_rule.entry(refusal.rule).or_insert((0, ""));
            *told = (told.0 + 1, &refusal.text);
        }
        // Of those that were pushed out before we looked, only the number is known.
        if let Some((_, told)) = by_rule.iter_mut().next() {
            told.0 += new - kept as u64;
        }
        for (rule, (times, text)) in by_rule {
            let mut draft = self.audit.draft(Actor::Stranger { address: None }, Action::LoginsRefused);
            draft.outcome = Outcome::Refused;
            draft.subject.reason = Some(rule.to_owned());
            draft.subject.note = Some(text.to_owned());
            draft.times = times;
            self.audit.record(draft);
        }
    }

    /// Compares what proves the peers now with what the audit has told; called whenever it may have
    /// changed.
    pub(in crate::agent) fn audit_roots(&self) {
        let (config, ledger) = (self.config(), self.peering.ledger());
        let mut in_force: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for trusted in self.trust.peers() {
            let prints = trusted.bundle.fingerprints();
            in_force.insert(trusted.peer.to_string(), prints.iter().map(|print| hex(print)).collect());
        }
        let told: Vec<String> = self.audit.compared.lock().known.peers.keys().cloned().collect();
        for gone in told {
            in_force.entry(gone).or_default();
        }
        for (name, roots) in in_force {
            let peer = PeerName::parse(&name).ok().and_then(|name| config.peers.get(&name));
            let Some(peer) = peer else {
                self.audit.compare_roots(&name, roots, |mut draft| {
                    draft.actor = self.audit.asker().unwrap_or(Actor::Files);
                    draft.subject.reason = Some("peer-removed".to_owned());
                    draft
                });
                self.audit.forget(&name);
                continue;
            };
            let source = self.bundles.source(peer, ledger.peers.contains_key(&peer.name));
            let proven = !roots.is_empty();
            self.audit.compare_roots(&name, roots, |mut draft| {
                draft.actor = self.audit.speaker(&peer.name, source);
                draft.subject.source = Some(source.to_owned());
                draft.subject.trust_domain = Some(peer.trust_domain.to_string());
                draft.subject.reason = (!proven).then(|| "nothing-proves-it".to_owned());
                draft
            });
        }
    }

    /// Writes the last entries; called when everything else has stopped.
    pub(in crate::agent) async fn close_audit(&self) {
        let audit = self.audit.clone();
        if self.spawner.spawn_blocking(move || audit.close()).await.is_err() {
            tracing::error!("closing the audit was interrupted");
        }
    }
}

impl Audit {
    /// A peer that isn't there any more needs no memory.
    fn forget(&self, peer: &str) {
        let mut compared = self.compared.lock();
        if compared.known.peers.remove(peer).is_some() {
            compared.dirty = true;
        }
    }
}
