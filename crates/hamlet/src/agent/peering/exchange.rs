//! The inviting side on the agent's port: clients of ALPN `hamlet-peering/1`, while invitations are
//! open. *Hardened to untrusted peer* (threat T31).
//!
//! Invariant: without an open invitation, or with [`EXCHANGES_MAX`] exchanges under way, the ALPN
//! is unknown here like any other.
//!
//! [`EXCHANGES_MAX`]: hamlet_peering::channel::EXCHANGES_MAX

use std::net::SocketAddr;
use std::sync::Arc;

use hamlet_admin::metrics::PeeringSide;
use hamlet_core::PeerName;
use hamlet_identity::peering::{offers_peering, server_config};
use hamlet_peering::channel::{self, ChannelError, Host, Terms};
use hamlet_peering::{
    AgentAddress, AllowedAddresses, InvitationId, InvitationView, Redemption, Refusal, random, short_id,
};
use hamlet_protocol::server::{Admitted, Annex};
use tokio::net::TcpStream;
use tokio_rustls::rustls::server::ClientHello;
use tokio_rustls::server::TlsStream;

use super::{Agent, ChangeError};

/// The exchange as the agent's listener sees it.
pub(in crate::agent) struct PeeringAnnex(pub(in crate::agent) Arc<Agent>);

impl Annex for PeeringAnnex {
    fn admit(&self, hello: &ClientHello<'_>) -> Option<Admitted> {
        let agent = &self.0;
        if !offers_peering(hello) || !agent.peering.ledger().is_any_open(agent.clock.wall()) {
            return None;
        }
        let Ok(permit) = agent.peering.exchanges.clone().try_acquire_owned() else {
            agent.peering.metrics.ended(PeeringSide::inviter, channel::TOO_MANY);
            return None;
        };
        let roots = match agent.own_roots(&agent.config()) {
            Ok(roots) => roots,
            Err(why) => {
                tracing::error!(%why, "an invitation is open, but can't be served");
                return None;
            }
        };
        let config = server_config(&agent.agent_identity, roots);
        let agent = agent.clone();
        let serve = move |tls, remote| -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                agent.serve_exchange(tls, remote).await;
                drop(permit);
            })
        };
        Some(Admitted { config, serve: Box::new(serve) })
    }
}

impl Agent {
    async fn serve_exchange(self: &Arc<Agent>, tls: TlsStream<TcpStream>, remote: SocketAddr) {
        let host = Inviting { agent: self.clone() };
        let ended = channel::serve(tls, &self.agent_identity, &host, &self.clock).await;
        let outcome = ended.as_ref().map_or_else(ChannelError::word, |_| channel::AGREED);
        self.peering.metrics.ended(PeeringSide::inviter, outcome);
        match ended {
            Ok(redemption) => {
                let domain = &redemption.document.trust_domain;
                tracing::info!(%remote, %domain, invitation = short_id(&redemption.id), "an invitation was used");
                let ledger = self.peering.ledger();
                let made = ledger.peers.values().find(|peer| peer.document.trust_domain == *domain);
                self.audit.invitation_used(made.map(|peer| &peer.name), &redemption);
                for problem in self.take_ledger().await {
                    tracing::error!(%problem, "the new peer is kept, but the configuration can't be taken");
                }
            }
            Err(ChannelError::Refused(refusal)) => {
                tracing::warn!(%remote, reason = refusal.word(), "refused a peering");
                self.audit.exchange_refused(remote.ip(), refusal);
            }
            Err(error) => tracing::info!(%remote, %error, "a peering broke off"),
        }
    }
}

struct Inviting {
    agent: Arc<Agent>,
}

impl Host for Inviting {
    fn invitation(&self, id: &InvitationId) -> Result<InvitationView, Refusal> {
        let agent = &self.agent;
        let ledger = agent.peering.ledger();
        let invitation = ledger.invitation(id, agent.clock.wall())?;
        if agent.peering.is_busy(id, agent.clock.now()) {
            return Err(Refusal::Busy);
        }
        Ok(invitation.view())
    }

    fn terms(&self, id: &InvitationId) -> Result<Terms, Refusal> {
        let agent = &self.agent;
        let unavailable = |why: String| {
            tracing::error!(%why, "a peering can't be completed");
            Refusal::Unavailable
        };
        let config = agent.config();
        let ledger = agent.peering.ledger();
        let invitation = ledger.invitation(id, agent.clock.wall())?;
        let ours: Result<Vec<_>, _> = invitation.addresses.iter().map(|a| AgentAddress::parse(a)).collect();
        let ours = ours.map_err(|e| unavailable(e.to_string()))?;
        Ok(Terms {
            document: agent.own_document(&config, ours.clone()).map_err(unavailable)?,
            nonce: random().map_err(|e| unavailable(e.to_string()))?,
            known: agent.known(&config).map_err(unavailable)?,
            allowed: AllowedAddresses { ours, ranges: invitation.ranges.clone() },
        })
    }

    async fn wrong_proof(&self, id: &InvitationId) {
        let agent = &self.agent;
        agent.peering.count_wrong(id, agent.clock.now());
        let counted = agent
            .change_ledger(|ledger| {
                let invitation = ledger.invitation_mut(id).ok_or(Refusal::Unknown)?;
                invitation.wrong_proofs += 1;
                Ok::<_, Refusal>((invitation.name.clone(), invitation.wrong_proofs))
            })
            .await;
        if let Ok((peer, attempts)) = counted {
            tracing::warn!(%peer, attempts, "somebody knows the invitation's id, but not its secret");
        }
    }

    async fn refused(&self, id: &InvitationId, refusal: Refusal) {
        if refusal != Refusal::Used {
            return;
        }
        let agent = &self.agent;
        // Each is written down, so they are bounded like wrong proofs.
        agent.peering.count_wrong(id, agent.clock.now());
        let alarmed = agent
            .change_ledger(|ledger| {
                let invitation = ledger.invitation_mut(id).ok_or(Refusal::Unknown)?;
                invitation.alarms += 1;
                Ok::<_, Refusal>(invitation.name.clone())
            })
            .await;
        if let Ok(peer) = alarmed {
            tracing::error!(
                %peer,
                "ALARM: somebody else came with the token that this peer was made with; compare the words with \
                 the people of that mesh before you confirm, or remove the peer"
            );
        }
    }

    async fn commit(&self, redemption: &Redemption) -> Result<(), Refusal> {
        let agent = &self.agent;
        let config = agent.config();
        let is_taken = |name: &PeerName| config.peers.contains_key(name);
        let now = agent.clock.wall();
        let committed = agent.change_ledger(|ledger| ledger.redeem(redemption, now, is_taken)).await;
        match committed {
            Ok(_) => Ok(()),
            Err(ChangeError::Refused(refusal)) => Err(refusal),
            Err(ChangeError::Store(error)) => {
                tracing::error!(%error, "a peering could not be made durable");
                Err(Refusal::Unavailable)
            }
        }
    }
}
