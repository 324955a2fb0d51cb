//! A backend is told who calls, and nobody can pretend to be another.

use crate::mesh::Two;
use crate::probe::{connect, echo, get, line};
use crate::wait::until;
use crate::workload::Workload;

const CALLER: &str = "spiffe://globex.example/hamlet/gateway";

#[test]
fn a_tcp_service_gets_the_proven_caller_in_a_proxy_v2_header_and_then_the_bytes() {
    let raw = Workload::proxied_echo();
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "proxy-v2");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    let at = until("the name resolves", || two.egress("raw"));
    let mut stream = connect(at).unwrap();
    // 0x21: version 2, PROXY; 0x11: TCP over IPv4.
    assert_eq!(line(&mut stream).unwrap(), format!("0x21 0x11 {CALLER}"));
    echo(&mut stream, "hello").unwrap();
    // A header that the client sends itself is only bytes to us.
    let mut forger = connect(at).unwrap();
    assert_eq!(line(&mut forger).unwrap(), format!("0x21 0x11 {CALLER}"));
    echo(&mut forger, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r").unwrap();
    // The peer's own view of the shared HTTP listener: this is no HTTP service.
    let by_host = get(two.globex.at.egress_http, "raw.acme.example", "/").unwrap();
    assert_eq!(by_host.status, 404, "{by_host:?}");
}

#[test]
fn an_http_service_gets_the_proven_caller_in_a_header_and_a_forged_one_is_replaced() {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "http-header");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    let honest = two.until_answers("ledger");
    let told = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| l.to_lowercase().starts_with("x-hamlet"));
        lines.map(str::to_owned).collect()
    };
    let expected = [format!("x-hamlet-caller: {CALLER}"), "x-hamlet-caller-mesh: globex.example".to_owned()];
    assert_eq!(told(&honest.text), expected);
    let host = format!("ledger.acme.example:{}", two.port);
    let forged = format!(
        "{host}\r\nX-Hamlet-Caller: spiffe://initech.example/hamlet/gateway\r\n\
         x-hamlet-caller-mesh: initech.example\r\nx-hamlet-other: 1\r\nx-other: kept"
    );
    for at in [two.egress("ledger").unwrap(), two.globex.at.egress_http] {
        let forged = if at == two.globex.at.egress_http {
            forged.replace(&host, "ledger.acme.example")
        } else {
            forged.clone()
        };
        let answer = get(at, &forged, "/forged").unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(told(&answer.text), expected, "at {at}");
        assert!(answer.text.contains("x-other: kept"), "{answer:?}");
    }
    let misdirected = get(two.egress("ledger").unwrap(), "other.acme.example", "/").unwrap();
    assert_eq!(misdirected.status, 421, "{misdirected:?}");
}
