//! What the configurations promise: TLS 1.3 with a client certificate or nothing, no resumption, and
//! removed trust that acts at once. That roots are never pooled is in `matrix.rs`.

use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_identity::{
    EndpointLeaf, Expect, GatewayClients, Lenience, PeerTrust, RevocationLists, RevocationPolicy, Role,
    TrustTable, VerifyError, agent_client_config, agent_server_config, agent_server_name, endpoint_server,
    gateway_client_config, gateway_server_config, proven_client, proven_server, refusal_in,
    spiffe_endpoint_client,
};
use hamlet_runtime::{Clock, ManualClock, SystemClock};
use hamlet_testkit::pki::{LeafSpec, TestCa, TestLeaf, trust_table};
use hamlet_testkit::tls::{Handshake, handshake, old_client, stranger_client, stranger_server};
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn peer(name: &str) -> PeerName {
    PeerName::parse(name).unwrap()
}

fn refused_by(error: &std::io::Error) -> Option<&'static str> {
    refusal_in(error).map(VerifyError::rule)
}

/// Acme and globex, each believing the other.
struct Meshes {
    acme: TestCa,
    globex: TestCa,
    at_acme: Arc<TrustTable>,
    at_globex: Arc<TrustTable>,
}

fn meshes() -> Meshes {
    let (acme, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
    let at_acme = trust_table(vec![globex.trust_as("globex")]);
    let at_globex = trust_table(vec![acme.trust_as("acme")]);
    Meshes { acme, globex, at_acme, at_globex }
}

async fn agents_meet(m: &Meshes) -> Handshake {
    let server = agent_server_config(&m.acme.agent().identity(), &m.at_acme);
    let client = agent_client_config(&m.globex.agent().identity(), &m.at_globex, &peer("acme"));
    handshake(client, server, "acme.example").await
}

#[tokio::test]
async fn two_agents_prove_each_other_over_http2() {
    let m = meshes();
    let done = agents_meet(&m).await;
    let (server, client) = (done.server.unwrap(), done.client.unwrap());
    assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let certs = server.get_ref().1.peer_certificates();
    let caller = proven_client(&m.at_acme, certs, Role::Agent).unwrap();
    assert_eq!(
        (caller.peer, caller.id, caller.role),
        (peer("globex"), m.globex.agent_id().into(), Role::Agent)
    );
    let certs = client.get_ref().1.peer_certificates();
    let owner = proven_server(&m.at_globex, certs, Role::Agent, Expect::Peer(&peer("acme"))).unwrap();
    assert_eq!((owner.peer, owner.id), (peer("acme"), m.acme.agent_id().into()));
}

#[tokio::test]
async fn two_gateways_prove_each_other_without_alpn() {
    let m = meshes();
    let server = gateway_server_config(&m.acme.gateway().identity(), None, &m.at_acme);
    let us = m.globex.gateway().identity();
    let sans = [m.acme.gateway_id()];
    let client = gateway_client_config(&us, &m.at_globex, &peer("acme"), &sans);
    let done = handshake(client, server.clone(), "ledger.acme.example").await;
    let stream = done.server.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    let caller = proven_client(&m.at_acme, stream.get_ref().1.peer_certificates(), Role::Gateway).unwrap();
    assert_eq!((caller.peer, caller.role), (peer("globex"), Role::Gateway));

    for sans in [vec![], vec![m.acme.agent_id()], vec![m.acme.id("gateway/2")]] {
        let client = gateway_client_config(&us, &m.at_globex, &peer("acme"), &sans);
        let error = handshake(client, server.clone(), "ledger.acme.example").await.client.err().unwrap();
        assert_eq!(refused_by(&error), Some("not-offered"));
    }
    // An agent is not a gateway.
    let agent = gateway_client_config(&m.globex.agent().identity(), &m.at_globex, &peer("acme"), &sans);
    let error = handshake(agent, server, "ledger.acme.example").await.server.expect_err("refused");
    assert_eq!(refused_by(&error), Some("not-listed"));
}

#[tokio::test]
async fn plaintext_no_certificate_and_tls_1_2_are_refused() {
    let m = meshes();
    for server in [
        agent_server_config(&m.acme.agent().identity(), &m.at_acme),
        gateway_server_config(&m.acme.gateway().identity(), None, &m.at_acme),
    ] {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(b"GET / HTTP/1.1\r\nhost: acme.example\r\n\r\n").await.unwrap();
        assert!(tokio_rustls::TlsAcceptor::from(server.clone()).accept(far).await.is_err());

        let done = handshake(stranger_client(None, &[b"h2"]), server.clone(), "acme.example").await;
        assert!(done.server.is_err() && done.client.is_err());

        let done = handshake(old_client(&m.globex.agent()), server, "acme.example").await;
        assert!(done.server.is_err() && done.client.is_err());
    }
    assert!(agents_meet(&m).await.is_ok());
}

#[tokio::test]
async fn a_proven_agent_that_speaks_another_protocol_is_refused() {
    let m = meshes();
    let server = agent_server_config(&m.acme.agent().identity(), &m.at_acme);
    for (alpn, good) in [(&b"http/1.1"[..], false), (b"h2", true)] {
        let client = stranger_client(Some(&m.globex.agent()), &[alpn]);
        assert_eq!(handshake(client, server.clone(), "acme.example").await.is_ok(), good);
    }
}

#[tokio::test]
async fn a_bundle_endpoint_proves_the_exact_id_asked_for_and_nothing_that_its_mesh_has_revoked() {
    let acme = TestCa::new("acme.example");
    let (revoked, other) = (acme.agent(), acme.agent());
    let policy = RevocationPolicy { stale: Lenience::Refuse, unlisted: Lenience::Refuse };
    let lists = RevocationLists::read(acme.crl(&[&revoked], 3600).as_bytes(), policy).unwrap();
    let plain = acme.trust_as("acme");
    let listed = PeerTrust { revoked: Some(Arc::new(lists)), ..plain.clone() };
    let (id, gateway) = (acme.agent_id(), acme.gateway_id());
    for (leaf, trust, id, rule) in [
        (&revoked, &plain, &id, None),
        (&other, &listed, &id, None),
        (&revoked, &listed, &id, Some("revoked")),
        (&other, &plain, &gateway, Some("not-listed")),
        (&other, &TestCa::new("acme.example").trust_as("acme"), &id, Some("untrusted-issuer")),
    ] {
        let client = spiffe_endpoint_client(trust, id, SystemClock::shared()).unwrap();
        let server = endpoint_server(EndpointLeaf::Spiffe(leaf.identity()));
        let done = handshake(client, server, "any.example").await;
        assert_eq!(done.client.err().as_ref().and_then(refused_by), rule);
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing_on_either_side() {
    let m = meshes();
    let server = agent_server_config(&m.acme.agent().identity(), &m.at_acme);
    let client = agent_client_config(&m.globex.agent().identity(), &m.at_globex, &peer("acme"));
    let thief = TestCa::new("stranger.example").agent();
    let stolen = |leaf: TestLeaf| leaf.with_key_of(&thief);
    for (caller, owner, good) in
        [(m.globex.agent(), m.acme.agent(), true), (stolen(m.globex.agent()), stolen(m.acme.agent()), false)]
    {
        let done = handshake(stranger_client(Some(&caller), &[b"h2"]), server.clone(), "x.example").await;
        assert_eq!((done.server.is_ok(), done.client.is_ok()), (good, good));
        let done = handshake(client.clone(), stranger_server(&owner, &[b"h2"]), "x.example").await;
        assert_eq!((done.server.is_ok(), done.client.is_ok()), (good, good));
    }
}

#[tokio::test]
async fn a_removed_peer_is_refused_at_its_next_handshake_and_its_open_connection_proves_nothing() {
    let m = meshes();
    let changed = m.at_acme.changed();
    let first = agents_meet(&m).await;
    let (mut server, mut client) = (first.server.unwrap(), first.client.unwrap());

    m.at_acme.replace(Vec::new()).unwrap();
    assert!(changed.has_changed().unwrap());
    assert!(m.at_acme.peer(&peer("globex")).is_none());
    let again = proven_client(&m.at_acme, server.get_ref().1.peer_certificates(), Role::Agent);
    assert_eq!(again.unwrap_err().rule(), "unknown-trust-domain");
    // The connection itself is open still: closing it is up to who holds it.
    server.write_all(b"x").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');

    let second = agents_meet(&m).await;
    assert_eq!(refused_by(&second.server.expect_err("refused")), Some("unknown-trust-domain"));

    m.at_acme.replace(vec![m.globex.trust_as("globex")]).unwrap();
    assert!(agents_meet(&m).await.is_ok());
    assert!(proven_client(&m.at_acme, server.get_ref().1.peer_certificates(), Role::Agent).is_ok());
}

#[tokio::test]
async fn a_peer_removed_where_it_is_dialled_is_refused_as_well() {
    let m = meshes();
    m.at_globex.replace(Vec::new()).unwrap();
    assert_eq!(refused_by(&agents_meet(&m).await.client.err().unwrap()), Some("unknown-peer"));
}

#[tokio::test]
async fn agents_resume_no_session_on_either_side() {
    let m = meshes();
    // A foreign client that would resume, at our server.
    let client = stranger_client(Some(&m.globex.agent()), &[b"h2"]);
    let server = agent_server_config(&m.acme.agent().identity(), &m.at_acme);
    // Our client, at a foreign server that hands out tickets.
    let our_client = agent_client_config(&m.globex.agent().identity(), &m.at_globex, &peer("acme"));
    let foreign = stranger_server(&m.acme.agent(), &[b"h2"]);
    for (client, server) in [(client.clone(), server), (our_client, foreign.clone())] {
        for _ in 0..3 {
            let done = handshake(client.clone(), server.clone(), "acme.example").await;
            let kind = done.client.unwrap().get_ref().1.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full));
        }
    }
    // The neighbour: those two would resume with each other.
    let mut last = None;
    for _ in 0..2 {
        let done = handshake(client.clone(), foreign.clone(), "acme.example").await;
        last = done.client.unwrap().get_ref().1.handshake_kind();
    }
    assert_eq!(last, Some(HandshakeKind::Resumed));
}

/// How a handshake of two gateways ended: its kind and what the client proves after it, at the server.
async fn call(
    m: &Meshes,
    client: &Arc<rustls::ClientConfig>,
    server: &Arc<rustls::ServerConfig>,
    sni: &str,
) -> (HandshakeKind, Result<PeerName, &'static str>) {
    let done = handshake(client.clone(), server.clone(), sni).await;
    let stream = done.server.expect("a handshake");
    let tls = stream.get_ref().1;
    let proven = proven_client(&m.at_acme, tls.peer_certificates(), Role::Gateway);
    (tls.handshake_kind().unwrap(), proven.map(|p| p.peer).map_err(|e| e.rule()))
}

#[tokio::test]
async fn gateways_resume_within_one_epoch_and_the_resumed_client_is_proven_again() {
    let m = meshes();
    let server = gateway_server_config(&m.acme.gateway().identity(), None, &m.at_acme);
    let clients = GatewayClients::new(m.globex.gateway().identity(), m.at_globex.clone());
    let sans = [m.acme.gateway_id()];
    let client = || clients.config(&peer("acme"), &sans);
    let good = |kind| (kind, Ok(peer("globex")));
    assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Full));
    for _ in 0..3 {
        assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Resumed));
    }
    assert_eq!(
        call(&m, &client(), &server, "other.acme.example").await,
        good(HandshakeKind::Full),
        "another SNI"
    );
    // Other SANs prove another thing: their tickets are their own.
    let wider = [m.acme.gateway_id(), m.acme.id("gateway/2")];
    let other = clients.config(&peer("acme"), &wider);
    assert_eq!(call(&m, &other, &server, "ledger.acme.example").await, good(HandshakeKind::Full));

    // What is only said again is no change.
    m.at_acme.replace(vec![m.globex.trust_as("globex")]).unwrap();
    m.at_globex.replace(vec![m.acme.trust_as("acme")]).unwrap();
    assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Resumed));

    // Trust changed at either side: a new epoch, though this peer is the same.
    let third = TestCa::new("initech.example").trust_as("initech");
    m.at_acme.replace(vec![m.globex.trust_as("globex"), third.clone()]).unwrap();
    assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Full));
    assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Resumed));
    m.at_globex.replace(vec![m.acme.trust_as("acme"), third]).unwrap();
    assert_eq!(call(&m, &client(), &server, "ledger.acme.example").await, good(HandshakeKind::Full));
}

#[tokio::test]
async fn a_ticket_counts_for_the_first_quarter_of_what_was_left_to_the_certificates_that_gave_it() {
    let m = meshes();
    let server = gateway_server_config(&m.acme.gateway().identity(), None, &m.at_acme);
    let clock = ManualClock::at(SystemClock::shared().wall());
    let trust = TrustTable::new(clock.clone());
    trust.replace(vec![m.acme.trust_as("acme")]).unwrap();
    let clients = GatewayClients::new(m.globex.gateway().identity(), trust);
    let sans = [m.acme.gateway_id()];
    let second = std::time::Duration::from_secs(1);
    let not_after = clock.wall() + 100 * second;
    let dial = async || {
        let client = clients.config(&peer("acme"), &sans);
        let kind = call(&m, &client, &server, "ledger.acme.example").await.0;
        let proven = hamlet_identity::ProvenPeer {
            peer: peer("acme"),
            id: hamlet_identity::ProvenId::Spiffe(m.acme.gateway_id()),
            role: Role::Gateway,
            fingerprint: [0; 32],
            not_after,
            chain: [].into(),
        };
        clients.proven(&peer("acme"), &sans, &proven);
        kind
    };
    assert_eq!(dial().await, HandshakeKind::Full);
    for _ in 0..4 {
        clock.advance(6 * second);
        assert_eq!(dial().await, HandshakeKind::Resumed);
    }
    clock.advance(second);
    assert_eq!(dial().await, HandshakeKind::Full, "a quarter of 100 s is over");
    clock.advance(18 * second);
    assert_eq!(dial().await, HandshakeKind::Resumed);
    clock.advance(second);
    assert_eq!(dial().await, HandshakeKind::Full, "a quarter of 75 s is over");
}

#[tokio::test]
async fn the_ticket_of_a_removed_peer_resumes_nothing_and_neither_does_that_of_an_old_certificate() {
    let m = meshes();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = m.acme.gateway().write(folder.path(), "gateway");
    let clock = hamlet_runtime::SystemClock::shared();
    let identity = hamlet_identity::LocalIdentity::from_pem_files(&cert, &key, clock).unwrap();
    let server = gateway_server_config(&identity, None, &m.at_acme);
    // A client that keeps its tickets whatever happens.
    let client = stranger_client(Some(&m.globex.gateway()), &[]);
    let resumed = (HandshakeKind::Resumed, Ok(peer("globex")));
    let full = (HandshakeKind::Full, Ok(peer("globex")));
    assert_eq!(call(&m, &client, &server, "ledger.acme.example").await, full);
    assert_eq!(call(&m, &client, &server, "ledger.acme.example").await, resumed);

    m.at_acme.replace(Vec::new()).unwrap();
    for _ in 0..4 {
        let done = handshake(client.clone(), server.clone(), "ledger.acme.example").await;
        assert_eq!(refused_by(&done.server.expect_err("refused")), Some("unknown-trust-domain"));
    }
    m.at_acme.replace(vec![m.globex.trust_as("globex")]).unwrap();
    assert_eq!(call(&m, &client, &server, "ledger.acme.example").await, full);
    assert_eq!(call(&m, &client, &server, "ledger.acme.example").await, resumed);

    m.acme.gateway().write(folder.path(), "gateway");
    assert!(identity.reload().unwrap());
    assert_eq!(call(&m, &client, &server, "ledger.acme.example").await, full, "our certificate is another");
}

#[tokio::test]
async fn a_stranger_is_not_told_whom_we_believe() {
    // With CA names hinted, a client would see the subjects of our peers' CAs. It presents its
    // certificate all the same, and the refusal on the wire is the same alert for all rules.
    let m = meshes();
    let server = agent_server_config(&m.acme.agent().identity(), &m.at_acme);
    let mut seen = Vec::new();
    let leaves: [TestLeaf; 3] = [
        TestCa::new("stranger.example").agent(),
        m.globex.leaf(LeafSpec::of("spiffe://globex.example/web")),
        m.globex.leaf(LeafSpec { not_after: -60, ..LeafSpec::of("spiffe://globex.example/agent") }),
    ];
    for leaf in &leaves {
        let done = handshake(stranger_client(Some(leaf), &[b"h2"]), server.clone(), "acme.example").await;
        seen.push(done.client.err().unwrap().to_string());
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let rules: Vec<_> = m.at_acme.failures().list().iter().map(|f| f.rule).collect();
    assert_eq!(rules, ["unknown-trust-domain", "not-listed", "expired"]);
}

#[test]
fn an_agent_is_dialled_by_its_trust_domain_where_that_is_a_dns_name() {
    let name = |text: &str| agent_server_name(&hamlet_core::TrustDomain::parse(text).unwrap());
    assert_eq!(name("acme.example"), ServerName::try_from("acme.example").unwrap());
    assert_eq!(name("-.-"), ServerName::try_from("agent.invalid").unwrap());
    assert_eq!(name("127.0.0.1"), ServerName::try_from("agent.invalid").unwrap());
}
