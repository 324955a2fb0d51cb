//! What operators ask for: invite, accept, list, confirm, pause, resume, remove.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::Caller;
use hamlet_admin::api::{
    ApiError, ErrorCode, InvitationStatus, Invited, PeerRemoved, PeeringAnswer, PeeringList, PeeringPeer,
    PeeringRequest, PeeringStanding, PeeringTerms, TokenText,
};
use hamlet_admin::metrics::PeeringSide;
use hamlet_core::rejection::one_line;
use hamlet_core::{AddressRange, PeerName, TrustDomain};
use hamlet_identity::fingerprint_of;
use hamlet_peering::channel;
use hamlet_peering::{
    Accepter, AgentAddress, AllowedAddresses, Invitation, LIFETIME_MAX, LIFETIME_MIN, LedgerError, MADE_MAX,
    MadePeer, ROOTS_MAX, Secret, Token, USES_MAX, Words, random, short_id,
};

use super::super::audit::{asked_for, operator};
use super::{Agent, ChangeError, fingerprints};
use crate::config::{Config, PeerConfig, made};

/// Most addresses that a name in a token may resolve to; further ones aren't tried.
const RESOLVED_MAX: usize = 8;

fn refused(message: impl Into<String>) -> ApiError {
    ApiError { code: ErrorCode::Request, message: message.into(), candidates: vec![], problems: None }
}

fn missing(name: &str) -> ApiError {
    let shown = one_line(name, 128);
    let message = format!("there is no peer named {shown}: `hamlet peer list` shows them");
    ApiError { code: ErrorCode::NotFound, message, candidates: vec![], problems: None }
}

fn in_files(name: &PeerName, what: &str) -> ApiError {
    refused(format!("{name} stands in the configuration's files: {what} there"))
}

impl<E: std::fmt::Display> From<ChangeError<E>> for ApiError {
    fn from(error: ChangeError<E>) -> ApiError {
        refused(error.to_string())
    }
}

/// What was asked for about both sides' addresses, checked.
struct Terms {
    document: Vec<u8>,
    allowed: AllowedAddresses,
    yes: bool,
}

impl Agent {
    /// Does what an operator asks for, and has the audit know of it.
    pub(in crate::agent) async fn do_peering(
        &self,
        caller: Caller,
        request: PeeringRequest,
    ) -> Result<PeeringAnswer, ApiError> {
        let Some(asked) = asked_for(&request) else { return self.do_request(request).await };
        let actor = operator(caller);
        let outcome = self.audit.asked_by(actor.clone(), self.do_request(request)).await;
        self.audit.peering(actor, asked, &outcome);
        outcome
    }

    async fn do_request(&self, request: PeeringRequest) -> Result<PeeringAnswer, ApiError> {
        match request {
            PeeringRequest::Invite { name, expires_s, uses, expect_domain, terms } => {
                let life = Duration::from_secs(expires_s);
                self.invite(&name, life, uses, expect_domain.as_deref(), &terms)
                    .await
                    .map(PeeringAnswer::Invited)
            }
            PeeringRequest::Accept { token, name, terms } => {
                self.accept(&token, name.as_deref(), &terms).await.map(PeeringAnswer::Peer)
            }
            PeeringRequest::List => Ok(PeeringAnswer::List(self.peering_list())),
            PeeringRequest::Confirm { name, words } => {
                self.confirm(&name, words.as_deref()).await.map(PeeringAnswer::Peer)
            }
            PeeringRequest::Pause { name } => self.set_paused(&name, true).await.map(PeeringAnswer::Peer),
            PeeringRequest::Resume { name } => self.set_paused(&name, false).await.map(PeeringAnswer::Peer),
            PeeringRequest::Remove { name } => self.remove(&name).await.map(PeeringAnswer::Removed),
        }
    }

    fn terms(&self, config: &Config, terms: &PeeringTerms) -> Result<Terms, ApiError> {
        let ours = self.own_addresses(config, &terms.addresses).map_err(refused)?;
        let range = |text: &String| {
            AddressRange::parse(text)
                .map_err(|e| refused(format!("--allow-range {}: {e}", one_line(text, 64))))
        };
        let ranges: Vec<AddressRange> = terms.ranges.iter().map(range).collect::<Result<_, _>>()?;
        let document = self.own_document(config, ours.clone()).map_err(refused)?;
        Ok(Terms { document, allowed: AllowedAddresses { ours, ranges }, yes: terms.yes })
    }

    /// A name that a new peer may have.
    fn free_name(&self, config: &Config, text: &str) -> Result<PeerName, ApiError> {
        let name = PeerName::parse(text)
            .map_err(|e| refused(format!("{} can't be a peer's name: {e}", one_line(text, 128))))?;
        if name.as_str().eq_ignore_ascii_case(config.mesh.name.as_str()) {
            return Err(refused(format!("{name} is the name of our own mesh; choose another")));
        }
        let ledger = self.peering.ledger();
        let now = self.clock.wall();
        let invited = ledger.invitations.iter().any(|i| i.is_unused(now) && i.names().contains(&name));
        if config.peers.contains_key(&name) || ledger.peers.contains_key(&name) {
            return Err(refused(format!(
                "there is a peer {name} already; choose another name, or remove it first"
            )));
        }
        if invited {
            let text =
                format!("an invitation for {name} is open; withdraw it with `hamlet peer remove {name}`");
            return Err(refused(text));
        }
        Ok(name)
    }

    async fn invite(
        &self,
        name: &str,
        life: Duration,
        uses: usize,
        expect_domain: Option<&str>,
        terms: &PeeringTerms,
    ) -> Result<Invited, ApiError> {
        let config = self.config();
        let name = self.free_name(&config, name)?;
        if !(LIFETIME_MIN..=LIFETIME_MAX).contains(&life) || !(1..=USES_MAX).contains(&uses) {
            let text = format!("an invitation is open for 1 s to 7 d, and for 1 to {USES_MAX} uses");
            return Err(refused(text));
        }
        let expected_domain = expect_domain.map(TrustDomain::parse).transpose();
        let expected_domain = expected_domain.map_err(|e| refused(format!("--expect-domain: {e}")))?;
        if config.mesh.listen.agent.is_none() {
            return Err(refused(
                "our agent doesn't listen, so nobody can come; set spec.listen.agent, or accept a token of the other mesh",
            ));
        }
        let Terms { allowed, yes, .. } = self.terms(&config, terms)?;
        if allowed.ours.is_empty() {
            return Err(refused(
                "the agent listens on all addresses; say where the other mesh finds it: --address HOST:PORT",
            ));
        }
        let roots = self.own_roots(&config).map_err(refused)?;
        let no_random = |e: hamlet_peering::NoRandomness| refused(e.to_string());
        let (id, secret) = (random().map_err(no_random)?, Secret::new(random().map_err(no_random)?));
        let expires = Duration::from_secs(self.clock.wall().as_secs()) + life;
        let mut invitation = Invitation::new(id, &secret.key(&id), name.clone(), expires);
        invitation.expected_domain.clone_from(&expected_domain);
        invitation.uses = uses;
        invitation.confirmed = yes;
        invitation.ranges.clone_from(&allowed.ranges);
        invitation.addresses = allowed.ours.iter().map(ToString::to_string).collect();
        let token = Token {
            id,
            secret,
            addresses: allowed.ours,
            trust_domain: config.mesh.trust_domain.clone(),
            agent_id: self.agent_identity.spiffe_id(),
            roots: roots.iter().take(ROOTS_MAX).map(|root| fingerprint_of(root)).collect(),
            expires,
            expected_domain,
        };
        let text = token.encode().map_err(|e| refused(e.to_string()))?;
        let now = self.clock.wall();
        let shown = invitation.clone();
        self.change_ledger(|ledger| ledger.invite(invitation, now)).await?;
        tracing::info!(peer = %name, invitation = short_id(&id), uses, "an invitation is open");
        Ok(Invited { token: TokenText(text.to_string()), invitation: invitation_status(&shown, now) })
    }

    async fn accept(
        &self,
        text: &TokenText,
        name: Option<&str>,
        terms: &PeeringTerms,
    ) -> Result<PeeringPeer, ApiError> {
        let config = self.config();
        let token = Token::parse(&text.0).map_err(|e| refused(e.to_string()))?;
        let Terms { document, allowed, yes } = self.terms(&config, terms)?;
        let now = self.clock.wall();
        token.check(&config.mesh.trust_domain, now, &allowed).map_err(|e| refused(e.to_string()))?;
        let first_label = token.trust_domain.as_str().split('.').next().unwrap_or_default();
        let known = self.known(&config).map_err(refused)?;
        if let Some(peer) = known.domains.get(&token.trust_domain) {
            let text = format!(
                "{} is the peer {peer} already; to begin anew, `hamlet peer remove {peer}` first",
                token.trust_domain
            );
            return Err(refused(text));
        }
        let name = self.free_name(&config, name.unwrap_or(first_label))?;
        if self.peering.ledger().peers.len() >= MADE_MAX {
            return Err(refused(LedgerError::TooManyPeers.to_string()));
        }
        let addresses = resolve(&token.addresses, &allowed).await?;
        let nonce = random().map_err(|e| refused(e.to_string()))?;
        let accepter = Accepter::new(&token, document, nonce);
        let identity = &self.agent_identity;
        let agreed = channel::accept(&addresses, identity, accepter, &known, &allowed, &self.clock).await;
        let outcome = agreed.as_ref().map_or_else(channel::ChannelError::word, |_| channel::AGREED);
        self.peering.metrics.ended(PeeringSide::accepter, outcome);
        let agreement = agreed.map_err(|error| {
            tracing::warn!(domain = %token.trust_domain, %error, "a token could not be accepted");
            refused(error.to_string())
        })?;
        let peer = MadePeer {
            name: name.clone(),
            document: agreement.document,
            words: agreement.words.to_string(),
            confirmed: yes,
            paused: false,
            made: now,
            invited: false,
        };
        self.change_ledger(|ledger| {
            if ledger.peers.contains_key(&peer.name) {
                return Err("meanwhile another peer has this name; accept the token again under another one");
            }
            ledger.peers.insert(peer.name.clone(), peer.clone());
            Ok(())
        })
        .await?;
        tracing::info!(peer = %name, domain = %token.trust_domain, "a token was accepted");
        let warnings = self.take_ledger().await;
        Ok(made_peer(&peer, warnings))
    }

    fn peering_list(&self) -> PeeringList {
        let (config, ledger, now) = (self.config(), self.peering.ledger(), self.clock.wall());
        let missing = |name: &PeerName| match config.peers.contains_key(name) {
            true => vec![],
            false => vec!["kept, but not in force: `hamlet reload` shows why".to_owned()],
        };
        let made = ledger.peers.values().map(|peer| made_peer(peer, missing(&peer.name)));
        let files = config.peers.values().filter(|p| !ledger.peers.contains_key(&p.name)).map(file_peer);
        let mut peers: Vec<PeeringPeer> = made.chain(files).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let invitations = ledger.invitations.iter().map(|i| invitation_status(i, now)).collect();
        PeeringList { peers, invitations }
    }

    /// Changes a peer made by token, and takes it over.
    async fn change_made(
        &self,
        name: &str,
        in_files_hint: &str,
        change: impl FnOnce(&mut MadePeer) -> Result<(), String>,
    ) -> Result<PeeringPeer, ApiError> {
        let name = PeerName::parse(name).map_err(|_| missing(name))?;
        if !self.peering.ledger().peers.contains_key(&name) {
            let known = self.config().peers.contains_key(&name);
            return Err(if known { in_files(&name, in_files_hint) } else { missing(name.as_str()) });
        }
        let changed = self
            .change_ledger(|ledger| {
                let peer = ledger.peers.get_mut(&name).ok_or("the peer was removed meanwhile")?;
                change(peer)?;
                Ok::<_, String>(peer.clone())
            })
            .await?;
        let warnings = self.take_ledger().await;
        Ok(made_peer(&changed, warnings))
    }

    async fn confirm(&self, name: &str, words: Option<&str>) -> Result<PeeringPeer, ApiError> {
        let typed = match words {
            None => None,
            Some(text) => Some(Words::parse(text).ok_or_else(|| {
                refused("these are not four words of the list; type them as they were read out")
            })?),
        };
        let hint = "it needs no confirmation; it is in force as it stands";
        let confirmed = self.change_made(name, hint, |peer| {
            if typed.is_some() && typed != peer.words() {
                return Err(
                    "these are not the words: somebody may sit in the middle; remove the peer, and peer anew"
                        .to_owned(),
                );
            }
            peer.confirmed = true;
            Ok(())
        });
        let peer = confirmed.await?;
        tracing::info!(peer = %peer.name, "the words are confirmed; the peer is in force");
        Ok(peer)
    }

    async fn set_paused(&self, name: &str, paused: bool) -> Result<PeeringPeer, ApiError> {
        let hint = if paused { "set `paused: true`" } else { "remove `paused: true`" };
        self.change_made(name, hint, |peer| {
            peer.paused = paused;
            Ok(())
        })
        .await
    }

    /// Section 9: the intent is durable first, then trust goes, then the peer is told, and then its
    /// connections end, told or not.
    async fn remove(&self, name: &str) -> Result<PeerRemoved, ApiError> {
        let name = PeerName::parse(name).map_err(|_| missing(name))?;
        let ledger = self.peering.ledger();
        let is_made = ledger.peers.contains_key(&name);
        let is_invited = ledger.invitations.iter().any(|i| i.name == name);
        if !is_made && self.config().peers.contains_key(&name) {
            return Err(in_files(&name, "delete its document"));
        }
        if !is_made && !is_invited {
            return Err(missing(name.as_str()));
        }
        let invitations = self
            .change_ledger(|ledger| {
                let before = ledger.invitations.len();
                ledger
                    .invitations
                    .retain(|i| i.name != name && !i.used_by.iter().any(|used| used.peer == name));
                if let Some(peer) = ledger.peers.remove(&name) {
                    ledger.leaving.insert(name.clone(), peer);
                }
                Ok::<_, LedgerError>(before - ledger.invitations.len())
            })
            .await?;
        if !is_made {
            return Ok(PeerRemoved { name: name.to_string(), told: false, invitations, warnings: vec![] });
        }
        let told = self.drop_peer(&name).await;
        self.change_ledger(|ledger| Ok::<_, LedgerError>(ledger.leaving.remove(&name))).await?;
        tracing::info!(peer = %name, told, "the peer was removed for good");
        let warnings = self.take_ledger().await;
        Ok(PeerRemoved { name: name.to_string(), told, invitations, warnings })
    }

    /// Takes one peer out of the configuration in force, whether or not the files can be taken.
    async fn drop_peer(&self, name: &PeerName) -> bool {
        let link = self.links.load().get(name).cloned();
        if let Some(link) = &link {
            link.begin_leaving();
        }
        let mut config = (*self.config()).clone();
        config.peers.remove(name);
        config.imports.remove(name);
        for rule in &mut config.publications {
            rule.peers.retain(|peer| peer != name);
        }
        let config = Arc::new(config);
        self.config.store(config.clone());
        self.believe();
        self.refresh_local();
        let told = match &link {
            Some(link) => link.leave().await,
            None => false,
        };
        self.reconcile_links(&config).await;
        self.sinks_due.send_modify(|v| *v += 1);
        told
    }
}

/// Where a token's addresses lead, each checked.
async fn resolve(
    addresses: &[AgentAddress],
    allowed: &AllowedAddresses,
) -> Result<Vec<SocketAddr>, ApiError> {
    let mut resolved = vec![];
    for address in addresses {
        if let Some(ip) = address.ip() {
            resolved.push(SocketAddr::new(ip, address.port()));
            continue;
        }
        let found = tokio::net::lookup_host((address.host(), address.port())).await;
        for socket in found.into_iter().flatten().take(RESOLVED_MAX) {
            allowed.check_ip(socket.ip()).map_err(|e| refused(format!("{address}: {e}")))?;
            resolved.push(socket);
        }
    }
    if resolved.is_empty() {
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        return Err(refused(format!("{} can't be resolved from here", names.join(", "))));
    }
    resolved.truncate(RESOLVED_MAX);
    Ok(resolved)
}

fn made_peer(peer: &MadePeer, warnings: Vec<String>) -> PeeringPeer {
    PeeringPeer {
        name: peer.name.to_string(),
        trust_domain: peer.document.trust_domain.to_string(),
        address: peer.document.addresses.first().map(ToString::to_string),
        standing: match (peer.confirmed, peer.paused) {
            (false, _) => PeeringStanding::Unconfirmed,
            (true, true) => PeeringStanding::Paused,
            (true, false) => PeeringStanding::Active,
        },
        words: Some(peer.words.clone()),
        roots: fingerprints(&peer.document.roots),
        made_s: Some(peer.made.as_secs()),
        document: Some(made::document(peer)),
        bundle: Some(peer.document.bundle_pem()),
        warnings,
    }
}

fn file_peer(peer: &PeerConfig) -> PeeringPeer {
    PeeringPeer {
        name: peer.name.to_string(),
        trust_domain: peer.trust_domain.to_string(),
        address: peer.address.as_ref().map(ToString::to_string),
        standing: if peer.paused { PeeringStanding::Paused } else { PeeringStanding::Active },
        words: None,
        roots: vec![],
        made_s: None,
        document: None,
        bundle: None,
        warnings: vec![],
    }
}

fn invitation_status(invitation: &Invitation, now: Duration) -> InvitationStatus {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    InvitationStatus {
        id: short_id(&invitation.id),
        name: invitation.name.to_string(),
        expires_in_s: seconds(invitation.expires) - seconds(now),
        uses: invitation.uses,
        used_by: invitation.used_by.iter().map(|used| used.peer.to_string()).collect(),
        wrong_proofs: invitation.wrong_proofs,
        alarms: invitation.alarms,
    }
}
