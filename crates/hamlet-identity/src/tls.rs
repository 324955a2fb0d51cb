//! The rustls configurations of agents and gateways. No sockets, no handshakes.
//!
//! Invariants: TLS 1.3 only, our verifiers, a client certificate always, no early data, the provider
//! named explicitly (never the process default). Agents have no tickets and no resumption; gateways
//! have those of [`crate::tickets`].

use std::sync::{Arc, LazyLock};

use hamlet_core::{Fqdn, PeerName, SpiffeId, TrustDomain};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::{DnsName, ServerName};

use crate::local::LocalIdentity;
use crate::minter::SniMinter;
use crate::tickets::{EpochTickets, TICKETS_SENT};
use crate::trust::{ForeignIdentity, PeerTrust, Role, TrustTable};
use crate::verifier::{PeerClientVerifier, PeerServerVerifier};

/// ALPN of agent streams: gRPC is HTTP/2.
const ALPN_H2: &[u8] = b"h2";
/// Sent as SNI where the trust domain isn't a DNS name.
const AGENT_FALLBACK_NAME: &str = "agent.invalid";

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The cryptography that all of Hamlet's TLS uses (aws-lc-rs, post-quantum key exchange first).
pub fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// For the agent's listener: any configured peer's agent, ALPN `h2`. TLS refuses a client that
/// offers other protocols only; one that offers none must be refused by whoever accepts.
pub fn agent_server_config(identity: &Arc<LocalIdentity>, trust: &Arc<TrustTable>) -> Arc<ServerConfig> {
    let leaf = Arc::new(OwnLeaf { identity: identity.clone(), minter: None });
    server_config(trust, Role::Agent, leaf, vec![ALPN_H2.to_vec()])
}

/// For dialling `peer`'s agent: one of its agent ids, ALPN `h2`. Dial it as
/// [`agent_server_name`].
pub fn agent_client_config(
    identity: &Arc<LocalIdentity>,
    trust: &Arc<TrustTable>,
    peer: &PeerName,
) -> Arc<ClientConfig> {
    let verifier =
        PeerServerVerifier { trust: trust.clone(), role: Role::Agent, peer: peer.clone(), sans: None };
    client_config(identity, verifier, vec![ALPN_H2.to_vec()])
}

/// For the ingress: any configured peer's gateway, no ALPN. With a minter the leaf carries the
/// SNI as DNS SAN (decision 22), otherwise it is the gateway's own. Sessions may be resumed within one
/// epoch of trust: whoever accepts must prove the client again after the handshake
/// ([`proven_client`](crate::proven_client)).
pub fn gateway_server_config(
    identity: &Arc<LocalIdentity>,
    minter: Option<Arc<SniMinter>>,
    trust: &Arc<TrustTable>,
) -> Arc<ServerConfig> {
    let leaf = Arc::new(OwnLeaf { identity: identity.clone(), minter });
    let mut config = Arc::unwrap_or_clone(server_config(trust, Role::Gateway, leaf, Vec::new()));
    config.ticketer = EpochTickets::new(trust.clone(), identity.clone());
    config.send_tls13_tickets = TICKETS_SENT;
    Arc::new(config)
}

/// For the egress to a service of `peer`: exactly the `sans` of the offer under that peer's
/// bundle, no ALPN. No SANs means that nobody is accepted. Resumes nothing:
/// [`GatewayClients`](crate::GatewayClients) does.
pub fn gateway_client_config(
    identity: &Arc<LocalIdentity>,
    trust: &Arc<TrustTable>,
    peer: &PeerName,
    sans: &[SpiffeId],
) -> Arc<ClientConfig> {
    let verifier = PeerServerVerifier {
        trust: trust.clone(),
        role: Role::Gateway,
        peer: peer.clone(),
        sans: Some(sans.to_vec()),
    };
    client_config(identity, verifier, Vec::new())
}

/// The server name for dialling a peer's agent: the DNS name that it proves, else as
/// [`agent_server_name`].
pub fn peer_server_name(trust: &PeerTrust) -> ServerName<'static> {
    let named = match &trust.foreign {
        Some(ForeignIdentity::Dns(names)) => names.first(),
        _ => None,
    };
    let name = named.and_then(|name| DnsName::try_from(name.as_str().to_owned()).ok());
    name.map_or_else(|| agent_server_name(&trust.trust_domain), ServerName::DnsName)
}

/// The server name for dialling an agent of `domain`. It is only a label on the wire: what is
/// verified is the SPIFFE id.
pub fn agent_server_name(domain: &TrustDomain) -> ServerName<'static> {
    let name = DnsName::try_from(domain.as_str().to_owned())
        .or_else(|_| DnsName::try_from(AGENT_FALLBACK_NAME))
        .expect("the fallback is a constant DNS name");
    ServerName::DnsName(name)
}

fn server_config(
    trust: &Arc<TrustTable>,
    role: Role,
    leaf: Arc<OwnLeaf>,
    alpn: Vec<Vec<u8>>,
) -> Arc<ServerConfig> {
    let verifier = Arc::new(PeerClientVerifier { trust: trust.clone(), role });
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider is ours and has TLS 1.3 suites")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(leaf);
    config.alpn_protocols = alpn;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Arc::new(config)
}

fn client_config(
    identity: &Arc<LocalIdentity>,
    verifier: PeerServerVerifier,
    alpn: Vec<Vec<u8>>,
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider is ours and has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(OwnLeaf { identity: identity.clone(), minter: None }));
    config.alpn_protocols = alpn;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// Presents our current leaf, read anew at each handshake so that a reload needs no new
/// configuration.
#[derive(Debug)]
struct OwnLeaf {
    identity: Arc<LocalIdentity>,
    minter: Option<Arc<SniMinter>>,
}

impl ResolvesServerCert for OwnLeaf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(minter) = &self.minter else { return Some(self.identity.certified_key()) };
        let Some(sni) = hello.server_name().and_then(|name| Fqdn::parse(name).ok()) else {
            return Some(self.identity.certified_key());
        };
        match minter.leaf(&sni) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                // The gateway's own leaf proves the same id; only the DNS SAN is missing.
                tracing::warn!(%sni, %error, "no leaf minted for this SNI");
                Some(self.identity.certified_key())
            }
        }
    }
}

impl ResolvesClientCert for OwnLeaf {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.identity.certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
