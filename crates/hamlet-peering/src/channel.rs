//! The loop that talks: messages over a TLS stream, each side within [`EXCHANGE_DEADLINE`] and
//! [`EXCHANGE_BYTES`]. What the messages mean is decided by [`Inviter`] and [`Accepter`].
//!
//! Invariant: nothing is read beyond the limits, and a refusal is said before the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_identity::peering::{self, EXPORTER_LABEL, Pinned};
use hamlet_identity::{LocalIdentity, agent_server_name};
use hamlet_runtime::Clock;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::CommonState;

use crate::accepter::{AcceptError, Accepter, Agreement};
use crate::address::AllowedAddresses;
use crate::crypto::{Binding, Nonce};
use crate::inviter::{InvitationView, Inviter, Redemption};
use crate::known::Known;
use crate::message::{HEAD, Message};
use crate::refusal::Refusal;
use crate::token::InvitationId;

/// Longest exchange, from the handshake's end.
pub const EXCHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes that one side may send in an exchange.
pub const EXCHANGE_BYTES: usize = 64 * 1024;
/// Most connections that exchange at the same time.
pub const EXCHANGES_MAX: usize = 8;
/// How long the dialler tries one address, handshake included.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Why an exchange broke off.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection.
    #[error("the connection to the other agent broke: {0}; try again")]
    Io(#[from] std::io::Error),
    /// Too slow.
    #[error("the exchange took longer than 10 s; try again")]
    TimedOut,
    /// Too much, or not of the exchange.
    #[error("what came is no peering exchange; does a hamlet listen there?")]
    Strange,
    /// We refused.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The accepting side's reasons.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// No address answered.
    #[error(
        "the inviting agent can't be reached at {0}; is its port open from here, and is the invitation open?"
    )]
    Unreachable(String),
    /// The handshake failed: without an open invitation there is nothing to agree on.
    #[error(
        "the inviting agent takes no invitation now ({0}); the token has expired or was withdrawn, or there are too \
         many at once: ask for a new one"
    )]
    Closed(std::io::Error),
    /// Somebody else answered.
    #[error("{0}")]
    Claim(peering::ClaimError),
}

/// What an exchange may end with, in a word, beside the words of the refusals.
pub const OUTCOMES: [&str; 8] =
    [AGREED, TOO_MANY, "broken", "timed-out", "unreachable", "closed", "other-mesh", "token"];
/// The word for an exchange that made a peer.
pub const AGREED: &str = "agreed";
/// The word for one that wasn't begun because [`EXCHANGES_MAX`] were under way.
pub const TOO_MANY: &str = "too-many";

impl ChannelError {
    /// A word for metrics: one of [`OUTCOMES`], or a refusal's.
    pub fn word(&self) -> &'static str {
        match self {
            ChannelError::Io(_) => "broken",
            ChannelError::TimedOut => "timed-out",
            ChannelError::Strange => Refusal::Malformed.word(),
            ChannelError::Refused(refusal) => refusal.word(),
            ChannelError::Accept(error) => error.word(),
            ChannelError::Unreachable(_) => "unreachable",
            ChannelError::Closed(_) => "closed",
            ChannelError::Claim(_) => Refusal::Certificate.word(),
        }
    }
}

/// Reads and writes messages, counting bytes.
struct Framed<S> {
    stream: S,
    left: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    async fn read(&mut self) -> Result<Message, ChannelError> {
        let mut head = [0; HEAD];
        self.stream.read_exact(&mut head).await?;
        let length = Message::body_length(head).map_err(|_| ChannelError::Strange)?;
        self.left = self.left.checked_sub(HEAD + length).ok_or(ChannelError::Strange)?;
        let mut bytes = head.to_vec();
        bytes.resize(HEAD + length, 0);
        self.stream.read_exact(&mut bytes[HEAD..]).await?;
        Message::parse(&bytes).map_err(|_| ChannelError::Strange)
    }

    async fn write(&mut self, message: &Message) -> Result<(), ChannelError> {
        self.stream.write_all(&message.encode()).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Says why, as far as it still can be said, and gives the error.
    async fn refuse(&mut self, refusal: Refusal) -> ChannelError {
        let _ = self.write(&Message::Refused(refusal)).await;
        let _ = self.stream.shutdown().await;
        ChannelError::Refused(refusal)
    }
}

/// What the inviting agent decides in an exchange. Each call is one question.
pub trait Host: Send + Sync {
    /// The invitation with that id, if it is open now.
    ///
    /// # Errors
    /// The refusal.
    fn invitation(&self, id: &InvitationId) -> Result<InvitationView, Refusal>;
    /// Our document, a fresh nonce, whom we know, and which addresses are taken.
    ///
    /// # Errors
    /// The refusal.
    fn terms(&self, id: &InvitationId) -> Result<Terms, Refusal>;
    /// The secret was not proven.
    fn wrong_proof(&self, id: &InvitationId) -> impl Future<Output = ()> + Send;
    /// Refused for another reason, by one who holds the token.
    fn refused(&self, id: &InvitationId, refusal: Refusal) -> impl Future<Output = ()> + Send;
    /// Makes invitation and peer durable, in one transaction.
    ///
    /// # Errors
    /// The refusal.
    fn commit(&self, redemption: &Redemption) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// What one side brings to an exchange.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Our document's bytes.
    pub document: Vec<u8>,
    /// Fresh for each exchange.
    pub nonce: Nonce,
    /// Whom we know.
    pub known: Known,
    /// Which of the other side's addresses are taken.
    pub allowed: AllowedAddresses,
}

fn exporter(
    state: &tokio_rustls::server::TlsStream<TcpStream>,
    id: &InvitationId,
) -> Result<[u8; 32], Refusal> {
    let exported = state.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(id));
    exported.map_err(|_| Refusal::Unavailable)
}

fn chain_of(state: &CommonState) -> Vec<CertificateDer<'static>> {
    let certificates = state.peer_certificates().unwrap_or_default();
    certificates.iter().map(|der| der.clone().into_owned()).collect()
}

/// Serves one exchange, as the inviter, on a connection of ALPN `hamlet-peering/1`.
///
/// # Errors
/// Why it broke off; the other side has been told as far as possible.
pub async fn serve<H: Host>(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    identity: &LocalIdentity,
    host: &H,
    clock: &Arc<dyn Clock>,
) -> Result<Redemption, ChannelError> {
    let exchange = serve_unhurried(stream, identity, host, clock);
    tokio::time::timeout(EXCHANGE_DEADLINE, exchange).await.map_err(|_| ChannelError::TimedOut)?
}

async fn serve_unhurried<H: Host>(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    identity: &LocalIdentity,
    host: &H,
    clock: &Arc<dyn Clock>,
) -> Result<Redemption, ChannelError> {
    let mut framed = Framed { stream, left: EXCHANGE_BYTES };
    let Message::Open { id, commitment } = framed.read().await? else {
        return Err(framed.refuse(Refusal::Malformed).await);
    };
    let prepared = host.invitation(&id).and_then(|view| {
        let terms = host.terms(&id)?;
        let binding = bind_served(&framed.stream, identity, &id)?;
        Ok((view, terms, binding))
    });
    let (view, terms, binding) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => return Err(framed.refuse(refusal).await),
    };
    let chain = chain_of(framed.stream.get_ref().1);
    let inviter = Inviter::open(view, commitment, terms.document, terms.nonce);
    framed.write(&inviter.offer()).await?;
    let reveal = framed.read().await?;
    let redemption = match inviter.reveal(reveal, &binding, &chain, &terms.known, &terms.allowed, clock) {
        Ok(redemption) => redemption,
        Err(refusal) => {
            match refusal {
                Refusal::Proof => host.wrong_proof(&id).await,
                Refusal::Malformed => {}
                other => host.refused(&id, other).await,
            }
            return Err(framed.refuse(refusal).await);
        }
    };
    if let Err(refusal) = host.commit(&redemption).await {
        return Err(framed.refuse(refusal).await);
    }
    framed.write(&redemption.sealed()).await?;
    let _ = framed.stream.shutdown().await;
    Ok(redemption)
}

fn bind_served(
    stream: &tokio_rustls::server::TlsStream<TcpStream>,
    identity: &LocalIdentity,
    id: &InvitationId,
) -> Result<Binding, Refusal> {
    // The leaf may have been renewed since the handshake; then the proofs differ, and B tries again.
    let leaf_a = identity.chain().first().ok_or(Refusal::Unavailable)?.to_vec();
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf_b = certificates.first().ok_or(Refusal::Certificate)?.to_vec();
    Ok(Binding { exporter: exporter(stream, id)?, leaf_a, leaf_b })
}

/// Dials the inviter at its addresses, already resolved and checked, one after the other, and goes through the
/// exchange as the accepter.
///
/// # Errors
/// Why it broke off.
pub async fn accept(
    addresses: &[SocketAddr],
    identity: &Arc<LocalIdentity>,
    accepter: Accepter,
    known: &Known,
    allowed: &AllowedAddresses,
    clock: &Arc<dyn Clock>,
) -> Result<Agreement, ChannelError> {
    let stream = reach(addresses, identity, accepter.pinned(), clock).await?;
    let exchange = accept_unhurried(stream, identity, accepter, known, allowed, clock);
    tokio::time::timeout(EXCHANGE_DEADLINE, exchange).await.map_err(|_| ChannelError::TimedOut)?
}

/// The first address at which the agent of the token answers. Nothing of the token has been said to
/// anybody before.
async fn reach(
    addresses: &[SocketAddr],
    identity: &Arc<LocalIdentity>,
    pinned: &Pinned,
    clock: &Arc<dyn Clock>,
) -> Result<TlsStream<TcpStream>, ChannelError> {
    let mut answered = None;
    for address in addresses {
        let knocking = knock(address, identity, pinned, clock);
        let error = match tokio::time::timeout(DIAL_DEADLINE, knocking).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => ChannelError::Unreachable(address.to_string()),
        };
        tracing::info!(%address, %error, "the token's agent doesn't answer here");
        // That somebody else is there says more than that nobody is.
        let tells_more = match (&answered, &error) {
            (_, ChannelError::Unreachable(_)) | (Some(ChannelError::Claim(_)), _) => false,
            (None, _) | (_, ChannelError::Claim(_)) => true,
            _ => false,
        };
        if tells_more {
            answered = Some(error);
        }
    }
    let tried: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Err(answered.unwrap_or_else(|| ChannelError::Unreachable(tried.join(", "))))
}

async fn knock(
    address: &SocketAddr,
    identity: &Arc<LocalIdentity>,
    pinned: &Pinned,
    clock: &Arc<dyn Clock>,
) -> Result<TlsStream<TcpStream>, ChannelError> {
    let unreachable = |error| ChannelError::Unreachable(format!("{address} ({error})"));
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let config = peering::client_config(identity, pinned.clone(), clock.clone());
    let connected = TlsConnector::from(config).connect(agent_server_name(&pinned.trust_domain), stream).await;
    let stream = connected.map_err(|error| match peering::claim_error_in(&error) {
        Some(claim) => ChannelError::Claim(claim),
        None => ChannelError::Closed(error),
    })?;
    match stream.get_ref().1.alpn_protocol() {
        Some(peering::ALPN) => Ok(stream),
        _ => Err(ChannelError::Strange),
    }
}

async fn accept_unhurried(
    stream: TlsStream<TcpStream>,
    identity: &Arc<LocalIdentity>,
    accepter: Accepter,
    known: &Known,
    allowed: &AllowedAddresses,
    clock: &Arc<dyn Clock>,
) -> Result<Agreement, ChannelError> {
    let leaf_b = identity.chain().first().map(|leaf| leaf.to_vec()).unwrap_or_default();
    let state = stream.get_ref().1;
    let chain = chain_of(state);
    let exporter = state
        .export_keying_material([0; 32], EXPORTER_LABEL, Some(accepter.id()))
        .map_err(|_| ChannelError::Strange)?;
    let leaf_a = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
    let binding = Binding { exporter, leaf_a, leaf_b };
    let mut framed = Framed { stream, left: EXCHANGE_BYTES };
    framed.write(&accepter.open()).await?;
    let offer = framed.read().await?;
    let (reveal, revealed) = accepter.offer(offer, &binding, &chain, known, allowed, clock)?;
    framed.write(&reveal).await?;
    let sealed = framed.read().await?;
    let agreement = revealed.sealed(sealed)?;
    let _ = framed.stream.shutdown().await;
    Ok(agreement)
}
