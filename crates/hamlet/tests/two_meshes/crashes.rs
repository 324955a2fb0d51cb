//! Either side is killed: what was imported stays, calls fail cleanly, and both prove the same set
//! again.

use crate::mesh::Two;
use crate::probe::{address, connect, echo, get, read_to_end, resolve};
use crate::wait::{until, until_true};
use crate::workload::Workload;

fn two_with_ledger_and_raw(ledger: &Workload, raw: &Workload) -> Two {
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "none");
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.until_answers("ledger");
    two.globex.until_callable("acme/raw");
    two.until_in_sync();
    two
}

#[test]
fn a_killed_owner_takes_nothing_with_it_but_calls_and_is_proven_again_after_its_return() {
    let (ledger, raw) = (Workload::http("ledger"), Workload::echo());
    let mut two = two_with_ledger_and_raw(&ledger, &raw);
    let at = two.egress("ledger").unwrap();
    let mut live = connect(two.egress("raw").unwrap()).unwrap();
    echo(&mut live, "before").unwrap();

    two.acme.kill();
    read_to_end(&mut live).unwrap();
    let down = two.globex.until_peer(&two.acme, "down");
    assert!(down["state"]["holdLeftMs"].as_u64().unwrap() > 3_000_000, "{down}");
    assert!(down["lastError"]["message"].is_string(), "it says why: {down}");
    let kept = two.globex.service("acme/ledger").unwrap();
    assert_eq!(kept["standing"], "held");
    assert_eq!(two.egress("ledger"), Ok(at));
    let call = two.call("ledger", "/");
    assert!(call.as_ref().is_err_and(|e| !e.contains("timed out")), "it fails soon: {call:?}");
    let by_host = get(two.globex.at.egress_http, "ledger.acme.example", "/").unwrap();
    assert!(matches!(by_host.status, 502..=504), "{by_host:?}");
    assert!(by_host.text.to_lowercase().contains("x-hamlet-error: "), "{by_host:?}");
    let status = two.globex.cli(&["status"]);
    assert_eq!(status.code, 3, "{status:?}");
    assert!(status.out.contains("acme: down"), "{}", status.out);
    let ready = get(two.globex.at.health, "localhost", "/readyz").unwrap();
    assert_eq!(ready.status, 200, "a lost peer makes nobody unready");

    // While it is away one service goes and one comes.
    two.acme.remove("publication-raw.yaml");
    let news = Workload::http("news");
    two.acme.declare("news", "HTTP", two.port, news.at, "none");
    two.acme.publish("news", &["news"], &two.globex);
    two.acme.start();
    two.until_answers("ledger");
    two.until_answers("news");
    until_true("what went meanwhile is swept", || two.globex.service("acme/raw").is_none());
    two.until_in_sync();
    assert_eq!(two.egress("ledger"), Ok(at));
    assert_eq!(two.globex.service("acme/ledger").unwrap()["standing"], "current");
    until_true("nothing is wrong any more", || two.globex.cli(&["status"]).code == 0);
}

#[test]
fn a_killed_consumer_serves_what_it_had_at_the_same_addresses_before_it_reaches_the_owner() {
    let (ledger, raw) = (Workload::http("ledger"), Workload::echo());
    let mut two = two_with_ledger_and_raw(&ledger, &raw);
    let addresses = |two: &Two| {
        let names =
            ["ledger.acme.example", "http.ledger.acme.example", "raw.acme.example", "tcp.raw.acme.example"];
        names.map(|name| address(&two.globex, name))
    };
    let before = addresses(&two);
    assert!(before.iter().all(Result::is_ok), "{before:?}");
    two.globex.kill();
    two.acme.stop();

    two.globex.start();
    // No waiting: an agent that is ready serves what its store kept.
    assert_eq!(two.globex.services(), ["acme/ledger", "acme/raw"]);
    assert_eq!(addresses(&two), before);
    assert_eq!(resolve(&two.globex, "nobody.acme.example").code, 5);
    assert_eq!(two.globex.service("acme/raw").unwrap()["standing"], "held");
    until("its listeners are there again", || {
        match connect((*before[0].as_ref().unwrap(), two.port).into()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    });
    two.globex.kill();
    two.globex.start();
    assert_eq!(addresses(&two), before, "a second crash in a row changes nothing either");

    two.acme.start();
    two.until_in_sync();
    two.until_answers("ledger");
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "after").unwrap();
    assert_eq!(addresses(&two), before);
}

#[test]
fn a_deletion_made_while_the_consumer_was_down_is_swept_when_it_returns() {
    let (ledger, raw) = (Workload::http("ledger"), Workload::echo());
    let mut two = two_with_ledger_and_raw(&ledger, &raw);
    two.globex.kill();
    two.acme.remove("service-raw.yaml");
    two.acme.remove("publication-raw.yaml");
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    two.globex.start();
    until_true("the deletion is swept", || two.globex.services() == ["acme/ledger"]);
    two.until_in_sync();
    two.until_answers("ledger");
}
