//! The TCP listener: health and metrics, and nothing else ever.

use std::net::SocketAddr;

use crate::fake::{Fake, Served, State, peer};
use hamlet_admin::api::{PeerState, ReadyCheck};
use hamlet_admin::server::start_health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Status and body of one request.
async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn health_and_metrics_answer_on_tcp_and_the_api_does_not() {
    let served = Served::folder();
    let fake = Fake::new(State { peers: vec![peer("globex", PeerState::Connecting)], ..Default::default() });
    let spawner = served.supervisor.spawner();
    let any = "127.0.0.1:0".parse().unwrap();
    let address = start_health(any, fake, &spawner, served.shutdown.clone()).await.unwrap();
    assert_eq!(request(address, "GET", "/livez").await, (200, "ok\n".into()));
    let (status, text) = request(address, "GET", "/metrics").await;
    assert!(status == 200 && text.contains("hamlet_build_info") && text.contains("# EOF"));
    for (method, path) in [
        ("GET", "/v1/agent"),
        ("GET", "/v1/peers"),
        ("GET", "/v1/peers/globex"),
        ("GET", "/v1/watch/peers"),
        ("POST", "/v1/reload"),
        ("GET", "//v1/peers"),
        ("GET", "/livez/../v1/peers"),
    ] {
        assert_eq!(request(address, method, path).await.0, 404, "{method} {path}");
    }
    assert_eq!(request(address, "POST", "/livez").await.0, 405);
    served.stop().await;
}

#[tokio::test]
async fn readiness_lists_its_checks_and_a_lost_peer_does_not_fail_it() {
    let served = Served::folder();
    let down = PeerState::Down { since_ms: 1, next_attempt_ms: None, hold_left_ms: None };
    let ready = vec![ReadyCheck::ok("config"), ReadyCheck::ok("store")];
    let fake = Fake::new(State { peers: vec![peer("globex", down)], ready, ..Default::default() });
    let spawner = served.supervisor.spawner();
    let any = "127.0.0.1:0".parse().unwrap();
    let address = start_health(any, fake.clone(), &spawner, served.shutdown.clone()).await.unwrap();
    assert_eq!(request(address, "GET", "/readyz").await, (200, "ok\n".into()));
    let (status, text) = request(address, "GET", "/readyz?verbose").await;
    assert_eq!((status, text.as_str()), (200, "[+]config ok\n[+]store ok\nreadyz check passed\n"));
    fake.change(|s| s.ready[1] = ReadyCheck::failed("store", "the disk is full"));
    let (status, text) = request(address, "GET", "/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(text, "[+]config ok\n[-]store failed: the disk is full\nreadyz check failed\n");
    assert_eq!(request(address, "GET", "/readyz/config").await.0, 200);
    assert_eq!(request(address, "GET", "/readyz/store").await.0, 503);
    assert_eq!(request(address, "GET", "/readyz/none").await.0, 404);
    served.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let served = Served::folder();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let spawner = served.supervisor.spawner();
    let fake = Fake::new(State::default());
    let error = start_health(address, fake, &spawner, served.shutdown.clone()).await.unwrap_err();
    assert!(
        error.to_string().contains(&address.to_string()) && error.to_string().contains("spec.listen.admin")
    );
}
