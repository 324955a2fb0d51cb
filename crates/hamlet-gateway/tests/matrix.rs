//! Ten authorities by ten trust domains at a running gateway: at its ingress and at its egress, over
//! real sockets. Only the diagonal is served, and every refusal says why.

mod common;

use std::net::SocketAddr;

use common::*;
use hamlet_core::{ImportedService, Protocol};
use hamlet_gateway::{EgressState, ListenerKind, Outcome};
use hamlet_runtime::Spawner;
use hamlet_testkit::matrix::{Matrix, SIDE, domain, name};
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::tls::{stranger_client, stranger_server};
use hamlet_testkit::{GENEROUS, eventually};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const NAME: &str = "ledger.home.example";
/// Rarely taken by other programs, and below the ephemeral ones.
const PORT: u16 = 28491;

#[tokio::test]
async fn at_the_ingress_only_the_diagonal_is_served() {
    let matrix = Matrix::new();
    let home = Mesh::start(TestCa::new("home.example"), matrix.peers(), config()).await;
    let backend = Backend::echo(home.spawner()).await;
    let names: Vec<String> = (0..SIDE).map(name).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    home.publish(&[(tcp_service(NAME, backend.address), &all)]);
    let mut refused = 0;
    for (signer, claimed) in Matrix::pairs() {
        let leaf = matrix.leaf(signer, claimed, "gateway");
        let what = format!("CA {signer} for {}", domain(claimed));
        let answer = match tls(home.ingress(), stranger_client(Some(&leaf), &[]), NAME).await {
            Ok(stream) => call(stream, "hello").await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        assert_eq!(answer, if signer == claimed { "hello bye" } else { "" }, "{what}");
        if signer != claimed {
            refused += 1;
            home.ended(ListenerKind::Ingress, Outcome::HandshakeFailed, refused).await;
            let latest = home.trust.failures().latest().expect("a refusal");
            assert_eq!(latest.rule, "untrusted-issuer", "{what}: {}", latest.text);
            assert!(latest.text.contains(&domain(claimed)), "{what}: {}", latest.text);
        }
    }
    assert_eq!((backend.count(), refused as usize), (SIDE, SIDE * (SIDE - 1)));
}

/// A gateway on a port of its own that presents `leaf` and greets whoever believes it.
async fn gateway(leaf: &TestLeaf, spawner: &Spawner) -> SocketAddr {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(stranger_server(leaf, &[]));
    spawner.spawn("gateway", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut tls) = acceptor.accept(tcp).await {
                let _ = tls.write_all(b"welcome").await;
                let _ = tls.shutdown().await;
            }
        }
    });
    address
}

fn service_name(at: usize) -> String {
    format!("ledger.{}", domain(at))
}

async fn listening(home: &Mesh, service: &str) -> SocketAddr {
    let find = || home.gateway.egress_status().into_iter().find(|s| s.name == fqdn(service));
    eventually("its listener", GENEROUS, || find().is_some_and(|s| s.state == EgressState::Listening)).await;
    find().and_then(|s| s.listen).unwrap()
}

#[tokio::test]
async fn at_the_egress_only_the_diagonal_is_called() {
    let matrix = Matrix::new();
    let home = Mesh::start(TestCa::new("home.example"), matrix.peers(), config()).await;
    let mut pool = pool(41);
    // First what another authority issues for the peer's domain, then its own gateway's certificate.
    for (round, honest) in (0..SIDE).flat_map(|round| [(round, false), (round, true)]) {
        let mut services: Vec<ImportedService> = Vec::new();
        for dialled in 0..SIDE {
            let signer = (dialled + round) % SIDE;
            let leaf = matrix.leaf(signer, if honest { signer } else { dialled }, "gateway");
            let at = gateway(&leaf, &home.spawner()).await;
            let sans = [matrix.ca(dialled).gateway_id()];
            services.push(imported(
                &service_name(dialled),
                &name(dialled),
                Protocol::Tcp,
                PORT,
                &sans,
                &[at],
            ));
        }
        home.import(&services, &mut pool);
        for dialled in 0..SIDE {
            let what = format!("CA {} at {}, honest: {honest}", (dialled + round) % SIDE, domain(dialled));
            let stream = TcpStream::connect(listening(&home, &service_name(dialled)).await).await.unwrap();
            let answer = call(stream, "").await.unwrap_or_default();
            assert_eq!(answer, if round == 0 { "welcome" } else { "" }, "{what}");
            if round != 0 {
                let rule = if honest { "other-trust-domain" } else { "untrusted-issuer" };
                let latest = home.trust.failures().latest().expect("a refusal");
                assert_eq!(latest.rule, rule, "{what}: {}", latest.text);
            }
        }
    }
}
