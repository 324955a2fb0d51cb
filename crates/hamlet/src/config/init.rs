//! `hamlet init`: a working folder for one mesh. Makes files, and nothing else; never overwrites.
//!
//! Invariant: what it wrote is taken by [`super::load`]; it says so itself by loading it.

use std::fmt::{self, Write as _};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hamlet_core::{Fqdn, MeshName, SpiffeError, SpiffeId, TrustDomain};
use hamlet_identity::authority::plan::Lives;
use hamlet_identity::authority::state::LeafRole;
use hamlet_identity::{Authority, AuthorityError};
use hamlet_runtime::Clock;

use super::{AuthorityConfig, Problems};

/// Path of the agent's SPIFFE id in its trust domain.
pub const AGENT_ID_PATH: &str = "hamlet/agent";
/// Path of the gateways' SPIFFE id in their trust domain.
pub const GATEWAY_ID_PATH: &str = "hamlet/gateway";

/// What `init` needs to know.
pub struct InitOptions {
    /// The mesh's name.
    pub mesh: MeshName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Host names of this machine, for the certificates.
    pub hosts: Vec<Fqdn>,
    /// Where peers reach our ingress, if that is known already.
    pub advertise: Vec<SocketAddr>,
    /// For the certificates' validity.
    pub clock: Arc<dyn Clock>,
}

/// Why there is no new folder. What was made before the error stays and is named by it.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file that `init` would write is there.
    #[error("{} exists already and is never overwritten; choose another folder, or move it away", .0.display())]
    Exists(PathBuf),
    /// The file system said no.
    #[error("can't write {}: {source}; choose a folder that you can write to", .path.display())]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The trust domain leaves no room for ids.
    #[error("the trust domain can't carry our ids: {0}; choose a shorter one")]
    Id(#[from] SpiffeError),
    /// The authority could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What was written doesn't load. Some other file of the folder is wrong.
    #[error("the folder was made, but it doesn't load; put this right:\n{0}")]
    Load(Problems),
}

/// What `init` made. Its `Display` is what a person should read next.
#[derive(Debug, Clone)]
pub struct InitReport {
    /// The folder.
    pub folder: PathBuf,
    /// The files, in the order they were made.
    pub made: Vec<PathBuf>,
    /// What our agent proves.
    pub agent_id: SpiffeId,
    /// What our gateways prove.
    pub gateway_id: SpiffeId,
    /// What peers need to believe us.
    pub bundle: PathBuf,
    mesh: MeshName,
    trust_domain: TrustDomain,
}

/// Makes the folder (blocking).
pub fn init(dir: &Path, options: &InitOptions) -> Result<InitReport, InitError> {
    let agent_id = options.trust_domain.id(AGENT_ID_PATH)?;
    let gateway_id = options.trust_domain.id(GATEWAY_ID_PATH)?;
    let texts = [
        ("mesh.yaml", mesh_yaml(options)),
        ("service-example.yaml", service_yaml(options)),
        ("publication-example.yaml", publication_yaml(options)),
        ("peer-example.yaml", peer_yaml(options)),
    ];
    let identity = dir.join("identity");
    let keys = ["ca.pem", "authority", "agent.pem", "agent.key", "gateway.pem", "gateway.key"];
    let wanted = texts.iter().map(|(name, _)| dir.join(name)).chain(keys.iter().map(|k| identity.join(k)));
    if let Some(there) = wanted.into_iter().find(|p| p.symlink_metadata().is_ok()) {
        return Err(InitError::Exists(there));
    }
    private_folder(dir)?;
    private_folder(&identity)?;
    let config =
        AuthorityConfig { folder: identity.clone(), hosts: options.hosts.clone(), lives: Lives::default() };
    let authority = Authority::create(config.settings(&options.trust_domain, options.clock.clone())?)?;
    let mut made = vec![authority.bundle_file(), authority.state_file()];
    for role in LeafRole::ALL {
        let (cert, key) = authority.leaf_files(role);
        made.extend([cert, key]);
    }
    for (name, text) in texts {
        let path = dir.join(name);
        write_new(&path, &text)?;
        made.push(path);
    }
    super::load(dir).map_err(InitError::Load)?;
    Ok(InitReport {
        folder: dir.to_owned(),
        made,
        agent_id,
        gateway_id,
        bundle: identity.join("ca.pem"),
        mesh: options.mesh.clone(),
        trust_domain: options.trust_domain.clone(),
    })
}

fn private_folder(path: &Path) -> Result<(), InitError> {
    if path.is_dir() {
        return Ok(());
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| InitError::Write { path: path.to_owned(), source })
}

fn write_new(path: &Path, text: &str) -> Result<(), InitError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists(path.to_owned()),
        _ => InitError::Write { path: path.to_owned(), source },
    })
}

fn mesh_yaml(options: &InitOptions) -> String {
    let advertise = if options.advertise.is_empty() {
        "\
  # Where peers reach our ingress. Needed before anything can be published:
  # advertise:
  #   ingress: [\"203.0.113.10:7444\"]
"
        .to_owned()
    } else {
        let list: Vec<String> = options.advertise.iter().map(|a| format!("\"{a}\"")).collect();
        format!("  # Where peers reach our ingress:\n  advertise:\n    ingress: [{}]\n", list.join(", "))
    };
    let hosts: Vec<String> = options.hosts.iter().map(|host| format!("\"{host}\"")).collect();
    let hosts = match hosts.is_empty() {
        true => {
            "# hosts: [gw.example.org]     # DNS names in them, for peers that check host names".to_owned()
        }
        false => format!("hosts: [{}]", hosts.join(", ")),
    };
    MESH_YAML
        .replace("@HOSTS@", &hosts)
        .replace("@MESH@", options.mesh.as_str())
        .replace("@DOMAIN@", options.trust_domain.as_str())
        .replace("@ADVERTISE@", &advertise)
}

const MESH_YAML: &str = "\
# This agent. Every key is explained in docs/reference/configuration.md; check an edit with
#   hamlet validate -f THIS-FOLDER
apiVersion: hamlet.dev/v1
kind: Mesh
metadata:
  name: \"@MESH@\"
spec:
  trustDomain: \"@DOMAIN@\"

  # Our own authority, made by `hamlet init`: it issues our certificates, renews them by itself, and
  # rotates its root (`hamlet ca status`). PEM files from elsewhere do as well, as `agent` and `gateway`.
  identity:
    authority:
      folder: identity
      @HOSTS@
      # leafLife: 24h

  # Where we listen; these are the defaults. Each can be `off`.
  listen:
    agent: 0.0.0.0:7443          # other agents
    ingress: 0.0.0.0:7444        # other meshes' gateways
    egressHttp: 127.0.0.1:7480   # our workloads, to every imported HTTP service by Host name
    dns: 127.0.0.1:7453          # our workloads, for imported names
    admin: 127.0.0.1:7490        # /livez, /readyz and /metrics

@ADVERTISE@
  # The store. One agent each.
  data: data

  # Every imported service gets an address of its own from this pool. Two agents on one machine need
  # two pools.
  egress:
    pool: 127.64.0.0/16

  # log: {level: info, format: text}
";

fn service_yaml(options: &InitOptions) -> String {
    let own = Fqdn::parse(&format!("hello.{}", options.trust_domain)).ok().filter(Fqdn::is_host_name);
    let fqdn = own.map_or_else(|| format!("hello.{}.example", options.mesh), |f| f.to_string());
    format!(
        "\
# A service that runs here. Nobody sees it before a Publication says so.
apiVersion: hamlet.dev/v1
kind: Service
metadata:
  name: hello
  labels: {{team: example}}
spec:
  fqdn: \"{fqdn}\"
  description: An example
  protocol: HTTP
  port: 80                         # what consumers use
  backends: [\"127.0.0.1:8080\"]     # where it runs
  caller: http-header              # it is told the proven caller in x-hamlet-caller
"
    )
}

/// A peer to show. One of our own name or trust domain would be refused as soon as it is live.
fn example_peer(options: &InitOptions) -> (&'static str, &'static str) {
    let taken = options.mesh.as_str() == "globex" || options.trust_domain.as_str() == "globex.example";
    if taken { ("initech", "initech.example") } else { ("globex", "globex.example") }
}

fn publication_yaml(options: &InitOptions) -> String {
    PUBLICATION_YAML.replace("@PEER@", example_peer(options).0)
}

const PUBLICATION_YAML: &str = "\
# What peers see of us: nothing without a Publication. Take the '# ' away once the peer is declared
# (see peer-example.yaml) and `advertise` is set in mesh.yaml.
#
# apiVersion: hamlet.dev/v1
# kind: Publication
# metadata:
#   name: hello-to-@PEER@
# spec:
#   services:
#     names: [hello]
#   peers: [@PEER@]
";

fn peer_yaml(options: &InitOptions) -> String {
    let (name, domain) = example_peer(options);
    PEER_YAML.replace("@PEER@", name).replace("@PEERDOMAIN@", domain)
}

const PEER_YAML: &str = "\
# Another mesh, and what we accept from it. Ask it for its ca.pem, its ids and its address, and take
# the '# ' away.
#
# apiVersion: hamlet.dev/v1
# kind: Peer
# metadata:
#   name: @PEER@
# spec:
#   address: agent.@PEERDOMAIN@:7443
#   trustDomain: @PEERDOMAIN@
#   trust:
#     bundle: peers/@PEER@-ca.pem
#   agentIds: [\"spiffe://@PEERDOMAIN@/hamlet/agent\"]
#   gatewayIds: [\"spiffe://@PEERDOMAIN@/hamlet/gateway\"]
# ---
# apiVersion: hamlet.dev/v1
# kind: Import
# metadata:
#   name: @PEER@
# spec:
#   peer: @PEER@
#   names:
#     suffixes: [@PEERDOMAIN@]
#   endpoints:
#     ports: [7444]
#     # Without ranges: every public address. Private ones are accepted only if listed:
#     # ranges: [10.20.0.0/16]
";

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.folder.display();
        let mut files = String::new();
        for path in &self.made {
            let _ = writeln!(files, "  {}", path.display());
        }
        let InitReport { agent_id, gateway_id, mesh, trust_domain, .. } = self;
        write!(
            f,
            "Made mesh `{mesh}` in {dir}:
{files}
Keys can be read by you only. Keep {dir}/identity/authority safest of all: it makes every identity of {trust_domain}.
Certificates live a day, and the agent renews them; `hamlet ca status -f {dir}` shows what is there.

Next:
  1. Look at {dir}/mesh.yaml: where it listens, and which ingress peers are told (advertise).
  2. hamlet validate -f {dir}
  3. hamlet agent -f {dir}
  4. Peer with another mesh: one side invites and sends the token, the other accepts it.
       hamlet peer invite NAME -f {dir}
       hamlet peer accept NAME -f {dir}
  5. Say what they may see in {dir}/publication-example.yaml.

To peer by hand instead, give your partner over a channel that you both trust
       {bundle} (public)
       trust domain  {trust_domain}
       agentIds      [\"{agent_id}\"]
       gatewayIds    [\"{gateway_id}\"]
       the host and port of your agent (listen.agent)
and put theirs into {dir}/peer-example.yaml.
",
            bundle = self.bundle.display(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hamlet_runtime::clock::SystemClock;

    use super::*;

    fn options(mesh: &str, domain: &str, advertise: &[&str]) -> InitOptions {
        InitOptions {
            mesh: MeshName::parse(mesh).unwrap(),
            trust_domain: TrustDomain::parse(domain).unwrap(),
            hosts: vec![Fqdn::parse("gw.acme.example").unwrap()],
            advertise: advertise.iter().map(|a| a.parse().unwrap()).collect(),
            clock: SystemClock::shared(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_folder_loads_without_a_warning_and_its_keys_are_private() {
        for (mesh, domain) in
            [("acme", "acme.example"), ("globex", "globex.example"), ("acme", "a_b"), ("no", "1.2")]
        {
            let above = tempfile::tempdir().unwrap();
            let dir = above.path().join("deep/mesh");
            let report = init(&dir, &options(mesh, domain, &[])).unwrap();
            let loaded = super::super::load(&dir).unwrap();
            assert_eq!(loaded.warnings, []);
            assert_eq!(loaded.config.mesh.name.as_str(), mesh);
            assert_eq!(loaded.config.services.len(), 1);
            assert_eq!((mode(&dir), mode(&dir.join("identity"))), (0o700, 0o700));
            assert_eq!(mode(&dir.join("identity/authority")), 0o700);
            for path in &report.made {
                let private = path.extension().is_some_and(|e| e == "key" || e == "json");
                let expected = if private { 0o600 } else { 0o644 };
                assert_eq!(mode(path) & !0o022, expected & !0o022, "{}", path.display());
            }
            let text = report.to_string();
            assert!(text.contains(report.agent_id.as_str()) && text.contains("ca.pem"));
        }
    }

    #[test]
    fn nothing_is_overwritten_and_the_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("service-example.yaml"), "mine").unwrap();
        let error = init(dir.path(), &options("acme", "acme.example", &[])).unwrap_err();
        assert!(error.to_string().contains("service-example.yaml"), "{error}");
        assert_eq!(fs::read(dir.path().join("service-example.yaml")).unwrap(), b"mine");
        assert!(!dir.path().join("identity").exists(), "nothing else was made");
        fs::remove_file(dir.path().join("service-example.yaml")).unwrap();
        init(dir.path(), &options("acme", "acme.example", &[])).unwrap();
        let again = init(dir.path(), &options("acme", "acme.example", &[])).unwrap_err();
        assert!(matches!(again, InitError::Exists(_)));
    }

    #[test]
    fn the_examples_load_once_their_comments_are_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path(), &options("acme", "acme.example", &["203.0.113.10:7444"])).unwrap();
        for name in ["peer-example.yaml", "publication-example.yaml"] {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            let (_, example) = text.split_once("\n#\n").unwrap();
            let live: Vec<&str> = example.lines().map(|l| l.strip_prefix("# ").unwrap_or("")).collect();
            fs::write(dir.path().join(name), live.join("\n")).unwrap();
        }
        fs::create_dir(dir.path().join("peers")).unwrap();
        fs::copy(dir.path().join("identity/ca.pem"), dir.path().join("peers/globex-ca.pem")).unwrap();
        let loaded = super::super::load(dir.path()).unwrap();
        assert_eq!(loaded.warnings, []);
        assert_eq!(loaded.config.peers.len(), 1);
        assert_eq!(loaded.config.imports.len(), 1);
        assert_eq!(loaded.config.publications.len(), 1);
    }
}
