//! A consumer whose certificate the owner refuses, over real sockets and mTLS: it is shown so, with what
//! to do, at every single dial. In TLS 1.3 the refusal comes after the consumer's own handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_identity::{LINGER_TIME, PeerTrust, RevocationLists, RevocationPolicy};
use hamlet_protocol::link::Connection;
use hamlet_protocol::transcript::Said;
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{DAY, TestCa};
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::tls::stranger_server;
use hamlet_testkit::{GENEROUS, eventually, eventually_ok};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{AlertDescription, Error as TlsError, RootCertStore, ServerConfig};
use tonic::Code;

mod common;
use common::agent::{Agent, names};
use common::raw::tls;

const REFUSES: &str = "refuses our certificate (TLS alert certificate_unknown)";

fn is_refused(agent: &Agent) -> bool {
    matches!(agent.link().status().connection, Connection::Refused { .. })
}

/// An owner that offers a ledger, and the consumer that dials it.
async fn bank_and_shop() -> (Agent, Agent) {
    let shop_ca = TestCa::new("shop.example");
    let bank = Agent::start("bank", &shop_ca, "shop", None).await;
    let (store, address) = (MemoryStore::new(), Some(bank.address));
    let shop = Agent::restart("shop", shop_ca, store, &bank.ca, "bank", address).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    (bank, shop)
}

/// Has the consumer dial at once, if it waits: its trust in the owner is another one, and as good.
fn dial_now(consumer: &Agent, owner: &TestCa, round: usize) {
    let mut trust = owner.trust_as("bank");
    if round % 2 == 1 {
        trust.gateway_ids.push(owner.id("another-gateway"));
    }
    consumer.trust.replace(vec![trust]).unwrap();
}

/// How the streams that were opened after entry `after` of the transcript have ended, and the last entry.
fn ends(agent: &Agent, after: u64) -> (Vec<(i32, String)>, u64) {
    let entries = agent.link().transcript(after).0;
    let last = entries.last().map_or(after, |entry| entry.seq);
    let ended = entries.into_iter().filter_map(|entry| match entry.said {
        Said::Ended { code, text } => Some((code, text.into_string())),
        _ => None,
    });
    (ended.collect(), last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_two_hundred_refused_dials_is_a_refusal_and_none_a_broken_connection() {
    const DIALS: usize = 200;
    let other = TestCa::new("other.example");
    let bank = Agent::start("bank", &other, "other", None).await;
    let shop_ca = TestCa::new("shop.example");
    let store = MemoryStore::new();
    let shop = Agent::restart("shop", shop_ca, store, &bank.ca, "bank", Some(bank.address)).await;
    shop.publish("bank", &[]);
    let (mut dials, mut round, mut seen) = (0, 0, 0);
    while dials < DIALS {
        let ended = eventually_ok("another dial ends", GENEROUS, async || {
            round += 1;
            dial_now(&shop, &bank.ca, round);
            let (ended, last) = ends(&shop, seen);
            seen = last;
            match ended.is_empty() {
                false => Ok(ended),
                true => Err((shop.link().status(), shop.link().transcript(seen.saturating_sub(9)).0)),
            }
        })
        .await;
        for (code, text) in &ended {
            assert_eq!(*code, Code::Unauthenticated as i32, "dial {dials}: {text}");
            assert!(text.starts_with(&format!("{} {REFUSES}: ", bank.address)), "dial {dials}: {text}");
        }
        dials += ended.len();
    }
    eventually("it is shown", GENEROUS, || is_refused(&shop)).await;
    let status = shop.link().status();
    assert!(status.last_error.is_some_and(|why| why.contains(REFUSES) && why.contains("Refused logins")));
    assert!(bank.trust.failures().total() >= DIALS as u64, "the owner has refused them all");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_owner_refuses_the_certificate_for_the_consumer_shows_it_until_it_is_let_in_again() {
    let (bank, shop) = bank_and_shop().await;
    let good = || shop.ca.trust_as("shop");
    let another_id = PeerTrust { agent_ids: vec![shop.ca.id("another-agent")], ..good() };
    let another_ca = PeerTrust { bundle: TestCa::new("shop.example").bundle(), ..good() };
    let list = shop.ca.crl(&[&shop.leaf], DAY);
    let lists = RevocationLists::read(list.as_bytes(), RevocationPolicy::default()).unwrap();
    let revoked = PeerTrust { revoked: Some(Arc::new(lists)), ..good() };
    let cases = [
        ("unknown-trust-domain", vec![]),
        ("not-listed", vec![another_id]),
        ("untrusted-issuer", vec![another_ca]),
        ("revoked", vec![revoked]),
    ];
    let mut round = 0;
    for (rule, believed) in cases {
        eventually(&format!("let in before {rule}"), GENEROUS, || {
            round += 1;
            // A connection that stands is none of this: only a dial that waits is hurried.
            if shop.link().active().is_none() {
                dial_now(&shop, &bank.ca, round);
            }
            shop.link().is_proven() && bank.link().is_proven()
        })
        .await;
        assert_eq!(shop.link().status().last_error, None);
        bank.trust.replace(believed).unwrap();
        eventually(&format!("refused for {rule}"), GENEROUS, || {
            is_refused(&shop) && shop.link().last_error().is_some_and(|why| why.contains(REFUSES))
        })
        .await;
        assert_eq!(bank.trust.failures().latest().map(|refusal| refusal.rule), Some(rule));
        assert_eq!(shop.imports(), ["ledger.bank.example"], "a refusal withdraws nothing");
        bank.trust.replace(vec![good()]).unwrap();
    }
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_left_for_good_is_shown_as_that_however_often_it_refuses_the_certificate_since() {
    let (bank, shop) = bank_and_shop().await;
    eventually("synchronised", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    bank.link().begin_leaving();
    bank.trust.replace(vec![]).unwrap();
    assert!(bank.link().leave().await, "it was told");
    eventually("the stream has ended", GENEROUS, || is_refused(&shop)).await;
    let (mut ended, mut seen, mut round) = (vec![], shop.link().transcript(0).0.last().unwrap().seq, 0);
    eventually("dialled ten times", GENEROUS, || {
        round += 1;
        dial_now(&shop, &bank.ca, round);
        let (more, last) = ends(&shop, seen);
        seen = last;
        ended.extend(more);
        ended.len() >= 10
    })
    .await;
    for (_, text) in ended {
        assert!(text.starts_with("the peer said goodbye for good"), "{text}");
    }
    eventually("it is shown", GENEROUS, || {
        is_refused(&shop) && shop.link().last_error().is_some_and(|why| why.contains("goodbye for good"))
    })
    .await;
    shop.stop().await;
    bank.stop().await;
}

/// How a dialled owner of another implementation ends a connection, once TLS is done for the dialler.
#[derive(Clone, Copy)]
enum Ending {
    /// Its TLS refuses the certificate, and it closes at once with what came unread.
    Alert,
    /// It closes in order, after it has taken the certificate.
    CloseNotify,
    /// It is reset.
    Reset,
}

async fn foreign_owner(owner: &TestCa, ending: Ending) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let leaf = owner.agent();
    let config = match ending {
        Ending::Alert => believing_others(&leaf),
        Ending::CloseNotify | Ending::Reset => stranger_server(&leaf, &[b"h2"]),
    };
    // The other owner is no part of the agent: nobody supervises it.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(mut tls) = TlsAcceptor::from(config.clone()).accept(socket).await else { continue };
            match ending {
                Ending::Alert | Ending::CloseNotify => drop(tls.shutdown().await),
                Ending::Reset => {
                    let tcp = tls.into_inner().0;
                    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
        }
    });
    address
}

/// A server of rustls as it comes: it believes the clients of a CA that is nobody's.
fn believing_others(leaf: &hamlet_testkit::pki::TestLeaf) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(TestCa::new("nobody.example").root().clone()).unwrap();
    let provider = hamlet_identity::provider().clone();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain.clone(), leaf.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_foreign_owner_that_says_so_in_tls_is_shown_as_one_that_refuses() {
    let cases = [(Ending::Alert, true), (Ending::CloseNotify, false), (Ending::Reset, false)];
    for (ending, refuses) in cases {
        let owner = TestCa::new("bank.example");
        let address = Some(foreign_owner(&owner, ending).await);
        let shop_ca = TestCa::new("shop.example");
        let shop = Agent::restart("shop", shop_ca, MemoryStore::new(), &owner, "bank", address).await;
        shop.publish("bank", &[]);
        let (mut ended, mut seen, mut round) = (vec![], 0, 0);
        eventually("dialled ten times", GENEROUS, || {
            round += 1;
            dial_now(&shop, &owner, round);
            let (more, last) = ends(&shop, seen);
            seen = last;
            ended.extend(more);
            ended.len() >= 10
        })
        .await;
        for (code, text) in ended {
            let unauthenticated = code == Code::Unauthenticated as i32;
            assert_eq!(unauthenticated, refuses, "{text}");
            assert_eq!(text.contains("refuses our certificate (TLS alert "), refuses, "{text}");
        }
        eventually("it is shown", GENEROUS, || {
            let connection = shop.link().status().connection;
            match refuses {
                true => matches!(connection, Connection::Refused { .. }),
                false => matches!(connection, Connection::Down { .. }),
            }
        })
        .await;
        shop.stop().await;
    }
}

/// What a stranger reads that speaks on before it reads, and how the socket ends then. `None` if this
/// machine stood still for so long that the owner may have stopped waiting.
async fn heard_by_a_stranger(
    owner: &Agent,
    stranger: &TestCa,
) -> Option<(std::io::Error, std::io::Result<usize>)> {
    let (clock, before) = (SystemClock::shared(), owner.trust.failures().total());
    let mut tls = tls(owner.address, Some(&stranger.agent())).await.unwrap();
    let began = clock.now();
    // As much as HTTP/2 lets a client say before it is answered.
    let said = tls.write_all(&[0; 60_000]).await;
    eventually("the owner has refused it", GENEROUS, || owner.trust.failures().total() > before).await;
    let last = tls.write_all(&[0; 1_000]).await;
    if clock.now().saturating_sub(began) > LINGER_TIME / 2 {
        return None;
    }
    said.and(last).expect("the socket is open while there is something to read");
    let alert = tls.read(&mut [0; 64]).await.expect_err("a stranger isn't answered");
    let mut tcp: TcpStream = tls.into_inner().0;
    Some((alert, tcp.read(&mut [0; 64]).await))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_speaks_on_reads_the_alert_and_an_orderly_end_and_no_reset() {
    let known = TestCa::new("other.example");
    let bank = Agent::start("bank", &known, "other", None).await;
    let stranger = TestCa::new("stranger.example");
    let mut heard = 0;
    while heard < 50 {
        let Some((alert, end)) = heard_by_a_stranger(&bank, &stranger).await else { continue };
        let alert = alert.get_ref().and_then(|e| e.downcast_ref::<TlsError>());
        assert_eq!(alert, Some(&TlsError::AlertReceived(AlertDescription::CertificateUnknown)));
        assert!(matches!(end, Ok(0)), "{end:?}");
        heard += 1;
    }
    bank.stop().await;
}
