//! A SPIRE server and a SPIRE agent of one trust domain as real processes, which end with the test,
//! and a mesh that takes everything from them.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use serde_json::Value;

use crate::addresses::Block;
use crate::foreign::built_spire;
use crate::mesh::Mesh;
use crate::texts;
use crate::wait::until;

/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 25;

/// The programs, if they are built.
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// None if there are none, which is allowed only to people.
    pub(crate) fn find() -> Option<Programs> {
        built_spire().map(Programs)
    }
}

/// SPIRE of one trust domain.
pub(crate) struct Site {
    pub(crate) domain: &'static str,
    /// Where its server publishes its bundle.
    pub(crate) endpoint: SocketAddr,
    /// The root, and its key, that the server's CA is to come from; its own otherwise.
    pub(crate) upstream: Option<[PathBuf; 2]>,
    /// The web certificate, and its key, that its bundle endpoint proves itself with instead of its id.
    pub(crate) web: Option<[PathBuf; 2]>,
    /// The authorities of the web that its server believes, instead of the system's.
    pub(crate) web_roots: Option<PathBuf>,
    programs: PathBuf,
    folder: PathBuf,
    at: SocketAddr,
    server: Option<Child>,
    agent: Cell<Option<Child>>,
    _block: Block,
}

impl Site {
    /// In a folder of its own; nothing runs.
    pub(crate) fn new(programs: &Programs, root: &Path, domain: &'static str) -> Site {
        let block = Block::claim();
        let folder = root.join(format!("spire-{domain}"));
        fs::create_dir_all(&folder).unwrap();
        Site {
            domain,
            endpoint: block.listener(),
            upstream: None,
            web: None,
            web_roots: None,
            programs: programs.0.clone(),
            folder,
            at: block.listener(),
            server: None,
            agent: Cell::new(None),
            _block: block,
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The socket of the Workload API, as a configuration has it.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.file("agent.sock"))
    }

    fn run(&self, program: &str, args: &[&str]) -> Child {
        let log =
            File::options().create(true).append(true).open(self.file(&format!("{program}.log"))).unwrap();
        let mut command = Command::new(self.programs.join(program));
        if let Some(roots) = &self.web_roots {
            command.env("SSL_CERT_FILE", roots);
        }
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// `spire-server ARGS`, once; what it printed, or why it failed.
    pub(crate) fn try_ask(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("spire-server"));
        let output = command.args(args).arg("-socketPath").arg(self.file("server.sock")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{args:?}: {}{}", text(&output.stdout), text(&output.stderr))),
        }
    }

    /// The same, which must succeed.
    pub(crate) fn ask(&self, args: &[&str]) -> String {
        self.try_ask(args).unwrap()
    }

    /// Starts the server. `federates` is what its configuration says of another trust domain.
    pub(crate) fn start_server(&mut self, federates: &str) {
        let (domain, endpoint, at) = (self.domain, self.endpoint, self.at);
        let upstream = self.upstream.as_ref().map(|[cert, key]| {
            let (cert, key) = (cert.display(), key.display());
            let files = format!("cert_file_path = \"{cert}\", key_file_path = \"{key}\"");
            format!("    UpstreamAuthority \"disk\" {{ plugin_data {{ {files} }} }}\n")
        });
        // SPIRE 1.13 ends without the interval, which its manual calls optional.
        let profile = match &self.web {
            None => "profile \"https_spiffe\" {}".to_owned(),
            Some([cert, key]) => format!(
                "profile \"https_web\" {{ serving_cert_file {{ cert_file_path = \"{}\", key_file_path = \"{}\", file_sync_interval = \"1h\" }} }}",
                cert.display(),
                key.display()
            ),
        };
        let text = format!(
            r#"server {{
    bind_address = "{}"
    bind_port = "{}"
    socket_path = "{}"
    trust_domain = "{domain}"
    data_dir = "{}"
    log_level = "INFO"
    default_x509_svid_ttl = "1h"
    experimental {{ cache_reload_interval = "1s" }}
    federation {{
        bundle_endpoint {{
            address = "{}"
            port = {}
            refresh_hint = "60s"
            {profile}
        }}
{federates}
    }}
}}
plugins {{
    DataStore "sql" {{ plugin_data {{ database_type = "sqlite3", connection_string = "{}" }} }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
{}}}
"#,
            at.ip(),
            at.port(),
            self.file("server.sock"),
            self.file("server"),
            endpoint.ip(),
            endpoint.port(),
            self.file("store.sqlite3"),
            upstream.unwrap_or_default(),
        );
        fs::create_dir_all(self.folder.join("server")).unwrap();
        fs::write(self.folder.join("server.conf"), text).unwrap();
        self.server = Some(self.run("spire-server", &["run", "-config", &self.file("server.conf")]));
        until(&format!("SPIRE's server of {} answers", self.domain), || self.try_ask(&["healthcheck"]));
    }

    /// Says how the server federates with `other` through an endpoint that proves `id`.
    pub(crate) fn federation(other: &str, at: SocketAddr, id: &str) -> String {
        format!(
            "        federates_with \"{other}\" {{\n            bundle_endpoint_url = \"https://{at}/\"\n            \
             bundle_endpoint_profile \"https_spiffe\" {{ endpoint_spiffe_id = \"{id}\" }}\n        }}"
        )
    }

    /// The same through an endpoint at that URL that proves its host's name.
    pub(crate) fn federation_by_web(other: &str, url: &str) -> String {
        format!(
            "        federates_with \"{other}\" {{\n            bundle_endpoint_url = \"{url}\"\n            \
             bundle_endpoint_profile \"https_web\" {{}}\n        }}"
        )
    }

    /// The id that the server's bundle endpoint proves.
    pub(crate) fn endpoint_id(&self) -> String {
        format!("spiffe://{}/spire/server", self.domain)
    }

    /// The bundle of the trust domain: `pem` or `spiffe`.
    pub(crate) fn bundle(&self, format: &str) -> String {
        self.ask(&["bundle", "show", "-format", format])
    }

    /// Gives the server its first bundle of another trust domain, a JWK set.
    pub(crate) fn take_bundle(&self, domain: &str, jwks: &str) {
        let path = self.file(&format!("{domain}.json"));
        fs::write(&path, jwks).unwrap();
        let id = format!("spiffe://{domain}");
        self.ask(&["bundle", "set", "-format", "spiffe", "-id", &id, "-path", &path]);
    }

    /// Has the server look at the other's bundle endpoint now.
    pub(crate) fn refresh(&self, domain: &str) -> Result<String, String> {
        self.try_ask(&["federation", "refresh", "-id", domain])
    }

    /// Starts the SPIRE agent with a join token, and registers a Hamlet agent and its gateways, by the
    /// user that they run as; `federates` with these trust domains.
    pub(crate) fn start_agent(&self, federates: &[&str]) {
        fs::write(self.folder.join("bundle.pem"), self.bundle("pem")).unwrap();
        let node = format!("spiffe://{}/node", self.domain);
        let token = self.ask(&["token", "generate", "-spiffeID", &node]);
        let token = token.trim().strip_prefix("Token: ").unwrap().to_owned();
        let selector = format!("unix:uid:{}", nix::unistd::geteuid());
        let federates: Vec<String> = federates.iter().map(|domain| format!("spiffe://{domain}")).collect();
        for (path, hint) in [(AGENT_ID_PATH, "hamlet-agent"), (GATEWAY_ID_PATH, "hamlet-gateway")] {
            let id = format!("spiffe://{}/{path}", self.domain);
            let mut args = vec!["entry", "create", "-parentID", &node, "-spiffeID", &id];
            args.extend(["-selector", &selector, "-hint", hint]);
            args.extend(federates.iter().flat_map(|domain| ["-federatesWith", domain.as_str()]));
            self.ask(&args);
        }
        let text = format!(
            r#"agent {{
    data_dir = "{}"
    log_level = "INFO"
    server_address = "{}"
    server_port = "{}"
    socket_path = "{}"
    trust_bundle_path = "{}"
    trust_domain = "{}"
    experimental {{ sync_interval = "1s" }}
}}
plugins {{
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "disk" {{ plugin_data {{ directory = "{}" }} }}
    WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#,
            self.file("agent"),
            self.at.ip(),
            self.at.port(),
            self.file("agent.sock"),
            self.file("bundle.pem"),
            self.domain,
            self.file("agent"),
        );
        fs::create_dir_all(self.folder.join("agent")).unwrap();
        fs::write(self.folder.join("agent.conf"), text).unwrap();
        let config = self.file("agent.conf");
        self.agent.set(Some(self.run("spire-agent", &["run", "-config", &config, "-joinToken", &token])));
    }

    /// Starts the SPIRE agent anew: its node is known by then.
    pub(crate) fn restart_agent(&self) {
        self.agent.set(Some(self.run("spire-agent", &["run", "-config", &self.file("agent.conf")])));
    }

    /// Ends the SPIRE agent as a crash does.
    pub(crate) fn kill_agent(&self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// `spire-server localauthority x509 ARGS`, as JSON.
    pub(crate) fn authority(&self, args: &[&str]) -> Value {
        let text = self.ask(&[&["localauthority", "x509"], args, &["-output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Has the mesh take its identity from here; `choice` says which ones.
    pub(crate) fn identify(&self, mesh: &Mesh, choice: &str) {
        let text = texts::mesh(mesh, "");
        let authority = "    authority: {folder: identity}\n";
        assert!(text.contains(authority), "{text}");
        let api = format!("    workloadApi: {{socket: \"{}\"{choice}}}\n", self.socket());
        mesh.write("mesh.yaml", &text.replace(authority, &api));
    }
}

/// Has `mesh` believe `peer` by this `trust`.
pub(crate) fn believe(mesh: &Mesh, peer: &Mesh, trust: &str) {
    let file = format!("trust: {{bundle: peers/{}-ca.pem}}", peer.name);
    let text = texts::peer(peer, "");
    assert!(text.contains(&file), "{text}");
    let text = text.replace(&file, &format!("trust: {{{trust}}}"));
    mesh.write(&format!("peer-{}.yaml", peer.name), &format!("{text}---\n{}", texts::import(peer)));
}

impl Drop for Site {
    fn drop(&mut self) {
        for mut child in self.agent.take().into_iter().chain(self.server.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for program in ["spire-server", "spire-agent"] {
                let log = fs::read_to_string(self.file(&format!("{program}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                eprintln!("the end of {program}'s log ({}):\n{tail}\n", self.domain);
            }
        }
    }
}
