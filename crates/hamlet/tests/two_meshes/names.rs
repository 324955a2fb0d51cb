//! curl and dig, as they are, through names and gateways.

use std::process::Command;

use crate::mesh::Two;
use crate::probe::address;
use crate::texts;
use crate::wait::until;
use crate::workload::Workload;

/// Runs a tool and returns its standard output.
fn tool(name: &str, package: &str, args: &[&str]) -> String {
    let output = Command::new(name).args(args).output().unwrap_or_else(|error| {
        panic!(
            "`{name}` can't be run ({error}). This test calls services as people do; install the Debian package {package}"
        )
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn curl(args: &[&str]) -> String {
    let common = ["--silent", "--show-error", "--noproxy", "*", "--max-time", "10"];
    tool("curl", "curl", &[&common, args].concat())
}

struct Dig<'a>(&'a Two);

impl Dig<'_> {
    fn run(&self, args: &[&str]) -> String {
        let dns = self.0.globex.at.dns;
        let (server, port) = (format!("@{}", dns.ip()), dns.port().to_string());
        let common = ["-r", &server, "-p", &port, "+tries=1", "+time=5"];
        tool("dig", "bind9-dnsutils", &[&common, args].concat())
    }

    /// The addresses alone.
    fn short(&self, args: &[&str]) -> String {
        self.run(&[&["+short"], args].concat()).trim().to_owned()
    }

    /// The status, and how many answers there are.
    fn status(&self, args: &[&str]) -> (String, String) {
        let out = self.run(&[&["+noall", "+comments"], args].concat());
        let after = |mark: &str| {
            let rest = out.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in {out}")).1;
            rest.split([',', '\n', ' ']).next().unwrap_or_default().to_owned()
        };
        (after("status: "), after("ANSWER: "))
    }
}

fn pair(status: &str, answers: &str) -> (String, String) {
    (status.to_owned(), answers.to_owned())
}

#[test]
#[ignore = "needs curl and dig (Debian: curl, bind9-dnsutils); .ci/run runs it"]
fn curl_calls_an_imported_service_by_its_name_its_instance_and_its_host() {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "http-header");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    two.globex.until_callable("acme/ledger");
    let dig = Dig(&two);
    for name in ["ledger.acme.example", "http.ledger.acme.example"] {
        let at = until(&format!("{name} resolves"), || address(&two.globex, name));
        assert_eq!(dig.short(&[name]), at.to_string());
        let resolve = format!("{name}:{}:{}", two.port, dig.short(&[name, "A"]));
        let answer = curl(&["--resolve", &resolve, &format!("http://{name}:{}/books", two.port)]);
        assert!(answer.starts_with("I am ledger\nGET /books HTTP/1.1\n"), "{answer}");
        assert!(answer.contains("x-hamlet-caller: spiffe://globex.example/hamlet/gateway\n"), "{answer}");
    }
    let listener = format!("http://{}/by-host", two.globex.at.egress_http);
    for host in ["ledger.acme.example", "LEDGER.acme.example:80", "http.ledger.acme.example"] {
        let answer = curl(&["-H", &format!("Host: {host}"), &listener]);
        assert!(answer.starts_with("I am ledger\nGET /by-host HTTP/1.1\n"), "{host}: {answer}");
        assert!(answer.contains("host: ledger.acme.example\n"), "the owner's name is sent on: {answer}");
    }
    // As an HTTP proxy, which needs no name service at all.
    let proxy = format!("http://{}", two.globex.at.egress_http);
    let answer = curl(&["--noproxy", "none", "--proxy", &proxy, "http://ledger.acme.example/proxied"]);
    assert!(answer.starts_with("I am ledger\nGET /proxied HTTP/1.1\n"), "{answer}");
    let code = |host: &str| curl(&["-o", "/dev/null", "-w", "%{http_code}", "-H", host, &listener]);
    assert_eq!(code("Host: localhost"), "404", "an open proxy");
    assert_eq!(code("Host: ledger.acme.example"), "200");
}

#[test]
#[ignore = "needs curl and dig (Debian: curl, bind9-dnsutils); .ci/run runs it"]
fn dig_gets_answers_nodata_refusals_and_nxdomain_where_each_is_right() {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    two.globex.until_callable("acme/ledger");
    let name = "ledger.acme.example";
    let at = until("the name resolves", || address(&two.globex, name)).to_string();
    let dig = Dig(&two);
    assert_eq!(dig.short(&["+tcp", name, "A"]), at);
    assert_eq!(dig.short(&["+noedns", "LedGer.Acme.Example", "A"]), at);
    assert_eq!(dig.status(&[name, "A"]), pair("NOERROR", "1"));
    assert_eq!(dig.status(&[name, "AAAA"]), pair("NOERROR", "0"));
    assert_eq!(dig.status(&["+tcp", name, "MX"]), pair("NOERROR", "0"));
    assert!(dig.short(&["_http._tcp.ledger.acme.example", "SRV"]).ends_with("http.ledger.acme.example."));
    assert_eq!(dig.status(&["other.acme.example"]), pair("REFUSED", "0"));
    assert_eq!(dig.status(&["www.example.org"]), pair("REFUSED", "0"));

    let exclusive = "  dns: {ttl: 7s, zones: [{suffix: acme.example, exclusive: true}]}\n";
    two.globex.write("mesh.yaml", &texts::mesh(&two.globex, exclusive));
    assert_eq!(two.globex.cli(&["reload"]).code, 0);
    until("the suffix is exclusive", || match dig.status(&["other.acme.example"]) {
        seen if seen == pair("NXDOMAIN", "0") => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    assert_eq!(dig.status(&["www.example.org"]), pair("REFUSED", "0"));
    assert_eq!(dig.status(&[name, "A"]), pair("NOERROR", "1"));
    let line = dig.run(&["+noall", "+answer", name]);
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields, [&format!("{name}."), "7", "IN", "A", &at], "the TTL is the configured one");
}
