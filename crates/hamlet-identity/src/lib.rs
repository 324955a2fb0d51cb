//! Who we are and whom we believe: SPIFFE certificates, trust bundles, the local CA, and every
//! rustls configuration of Hamlet.
//!
//! The SPIFFE check is ours ([`verify_peer_chain`]): the TLS library builds a path to a trust
//! anchor and knows nothing of SPIFFE ids or key usage. All verifiers call that one function and
//! nothing else decides. Its invariants:
//!
//! - a certificate is checked against the bundle of *one* peer; roots are never pooled;
//! - the id in its single URI SAN must lie in that peer's trust domain and be one of the exact
//!   ids configured for the role it plays; a peer without SPIFFE ids is configured by exact DNS
//!   name or fingerprint instead;
//! - anything missing, doubled, unreadable or unknown is refused (nothing fails open);
//! - TLS 1.3 only, client certificates always; agents resume no session, and gateways only within
//!   one epoch of trust, proving the peer again after every handshake (a resumed one skips the verifier).
//!
//! What comes before a handshake, and after one that failed, is here as well, because both listeners need
//! it: [`read_hello`], [`SilentSockets`] and [`Lingering`]. This crate doesn't open sockets and doesn't read configuration documents.

mod alert;
pub mod authority;
mod bundle;
pub mod ca;
mod constraints;
mod crl;
mod der;
mod endpoint;
mod failures;
mod files;
mod hello;
mod inspect;
mod linger;
mod local;
mod minter;
mod path;
pub mod peering;
mod refused;
mod silent;
mod spiffe;
mod tickets;
mod tls;
mod trust;
mod validity;
mod verifier;
mod verify;
pub mod watch;
pub mod workload;

pub use alert::CertificateRefused;
pub use authority::{Authority, AuthorityError, AuthorityKeeper, AuthoritySettings, LeafSpec, Release};
pub use bundle::{ANCHORS_MAX, Anchor, BundleError, TrustBundle};
pub use ca::{CaError, LocalCa, PemPair};
pub use crl::{CRL_BYTES_MAX, CRLS_MAX, CrlError, Lenience, ListedCrl, RevocationLists, RevocationPolicy};
pub use endpoint::{
    EndpointLeaf, EndpointTlsError, WebLeaf, endpoint_server, spiffe_endpoint_client, web_endpoint_client,
};
pub use failures::{RECENT_FAILURES_MAX, RecentFailures, Refusal, refusal_in};
pub use files::{FileError, PEM_BYTES_MAX};
pub use hello::{CLIENT_HELLO_BYTES, HelloError, hello_name, read_hello};
pub use linger::{LINGER_BYTES, LINGER_TIME, LINGERING_PER_PREFIX, LINGERING_SOCKETS, Lingering};
pub use local::{CertificateProvider, IdentityError, LocalIdentity, ProviderError};
pub use minter::{CurrentCa, MINTED_MAX, SniMinter};
pub use refused::{ListsFrom, VerifyError};
pub use silent::{SILENT_PER_PREFIX, SILENT_SOCKETS, STRANGERS_BACKLOG, SilentPlace, SilentSockets};
pub use spiffe::{
    ADDITIONS_WAIT_MIN, Authorities, BUNDLE_BYTES_MAX, BUNDLE_KEYS_MAX, BundleChange, BundleRefusal, Channel,
    HeldBundle, JSON_DEPTH_MAX, JSON_VALUES_MAX, MAP_DOMAINS_MAX, SEQUENCE_JUMP_MAX, SpiffeBundle,
};
pub use tickets::{GatewayClients, RESUMED_WITHIN, TICKET_NAMES_MAX, TICKET_PEERS_MAX, TICKETS_SENT};
pub use tls::{
    agent_client_config, agent_server_config, agent_server_name, gateway_client_config,
    gateway_server_config, peer_server_name, provider,
};
pub use trust::{
    Fingerprint, ForeignIdentity, PeerTrust, ProvenId, ProvenPeer, Role, TrustError, TrustTable,
    fingerprint_of, fingerprint_text,
};
pub use validity::Validity;
pub use verify::{
    CHAIN_MAX, Expect, NOT_BEFORE_SKEW, Usage, proven_agent_under, proven_client, proven_server,
    verify_peer_chain,
};
pub use watch::IdentityWatch;
pub use workload::{GIVEN_CRLS_BYTES_MAX, GIVEN_CRLS_MAX, GivenLists, SvidChoice, WorkloadApi};
