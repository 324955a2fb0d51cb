//! Session tickets between gateways: a service's calls come in many connections, and resuming one
//! saves both sides the certificates and their signatures. Agents resume nothing.
//!
//! Resuming skips the verifier. Two things stand against that (decision 23, threat T19): a ticket
//! is of one *epoch*, which ends with any change of trust or of our own certificate, and whoever
//! holds a connection proves its peer again after every handshake, resumed or not. TLS itself keeps
//! a ticket to its server name.
//!
//! A resumed session proves what the first handshake proved, for as long as those certificates
//! last, whatever newer ones the peer has by now. So that no connection begins with little left, a
//! ticket counts only for the first part of that time ([`RESUMED_WITHIN`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{PeerName, SpiffeId};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

use crate::local::LocalIdentity;
use crate::tls::gateway_client_config;
use crate::trust::{ProvenPeer, TrustTable};

/// Tickets that a gateway hands out after a full handshake.
pub const TICKETS_SENT: usize = 2;
/// Most server names whose tickets are kept for one peer and set of SANs.
pub const TICKET_NAMES_MAX: usize = 256;
/// Most pairs of a peer and a set of SANs for which tickets are kept; with one more all start anew.
pub const TICKET_PEERS_MAX: usize = 1024;
/// Of the time that was left to the peer's certificates when they were first proven, one in so many
/// parts passes before its tickets are forgotten: a resumed connection has at least the rest.
pub const RESUMED_WITHIN: u32 = 4;
/// Seconds that a ticket of an unknown lifetime is said to be good for.
const LIFETIME_UNKNOWN: u32 = 0;

/// What has to stay as it is for a ticket to count: trust, and our own certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Epoch {
    trust: u64,
    identity: [u8; 32],
}

impl Epoch {
    fn now(trust: &TrustTable, identity: &LocalIdentity) -> Epoch {
        Epoch { trust: trust.generation(), identity: identity.fingerprint() }
    }
}

/// The server's side: a key for each epoch. Older tickets can't be read any more, and the
/// handshake is a full one.
pub(crate) struct EpochTickets {
    trust: Arc<TrustTable>,
    identity: Arc<LocalIdentity>,
    current: Mutex<Option<(Epoch, Arc<dyn ProducesTickets>)>>,
}

impl fmt::Debug for EpochTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochTickets").finish_non_exhaustive()
    }
}

impl EpochTickets {
    pub(crate) fn new(trust: Arc<TrustTable>, identity: Arc<LocalIdentity>) -> Arc<EpochTickets> {
        Arc::new(EpochTickets { trust, identity, current: Mutex::new(None) })
    }

    /// The key of the present epoch. `None` if the system gives no random numbers: no tickets then.
    fn current(&self) -> Option<Arc<dyn ProducesTickets>> {
        let epoch = Epoch::now(&self.trust, &self.identity);
        let mut current = self.current.lock();
        if let Some((_, tickets)) = current.as_ref().filter(|(of, _)| *of == epoch) {
            return Some(tickets.clone());
        }
        let tickets = Ticketer::new().ok()?;
        *current = Some((epoch, tickets.clone()));
        Some(tickets)
    }
}

impl ProducesTickets for EpochTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.current().map_or(LIFETIME_UNKNOWN, |tickets| tickets.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.current()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.current()?.decrypt(cipher)
    }
}

/// Whose tickets: a session proves one set of SANs of one peer, and counts for no other.
type Whose = (PeerName, Vec<SpiffeId>);

/// A configuration with its tickets, and until when they count, since the epoch.
struct Known {
    config: Arc<ClientConfig>,
    until: Duration,
}

/// The configurations of one epoch.
struct Configs {
    epoch: Epoch,
    known: HashMap<Whose, Known>,
}

/// The client's side: one configuration, with its tickets, for each peer and set of SANs of the
/// present epoch.
pub struct GatewayClients {
    identity: Arc<LocalIdentity>,
    trust: Arc<TrustTable>,
    configs: Mutex<Option<Configs>>,
}

impl fmt::Debug for GatewayClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayClients").finish_non_exhaustive()
    }
}

impl GatewayClients {
    /// For a gateway with that identity and trust.
    pub fn new(identity: Arc<LocalIdentity>, trust: Arc<TrustTable>) -> GatewayClients {
        GatewayClients { identity, trust, configs: Mutex::new(None) }
    }

    /// What [`gateway_client_config`] gives, with the tickets of earlier connections to the same
    /// peer under the same SANs. Whoever dials with it must prove the peer again after the handshake
    /// ([`proven_server`](crate::proven_server)), and say so with [`Self::proven`].
    pub fn config(&self, peer: &PeerName, sans: &[SpiffeId]) -> Arc<ClientConfig> {
        let epoch = Epoch::now(&self.trust, &self.identity);
        let mut configs = self.configs.lock();
        let full = |of: &Configs| of.known.len() >= TICKET_PEERS_MAX;
        if configs.as_ref().is_none_or(|of| of.epoch != epoch || full(of)) {
            *configs = None;
        }
        let Configs { known, .. } = configs.get_or_insert_with(|| Configs { epoch, known: HashMap::new() });
        let (whose, now) = ((peer.clone(), sans.to_vec()), self.trust.wall());
        if known.get(&whose).is_some_and(|known| known.until <= now) {
            known.remove(&whose);
        }
        let known = known.entry(whose).or_insert_with(|| {
            let config = gateway_client_config(&self.identity, &self.trust, peer, sans);
            let mut config = Arc::unwrap_or_clone(config);
            config.resumption = Resumption::in_memory_sessions(TICKET_NAMES_MAX);
            Known { config: Arc::new(config), until: Duration::MAX }
        });
        known.config.clone()
    }

    /// What was proven after a handshake with that configuration. Its tickets count as long as those
    /// of the certificate that will end first.
    pub fn proven(&self, peer: &PeerName, sans: &[SpiffeId], proven: &ProvenPeer) {
        let now = self.trust.wall();
        let until = now.saturating_add(proven.not_after.saturating_sub(now) / RESUMED_WITHIN);
        let mut configs = self.configs.lock();
        let whose = (peer.clone(), sans.to_vec());
        if let Some(known) = configs.as_mut().and_then(|of| of.known.get_mut(&whose)) {
            // A resumed session proves the same again, later: the first time counts.
            known.until = known.until.min(until);
        }
    }
}
