//! Everything the demo made, in one value: two meshes, their processes, their folders. When it is
//! dropped, nothing of it runs any more, and the folders are gone unless they are to be kept.

use std::fmt::Display;
use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::family::{Family, tail};
use super::probe::dns::{self, Code};
use super::probe::http::{self, Answer, Call};
use super::site::Site;

/// How long a step waits for what it expects. Far more than it takes; only a failure waits so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Lines of each agent's log that a failed step shows.
const LOG_LINES: usize = 15;

/// A step that did not see what it expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// What should have been.
    pub(super) expected: String,
    /// What was.
    pub(super) seen: String,
}

/// How a step ended; the text is for people.
pub(super) type Outcome = Result<String, Failed>;

/// A failure in words.
pub(super) fn failed(expected: impl Into<String>, seen: impl Display) -> Failed {
    Failed { expected: expected.into(), seen: seen.to_string() }
}

/// Turns an error into a failure of what was to be done, for `?`.
pub(super) fn or_failed<E: Display>(expected: &str) -> impl FnOnce(E) -> Failed + '_ {
    move |error| failed(expected, error)
}

/// `seen` is as it should be, or the step has failed.
pub(super) fn expect(good: bool, expected: impl Into<String>, seen: impl Display) -> Result<(), Failed> {
    if good { Ok(()) } else { Err(failed(expected, seen)) }
}

/// Looks again and again until it sees what is expected, or has lost patience; an error of `look`
/// says what it saw instead.
pub(super) async fn until<T>(
    expected: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Failed> {
    let mut last = "no answer".to_owned();
    let looking = async {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(seen) => last = seen,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.map_err(|_| failed(expected, format!("for {PATIENCE:?}, at last: {last}")))
}

/// The folder of a demo.
struct Root {
    path: PathBuf,
    keep: bool,
}

impl Root {
    fn new(dir: Option<&Path>, keep: bool) -> anyhow::Result<Root> {
        let path = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None => std::env::temp_dir().join(format!("hamlet-demo-{:08x}", rand::random::<u32>())),
        };
        let made = DirBuilder::new().recursive(dir.is_some()).mode(0o700).create(&path);
        made.with_context(|| format!("can't make {}; choose another place with --dir", path.display()))?;
        let empty = fs::read_dir(&path)?.next().is_none();
        anyhow::ensure!(empty, "{} is not empty; choose another folder with --dir", path.display());
        Ok(Root { path, keep: keep || dir.is_some() })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// What the demo made. Fields are dropped in this order: processes, then the folder.
pub(super) struct World {
    /// The mesh that owns services.
    pub(super) acme: Site,
    /// The mesh that calls them.
    pub(super) globex: Site,
    /// Where their processes come from; gone in the last step.
    pub(super) family: Option<Family>,
    /// The port that acme's services have for consumers.
    pub(super) service_port: u16,
    /// Where `ledger` runs, once it does.
    pub(super) ledger: Option<SocketAddr>,
    /// Where `orders` runs, once it does.
    pub(super) orders: Option<SocketAddr>,
    /// The egress address of `orders` while it was published first.
    pub(super) orders_address: Option<Ipv4Addr>,
    root: Root,
}

impl World {
    /// Folders and addresses, and a warden; the meshes are empty.
    pub(super) fn new(dir: Option<&Path>, keep: bool) -> anyhow::Result<World> {
        let root = Root::new(dir, keep)?;
        let acme = Site::new("acme", "acme.example", root.path.join("acme"))?;
        let globex = Site::new("globex", "globex.example", root.path.join("globex"))?;
        let logs = root.path.join("logs");
        fs::create_dir(&logs)?;
        let program = std::env::current_exe().context("can't find this program's own file")?;
        let family = Family::start(program, logs).context("can't start a process of this program")?;
        let service_port = globex.block.service_port(8080)?;
        Ok(World {
            acme,
            globex,
            family: Some(family),
            service_port,
            ledger: None,
            orders: None,
            orders_address: None,
            root,
        })
    }

    /// The folder of it all.
    pub(super) fn folder(&self) -> &Path {
        &self.root.path
    }

    /// Whether the folder stays.
    pub(super) fn kept(&self) -> bool {
        self.root.keep
    }

    /// Where processes come from.
    pub(super) fn family(&self) -> Result<&Family, Failed> {
        self.family.as_ref().ok_or_else(|| failed("a running demo", "it was ended already"))
    }

    /// The ends of both agents' logs.
    pub(super) fn logs(&self) -> String {
        let Some(family) = &self.family else { return String::new() };
        let mut text = String::new();
        for site in [&self.acme, &self.globex] {
            let tail = tail(&family.log(&site.log_name()), LOG_LINES);
            text += &format!("the end of {}'s log:\n{tail}\n", site.name);
        }
        text
    }

    /// `hamlet get KIND NAME -o json` at a mesh: the exit code, and the JSON or the error.
    pub(super) async fn get(&self, site: &Site, what: &[&str]) -> Result<(i32, Value), String> {
        let family = self.family.as_ref().ok_or("the demo was ended already")?;
        let folder = site.folder.to_string_lossy();
        let arguments = [&["get"], what, &["-o", "json", "-f", &folder]].concat();
        let output = family.run(&arguments).await.map_err(|e| e.to_string())?;
        if output.code == 0 {
            let json = serde_json::from_str(&output.out);
            return Ok((0, json.map_err(|e| format!("`hamlet get` printed what is no JSON: {e}"))?));
        }
        Ok((output.code, Value::String(output.err.trim().to_owned())))
    }

    /// The same where it has to succeed.
    pub(super) async fn got(&self, site: &Site, what: &[&str]) -> Result<Value, String> {
        match self.get(site, what).await? {
            (0, json) => Ok(json),
            (code, error) => Err(format!("`hamlet get {}`: exit code {code}: {error}", what.join(" "))),
        }
    }

    /// The address that globex's DNS gives for a name, if there is exactly one.
    pub(super) async fn resolve(&self, name: &str) -> Result<Ipv4Addr, String> {
        let answer = dns::ask(self.globex.ports.dns, name).await?;
        match (answer.code, answer.addresses.as_slice()) {
            (Code::NoError, [address]) if self.globex.block.in_pool(*address) => Ok(*address),
            _ => Err(format!("{name}: {answer:?}")),
        }
    }

    /// A call from globex as a workload makes it: the name resolved, then its egress address.
    pub(super) async fn call(&self, name: &str, path: &str) -> Result<Answer, String> {
        let to = SocketAddr::from((self.resolve(name).await?, self.service_port));
        http::call(&Call { to, host: format!("{name}:{}", self.service_port), path, fields: &[] }).await
    }

    /// The same through globex's shared HTTP listener, by Host name.
    pub(super) async fn call_by_host(&self, name: &str, path: &str) -> Result<Answer, String> {
        let to = self.globex.ports.egress_http;
        http::call(&Call { to, host: name.to_owned(), path, fields: &[] }).await
    }
}
