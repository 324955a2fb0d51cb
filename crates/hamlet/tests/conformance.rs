//! The conformance kit against the real program: an agent as a process, in both roles, dialled and
//! dialling. Nothing here looks inside: what counts is the kit's report.

#[path = "two_meshes/addresses.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod addresses;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hamlet::config::init::{InitOptions, init};
use hamlet_conformance::{Options, Outcome, Report, Role, Side, Template, TlsFiles, Version};
use hamlet_core::{MeshName, TrustDomain};
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{TestCa, write_key};
use tempfile::TempDir;
use tokio::net::TcpListener;

use addresses::Block;

/// What both sides are configured with.
const CONTEXT: &str = "a shared secret";
/// Longer than anything takes on a machine under load.
const DEADLINE: Duration = Duration::from_secs(10);
/// What must not come is waited for so long.
const QUIET: Duration = Duration::from_millis(400);

/// A mesh that knows one peer: the kit.
struct Mesh {
    root: TempDir,
    block: Block,
    agent: SocketAddr,
    kit: TestCa,
    running: Option<Child>,
}

impl Mesh {
    /// Its folder; with an address it dials the kit.
    fn new(version: Version, dials: Option<SocketAddr>) -> Mesh {
        let root = tempfile::Builder::new().prefix("hamlet-conformance-").tempdir().unwrap();
        let block = Block::claim();
        let options = InitOptions {
            mesh: MeshName::parse("acme").unwrap(),
            trust_domain: TrustDomain::parse("acme.example").unwrap(),
            hosts: vec![],
            advertise: vec![],
            clock: SystemClock::shared(),
        };
        init(&root.path().join("acme"), &options).unwrap();
        let mesh =
            Mesh { agent: block.listener(), block, kit: TestCa::new("kit.example"), root, running: None };
        mesh.configure(version, dials);
        mesh
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("acme")
    }

    fn configure(&self, version: Version, dials: Option<SocketAddr>) {
        let folder = self.folder();
        fs::remove_file(folder.join("service-example.yaml")).unwrap();
        let (ingress, http, dns) = (self.block.listener(), self.block.listener(), self.block.listener());
        let (agent, pool) = (self.agent, self.block.pool());
        let mesh = format!(
            "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {{name: acme}}
spec:
  trustDomain: acme.example
  identity:
    authority: {{folder: identity}}
  listen: {{agent: \"{agent}\", ingress: \"{ingress}\", egressHttp: \"{http}\", dns: \"{dns}\", admin: \"off\"}}
  advertise: {{ingress: [\"{ingress}\"]}}
  data: ../data
  socket: ../agent.sock
  egress: {{pool: {pool}}}
"
        );
        let address = dials.map(|a| format!("  address: {a}\n")).unwrap_or_default();
        let (one, two) = (self.kit.agent_id(), self.kit.gateway_id());
        // v1alpha1 can't carry one.
        let context = match version {
            Version::V1alpha1 => "",
            Version::V1alpha2 => "  context: {file: peers/kit.context}\n",
        };
        let version = version.name();
        let peer = format!(
            "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {{name: kit}}
spec:
{address}  trustDomain: kit.example
  trust: {{bundle: peers/kit-ca.pem}}
  agentIds: [\"{one}\"]
  gatewayIds: [\"{two}\"]
{context}  version: {version}
---
apiVersion: hamlet.dev/v1
kind: Import
metadata: {{name: kit}}
spec:
  peer: kit
  names: {{suffixes: [kit.example]}}
  endpoints: {{ranges: [192.0.2.0/24], ports: [8443]}}
---
apiVersion: hamlet.dev/v1
kind: Publication
metadata: {{name: everything}}
spec:
  services: {{all: true}}
  peers: [kit]
"
        );
        fs::create_dir_all(folder.join("peers")).unwrap();
        fs::write(folder.join("peers/kit-ca.pem"), self.kit.pem()).unwrap();
        write_key(&folder.join("peers/kit.context"), CONTEXT);
        fs::write(folder.join("mesh.yaml"), mesh).unwrap();
        fs::write(folder.join("peer-kit.yaml"), peer).unwrap();
    }

    /// The shell command that publishes and withdraws services, as an operator's script would.
    fn publish_cmd(&self) -> String {
        let script = self.root.path().join("publish.sh");
        let text = format!(
            "\
set -e
cd '{}'
if [ \"$1\" = delete ]; then rm -f \"service-$2.yaml\"; exit; fi
cat >.new <<END
apiVersion: hamlet.dev/v1
kind: Service
metadata: {{name: $2}}
spec:
  fqdn: $2.acme.example
  description: $1
  protocol: HTTP
  port: 80
  backends: [\"127.0.0.1:9\"]
END
mv .new \"service-$2.yaml\"
",
            self.folder().display()
        );
        fs::write(&script, text).unwrap();
        format!("sh '{}'", script.display())
    }

    /// The shell command that starts the agent.
    fn start_cmd(&self) -> String {
        format!("'{}' agent -f '{}'", env!("CARGO_BIN_EXE_hamlet"), self.folder().display())
    }

    /// Starts the agent for as long as the mesh lives.
    fn start(&mut self) {
        let log = fs::File::create(self.root.path().join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hamlet"));
        command.arg("agent").arg("-f").arg(self.folder()).env_clear().stdin(Stdio::null());
        self.running = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn options(&self, side: Side, role: Role, version: Version) -> Options {
        let (cert, key) = self.kit.agent().write(self.root.path(), "kit");
        let ca = self.folder().join("identity/ca.pem");
        Options {
            context: if version == Version::V1alpha2 { CONTEXT.to_owned() } else { String::new() },
            deadline: DEADLINE,
            quiet: QUIET,
            template: Template {
                domain: "kit.example".to_owned(),
                address: "192.0.2.10".to_owned(),
                port: 8443,
                san: self.kit.gateway_id().to_string(),
            },
            ..Options::new(side, role, version, TlsFiles { cert, key, ca, server_name: None })
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.running {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.root.path().join("agent.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the agent's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

fn dialled(role: Role, version: Version, least: usize) {
    let mut mesh = Mesh::new(version, None);
    mesh.start();
    let mut options = mesh.options(Side::Target(mesh.agent.to_string()), role, version);
    options.publish = (role == Role::Owner).then(|| mesh.publish_cmd());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    judge(&runtime.block_on(hamlet_conformance::run(options, |_| {})).unwrap(), least);
}

fn dialling(role: Role, version: Version, filter: Option<&str>, least: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let mesh = Mesh::new(version, Some(address));
    let mut options = mesh.options(Side::Listen(Arc::new(listener)), role, version);
    options.start = Some(mesh.start_cmd());
    options.filter = filter.map(str::to_owned);
    options.publish = (role == Role::Owner).then(|| mesh.publish_cmd());
    options.connect = Duration::from_secs(30);
    let report = runtime.block_on(hamlet_conformance::run(options, |_| {})).unwrap();
    judge(&report, least);
}

/// Nothing may fail, and of the "should"s nothing may differ: they are our own.
fn judge(report: &Report, least: usize) {
    let wrong: Vec<String> = report
        .cases
        .iter()
        .filter(|c| matches!(c.outcome, Outcome::Failed | Outcome::Differs))
        .map(|c| format!("{} ({} s): {}: {}", c.id, c.took_ms / 1000, c.case, c.seen))
        .collect();
    assert!(wrong.is_empty(), "{}\n{}", report.summary(), wrong.join("\n"));
    assert!(report.counts().passed >= least, "{}\n{}", report.summary(), report.to_markdown());
}

#[test]
fn our_owner_of_v1alpha2_meets_every_requirement() {
    dialled(Role::Owner, Version::V1alpha2, 85);
}

#[test]
fn our_consumer_of_v1alpha2_meets_every_requirement() {
    dialled(Role::Consumer, Version::V1alpha2, 80);
}

#[test]
fn our_owner_of_v1alpha1_meets_every_requirement() {
    dialled(Role::Owner, Version::V1alpha1, 80);
}

#[test]
fn our_consumer_of_v1alpha1_meets_every_requirement() {
    dialling(Role::Consumer, Version::V1alpha1, None, 80);
}

#[test]
fn our_consumer_of_v1alpha2_meets_what_only_a_dialler_can() {
    for filter in ["CON-001", "CON-003", "CON-004", "CON-019", "CON-020"] {
        dialling(Role::Consumer, Version::V1alpha2, Some(filter), 2);
    }
}

#[test]
fn our_owner_of_v1alpha2_waits_for_answers_also_where_it_dials() {
    dialling(Role::Owner, Version::V1alpha2, Some("OWN-012"), 2);
}
