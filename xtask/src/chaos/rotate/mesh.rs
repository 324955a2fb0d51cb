//! One of the two meshes: its folder, its authority with short lives, its agent, and how the two
//! become peers. A user's own commands do it: `hamlet peer invite` and `accept`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use hamlet::config::AuthorityConfig;
use hamlet_admin::api::{Origin, PeerStatus, Proof, ServiceStatus};
use hamlet_admin::client::ClientError;
use hamlet_core::TrustDomain;
use hamlet_identity::Authority;
use hamlet_identity::authority::plan::Lives;
use hamlet_runtime::SystemClock;
use rand::Rng;

use super::super::process::AgentProcess;
use super::super::setup::free_port;
use super::Goals;
use super::backend::Backends;

/// The two meshes' names.
pub(super) const NAMES: [&str; 2] = ["east", "west"];
/// Port of every service at its own egress address.
pub(super) const SERVICE_PORT: u16 = 8080;
/// The service that echoes bytes.
pub(super) const RAW: &str = "raw";
/// The service that speaks HTTP.
pub(super) const WEB: &str = "web";

/// How long things live, from a leaf's life: each the least that the authority takes.
pub(super) fn lives(goals: &Goals) -> Lives {
    let leaf = goals.leaf_life;
    Lives { leaf, issuing: leaf * 3, root: leaf * 9, overlap: leaf * 3 / 2 }
}

/// One mesh.
pub(super) struct Mesh {
    /// Its name.
    pub(super) name: &'static str,
    /// Its agent.
    pub(super) agent: AgentProcess,
    program: PathBuf,
    listen_agent: u16,
    ingress: u16,
    egress_http: u16,
    pool: u8,
}

/// Where the other mesh's services are called.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    /// The egress address of [`RAW`].
    pub(super) raw: SocketAddr,
    /// The egress address of [`WEB`].
    pub(super) web: SocketAddr,
    /// The listener that all imported HTTP services share.
    pub(super) shared: SocketAddr,
    /// What is sent as Host.
    pub(super) host: String,
}

impl Mesh {
    /// Makes its folder below `above`; nothing runs yet.
    pub(super) fn new(
        program: &Path,
        above: &Path,
        name: &'static str,
        backends: &Backends,
        goals: &Goals,
    ) -> anyhow::Result<Mesh> {
        let agent = AgentProcess::new(program, above, name);
        std::fs::create_dir_all(agent.folder())?;
        let config =
            AuthorityConfig { folder: agent.folder().join("identity"), hosts: vec![], lives: lives(goals) };
        let domain = TrustDomain::parse(&format!("{name}.example"))?;
        // Not `hamlet init`: its first root would live for ten years, and leave the bundle late.
        Authority::create(config.settings(&domain, SystemClock::shared())?)?;
        let mesh = Mesh {
            name,
            agent,
            program: program.to_owned(),
            listen_agent: free_port()?,
            ingress: free_port()?,
            egress_http: free_port()?,
            pool: free_pool()?,
        };
        mesh.write("mesh.yaml", &mesh.document(goals))?;
        for (service, protocol, backend) in [(RAW, "TCP", backends.raw), (WEB, "HTTP", backends.web)] {
            mesh.write(&format!("{service}.yaml"), &service_document(name, service, protocol, backend))?;
        }
        Ok(mesh)
    }

    fn document(&self, goals: &Goals) -> String {
        let Mesh { name, listen_agent, ingress, egress_http, pool, .. } = self;
        let Lives { leaf, issuing, root, overlap } = lives(goals);
        let [leaf, issuing, root, overlap] = [leaf, issuing, root, overlap].map(|life| life.as_secs());
        format!(
            "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {{name: {name}}}
spec:
  trustDomain: {name}.example
  identity:
    authority: {{folder: identity, leafLife: {leaf}s, issuingLife: {issuing}s, rootLife: {root}s, overlap: {overlap}s}}
  listen:
    agent: \"127.0.0.1:{listen_agent}\"
    ingress: \"127.0.0.1:{ingress}\"
    egressHttp: \"127.0.0.1:{egress_http}\"
    dns: off
    admin: off
  advertise: {{ingress: [\"127.0.0.1:{ingress}\"]}}
  egress: {{pool: 127.{pool}.0.0/16}}
  bundleWait: 1s
"
        )
    }

    /// Writes a file of its folder whole: the agent watches, and must not see half of it.
    pub(super) fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        write_whole(self.agent.folder(), file, text).with_context(|| format!("can't write {file}"))
    }

    /// Publishes everything to `peer`, and imports what that has.
    pub(super) async fn agree(&self, peer: &Mesh) -> anyhow::Result<()> {
        let (name, ingress) = (peer.name, peer.ingress);
        let text = format!(
            "\
apiVersion: hamlet.dev/v1
kind: Publication
metadata: {{name: all}}
spec: {{services: {{all: true}}, peers: [{name}]}}
---
apiVersion: hamlet.dev/v1
kind: Import
metadata: {{name: {name}}}
spec:
  peer: {name}
  names: {{suffixes: [{name}.example]}}
  endpoints: {{ranges: [127.0.0.0/8], ports: [{ingress}]}}
"
        );
        self.write("policy.yaml", &text)?;
        self.agent.client.reload().await.with_context(|| format!("{} refuses its folder", self.name))?;
        Ok(())
    }

    /// What `hamlet ARGS` prints, with `input` on its standard input.
    fn hamlet(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        run(&self.program, args, input)
    }

    /// `hamlet peer invite` here, `hamlet peer accept` there.
    pub(super) fn peer_with(&self, other: &Mesh) -> anyhow::Result<()> {
        let socket = |mesh: &Mesh| mesh.agent.data().join("admin.sock").display().to_string();
        let token = self.hamlet(&["peer", "invite", other.name, "--yes", "--socket", &socket(self)], "")?;
        let accept = ["peer", "accept", self.name, "--yes", "--socket", &socket(other)];
        other.hamlet(&accept, &token)?;
        Ok(())
    }

    /// `hamlet ca rotate`, as a command that can be sent to another thread.
    pub(super) fn rotation(&self) -> impl FnOnce() -> anyhow::Result<String> + Send + 'static {
        let (program, folder) = (self.program.clone(), self.agent.folder().display().to_string());
        move || run(&program, &["ca", "rotate", "-f", &folder], "")
    }

    /// The services that it imported, by their fqdn.
    pub(super) async fn imported(&self) -> Result<BTreeMap<String, ServiceStatus>, ClientError> {
        let all = self.agent.client.list::<ServiceStatus>().await?.items;
        let imported = all.into_iter().filter(|s| matches!(s.origin, Origin::Imported { .. }));
        Ok(imported.map(|s| (s.fqdn.clone(), s)).collect())
    }

    /// Where `owner`'s services are called from here; an error until they can be.
    pub(super) async fn doors(&self, owner: &Mesh) -> anyhow::Result<Doors> {
        let imported = self.imported().await?;
        let at = |service: &str| -> anyhow::Result<SocketAddr> {
            let name = format!("{service}.{}.example", owner.name);
            let found = imported.get(&name).with_context(|| format!("{name} isn't imported"))?;
            ensure!(found.callable() > 0, "{name} can't be called: {:?}", found.instances);
            let address = found.egress.first().with_context(|| format!("{name} has no address"))?;
            address.parse().with_context(|| format!("{name} is at {address}"))
        };
        Ok(Doors {
            raw: at(RAW)?,
            web: at(WEB)?,
            shared: SocketAddr::from((Ipv4Addr::LOCALHOST, self.egress_http)),
            host: format!("{WEB}.{}.example:{SERVICE_PORT}", owner.name),
        })
    }

    /// Whether both directions with `peer` are proven to be complete; else what is known.
    pub(super) async fn proven(&self, peer: &Mesh) -> Result<(), String> {
        let status: PeerStatus = self.agent.client.one(peer.name).await.map_err(|e| e.to_string())?;
        let equal = |proof: &Proof| matches!(proof, Proof::Equal { .. });
        match (&status.publish, &status.import) {
            (Some(out), Some(back)) if equal(&out.proof) && equal(&back.proof) && out.in_flight == 0 => {
                Ok(())
            }
            _ => Err(format!("{} of {}: {}", self.name, peer.name, status.state)),
        }
    }
}

/// Runs the program with `args`.
fn run(program: &Path, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "hamlet {} {} failed: {said}", args[0], args[1]);
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes `file` in `folder` beside its place, then moves it there.
pub(super) fn write_whole(folder: &Path, file: &str, text: &str) -> std::io::Result<()> {
    let beside = folder.join(".new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, folder.join(file))
}

/// The document of one service of `mesh`. What speaks HTTP is told its caller, so that the ingress
/// takes part in the requests.
fn service_document(mesh: &str, name: &str, protocol: &str, backend: SocketAddr) -> String {
    let caller = if protocol == "HTTP" { "http-header" } else { "none" };
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Service
metadata: {{name: {name}}}
spec:
  fqdn: {name}.{mesh}.example
  protocol: {protocol}
  port: {SERVICE_PORT}
  backends: [\"{backend}\"]
  caller: {caller}
"
    )
}

/// A block of loopback addresses in which nothing listens at the services' port.
fn free_pool() -> anyhow::Result<u8> {
    let mut rng = rand::rng();
    let free = |second: &u8| {
        (0..4).all(|last| TcpListener::bind((Ipv4Addr::new(127, *second, 0, last), SERVICE_PORT)).is_ok())
    };
    (0..100).map(|_| rng.random_range(66..=250)).find(free).context("no free block of loopback addresses")
}
