//! Ten authorities by ten trust domains at a running agent: at its listener and at its diallers,
//! over real sockets. Only the diagonal is spoken with, and every refusal says why.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hamlet_runtime::{Shutdown, Spawner, Supervisor};
use hamlet_testkit::matrix::{Matrix, SIDE, domain, name};
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::tls::{stranger_client, stranger_server};
use hamlet_testkit::{GENEROUS, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

mod common;
use common::agent::{Agent, Known};

/// How every HTTP/2 client begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A SETTINGS frame that sets nothing (RFC 9113, 6.5).
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn home(matrix: &Matrix, addresses: &BTreeMap<usize, SocketAddr>) -> Agent {
    let names: Vec<String> = (0..SIDE).map(name).collect();
    let known: Vec<Known<'_>> = (0..SIDE)
        .map(|at| Known { name: &names[at], ca: matrix.ca(at), address: addresses.get(&at).copied() })
        .collect();
    Agent::among("home", TestCa::new("home.example"), MemoryStore::new(), &known).await
}

/// Whether the agent speaks HTTP/2 with who presents this.
async fn spoken_with(agent: SocketAddr, leaf: &TestLeaf) -> bool {
    let attempt = async {
        let tcp = TcpStream::connect(agent).await?;
        let name = ServerName::try_from("home.example").unwrap();
        let mut tls = TlsConnector::from(stranger_client(Some(leaf), &[b"h2"])).connect(name, tcp).await?;
        tls.write_all(&[PREFACE, SETTINGS].concat()).await?;
        tls.flush().await?;
        // Its own SETTINGS come first.
        let mut header = [0; 9];
        tls.read_exact(&mut header).await?;
        Ok::<_, std::io::Error>(header[3] == 4)
    };
    tokio::time::timeout(GENEROUS, attempt).await.expect("an answer or an end").unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_listener_only_the_diagonal_is_spoken_with() {
    let matrix = Matrix::new();
    let home = home(&matrix, &BTreeMap::new()).await;
    let mut refused = 0;
    for (signer, claimed) in Matrix::pairs() {
        let leaf = matrix.leaf(signer, claimed, "agent");
        let what = format!("CA {signer} for {}", domain(claimed));
        assert_eq!(spoken_with(home.address, &leaf).await, signer == claimed, "{what}");
        if signer != claimed {
            let latest = home.trust.failures().latest().expect("a refusal");
            assert_eq!(latest.rule, "untrusted-issuer", "{what}: {}", latest.text);
            assert!(latest.text.contains(&domain(claimed)), "{what}: {}", latest.text);
            refused += 1;
        }
    }
    assert_eq!(home.trust.failures().total(), refused);
    assert_eq!(refused as usize, SIDE * (SIDE - 1));
    home.stop().await;
}

/// Accepts on a port of its own, presents `leaf`, and counts those who begin to speak HTTP/2.
async fn owner(leaf: &TestLeaf, spawner: &Spawner, spoken: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(stranger_server(leaf, &[b"h2"]));
    spawner.spawn("owner", async move {
        // Connections are kept, so that nobody dials twice.
        let mut kept = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut begin = vec![0; PREFACE.len()];
            if tls.read_exact(&mut begin).await.is_ok() && begin == PREFACE {
                spoken.fetch_add(1, Ordering::SeqCst);
                kept.push(tls);
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_diallers_only_the_diagonal_is_spoken_with() {
    let matrix = Matrix::new();
    for round in 0..SIDE {
        let supervisor = Supervisor::new(Shutdown::new());
        let spawner = supervisor.spawner();
        let (mut addresses, mut spoken) = (BTreeMap::new(), Vec::new());
        for claimed in 0..SIDE {
            let leaf = matrix.leaf((claimed + round) % SIDE, claimed, "agent");
            let count = Arc::new(AtomicUsize::new(0));
            addresses.insert(claimed, owner(&leaf, &spawner, count.clone()).await);
            spoken.push(count);
        }
        let home = home(&matrix, &addresses).await;
        let names: Vec<String> = (0..SIDE).map(name).collect();
        home.publish_to(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        for (claimed, spoken) in spoken.iter().enumerate() {
            let what = format!("CA {} for {}", (claimed + round) % SIDE, domain(claimed));
            let link = home.link_with(&name(claimed));
            let spoke = || spoken.load(Ordering::SeqCst) > 0;
            let refused = || {
                let error = link.status().last_error;
                error.is_some_and(|text| text.contains("was not signed by a CA in the bundle"))
            };
            eventually(&what, GENEROUS, || spoke() || refused()).await;
            assert_eq!((spoke(), refused()), (round == 0, round != 0), "{what}");
        }
        home.stop().await;
        supervisor.stop(Duration::ZERO, Duration::from_secs(5)).await;
    }
}
