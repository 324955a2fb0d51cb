//! The exchange over real TLS: two honest sides, and strangers of every kind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::{fingerprint_of, peering::server_config};
use hamlet_peering::channel::{self, ChannelError, Host, Terms};
use hamlet_peering::{
    AcceptError, Accepter, AgentAddress, Agreement, AllowedAddresses, Invitation, InvitationId,
    InvitationView, Known, MESSAGE_BYTES_MAX, MeshDocument, Redemption, Refusal, Secret, Token, random,
};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::tls::stranger_client;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ID: InvitationId = [3; 16];

fn document(ca: &TestCa) -> MeshDocument {
    MeshDocument {
        trust_domain: ca.trust_domain().clone(),
        roots: vec![ca.root().clone()],
        sequence: 1,
        agent_ids: vec![ca.agent_id()],
        gateway_ids: vec![ca.gateway_id()],
        addresses: vec![],
    }
}

fn clock() -> Arc<dyn Clock> {
    SystemClock::shared()
}

#[derive(Default)]
struct Inviting {
    document: Vec<u8>,
    committed: AtomicUsize,
    wrong: AtomicUsize,
}

impl Host for Inviting {
    fn invitation(&self, id: &InvitationId) -> Result<InvitationView, Refusal> {
        let expires = clock().wall() + Duration::from_secs(60);
        let name = PeerName::parse("globex").unwrap();
        let invitation = Invitation::new(ID, &Secret::new([1; 32]).key(&ID), name, expires);
        if *id == ID { Ok(invitation.view()) } else { Err(Refusal::Unknown) }
    }

    fn terms(&self, _id: &InvitationId) -> Result<Terms, Refusal> {
        let (known, allowed) = (Known::default(), AllowedAddresses::default());
        Ok(Terms { document: self.document.clone(), nonce: random().unwrap(), known, allowed })
    }

    async fn wrong_proof(&self, _id: &InvitationId) {
        self.wrong.fetch_add(1, Ordering::SeqCst);
    }

    async fn refused(&self, _id: &InvitationId, _refusal: Refusal) {}

    async fn commit(&self, _redemption: &Redemption) -> Result<(), Refusal> {
        self.committed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A's listener, which serves exchanges for as long as the test lives.
struct Served {
    ca: TestCa,
    at: SocketAddr,
    host: Arc<Inviting>,
    _supervisor: Supervisor,
}

async fn serve() -> Served {
    let ca = TestCa::new("acme.example");
    let identity = ca.agent().identity();
    let host = Arc::new(Inviting { document: document(&ca).encode().unwrap(), ..Inviting::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server_config(&identity, vec![ca.root().clone()]));
    let supervisor = Supervisor::new(Shutdown::new());
    let (spawner, serving) = (supervisor.spawner(), host.clone());
    supervisor.spawner().spawn("listener", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, identity, host) = (acceptor.clone(), identity.clone(), serving.clone());
            spawner.spawn("exchange", async move {
                if let Ok(tls) = acceptor.accept(stream).await {
                    let _ = channel::serve(tls, &identity, &*host, &clock()).await;
                }
            });
        }
    });
    Served { ca, at, host, _supervisor: supervisor }
}

impl Served {
    fn token(&self) -> Token {
        Token {
            id: ID,
            secret: Secret::new([1; 32]),
            addresses: vec![AgentAddress::parse(&self.at.to_string()).unwrap()],
            trust_domain: self.ca.trust_domain().clone(),
            agent_id: self.ca.agent_id(),
            roots: vec![fingerprint_of(self.ca.root())],
            expires: clock().wall() + Duration::from_secs(60),
            expected_domain: None,
        }
    }

    async fn accept(&self, token: &Token) -> Result<Agreement, ChannelError> {
        self.accept_at(token, &[self.at]).await
    }

    async fn accept_at(&self, token: &Token, addresses: &[SocketAddr]) -> Result<Agreement, ChannelError> {
        let ca = TestCa::new("globex.example");
        let accepter = Accepter::new(token, document(&ca).encode().unwrap(), random().unwrap());
        let (known, allowed) = (Known::default(), AllowedAddresses::default());
        channel::accept(addresses, &ca.agent().identity(), accepter, &known, &allowed, &clock()).await
    }
}

#[tokio::test]
async fn an_honest_accepter_agrees_and_other_tokens_are_refused_by_their_reason() {
    let served = serve().await;
    let token = served.token();
    let wrong = Token { secret: Secret::new([2; 32]), ..token.clone() };
    let refused = served.accept(&wrong).await;
    assert!(
        matches!(refused, Err(ChannelError::Accept(AcceptError::Refused(Refusal::Proof)))),
        "{refused:?}"
    );
    assert_eq!(served.host.wrong.load(Ordering::SeqCst), 1);
    let unknown = Token { id: [4; 16], ..token.clone() };
    let refused = served.accept(&unknown).await;
    assert!(
        matches!(refused, Err(ChannelError::Accept(AcceptError::Refused(Refusal::Unknown)))),
        "{refused:?}"
    );
    let pin = Token { roots: vec![[0; 32]], ..token.clone() };
    assert!(matches!(served.accept(&pin).await, Err(ChannelError::Claim(_))));
    let agent = Token { agent_id: served.ca.gateway_id(), ..token.clone() };
    assert!(matches!(served.accept(&agent).await, Err(ChannelError::Claim(_))));
    // A leaf's own hash is no root.
    let leaf = fingerprint_of(&served.ca.agent().identity().chain()[0]);
    let leaf = Token { roots: vec![leaf], ..token.clone() };
    assert!(matches!(served.accept(&leaf).await, Err(ChannelError::Claim(_))));
    assert_eq!(served.host.committed.load(Ordering::SeqCst), 0);
    let agreed = served.accept(&token).await.unwrap();
    assert_eq!(agreed.document, document(&served.ca));
    assert_eq!(served.host.committed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn strangers_of_every_kind_get_nothing_from_the_exchange_and_the_honest_one_gets_through() {
    let served = serve().await;
    let stranger = TestCa::new("stranger.example");
    let leaf = stranger.agent();
    let name = || ServerName::try_from("acme.example").unwrap();
    let connect = |config| async move {
        let stream = TcpStream::connect(served.at).await.unwrap();
        TlsConnector::from(config).connect(name(), stream).await
    };
    assert!(connect(stranger_client(Some(&leaf), &[b"h2"])).await.is_err(), "another ALPN");
    // TLS 1.3 tells a client that it lacks a certificate only on the first read.
    if let Ok(mut tls) = connect(stranger_client(None, &[b"hamlet-peering/1"])).await {
        let mut rest = vec![];
        let _ = tls.write_all(&[1; 53]).await;
        assert!(tls.read_to_end(&mut rest).await.is_err() || rest.is_empty(), "no certificate");
    }
    // Any certificate may begin; what isn't a message ends it, and nothing is answered.
    let huge = [&[3_u8][..], &u32::to_be_bytes(MESSAGE_BYTES_MAX as u32 + 1), &[0; 100]].concat();
    let sealed = [&[4_u8][..], &u32::to_be_bytes(32), &[0; 32]].concat();
    let short = [&[1_u8][..], &u32::to_be_bytes(5), &[0; 5]].concat();
    for (what, bytes) in [
        ("http", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("huge", huge),
        ("sealed", sealed),
        ("short", short),
    ] {
        let mut tls = connect(stranger_client(Some(&leaf), &[b"hamlet-peering/1"])).await.unwrap();
        tls.write_all(&bytes).await.unwrap();
        let mut rest = vec![];
        let _ = tls.read_to_end(&mut rest).await;
        // At most a refusal: type, length, number.
        assert!(rest.is_empty() || rest.len() == 6 && rest[0] == 0x7f, "{what}: {rest:?}");
    }
    assert_eq!(served.host.committed.load(Ordering::SeqCst), 0);
    assert!(served.accept(&served.token()).await.is_ok());
}

#[tokio::test]
async fn each_address_of_the_token_is_tried_until_its_agent_answers() {
    let (served, other) = (serve().await, serve().await);
    // Bound and not listening: whoever connects is refused.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = (nobody.local_addr().unwrap(), nobody);
    // Accepts, and closes before a handshake: an agent without an open invitation, or no agent.
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closes = closing.local_addr().unwrap();
    let supervisor = Supervisor::new(Shutdown::new());
    supervisor.spawner().spawn("closing", async move { while closing.accept().await.is_ok() {} });
    let token = served.token();
    let all = [nobody.0, closes, other.at, served.at];
    for turned in 0..all.len() {
        let mut addresses = all;
        addresses.rotate_left(turned);
        let agreed = served.accept_at(&token, &addresses).await;
        assert!(agreed.is_ok(), "{turned}: {agreed:?}");
    }
    assert_eq!(served.host.committed.load(Ordering::SeqCst), all.len());
    assert_eq!(other.host.committed.load(Ordering::SeqCst), 0);
    let failed = |addresses: Vec<SocketAddr>| {
        let (served, token) = (&served, &token);
        async move { served.accept_at(token, &addresses).await.err() }
    };
    let none = failed(vec![nobody.0]).await;
    assert!(matches!(none, Some(ChannelError::Unreachable(_))), "{none:?}");
    let closed = failed(vec![closes, nobody.0]).await;
    assert!(matches!(closed, Some(ChannelError::Closed(_))), "{closed:?}");
    let impostor = failed(vec![closes, other.at, nobody.0]).await;
    assert!(matches!(impostor, Some(ChannelError::Claim(_))), "{impostor:?}");
}

/// A served exchange with one client, and what came of it.
async fn exchange_with<F: Future<Output = ()>>(
    client: impl FnOnce(tokio_rustls::client::TlsStream<TcpStream>) -> F,
) -> (Result<Redemption, ChannelError>, Duration) {
    let (acme, stranger) = (TestCa::new("acme.example"), TestCa::new("stranger.example"));
    let identity = acme.agent().identity();
    let host = Inviting { document: document(&acme).encode().unwrap(), ..Inviting::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server_config(&identity, vec![acme.root().clone()]));
    let dial = async {
        let config = stranger_client(Some(&stranger.agent()), &[b"hamlet-peering/1"]);
        let name = ServerName::try_from("acme.example").unwrap();
        TlsConnector::from(config).connect(name, TcpStream::connect(at).await.unwrap()).await.unwrap()
    };
    let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (tls, served) = tokio::join!(dial, accept);
    let began = tokio::time::Instant::now();
    let clock = clock();
    let serve = async {
        let ended = channel::serve(served, &identity, &host, &clock).await;
        (ended, began.elapsed())
    };
    let (ended, ()) = tokio::join!(serve, client(tls));
    assert_eq!(host.committed.load(Ordering::SeqCst), 0);
    ended
}

/// Reads to the other side's end, for which nothing but a timer is left to wait: the clock moves to it
/// by itself.
async fn read_out(tls: &mut tokio_rustls::client::TlsStream<TcpStream>) {
    tokio::time::pause();
    let mut rest = vec![];
    let _ = tls.read_to_end(&mut rest).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_exchange_ends_after_ten_seconds_however_the_other_side_passes_them() {
    const SECOND: Duration = Duration::from_secs(1);
    let open = || {
        let stranger = TestCa::new("globex.example");
        let token = Token {
            id: ID,
            secret: Secret::new([1; 32]),
            addresses: vec![AgentAddress::parse("127.0.0.1:1").unwrap()],
            trust_domain: stranger.trust_domain().clone(),
            agent_id: stranger.agent_id(),
            roots: vec![[0; 32]],
            expires: clock().wall() + Duration::from_secs(60),
            expected_domain: None,
        };
        Accepter::new(&token, vec![], random().unwrap()).open().encode()
    };
    let silent = exchange_with(|mut tls| async move { read_out(&mut tls).await }).await;
    let slow = exchange_with(|mut tls| async move {
        tokio::time::pause();
        for byte in open() {
            if tls.write_all(&[byte]).await.is_err() || tls.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(SECOND).await;
        }
        tokio::time::resume();
    })
    .await;
    let half = exchange_with(|mut tls| async move {
        tls.write_all(&open()).await.unwrap();
        let mut head = [0; 5];
        tls.read_exact(&mut head).await.unwrap();
        assert_eq!(head[0], 2, "the offer came");
        read_out(&mut tls).await;
    })
    .await;
    for (what, (ended, after)) in [("silent", silent), ("slow", slow), ("half", half)] {
        assert!(matches!(ended, Err(ChannelError::TimedOut)), "{what}: {ended:?}");
        // What isn't waiting takes real time.
        let in_time = after >= channel::EXCHANGE_DEADLINE && after < channel::EXCHANGE_DEADLINE * 2;
        assert!(in_time, "{what}: {after:?}");
    }
    // Who breaks off earlier is no matter of time, and an honest one is served.
    let (gone, _) = exchange_with(|tls| async move { drop(tls) }).await;
    assert!(matches!(gone, Err(ChannelError::Io(_))), "{gone:?}");
    let served = serve().await;
    assert!(served.accept(&served.token()).await.is_ok());
}
