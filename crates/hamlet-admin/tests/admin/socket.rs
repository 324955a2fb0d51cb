//! The API over a real unix socket: lists, names, watches, reloads, and the socket's file.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::fake::{Fake, Served, State, peer, service};
use hamlet_admin::api::{
    ImportStatus, PeerState, PeerStatus, PublicationStatus, ReadyCheck, ReloadProblems, ServiceStatus,
};
use hamlet_admin::{Client, ClientError, ServeError};

fn two_of_a_name() -> State {
    State {
        peers: vec![peer("globex", PeerState::Connecting), peer("acme", PeerState::Paused)],
        services: vec![
            service("web", "web.acme.example", None),
            service("ledger", "ledger.globex.example", Some("globex")),
            service("ledger", "ledger.initech.example", Some("initech")),
        ],
        ready: vec![ReadyCheck::ok("store")],
        reload: None,
    }
}

#[tokio::test]
async fn lists_are_ordered_by_name_and_one_thing_is_found_by_name_or_a_unique_alias() {
    let served = Served::folder();
    served.serve(&Fake::new(two_of_a_name())).await.unwrap();
    let client = served.client();
    let peers = client.list::<PeerStatus>().await.unwrap();
    assert_eq!(peers.items.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["acme", "globex"]);
    assert_eq!(client.list::<ServiceStatus>().await.unwrap().items.len(), 3);
    assert_eq!(client.list::<PublicationStatus>().await.unwrap().items[0].name, "shared");
    assert_eq!(client.one::<ImportStatus>("globex").await.unwrap().name, "from-globex");
    let by_name = client.one::<ServiceStatus>("globex/ledger").await.unwrap();
    assert_eq!(by_name.fqdn, "ledger.globex.example");
    let by_fqdn = client.one::<ServiceStatus>("ledger.initech.example").await.unwrap();
    assert_eq!(by_fqdn.name, "initech/ledger");
    match client.one::<ServiceStatus>("ledger").await {
        Err(ClientError::Ambiguous { candidates, .. }) => {
            assert_eq!(candidates, ["globex/ledger", "initech/ledger"]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.agent().await.unwrap().mesh, "acme");
    let status = client.status().await.unwrap();
    assert_eq!((status.local_services, status.imported_services, status.degraded), (1, 2, false));
    served.stop().await;
}

#[tokio::test]
async fn a_name_that_nothing_has_is_not_found_and_a_hostile_one_stays_one_line() {
    let served = Served::folder();
    served.serve(&Fake::new(two_of_a_name())).await.unwrap();
    let client = served.client();
    for name in ["nobody", "../agent", "a\r\nHost: b", "\u{202e}", "%2e%2e", "", &"x".repeat(5000)] {
        match client.one::<PeerStatus>(name).await {
            Err(ClientError::NotFound(message)) => assert!(!message.contains(char::is_control)),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    assert_eq!(client.one::<PeerStatus>("globex").await.unwrap().name, "globex");
    served.stop().await;
}

#[tokio::test]
async fn a_watch_gives_a_list_now_and_one_after_a_change_and_ends_when_the_agent_stops() {
    let served = Served::folder();
    let fake = Fake::new(two_of_a_name());
    served.serve(&fake).await.unwrap();
    let mut watch = served.client().watch::<PeerStatus>().await.unwrap();
    assert_eq!(watch.next().await.unwrap().items.len(), 2);
    fake.change(|s| s.peers.push(peer("initech", PeerState::Connecting)));
    assert_eq!(watch.next().await.unwrap().items.len(), 3);
    served.stop().await;
    assert!(matches!(watch.next().await, Err(ClientError::Closed)));
    assert!(!served.socket().exists(), "the socket's file was left behind");
}

#[tokio::test]
async fn a_long_list_arrives_whole() {
    let served = Served::folder();
    let many = (0..10_000).map(|i| service(&format!("s{i:05}"), &format!("s{i}.acme.example"), None));
    let fake = Fake::new(State { services: many.collect(), ..Default::default() });
    served.serve(&fake).await.unwrap();
    let client = served.client();
    assert_eq!(client.list::<ServiceStatus>().await.unwrap().items.len(), 10_000);
    let mut watch = client.watch::<ServiceStatus>().await.unwrap();
    assert_eq!(watch.next().await.unwrap().items.len(), 10_000);
    drop(watch);
    served.stop().await;
}

#[tokio::test]
async fn a_reload_waits_and_brings_back_what_is_wrong() {
    let served = Served::folder();
    let fake = Fake::new(two_of_a_name());
    served.serve(&fake).await.unwrap();
    let client = served.client();
    assert_eq!(client.reload().await.unwrap().generation, 2);
    let problems = ReloadProblems { problems: vec!["mesh.yaml:3:1: bad".into()], rendered: "x".into() };
    fake.change(|s| s.reload = Some(problems.clone()));
    match client.reload().await {
        Err(ClientError::Configuration(found)) => assert_eq!(found, problems),
        other => panic!("{other:?}"),
    }
    served.stop().await;
}

#[tokio::test]
async fn the_socket_is_private_and_so_is_a_folder_made_for_it() {
    let served = Served::folder();
    let socket = served.serve(&Fake::new(State::default())).await.unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(socket.path()), 0o600);
    assert_eq!(mode(socket.path().parent().unwrap()), 0o700);
    served.stop().await;
}

#[tokio::test]
async fn a_second_agent_is_refused_while_a_stale_socket_is_replaced() {
    let served = Served::folder();
    let fake = Fake::new(State::default());
    // A stale file: bound once, its listener gone.
    std::fs::create_dir_all(served.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(served.socket()).unwrap());
    assert!(served.socket().exists());
    served.serve(&fake).await.unwrap();
    match served.serve(&fake).await {
        Err(ServeError::InUse { path }) => assert_eq!(path, served.socket()),
        other => panic!("{other:?}"),
    }
    assert_eq!(served.client().agent().await.unwrap().mesh, "acme");
    served.stop().await;
    // What is no socket is never removed.
    std::fs::write(served.socket(), "precious").unwrap();
    let again = Served { folder: served.folder, ..Served::folder() };
    assert!(matches!(again.serve(&fake).await, Err(ServeError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(again.socket()).unwrap(), "precious");
}

#[tokio::test]
async fn a_path_longer_than_the_kernel_allows_is_an_error_that_says_so() {
    let served = Served::folder();
    let path = served.folder.path().join("x".repeat(120));
    let spawner = served.supervisor.spawner();
    let started = hamlet_admin::AdminSocket::start(
        &path,
        Fake::new(State::default()),
        &spawner,
        served.shutdown.clone(),
    );
    let error = started.await.unwrap_err();
    assert!(matches!(error, ServeError::PathTooLong { .. }) && error.to_string().contains("shorter"));
}

#[tokio::test]
async fn without_an_agent_and_with_a_silent_one_the_client_says_which() {
    let served = Served::folder();
    match served.client().agent().await {
        Err(error @ ClientError::NoAgent { .. }) => {
            assert!(error.to_string().contains("no agent answers at"))
        }
        other => panic!("{other:?}"),
    }
    // It accepts (the backlog does) but never answers.
    let path = served.folder.path().join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = Client::new(&path, Duration::from_millis(50));
    assert!(matches!(client.agent().await, Err(ClientError::TimedOut { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_watch_outlives_the_idle_limits_and_a_client_that_asks_nothing_does_not() {
    use tokio::io::AsyncReadExt;
    let served = Served::folder();
    let fake = Fake::new(two_of_a_name());
    served.serve(&fake).await.unwrap();
    let mut idle = tokio::net::UnixStream::connect(served.socket()).await.unwrap();
    let mut watch = served.client().watch::<PeerStatus>().await.unwrap();
    assert_eq!(watch.next().await.unwrap().items.len(), 2);
    let later = async {
        tokio::time::sleep(hamlet_admin::limits::HEAD_TIMEOUT * 4).await;
        fake.change(|s| s.peers.push(peer("initech", PeerState::Connecting)));
    };
    let (list, ()) = tokio::join!(watch.next(), later);
    assert_eq!(list.unwrap().items.len(), 3);
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn more_clients_than_there_are_places_wait_and_are_served() {
    let served = Served::folder();
    served.serve(&Fake::new(two_of_a_name())).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..hamlet_admin::limits::SOCKET_CONNECTIONS {
        let mut watch = served.client().watch::<PeerStatus>().await.unwrap();
        watch.next().await.unwrap();
        held.push(watch);
    }
    let client = served.client();
    let (answer, ()) = tokio::join!(client.agent(), async { drop(held) });
    assert_eq!(answer.unwrap().mesh, "acme");
    served.stop().await;
}

#[tokio::test]
async fn a_transcript_comes_from_an_entry_on_and_of_nobody_not_at_all() {
    let served = Served::folder();
    served.serve(&Fake::new(two_of_a_name())).await.unwrap();
    let client = served.client();
    let all = client.transcript("globex", 0).await.unwrap();
    assert_eq!(all.entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let later = client.transcript("globex", 2).await.unwrap();
    assert_eq!(later.entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [3, 4]);
    for nobody in ["nobody", "", "../agent", "evil\u{1b}[2J"] {
        let refused = client.transcript(nobody, 0).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NotFound(text) if !text.contains('\u{1b}')), "{refused:?}");
    }
    assert_eq!(client.confirm_withdrawals().await.unwrap(), 3);
    served.stop().await;
}

#[tokio::test]
async fn our_bundle_is_shown_and_a_peers_is_set_with_its_bytes() {
    let (served, fake) = (Served::folder(), Fake::new(State::default()));
    served.serve(&fake).await.unwrap();
    let client = served.client();
    assert_eq!(client.own_bundle().await.unwrap().trust_domain, "acme.example");
    let set = client.set_bundle("globex", vec![b'x'; 100_000]).await.unwrap();
    assert_eq!(set.added, ["100000 bytes"]);
    let refused = client.set_bundle("globex", vec![]).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused { status: 422, message } if message == "it is empty"));
    for nobody in ["initech", "glo/bex", "", &"x".repeat(3000)] {
        let missing = client.set_bundle(nobody, vec![1]).await.unwrap_err();
        assert!(matches!(missing, ClientError::NotFound(_)), "{nobody}: {missing}");
    }
    served.stop().await;
}
