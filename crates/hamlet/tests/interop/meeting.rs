//! Our mesh `acme` and the trust domain `foreign.example`, which know each other. The foreign peer
//! itself is a process that a test starts.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use hamlet_core::Fqdn;
use hamlet_identity::{fingerprint_of, fingerprint_text};
use hamlet_testkit::pki::{DAY, LeafSpec, TestCa, TestLeaf};
use serde_json::Value;
use tempfile::TempDir;

use crate::foreign::{Foreign, Program};
use crate::mesh::Mesh;
use crate::texts::ServiceText;
use crate::wait::until;

/// The peer's name in our configuration.
pub(crate) const PEER: &str = "foreign";
/// The peer's trust domain, and the domain of its services.
pub(crate) const DOMAIN: &str = "foreign.example";
/// A DNS name in our agent's certificate: Go and Python check one, not the SPIFFE id.
const OUR_HOST: &str = "agent.acme.example";
/// The DNS name in the peer's certificate.
pub(crate) const THEIR_HOST: &str = "peer.foreign.example";

/// What our Peer document says beside identities.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// Where we dial; none if the peer dials.
    pub(crate) address: Option<SocketAddr>,
    /// Further lines of its spec.
    pub(crate) more: String,
    /// The shared context value, for ours.
    pub(crate) context: Option<&'static str>,
    /// What its agent proves instead of its SPIFFE id.
    pub(crate) identity: Option<String>,
}

/// Everything but the peer's process.
pub(crate) struct Meeting {
    pub(crate) acme: Mesh,
    /// Free for imported services.
    pub(crate) port: u16,
    /// The SHA-256 of the peer's certificate, as a document has it.
    pub(crate) fingerprint: String,
    leaf: TestLeaf,
    ca: TestCa,
    root: TempDir,
}

impl Meeting {
    /// Folders and addresses; nothing runs.
    pub(crate) fn new() -> Meeting {
        Meeting::with_leaf(|_| {})
    }

    /// The same with another certificate of the peer.
    pub(crate) fn with_leaf(edit: impl FnOnce(&mut LeafSpec)) -> Meeting {
        let root = tempfile::Builder::new().prefix("hamlet-interop-").tempdir().unwrap();
        let host = Fqdn::parse(OUR_HOST).unwrap();
        let acme = Mesh::with_hosts(root.path(), "acme", "acme.example", vec![host]);
        let ca = TestCa::new(DOMAIN);
        let mut leaf = LeafSpec::of(ca.agent_id().as_str());
        leaf.dns.push(THEIR_HOST.to_owned());
        edit(&mut leaf);
        let leaf = ca.leaf(leaf);
        leaf.write(root.path(), "foreign");
        let fingerprint = fingerprint_text(&fingerprint_of(&leaf.chain[0]));
        fs::write(root.path().join("acme-ca.pem"), acme.bundle()).unwrap();
        let port = acme.block.service_port();
        Meeting { acme, port, fingerprint, leaf, ca, root }
    }

    /// Writes the revocation list of the peer's CA, with its certificate on it or not.
    pub(crate) fn revoke(&self, revoked: bool) {
        let on_it: &[&TestLeaf] = if revoked { &[&self.leaf] } else { &[] };
        self.acme.write(&format!("peers/{PEER}.crl"), &self.ca.crl(on_it, DAY));
    }

    /// Declares the peer and an import of all it has. Its services have loopback endpoints.
    pub(crate) fn know(&self, terms: &Terms) {
        self.acme.write(&format!("peers/{PEER}-ca.pem"), self.ca.pem());
        let proves = match &terms.identity {
            Some(identity) => format!("identity: {identity}"),
            None => format!("agentIds: [\"{}\"]", self.ca.agent_id()),
        };
        let mut text = format!(
            "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {{name: {PEER}}}
spec:
  trustDomain: {DOMAIN}
  trust: {{bundle: peers/{PEER}-ca.pem}}
  {proves}
  gatewayIds: [\"{}\"]
{}",
            self.ca.gateway_id(),
            terms.more
        );
        if let Some(address) = terms.address {
            let _ = writeln!(text, "  address: \"{address}\"");
        }
        if let Some(context) = terms.context {
            let path = self.acme.folder.join("peers/token");
            fs::write(&path, context).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            text.push_str("  context: {file: peers/token}\n");
        }
        let _ = write!(
            text,
            "\
---
apiVersion: hamlet.dev/v1
kind: Import
metadata: {{name: {PEER}}}
spec:
  peer: {PEER}
  names: {{suffixes: [{DOMAIN}]}}
  endpoints: {{ranges: [127.0.0.0/8], ports: [7444]}}
  ports: {{\"*\": {}}}
",
            self.port
        );
        self.acme.write("peer-foreign.yaml", &text);
    }

    /// Declares and publishes services of ours, as one file that replaces what it held.
    pub(crate) fn offer(&self, names: &[String]) {
        self.offer_described(names, "");
    }

    /// The same with a description, which makes a new version.
    pub(crate) fn offer_described(&self, names: &[String], description: &str) {
        let mut text = String::new();
        let backends = ["127.0.0.1:9".parse().unwrap()];
        for name in names {
            let fqdn = self.acme.fqdn(name);
            let service = ServiceText {
                name,
                fqdn: &fqdn,
                protocol: "TCP",
                port: 80,
                backends: &backends,
                caller: "none",
            };
            text.push_str(&service.text());
            if !description.is_empty() {
                let _ = writeln!(text, "  description: \"{description}\"");
            }
            text.push_str("---\n");
        }
        text.push_str(
            "apiVersion: hamlet.dev/v1\nkind: Publication\nmetadata: {name: all}\nspec:\n  services: {all: true}\n  \
             peers: [foreign]\n",
        );
        self.acme.write("offer.yaml", &text);
    }

    fn file(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts the peer with its identity; `more` are further flags.
    fn start(&self, program: &Program, role: &str, more: &[&str]) -> Foreign {
        let (cert, key, ca) = (self.file("foreign.pem"), self.file("foreign.key"), self.file("acme-ca.pem"));
        let san = self.ca.gateway_id().to_string();
        let mut args = vec![role, "--cert", &cert, "--key", &key, "--ca", &ca];
        if role != "consumer" {
            args.extend(["--domain", DOMAIN, "--san", &san]);
        }
        args.extend(more);
        Foreign::start(program, role, &args)
    }

    /// Starts the peer, which dials our agent.
    pub(crate) fn dialler(&self, program: &Program, role: &str, more: &[&str]) -> Foreign {
        let at = self.acme.at.agent.to_string();
        self.start(program, role, &[&["--dial", &at, "--server-name", OUR_HOST], more].concat())
    }

    /// Starts the peer, which listens, and says where.
    pub(crate) fn listener(&self, program: &Program, role: &str, more: &[&str]) -> (Foreign, SocketAddr) {
        self.listener_at(program, role, "127.0.0.1:0", more)
    }

    /// The same at a given address.
    pub(crate) fn listener_at(
        &self,
        program: &Program,
        role: &str,
        at: &str,
        more: &[&str],
    ) -> (Foreign, SocketAddr) {
        let foreign = self.start(program, role, &[&["--listen", at], more].concat());
        let address = foreign.until("listening")["address"].as_str().unwrap().parse().unwrap();
        (foreign, address)
    }

    /// Two peers of the foreign trust domain that talk to each other: who accepts, and who dials.
    pub(crate) fn foreign_pair(
        &self,
        program: &Program,
        roles: [&str; 2],
        more: &[&str],
    ) -> (Foreign, Foreign) {
        let [accepts, dials] = roles;
        let ca = self.root.path().join("acme-ca.pem");
        fs::write(ca, self.ca.pem()).unwrap();
        let (accepting, address) = self.listener(program, accepts, more);
        let address = address.to_string();
        let dialling =
            self.start(program, dials, &[&["--dial", &address, "--server-name", THEIR_HOST], more].concat());
        (accepting, dialling)
    }

    /// The peer as our agent shows it.
    pub(crate) fn peer(&self) -> Value {
        self.acme.json(&["get", "peer", PEER])
    }

    /// Waits until our agent shows the peer as wanted.
    #[track_caller]
    pub(crate) fn until_peer(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("our agent shows the peer with {what}"), || {
            let seen = self.peer();
            if fits(&seen) { Ok(seen) } else { Err(seen.to_string()) }
        })
    }

    /// Waits until so many of the peer's services are in force.
    #[track_caller]
    pub(crate) fn until_imported(&self, count: u64) {
        self.until_peer(&format!("{count} imported"), |p| p["import"]["inForce"] == count);
    }

    /// Waits until the peer has acknowledged so many of ours.
    #[track_caller]
    pub(crate) fn until_acknowledged(&self, count: u64) {
        let done = |p: &Value| p["publish"]["acknowledged"] == count && p["publish"]["inFlight"] == 0;
        self.until_peer(&format!("{count} acknowledged"), done);
    }
}

/// Names of that many services of ours.
pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("ours-{i:05}")).collect()
}
