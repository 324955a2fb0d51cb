//! `hamlet bundle`: whom we prove to be with, and what proves the peers.
//!
//! Shows CA certificates, never keys. It asks the agent; `show` and `list` read the configuration's
//! files where none answers.

use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use hamlet_admin::ClientError;
use hamlet_admin::api::{AnchorStatus, BundleStatus, OursThere, PeerStatus, human_age};
use hamlet_core::TrustDomain;
use hamlet_core::rejection::one_line;
use hamlet_identity::{BUNDLE_BYTES_MAX, Channel, SpiffeBundle, TrustBundle};
use serde::Serialize;

use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::output::{self, Out};
use crate::agent::bundles::{TOKEN, own_authorities, peer_file};
use crate::config::{self, Config, made};
use crate::hex::hex;

/// Show our own CA certificates, list the peers', or set one's by hand
///
/// A bundle is the CA certificates of one trust domain. It is public: give yours to peers, or publish
/// it with `bundleEndpoint` of the Mesh.
///
/// Examples:
///   hamlet bundle show > acme-ca.pem
///   hamlet bundle show --format jwks
///   hamlet bundle list
///   hamlet bundle set globex globex-ca.pem
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Show(ShowArgs),
    List(ListArgs),
    Set(SetArgs),
}

/// How a bundle is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// Certificates, as most programs take them
    #[default]
    Pem,
    /// A SPIFFE bundle: a JWK set with sequence and refresh hint
    Jwks,
    /// A map of trust domains to SPIFFE bundles, with ours in it
    Map,
}

/// Write our own bundle
///
/// From the agent, or from the files of the configuration where no agent answers; then there is no
/// sequence in it.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct ShowArgs {
    /// How to write it
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "pem")]
    format: Format,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// List the peers' bundles: source, sequence, age, expiry, fingerprints
///
/// From the agent, or from the files of the configuration where no agent answers; then without what
/// endpoints said.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct ListArgs {
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Put a bundle of a peer in force by hand, now and after a restart
///
/// For a peer whose bundle is followed at an endpoint. It stays until the endpoint has a newer one. With
/// a SPIFFE bundle its sequence counts from now on, also when it is lower than before: so a peer that
/// has begun anew is taken back. FILE is PEM, a SPIFFE bundle (JWKS) or a bundle map; `-` is standard
/// input.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct SetArgs {
    /// The peer
    peer: String,
    /// The bundle
    file: PathBuf,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: BundleArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.what {
        What::Show(args) => show(args, out).await,
        What::List(args) => list(args, out).await,
        What::Set(args) => set(args, out).await,
    }
}

/// The configuration's files, where there is no agent to ask.
fn from_files(connect: &ConnectArgs, error: ClientError) -> anyhow::Result<Config> {
    let ClientError::NoAgent { .. } = &error else { return Err(Failure::from(error).into()) };
    let path = connect.config().unwrap_or(Path::new("."));
    match config::load(path) {
        Ok(loaded) => {
            output::say(&format!("no agent answers; this is from the files of {}", path.display()));
            Ok(loaded.config)
        }
        Err(_) => Err(Failure::from(error).into()),
    }
}

async fn show(args: ShowArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let bundle = match args.connect.client().own_bundle().await {
        Ok(own) => SpiffeBundle::from_jwks(TrustDomain::parse(&own.trust_domain)?, own.jwks.as_bytes())?,
        Err(error) => {
            let config = from_files(&args.connect, error)?;
            own_authorities(&config.mesh).map_err(|why| {
                Failure::new(Exit::NotFound, one_line(&why, 4096), "`hamlet validate` checks the files")
            })?
        }
    };
    let text = match args.format {
        Format::Pem => bundle.to_pem(),
        Format::Jwks => bundle.to_jwks()?,
        Format::Map => SpiffeBundle::to_map([&bundle])?,
    };
    out.write_all(text.as_bytes())?;
    Ok(Exit::Good)
}

/// A peer's bundle with the peer's name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    peer: String,
    trust_domain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(flatten)]
    bundle: BundleStatus,
}

async fn list(args: ListArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let rows: Vec<Row> = match args.connect.client().list::<PeerStatus>().await {
        Ok(peers) => peers.items.into_iter().map(of_status).collect(),
        Err(error) => {
            let config = from_files(&args.connect, error)?;
            let one = |peer| of_files(peer, made::is_made(&config.mesh.data, peer));
            config.peers.values().map(one).collect()
        }
    };
    if args.output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(Exit::Good);
    }
    if rows.is_empty() {
        output::say("no peers");
    }
    for row in &rows {
        write_row(row, out)?;
    }
    Ok(Exit::Good)
}

fn of_status(peer: PeerStatus) -> Row {
    let bundle = peer.bundle.unwrap_or_default();
    let problem = bundle.last_error.as_ref().map(|e| e.message.clone());
    Row { peer: peer.name, trust_domain: peer.trust_domain, problem, bundle }
}

fn of_files(peer: &config::PeerConfig, made: bool) -> Row {
    let (found, problem) = match peer_file(peer).transpose() {
        Ok(_) if peer.workload_api => {
            (None, Some("the Workload API gives it, and only to the agent; start it".to_owned()))
        }
        Ok(found) => (found, None),
        Err(why) => (None, Some(why)),
    };
    let anchors = found.as_ref().and_then(|f| f.authorities.bundle()).map(TrustBundle::anchors);
    let authorities = anchors.unwrap_or_default().iter().map(|a| AnchorStatus {
        fingerprint: hex(&a.fingerprint),
        subject: a.subject.clone(),
        not_after_s: a.not_after.as_secs(),
    });
    let bundle = BundleStatus {
        source: found.as_ref().map(|_| if made { TOKEN } else { Channel::File.word() }.to_owned()),
        file: peer.bundle.as_ref().filter(|_| !made).map(|p| p.display().to_string()),
        url: peer.endpoint.as_ref().map(|e| e.url.to_string()),
        follow: peer.follow.map(|_| Channel::Stream.word().to_owned()),
        sequence: found.as_ref().and_then(|f| f.sequence),
        authorities: authorities.collect(),
        ..BundleStatus::default()
    };
    Row { peer: peer.name.to_string(), trust_domain: peer.trust_domain.to_string(), problem, bundle }
}

/// A paragraph: a line for the bundle, one for each CA, one for what is wrong.
fn write_row(row: &Row, out: &mut Out) -> anyhow::Result<()> {
    let bundle = &row.bundle;
    let source = match (&bundle.source, bundle.revoked) {
        (_, true) => "everything revoked".to_owned(),
        (Some(source), _) => format!("from {source}"),
        (None, _) => "no bundle".to_owned(),
    };
    let parts = [
        Some(source),
        bundle.sequence.map(|n| format!("sequence {n}")),
        bundle.age_ms.map(|age| format!("looked at {} ago", human_age(age))),
        bundle.url.clone(),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().map(|p| one_line(&p, 2048)).collect();
    writeln!(
        out,
        "{}  {}  {}",
        one_line(&row.peer, 256),
        one_line(&row.trust_domain, 256),
        parts.join(", ")
    )?;
    for ca in &bundle.authorities {
        let (print, subject) = (one_line(&ca.fingerprint, 64), one_line(&ca.subject, 256));
        writeln!(out, "  {print}  until {}  {subject}", day(ca.not_after_s))?;
    }
    for ca in &bundle.announced {
        writeln!(
            out,
            "  {}  announced, used in {}",
            one_line(&ca.fingerprint, 64),
            human_age(ca.used_in_ms)
        )?;
    }
    if let Some(ours) = &bundle.ours {
        writeln!(out, "  ours there: {}", ours_there(ours))?;
    }
    if let Some(problem) = &row.problem {
        writeln!(out, "  problem: {}", one_line(problem, 2048))?;
    }
    Ok(())
}

/// What the peer said of our bundle.
pub(super) fn ours_there(ours: &OursThere) -> String {
    let said = match (&ours.reason, &ours.message) {
        _ if ours.in_force => "in force".to_owned(),
        (reason, Some(message)) => format!("{}: {message}", reason.as_deref().unwrap_or("not in force")),
        (reason, None) => reason.clone().unwrap_or_else(|| "not in force".to_owned()),
    };
    one_line(&format!("sequence {}, {said}", ours.sequence), 1024)
}

/// The date of a time since the epoch, UTC.
pub(super) fn day(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
    at.map_or_else(|| "the end of time".to_owned(), |at| at.date().to_string())
}

async fn set(args: SetArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let failed = |e: std::io::Error| {
        let message = format!("{}: {e}", args.file.display());
        Failure::new(Exit::Failed, message, "write the path of a file with the peer's CA certificates")
    };
    let mut bytes = Vec::new();
    let limit = BUNDLE_BYTES_MAX as u64 + 1;
    if args.file.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        std::fs::File::open(&args.file)
            .map_err(failed)?
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    }
    let set = args.connect.client().set_bundle(&args.peer, bytes).await.map_err(Failure::from)?;
    if args.output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&set)?)?;
        return Ok(Exit::Good);
    }
    let (peer, domain) = (one_line(&set.peer, 256), one_line(&set.trust_domain, 256));
    if set.added.is_empty() && set.removed.is_empty() {
        writeln!(out, "{peer}: the CAs of {domain} are as they were")?;
    }
    for (sign, list) in [("+", &set.added), ("-", &set.removed)] {
        for print in list {
            writeln!(out, "{peer}: {sign} {}", one_line(print, 64))?;
        }
    }
    Ok(Exit::Good)
}
