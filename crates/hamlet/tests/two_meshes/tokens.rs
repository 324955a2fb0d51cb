//! Two meshes that share nothing but a channel for one line of text become peers, and part.

use std::fs;
use std::net::SocketAddr;

use hamlet_peering::channel::EXCHANGES_MAX;
use hamlet_store::{Store, StoreOptions};
use serde_json::Value;

use crate::mesh::{Mesh, Outcome, Two};
use crate::probe::{connect, echo, read_to_end};
use crate::texts;
use crate::wait::{timed, until, until_true};
use crate::workload::Workload;

/// Invites, and returns the token.
fn invite(mesh: &Mesh, args: &[&str]) -> String {
    let invited = mesh.cli(&[&["peer", "invite"], args].concat());
    assert_eq!(invited.code, 0, "{invited:?}");
    let token = invited.out.trim_end().to_owned();
    assert!(token.starts_with("hamlet1.") && !token.contains(char::is_whitespace), "{invited:?}");
    assert!(!invited.err.contains(&token), "the token is on standard output only");
    token
}

fn accept(mesh: &Mesh, token: &str) -> Outcome {
    mesh.cli_fed(&["peer", "accept"], &format!("{token}\n"))
}

fn words(mesh: &Mesh, peer: &Mesh) -> String {
    let described = mesh.json(&["peer", "describe", peer.name]);
    described["words"].as_str().unwrap().to_owned()
}

/// What a token may not leave behind.
fn assert_unseen(mesh: &Mesh, token: &str) {
    let secret = &token["hamlet1.".len() + 22..token.len() - 12];
    assert!(!mesh.log().contains(secret), "the log of {} shows a token", mesh.name);
    assert!(!mesh.cli(&["peer", "list", "-o", "json"]).out.contains(secret));
}

/// Both accept, and both people confirm.
fn peered(two: &mut Two) -> String {
    let token = invite(&two.acme, &["globex"]);
    let accepted = accept(&two.globex, &token);
    assert_eq!(accepted.code, 0, "{accepted:?}");
    let seen = words(&two.acme, &two.globex);
    assert!(accepted.err.contains(&seen), "both see the same words: {accepted:?}");
    assert_eq!(words(&two.globex, &two.acme), seen);
    for (mesh, peer) in [(&two.acme, "globex"), (&two.globex, "acme")] {
        let typed: Vec<&str> = seen.split(' ').collect();
        let confirmed = mesh.cli(&[&["peer", "confirm", peer], &typed[..]].concat());
        assert_eq!(confirmed.code, 0, "{confirmed:?}");
    }
    token
}

#[test]
fn two_strangers_peer_with_one_command_each_confirm_and_exchange_a_service() {
    let raw = Workload::echo();
    let mut two = Two::strangers();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.start();
    let (token, took) = timed(|| {
        let token = invite(&two.acme, &["globex", "--expect-domain", "globex.example"]);
        let accepted = accept(&two.globex, &token);
        assert_eq!(accepted.code, 0, "{accepted:?}");
        for next in ["hamlet peer confirm acme", "kind: Publication", "kind: Import", "hamlet reload"] {
            assert!(accepted.err.contains(next), "{next} is to be typed next: {accepted:?}");
        }
        token
    });
    println!("two commands, invitation to acceptance: {took:?}");
    assert_eq!(words(&two.acme, &two.globex), words(&two.globex, &two.acme));

    // Nobody is trusted yet, whatever the policy says already.
    two.acme.publish("raw", &["raw"], &two.globex);
    two.globex.write("import.yaml", &texts::import(&two.acme));
    until_true("the inviting agent has taken its new peer", || {
        two.acme.cli(&["get", "peer", "globex"]).code == 0
    });
    two.globex.until_peer(&two.acme, "refused");
    let shown = two.acme.until_peer(&two.globex, "refused");
    assert!(shown.to_string().contains("hamlet peer confirm globex"), "{shown}");

    let wrong = two.globex.cli(&["peer", "confirm", "acme", "zoo", "zoo", "zoo", "zoo"]);
    assert!(wrong.code == 1 && wrong.err.contains("not the words"), "{wrong:?}");
    let nobody = two.globex.cli(&["peer", "confirm", "acme"]);
    assert_eq!(nobody.code, 2, "{nobody:?}");
    let seen = words(&two.acme, &two.globex);
    let typed: Vec<&str> = seen.split(' ').collect();
    assert_eq!(two.globex.cli(&[&["peer", "confirm", "acme"], &typed[..]].concat()).code, 0);
    assert_eq!(two.acme.cli(&["peer", "confirm", "globex", "--yes"]).code, 0);
    two.globex.until_callable("acme/raw");
    two.until_in_sync();
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "by token").unwrap();

    // It is an ordinary document, also after a restart, and for whoever only checks the files.
    let document = two.acme.cli(&["peer", "describe", "globex", "-o", "yaml"]).out;
    assert!(document.contains("kind: Peer") && document.contains("extensions: required"), "{document}");
    assert!(two.acme.peer(&two.globex)["document"].as_str().is_some_and(|d| d == document));
    two.acme.stop();
    two.acme.start();
    two.until_in_sync();
    let folder = two.acme.folder.display().to_string();
    let checked =
        std::process::Command::new(&two.acme.program[0]).args(["validate", "-f", &folder]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    for mesh in [&two.acme, &two.globex] {
        assert_unseen(mesh, &token);
    }
}

#[test]
fn used_altered_expired_and_foreign_tokens_are_refused_and_shown() {
    let mut two = Two::strangers();
    let mut initech = two.third();
    two.start();
    initech.start();
    let refused = |outcome: &Outcome, why: &str| {
        assert!(outcome.code == 1 && outcome.err.contains(why), "{why}: {outcome:?}");
    };
    refused(&accept(&two.globex, "hello"), "this is no token");
    refused(&two.globex.cli(&["peer", "accept"]), "there is no token");
    let token = invite(&two.acme, &["globex"]);
    let at = token.len() / 2;
    let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
    refused(&accept(&two.globex, &format!("{}{other}{}", &token[..at], &token[at + 1..])), "altered");
    refused(&accept(&two.globex, &token[..token.len() - 4]), "altered");
    refused(&accept(&two.acme, &token), "our own trust domain");

    let file = two.root().join("token");
    fs::write(&file, &token).unwrap();
    let accepted = two.globex.cli(&["peer", "accept", "acme", "--file", file.to_str().unwrap()]);
    assert_eq!(accepted.code, 0, "{accepted:?}");
    refused(&accept(&two.globex, &token), "the peer acme already");
    // Somebody else with the same token: refused there, and an alarm here.
    refused(&accept(&initech, &token), "the token was used already");
    let list = two.acme.cli(&["peer", "list"]);
    assert!(list.code == 3 && list.out.contains("ALARM"), "{list:?}");
    assert!(two.acme.log().contains("ALARM"));

    let foreign = invite(&two.acme, &["other", "--expect-domain", "umbrella.example"]);
    refused(&accept(&initech, &foreign), "meant for the trust domain umbrella.example");
    let short = invite(&two.acme, &["short", "--expires", "1s"]);
    until("the token expires", || {
        let list = two.acme.json(&["peer", "list"]);
        let invitations = list["invitations"].as_array().unwrap();
        let left = invitations.iter().find(|i| i["name"] == "short").unwrap()["expiresInS"].as_i64().unwrap();
        if left < 0 { Ok(()) } else { Err(left.to_string()) }
    });
    refused(&accept(&initech, &short), "expired");
    let withdrawn = invite(&two.acme, &["initech"]);
    assert_eq!(two.acme.cli(&["peer", "remove", "initech"]).code, 0);
    refused(&accept(&initech, &withdrawn), "no such invitation");
    for mesh in [&two.acme, &two.globex, &initech] {
        assert_unseen(mesh, &token);
    }
    assert_eq!(initech.cli(&["get", "peers", "-o", "name"]).out, "", "nothing came of all that");
}

/// Two meshes, peers by token: globex calls acme's `raw`, there, with that workload behind it.
fn federated_by_token() -> (Two, Workload, SocketAddr) {
    let raw = Workload::echo();
    let mut two = Two::strangers();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.start();
    peered(&mut two);
    two.acme.publish("raw", &["raw"], &two.globex);
    two.globex.write("import.yaml", &texts::import(&two.acme));
    two.globex.until_callable("acme/raw");
    two.until_in_sync();
    let at = two.egress("raw").unwrap();
    (two, raw, at)
}

#[test]
fn a_removed_peer_is_told_forgets_at_once_and_all_connections_end() {
    let (mut two, _raw, at) = federated_by_token();
    let mut live = connect(at).unwrap();
    echo(&mut live, "before").unwrap();

    assert_eq!(two.acme.cli(&["peer", "pause", "globex"]).code, 0);
    two.acme.until_peer(&two.globex, "paused");
    assert!(two.globex.service("acme/raw").is_some(), "a pause withdraws nothing");
    assert_eq!(two.acme.cli(&["peer", "resume", "globex"]).code, 0);
    two.until_in_sync();

    let (removed, took) = timed(|| two.acme.cli(&["peer", "remove", "globex"]));
    // The publication still names it, and says so; the removal is in force all the same.
    assert!(removed.code == 3 && removed.err.contains("it was told"), "{removed:?}");
    assert!(removed.err.contains("publication-raw.yaml"), "{removed:?}");
    let ((), ended) = timed(|| drop(read_to_end(&mut live)));
    println!("removed and told within {took:?}, the call ended {ended:?} later");
    until_true("globex has forgotten the service", || two.globex.service("acme/raw").is_none());
    assert!(two.globex.log().contains("leaves for good"), "the withdrawal is in the log");
    two.globex.until_peer(&two.acme, "refused");
    assert_eq!(two.acme.cli(&["get", "peer", "globex"]).code, 5);
    assert_eq!(two.acme.cli(&["peer", "describe", "globex"]).code, 5);
    let fails = connect(at).and_then(|mut s| echo(&mut s, "out"));
    assert!(fails.is_err(), "the ingress serves a stranger");

    two.acme.remove("publication-raw.yaml");
    until_true("acme takes its files again", || two.acme.cli(&["reload"]).code == 0);
    // Peer anew, after the other side has forgotten as well.
    two.globex.remove("import.yaml");
    assert_eq!(two.globex.cli(&["peer", "remove", "acme"]).code, 0);
    peered(&mut two);
    two.until_in_sync();
}

/// What stands in the store between a removal's first step and its last: the intent, and no peer.
fn cut_removal_short(mesh: &Mesh, peer: &str) {
    let store = Store::open(&mesh.data(), StoreOptions::default()).unwrap().store;
    let read = |name: &str| -> Value {
        serde_json::from_slice(&store.get_document(name).unwrap().unwrap()).unwrap()
    };
    let (mut index, document) = (read("peering"), format!("peering/{peer}"));
    index["peers"].as_array_mut().unwrap().retain(|name| name != peer);
    index["leaving"].as_array_mut().unwrap().push(read(&document));
    let changes = vec![("peering".to_owned(), Some(serde_json::to_vec(&index).unwrap())), (document, None)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.put_documents(changes)).unwrap();
    store.close().unwrap();
}

#[test]
fn a_removal_that_a_crash_cut_short_stays_one_and_the_peer_is_refused_and_holds_on() {
    let (mut two, _raw, at) = federated_by_token();

    two.acme.stop();
    cut_removal_short(&two.acme, "globex");
    // Without the peer it would name nobody, which is an error at the start.
    two.acme.remove("publication-raw.yaml");
    two.acme.start();
    assert_eq!(two.acme.log().matches("could not be told").count(), 1);
    for command in [["get", "peer", "globex"], ["peer", "describe", "globex"]] {
        assert_eq!(two.acme.cli(&command).code, 5, "{command:?}");
    }
    assert!(!two.acme.data().join("peers/globex.pem").exists(), "its files went with it");
    // The other side is refused, and keeps to its hold time: nobody said that we leave for good.
    let refused = two.globex.until_peer(&two.acme, "refused");
    let reason = refused["state"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("refuses our certificate (TLS alert certificate_unknown)"), "{refused}");
    until_true("acme has refused it", || two.acme.log().contains("refused a connection to the agent port"));
    assert!(two.globex.service("acme/raw").is_some());
    let fails = connect(at).and_then(|mut s| echo(&mut s, "out"));
    assert!(fails.is_err(), "the ingress serves a stranger");

    // The record is gone with the next start, and both may peer anew.
    two.acme.stop();
    two.acme.start();
    assert_eq!(two.acme.log().matches("could not be told").count(), 1);
    two.globex.remove("import.yaml");
    assert!(matches!(two.globex.cli(&["peer", "remove", "acme"]).code, 0 | 3));
    peered(&mut two);
    two.until_in_sync();
}

/// A stranger with a certificate at an agent's port.
struct Stranger {
    runtime: tokio::runtime::Runtime,
    ca: hamlet_testkit::pki::TestCa,
    at: std::net::SocketAddr,
}

type Line = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

impl Stranger {
    fn at(mesh: &Mesh) -> Stranger {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Stranger { runtime, ca: hamlet_testkit::pki::TestCa::new("stranger.example"), at: mesh.at.agent }
    }

    /// Begins an exchange, if the port agrees to it.
    fn begin(&self, alpn: &[&[u8]]) -> Option<Line> {
        let config = hamlet_testkit::tls::stranger_client(Some(&self.ca.agent()), alpn);
        let tls = self.runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(self.at).await.unwrap();
            let name = tokio_rustls::rustls::pki_types::ServerName::try_from("acme.example").unwrap();
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await
        });
        tls.ok().filter(|tls| tls.get_ref().1.alpn_protocol() == Some(b"hamlet-peering/1"))
    }

    /// Whether the other side has not closed it.
    fn is_open(&self, line: &mut Line) -> bool {
        let look = async {
            let moment = std::time::Duration::from_millis(1);
            tokio::time::timeout(moment, tokio::io::AsyncReadExt::read_u8(line)).await
        };
        self.runtime.block_on(look).is_err()
    }
}

/// Whether the agent's port agrees on an ALPN with a stranger who has a certificate.
fn agrees(mesh: &Mesh, alpn: &[&[u8]]) -> bool {
    Stranger::at(mesh).begin(alpn).is_some()
}

#[test]
fn a_ninth_exchange_at_a_time_is_refused_and_has_a_place_when_another_ends() {
    const ALPN: &[&[u8]] = &[b"hamlet-peering/1"];
    let mut two = Two::strangers();
    two.start();
    let token = invite(&two.acme, &["globex"]);
    let stranger = Stranger::at(&two.acme);
    // Who says nothing is thrown out after ten seconds: on a slow machine some may be gone already.
    let mut eight = until("eight are open and a ninth is not", || {
        let mut eight: Vec<Line> = (0..EXCHANGES_MAX).filter_map(|_| stranger.begin(ALPN)).collect();
        let ninth = stranger.begin(ALPN);
        let all_open = eight.len() == EXCHANGES_MAX && eight.iter_mut().all(|l| stranger.is_open(l));
        assert!(ninth.is_none() || !all_open, "a ninth exchange was begun beside eight");
        if ninth.is_none() && all_open { Ok(eight) } else { Err(format!("{} are open", eight.len())) }
    });
    let refused = accept(&two.globex, &token);
    let all_open = eight.iter_mut().all(|line| stranger.is_open(line));
    assert!(!all_open || (refused.code == 1 && refused.err.contains("too many at once")), "{refused:?}");
    drop(eight);
    if refused.code != 0 {
        until_true("the honest one has a place", || accept(&two.globex, &token).code == 0);
    }
    assert_eq!(words(&two.acme, &two.globex), words(&two.globex, &two.acme));
}

#[test]
fn the_peering_port_is_shut_without_an_invitation_and_open_for_nothing_else() {
    let mut two = Two::strangers();
    two.acme.start();
    assert!(!agrees(&two.acme, &[b"hamlet-peering/1"]), "no invitation is open");
    invite(&two.acme, &["globex"]);
    assert!(agrees(&two.acme, &[b"hamlet-peering/1"]));
    assert!(!agrees(&two.acme, &[b"h2", b"hamlet-peering/1"]), "who also wants a stream is a peer or nobody");
    assert!(!agrees(&two.acme, &[b"h2"]));
    assert_eq!(two.acme.cli(&["peer", "remove", "globex"]).code, 0);
    assert!(!agrees(&two.acme, &[b"hamlet-peering/1"]), "the invitation was withdrawn");
}

#[test]
fn a_name_that_stands_in_files_too_is_an_error_and_a_peer_in_files_is_not_changed_by_commands() {
    let mut two = Two::strangers();
    two.start();
    peered(&mut two);
    two.acme.meet(&two.globex);
    let twice = two.acme.cli(&["reload"]);
    assert!(twice.code == 1 && twice.err.contains("declared twice"), "{twice:?}");
    // Moved into files: the token's peer goes, the document stays.
    assert!(matches!(two.acme.cli(&["peer", "remove", "globex"]).code, 0 | 3));
    until_true("acme takes the file", || two.acme.cli(&["reload"]).code == 0);
    two.until_in_sync();
    for command in ["pause", "resume", "remove"] {
        let refused = two.acme.cli(&["peer", command, "globex"]);
        assert!(refused.code == 1 && refused.err.contains("files"), "{command}: {refused:?}");
    }
    let invited = two.acme.cli(&["peer", "invite", "globex"]);
    assert!(invited.code == 1 && invited.err.contains("a peer globex already"), "{invited:?}");
}
