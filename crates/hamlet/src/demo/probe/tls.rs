//! Knocking at a TLS port of a mesh with an identity of choice, and what is heard. In TLS 1.3 a
//! client learns only after its handshake whether it was let in: the first byte of an answer says
//! so.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::{
    LocalIdentity, PeerTrust, TrustBundle, TrustTable, agent_client_config, agent_server_name,
    gateway_client_config,
};
use hamlet_protocol::transport::HTTP2_OPENING;
use hamlet_runtime::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::in_time;
use crate::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};

/// The server's side of trust, as a caller from another mesh has it.
pub(in crate::demo) struct Knocker {
    identity_folder: PathBuf,
    peer: PeerName,
    domain: TrustDomain,
    trust: Arc<TrustTable>,
}

/// What was heard.
pub(in crate::demo) enum Heard {
    /// The first bytes of an answer.
    Answer(Vec<u8>),
    /// Nothing but the end, and how it came.
    Closed(String),
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Heard::Answer(bytes) => write!(f, "an answer: {}", bytes.escape_ascii()),
            Heard::Closed(how) => write!(f, "the end: {how}"),
        }
    }
}

impl Knocker {
    /// One that proves what is in `identity` and knocks at the mesh `peer` of `domain`, whose CA
    /// certificate is `bundle`.
    pub(in crate::demo) fn new(
        identity: &Path,
        peer: &str,
        domain: &str,
        bundle: &Path,
    ) -> anyhow::Result<Knocker> {
        let (peer, domain) = (PeerName::parse(peer)?, TrustDomain::parse(domain)?);
        let pem = std::fs::read(bundle)?;
        let trust = TrustTable::new(SystemClock::shared());
        let bundle = Arc::new(TrustBundle::from_pem(domain.clone(), &pem)?);
        let (agent, gateway) = (domain.id(AGENT_ID_PATH)?, domain.id(GATEWAY_ID_PATH)?);
        trust.replace(vec![PeerTrust::new(peer.clone(), bundle, vec![agent], vec![gateway])])?;
        Ok(Knocker { identity_folder: identity.to_owned(), peer, domain, trust })
    }

    fn identity(&self, role: &str) -> Result<Arc<LocalIdentity>, String> {
        let (cert, key) = (format!("{role}.pem"), format!("{role}.key"));
        let folder = &self.identity_folder;
        LocalIdentity::from_pem_files(&folder.join(cert), &folder.join(key), SystemClock::shared())
            .map_err(|e| e.to_string())
    }

    /// Calls `sni` at an ingress, without SNI if there is none.
    pub(in crate::demo) async fn ingress(&self, to: SocketAddr, sni: Option<&str>) -> Result<Heard, String> {
        let identity = self.identity("gateway")?;
        let sans = [self.domain.id(GATEWAY_ID_PATH).map_err(|e| e.to_string())?];
        let config = gateway_client_config(&identity, &self.trust, &self.peer, &sans);
        let name = match sni {
            Some(sni) => ServerName::try_from(sni.to_owned()).map_err(|e| e.to_string())?,
            None => ServerName::IpAddress(to.ip().into()),
        };
        let host = sni.unwrap_or("nobody");
        let request = format!("GET /knock HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        in_time(knock(config, to, name, request.as_bytes())).await
    }

    /// Begins HTTP/2 at an agent's port.
    pub(in crate::demo) async fn agent(&self, to: SocketAddr) -> Result<Heard, String> {
        let identity = self.identity("agent")?;
        let config = agent_client_config(&identity, &self.trust, &self.peer);
        in_time(knock(config, to, agent_server_name(&self.domain), HTTP2_OPENING)).await
    }
}

async fn knock(
    config: Arc<ClientConfig>,
    to: SocketAddr,
    name: ServerName<'static>,
    say: &[u8],
) -> Result<Heard, String> {
    // That nobody listens would look like a refusal.
    let stream = TcpStream::connect(to).await.map_err(|e| format!("can't connect to {to}: {e}"))?;
    let mut stream = match TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return Ok(Heard::Closed(error.to_string())),
    };
    if let Err(error) = stream.write_all(say).await {
        return Ok(Heard::Closed(error.to_string()));
    }
    let mut first = vec![0; 64];
    Ok(match stream.read(&mut first).await {
        Ok(0) => Heard::Closed("closed".to_owned()),
        Ok(n) => Heard::Answer(first[..n].to_vec()),
        Err(error) => Heard::Closed(error.to_string()),
    })
}
