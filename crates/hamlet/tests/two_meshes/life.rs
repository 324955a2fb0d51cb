//! One agent's life: ready, reloads, health, and its end by signals.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::Signal;

use crate::mesh::{DRAIN, Two};
use crate::probe::{connect, echo, get, read_to_end};
use crate::wait::{timed, until, until_true};
use crate::workload::Workload;

#[test]
fn the_ready_file_tells_the_real_ports_and_sighup_takes_a_new_configuration() {
    let mut two = Two::new();
    let text = std::fs::read_to_string(two.acme.folder.join("mesh.yaml")).unwrap();
    let dns = two.acme.at.dns;
    two.acme.write("mesh.yaml", &text.replace(&dns.to_string(), &format!("{}:0", dns.ip())));
    two.acme.start();
    let ready = two.acme.ready();
    two.acme.at.dns = ready["dns"].as_str().unwrap().parse().unwrap();
    assert_ne!(two.acme.at.dns.port(), 0);
    assert_eq!(crate::probe::resolve(&two.acme, "nobody.example").code, 5);
    for (name, at) in
        [("agent", two.acme.at.agent), ("ingress", two.acme.at.ingress), ("health", two.acme.at.health)]
    {
        assert_eq!(ready[name], at.to_string());
        assert!(connect(at).is_ok());
    }
    let socket = std::fs::canonicalize(ready["socket"].as_str().unwrap()).unwrap();
    assert_eq!(socket, std::fs::canonicalize(two.acme.socket()).unwrap());
    let mode = std::fs::metadata(two.acme.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the socket's mode is the access control");

    let generation = || two.acme.json(&["status"])["agent"]["config"]["generation"].as_u64().unwrap();
    let before = generation();
    two.acme.declare("hello", "HTTP", 80, "127.0.0.1:9".parse().unwrap(), "none");
    two.acme.signal(Signal::SIGHUP);
    until_true("the new service is there", || two.acme.service("hello").is_some());
    assert!(generation() > before);
    two.acme.stop();
    assert!(!two.acme.socket().exists(), "a stopped agent leaves no socket");
}

#[test]
fn health_and_metrics_are_all_that_tcp_gives() {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    two.until_answers("ledger");
    let ask = |path: &str| get(two.globex.at.health, "localhost", path).unwrap();
    assert_eq!(ask("/livez").status, 200);
    let ready = ask("/readyz?verbose");
    assert_eq!(ready.status, 200, "{ready:?}");
    for check in ["config", "store", "identity", "running"] {
        assert!(ready.text.contains(&format!("[+]{check} ok\n")), "{}", ready.text);
    }
    for path in ["/v1/status", "/v1/agent", "/v1/peers", "/v1/reload", "/", "/debug"] {
        assert_eq!(ask(path).status, 404, "{path}");
    }
    let metrics = until("the connection is counted", || {
        let metrics = ask("/metrics").text;
        let line = "hamlet_gateway_connections_total{listener=\"egress\",outcome=\"served\"}";
        if metrics.contains(line) { Ok(metrics) } else { Err(metrics) }
    });
    let names = metrics.lines().filter(|l| !l.starts_with('#') && l.contains(' '));
    for name in names.skip_while(|l| !l.starts_with("hamlet_")) {
        assert!(name.starts_with("hamlet_") && !name.starts_with("hamlet_hamlet"), "{name}");
    }
    for line in
        ["hamlet_ready 1", "hamlet_services{origin=\"imported\"} 1", "hamlet_gateway_egress_listening 2"]
    {
        assert!(metrics.lines().any(|l| l.trim_end_matches(".0") == line), "no {line} in {metrics}");
    }
    assert!(!metrics.contains("ledger"), "a service's name is no label");
}

#[test]
fn sigterm_lets_connections_drain_and_a_second_one_ends_at_once() {
    let raw = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    let at = until("the name resolves", || two.egress("raw"));
    let mut live = connect(at).unwrap();
    echo(&mut live, "before").unwrap();

    two.globex.signal(Signal::SIGTERM);
    until_true("it takes no new connections", || {
        connect(at).map_or(true, |mut s| echo(&mut s, "new").is_err())
    });
    echo(&mut live, "while it drains").unwrap();
    let ready =
        until("it is not ready any more", || match get(two.globex.at.health, "localhost", "/readyz") {
            Ok(answer) if answer.status == 503 => Ok(answer),
            other => Err(format!("{other:?}")),
        });
    assert!(ready.text.contains("[-]running failed: the agent is stopping"), "{ready:?}");
    two.globex.signal(Signal::SIGTERM);
    let (ended, took) = timed(|| two.globex.wait_end());
    assert!(took < DRAIN / 2, "at once, not after the drain: {took:?}");
    assert!(ended.code() == Some(1) || ended.signal().is_some(), "{ended}");
    read_to_end(&mut live).unwrap();

    // And one is enough when nothing is held open; the peer goes on.
    two.globex.start();
    two.globex.until_callable("acme/raw");
    let mut live = connect(until("the name resolves", || two.egress("raw"))).unwrap();
    echo(&mut live, "again").unwrap();
    two.globex.signal(Signal::SIGTERM);
    echo(&mut live, "last words").unwrap();
    drop(live);
    assert_eq!(two.globex.wait_end().code(), Some(0));
    two.acme.stop();
}

#[test]
fn a_second_agent_on_the_same_data_folder_is_refused_by_name() {
    let mut two = Two::new();
    two.acme.start();
    let text = std::fs::read_to_string(two.acme.folder.join("mesh.yaml")).unwrap();
    // Listeners of its own, so that only the data folder is in the way.
    let elsewhere: String = text
        .lines()
        .map(|line| match line.split_once("listen:") {
            Some((before, _)) => format!(
                "{before}listen: {{agent: off, ingress: off, egressHttp: off, dns: off, admin: off}}\n"
            ),
            None => format!("{line}\n"),
        })
        .collect();
    let folder = two.root().join("acme");
    two.globex
        .write("mesh.yaml", &elsewhere.replace("identity/", &format!("{}/identity/", folder.display())));
    two.globex.write("peer-acme.yaml", "# none\n");
    let mut second = two.globex.spawn();
    let ended =
        until("the second agent ends", || second.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
    assert_eq!(ended.code(), Some(1));
    let log = two.globex.log();
    assert!(log.contains("error:") && log.contains("acme-data"), "{log}");
    assert!(log.contains("another"), "it says what is in the way: {log}");
    assert_eq!(two.acme.json(&["status"])["agent"]["store"]["healthy"], true, "the first is unharmed");
    two.acme.stop();
}
