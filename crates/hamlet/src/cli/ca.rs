//! `hamlet ca`: our own authority, looked at and rotated.
//!
//! It works on the folder of keys, with or without a running agent; whoever can read that folder can
//! do all of it by other means. The agent takes over within seconds what was done here. Invariant:
//! `status` changes nothing.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use hamlet_admin::Client;
use hamlet_admin::api::{MissingPeer, human_age};
use hamlet_core::Fqdn;
use hamlet_core::rejection::one_line;
use hamlet_identity::authority::plan::{Lives, Planned, Step};
use hamlet_identity::authority::state::{Root, Stage, State};
use hamlet_identity::{Authority, AuthorityError, Release};
use hamlet_runtime::SystemClock;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::Out;
use crate::config::{self, AuthorityConfig, IdentityConfig, MeshConfig};

/// Show, rotate or adopt the mesh's own certificate authority
///
/// For meshes whose certificates come from `spec.identity.authority`. The agent renews leaves and the
/// CA that signs them by itself, and stages a new root when two thirds of a root's life are over;
/// these commands show what is there and rotate a root sooner. They work on the authority's folder,
/// with or without a running agent, which takes the change over within seconds.
///
/// Examples:
///   hamlet ca status -f acme
///   hamlet ca rotate -f acme
///   hamlet ca rotate -f acme --now --drop-old     # the root's key was stolen
///   hamlet ca adopt acme/authority -f acme        # from `ca.pem` and `ca.key` of an older folder
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    Status(StatusArgs),
    Rotate(RotateArgs),
    Adopt(AdoptArgs),
}

/// Where the Mesh document is.
#[derive(Debug, Args)]
struct Where {
    /// The configuration: a YAML file, or a folder of them
    #[arg(short = 'f', long = "config", value_name = "PATH", env = "HAMLET_CONFIG")]
    config: PathBuf,
}

/// How to print it
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For scripts
    Json,
}

/// Show roots, the issuing CA, leaves, their ages, and what comes next and when
///
/// Exit code 3 when something has expired, or is due for long and not done: then no agent runs, or
/// it can't; `hamlet status` and its log say why.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct StatusArgs {
    #[command(flatten)]
    of: Where,
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Begin to change the root
///
/// A new root joins the bundle (`ca.pem`), signed by the old one too. After the overlap everything
/// new comes from it, and once no leaf of the old root can live, that one leaves the bundle. Give
/// peers that hold the bundle as a file the new `ca.pem` before the overlap ends; those that get it
/// late believe the new root through the old one's signature.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct RotateArgs {
    #[command(flatten)]
    of: Where,
    /// Issue from the new root at once, without the overlap; also lets a staged root begin
    #[arg(long)]
    now: bool,
    /// Take the old root out of the bundle at once too: for a root whose key was stolen
    #[arg(long, requires = "now")]
    drop_old: bool,
}

/// Make an authority of a CA that is there
///
/// For a folder that an older `hamlet init` made, or a root of your own: its certificate becomes the
/// first root, so peers notice nothing. The files stay as they are. A CA that may have no
/// intermediate signs leaves itself until the first rotation, and can't sign its successor.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct AdoptArgs {
    /// The new identity folder; made if it doesn't exist
    folder: PathBuf,
    #[command(flatten)]
    of: Where,
    /// The CA's certificate [default: that of spec.identity.ca]
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The CA's private key [default: that of spec.identity.ca]
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A host name of this machine, for the certificates; may be given several times
    #[arg(long = "host", value_name = "NAME", value_parser = Fqdn::parse)]
    hosts: Vec<Fqdn>,
}

/// How long a running agent may take to say which peers lack a root.
const ASK_AGENT: Duration = Duration::from_secs(2);
/// How long something may be due before `status` calls it overdue.
const OVERDUE: Duration = Duration::from_secs(60);

/// Does it.
pub(super) async fn run(args: CaArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.command {
        CaCommand::Status(args) => status(&args, out).await,
        CaCommand::Rotate(args) => rotate(&args, out),
        CaCommand::Adopt(args) => adopt(args, out),
    }
}

fn mesh(of: &Where) -> anyhow::Result<MeshConfig> {
    let loaded = config::load(&of.config).map_err(|problems| {
        eprint!("{}", problems.render(false));
        let message = format!("the configuration in {} can't be used", of.config.display());
        Failure::new(Exit::Failed, message, "mend the places shown")
    })?;
    Ok(loaded.config.mesh)
}

fn opened(of: &Where) -> anyhow::Result<Authority> {
    let mesh = mesh(of)?;
    let authority = match &mesh.identity {
        IdentityConfig::Authority(authority) => authority,
        IdentityConfig::Files(_) => {
            let message = "this mesh's certificates come from files (spec.identity.agent), not from an authority of ours";
            let hint = "rotate them where they are made; or `hamlet ca adopt FOLDER` makes an authority of spec.identity.ca";
            return Err(Failure::new(Exit::Failed, message, hint).into());
        }
        IdentityConfig::WorkloadApi(_) => {
            let message = "this mesh's certificates come from a Workload API (spec.identity.workloadApi), not from an authority of ours";
            let hint = "rotate them there: `spire-server localauthority x509 prepare`, then `activate`";
            return Err(Failure::new(Exit::Failed, message, hint).into());
        }
    };
    let settings = authority.settings(&mesh.trust_domain, SystemClock::shared())?;
    Authority::new(settings).map_err(failure)
}

/// The words after `;` are the hint.
fn failure(error: AuthorityError) -> anyhow::Error {
    let text = error.to_string();
    match text.split_once("; ") {
        Some((message, hint)) => Failure::new(Exit::Failed, message, hint).into(),
        None => error.into(),
    }
}

/// The peers that a waiting root waits for, if an agent is there to say.
async fn missing_peers(of: &Where) -> anyhow::Result<Vec<MissingPeer>> {
    let told = Client::new(mesh(of)?.socket, ASK_AGENT).agent().await;
    Ok(told.ok().and_then(|agent| agent.authority).map(|a| a.missing).unwrap_or_default())
}

async fn status(args: &StatusArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let authority = opened(&args.of)?;
    let state = authority.read().map_err(failure)?;
    let planned = authority.schedule(&state);
    let wall = authority.settings().clock.wall();
    let missing = match state.staged() {
        Some(_) => missing_peers(&args.of).await?,
        None => vec![],
    };
    match args.output {
        Format::Json => {
            let value = as_json(&authority, &state, &planned, &missing, wall)?;
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        }
        Format::Text => {
            let page =
                Page { authority: &authority, state: &state, planned: &planned, missing: &missing, wall };
            write!(out, "{page}")?;
        }
    }
    let expired = state.leaves.values().any(|leaf| Duration::from_secs(leaf.not_after_s) <= wall);
    let overdue = planned.iter().any(|p| p.at > Duration::ZERO && p.at + OVERDUE <= wall);
    Ok(if expired || overdue || state.leaves.is_empty() { Exit::Degraded } else { Exit::Good })
}

fn as_json(
    authority: &Authority,
    state: &State,
    planned: &[Planned],
    missing: &[MissingPeer],
    wall: Duration,
) -> anyhow::Result<serde_json::Value> {
    let planned: Vec<_> = planned
        .iter()
        .map(|p| {
            json!({
                "step": p.step.to_string(),
                "atS": p.at.max(wall).as_secs(),
                "inS": p.at.saturating_sub(wall).as_secs(),
                "why": p.why,
            })
        })
        .collect();
    Ok(json!({
        "folder": authority.settings().folder,
        "bundle": authority.bundle_file(),
        "state": serde_json::to_value(state)?,
        "planned": planned,
        "missing": missing,
    }))
}

fn rotate(args: &RotateArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let authority = opened(&args.of)?;
    let release = if args.now { Release::Now } else { Release::AfterOverlap };
    let mut done = authority.rotate(release).map_err(failure)?;
    if args.drop_old {
        done.extend(authority.drop_leaving().map_err(failure)?);
    }
    for planned in &done {
        writeln!(out, "done: {}", planned.step)?;
    }
    let state = authority.read().map_err(failure)?;
    let wall = authority.settings().clock.wall();
    if let Some((root, at)) = state.staged() {
        let left = age(at.saturating_sub(wall));
        writeln!(
            out,
            "\nRoot {} begins to issue in {left}. Until then give peers that hold our bundle as a file",
            root.number
        )?;
    } else {
        writeln!(out, "\nEverything new comes from the new root. Give peers that hold our bundle as a file")?;
    }
    writeln!(out, "  {}", authority.bundle_file().display())?;
    writeln!(out, "and see `hamlet ca status` for what comes next.")?;
    Ok(Exit::Good)
}

fn adopt(args: AdoptArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let mesh = mesh(&args.of)?;
    let configured = match &mesh.identity {
        IdentityConfig::Files(files) => files.ca.clone().map(|pair| (pair.cert, pair.key)),
        IdentityConfig::Authority(_) | IdentityConfig::WorkloadApi(_) => None,
    };
    let Some((cert, key)) = args.cert.zip(args.key).or(configured) else {
        let message = "the configuration names no CA";
        return Err(Failure::new(Exit::Usage, message, "name its files with --cert and --key").into());
    };
    let folder = std::path::absolute(&args.folder).context("the folder's path can't be made absolute")?;
    let config = AuthorityConfig { folder, hosts: args.hosts, lives: Lives::default() };
    let settings = config.settings(&mesh.trust_domain, SystemClock::shared())?;
    Authority::adopt(settings, &cert, &key).map_err(failure)?;
    writeln!(
        out,
        "Made an authority in {} with {} as its first root.\n",
        args.folder.display(),
        cert.display()
    )?;
    writeln!(out, "Next:")?;
    writeln!(out, "  1. In the Mesh document, in place of what stands under `identity`:")?;
    writeln!(out, "       authority: {}", flow(&config))?;
    writeln!(out, "  2. Start the agent again.")?;
    writeln!(out, "  3. `hamlet ca rotate`, at leisure, for a root that can have an intermediate.")?;
    Ok(Exit::Good)
}

/// As it stands in the document.
fn flow(config: &AuthorityConfig) -> String {
    let folder = serde_json::Value::from(config.folder.display().to_string());
    let hosts: Vec<String> = config.hosts.iter().map(ToString::to_string).collect();
    match hosts.is_empty() {
        true => format!("{{folder: {folder}}}"),
        false => format!("{{folder: {folder}, hosts: [{}]}}", hosts.join(", ")),
    }
}

/// What `status` prints for people.
struct Page<'a> {
    authority: &'a Authority,
    state: &'a State,
    planned: &'a [Planned],
    missing: &'a [MissingPeer],
    wall: Duration,
}

impl Page<'_> {
    fn end(&self, not_after_s: u64) -> String {
        let end = Duration::from_secs(not_after_s);
        match end.checked_sub(self.wall) {
            Some(left) if !left.is_zero() => format!("ends in {}", age(left)),
            _ => format!("EXPIRED {} ago", age(self.wall.saturating_sub(end))),
        }
    }

    fn made(&self, made_s: u64) -> String {
        format!("made {} ago", age(self.wall.saturating_sub(Duration::from_secs(made_s))))
    }

    fn root(&self, root: &Root) -> String {
        let left = |s: u64| age(Duration::from_secs(s).saturating_sub(self.wall));
        let what = match root.stage {
            Stage::Staged { issue_at_s } => format!("waits, begins to issue in {}", left(issue_at_s)),
            Stage::Issuing => "issues".to_owned(),
            Stage::Leaving { gone_at_s } => format!("leaves the bundle in {}", left(gone_at_s)),
        };
        let sha256 = root.sha256.get(..16).unwrap_or(&root.sha256);
        let (made, end) = (self.made(root.made_s), self.end(root.not_after_s));
        format!("root {}: {what}; {made}, {end}; sha256 {sha256}...", root.number)
    }
}

impl std::fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state;
        writeln!(f, "Authority of {} in {}", state.trust_domain, self.authority.settings().folder.display())?;
        let roots = match state.roots.len() {
            1 => "1 root".to_owned(),
            n => format!("{n} roots"),
        };
        let bundle = self.authority.bundle_file();
        writeln!(f, "Bundle for peers: {} ({roots}, sequence {})", bundle.display(), state.sequence)?;
        writeln!(f, "\nRoots:")?;
        for root in &state.roots {
            writeln!(f, "  {}", self.root(root))?;
        }
        writeln!(f, "\nIssuing CA:")?;
        match &state.issuing {
            None => writeln!(f, "  none")?,
            Some(issuing) if issuing.is_root() => {
                writeln!(f, "  root {} itself; {}", issuing.root, self.end(issuing.not_after_s))?;
            }
            Some(issuing) => {
                let (made, end) = (self.made(issuing.made_s), self.end(issuing.not_after_s));
                writeln!(f, "  issuing CA {}, of root {}; {made}, {end}", issuing.number, issuing.root)?;
            }
        }
        writeln!(f, "\nLeaves:")?;
        for (role, leaf) in &state.leaves {
            let (made, end) = (self.made(leaf.made_s), self.end(leaf.not_after_s));
            writeln!(f, "  {role}: {}, of root {}; {made}, {end}", leaf.id, leaf.root)?;
        }
        if !self.missing.is_empty() {
            writeln!(f, "\nThe new root waits for:")?;
        }
        for MissingPeer { peer, why } in self.missing {
            writeln!(f, "  {}: {}", one_line(peer, 256), one_line(why, 1024))?;
        }
        writeln!(f, "\nNext:")?;
        if self.planned.is_empty() {
            writeln!(f, "  nothing; `hamlet ca rotate` makes a new root")?;
        }
        for planned in self.planned {
            let when = match planned.at.checked_sub(self.wall) {
                Some(left) if !left.is_zero() => format!("in {}", age(left)),
                _ => "now".to_owned(),
            };
            let hint = match planned.step {
                Step::IssueFromStaged => " (sooner with `hamlet ca rotate --now`)",
                _ => "",
            };
            writeln!(f, "  {when}: {}, because {}{hint}", planned.step, planned.why)?;
        }
        Ok(())
    }
}

fn age(time: Duration) -> String {
    human_age(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
