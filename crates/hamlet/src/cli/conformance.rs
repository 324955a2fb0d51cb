//! `hamlet conformance`: flags, and the forms a run is shown in. What is tested and how is the
//! crate `hamlet-conformance`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use hamlet_conformance::{
    CaseResult, Options, Outcome, Report, Role, RunError, Side, Template, TlsFiles, Version, cases_of,
};
use hamlet_core::rejection::one_line;
use owo_colors::OwoColorize as _;
use tokio::net::TcpListener;

use super::duration;
use super::exit::{Exit, Failure};
use super::output::Out;

/// Longest text of a row, in bytes.
const ROW_BYTES: usize = 240;

/// The role of the implementation under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    /// It offers services, we import them
    Owner,
    /// It imports services, we offer them
    Consumer,
}

/// The version it is tested in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VersionArg {
    /// federation.resourcediscovery.v1alpha1
    V1alpha1,
    /// federation.resourcediscovery.v1alpha2
    V1alpha2,
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people, case by case
    Table,
    /// For programs
    Json,
    /// For CI
    Junit,
    /// For documentation
    Markdown,
}

/// Test any implementation of the protocol from outside
///
/// Plays the other side against an implementation, ours or anybody's, and says which requirements
/// of the protocol it meets. Each requirement has a case of a good peer and at least one of a
/// hostile one; each case has a fresh connection. "must" is what the two sides need to work
/// together; "should" is our reading of what the protocol leaves open, and no failure.
///
/// An implementation that accepts connections is dialled (--target). One that dials is waited for
/// (--listen); if it doesn't come back within seconds, --start-cmd starts it anew for each case (it
/// finds our address in HAMLET_CONFORMANCE_ADDRESS). In v1alpha1 the consumer dials; in v1alpha2
/// either side may.
///
/// An owner under test needs at least three services to offer. --publish-cmd is a shell command
/// that makes it offer them: it is run as `CMD create NAME`, `CMD update NAME` (any change will do)
/// and `CMD delete NAME`. Without it, cases about changes are not applicable.
///
/// A consumer under test must be configured to accept services under --service-domain, with
/// --service-endpoint and --service-san.
///
/// Examples:
///   hamlet conformance --target mesh.example:7443 --role owner --version v1alpha2 \
///       --tls-cert kit.pem --tls-key kit.key --tls-ca mesh-ca.pem --publish-cmd ./publish.sh
///   hamlet conformance --listen 127.0.0.1:7443 --role consumer --version v1alpha1 \
///       --tls-cert kit.pem --tls-key kit.key --tls-ca mesh-ca.pem --start-cmd './consumer -v'
///   hamlet conformance --list --role owner --version v1alpha1
///
/// Exit code 0 when nothing failed, 1 when something did.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, group = ArgGroup::new("side").args(["target", "listen", "list"]).required(true))]
pub(super) struct ConformanceArgs {
    /// Dial the implementation under test
    #[arg(long, value_name = "HOST:PORT")]
    target: Option<String>,
    /// Wait for the implementation under test to dial us
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Show the requirements and cases instead of running them
    #[arg(long)]
    list: bool,
    /// The role of the implementation under test
    #[arg(long, value_enum)]
    role: RoleArg,
    /// The version it is tested in
    #[arg(long, value_enum)]
    version: VersionArg,
    /// Our certificate, which the implementation must trust (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    tls_key: Option<PathBuf>,
    /// The CA certificates of the implementation under test (PEM)
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    tls_ca: Option<PathBuf>,
    /// The DNS name its certificate must have [default: only the chain is checked]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// A file with the context value that both sides are configured with (v1alpha2)
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,
    /// Run as `CMD create|update|delete NAME` to make an owner under test change its services
    #[arg(long, value_name = "CMD")]
    publish_cmd: Option<String>,
    /// Starts the implementation under test for each case, and is killed at its end
    #[arg(long, value_name = "CMD")]
    start_cmd: Option<String>,
    /// Only cases whose id contains this, as OWN-012 or A2-CON-008.3
    #[arg(long, value_name = "ID")]
    filter: Option<String>,
    /// The form of the output
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    output: Form,
    /// How long something that must come may take
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    deadline: Duration,
    /// How long to wait for what must not come
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "500ms")]
    quiet: Duration,
    /// How long an implementation that dials may take to come
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "90s")]
    connect: Duration,
    /// Names of the services that a consumer under test is offered end in this
    #[arg(long, value_name = "DOMAIN", default_value = "conformance.example")]
    service_domain: String,
    /// Their endpoint
    #[arg(long, value_name = "ADDRESS", default_value = "192.0.2.10:8443")]
    service_endpoint: SocketAddr,
    /// Their identity
    #[arg(long, value_name = "URI", default_value = "spiffe://conformance.example/gateway")]
    service_san: String,
}

/// Does it.
pub(super) async fn run(args: ConformanceArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let role = match args.role {
        RoleArg::Owner => Role::Owner,
        RoleArg::Consumer => Role::Consumer,
    };
    let version = match args.version {
        VersionArg::V1alpha1 => Version::V1alpha1,
        VersionArg::V1alpha2 => Version::V1alpha2,
    };
    if args.list {
        return list(role, version, out);
    }
    let form = args.output;
    let options = options(args, role, version).await?;
    if form == Form::Table {
        row(out, ["ID", "LEVEL", "RESULT"], "CASE: SEEN", None)?;
    }
    let mut written = Ok(());
    let run = hamlet_conformance::run(options, |case| {
        if form == Form::Table && written.is_ok() {
            written = shown(out, case);
        }
    });
    let report = run.await.map_err(|error| refused(&error))?;
    written?;
    write(&report, form, out)?;
    Ok(if report.is_good() { Exit::Good } else { Exit::Failed })
}

fn refused(error: &RunError) -> Failure {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Failure::new(exit, error.to_string(), "`hamlet help conformance` explains the flags with examples")
}

async fn options(args: ConformanceArgs, role: Role, version: Version) -> anyhow::Result<Options> {
    let side = match (args.target, args.listen) {
        (Some(target), _) => Side::Target(target),
        (None, Some(address)) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
            // With port 0 nobody could know it otherwise.
            eprintln!("listening on {}", listener.local_addr()?);
            Side::Listen(Arc::new(listener))
        }
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "neither --target nor --listen", "give one of them").into());
        }
    };
    let tls = TlsFiles {
        cert: args.tls_cert.unwrap_or_default(),
        key: args.tls_key.unwrap_or_default(),
        ca: args.tls_ca.unwrap_or_default(),
        server_name: args.server_name,
    };
    let context = match &args.context_file {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text =
                text.with_context(|| format!("cannot read the context value from {}", path.display()))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => String::new(),
    };
    let template = Template {
        domain: args.service_domain,
        address: args.service_endpoint.ip().to_string(),
        port: args.service_endpoint.port(),
        san: args.service_san,
    };
    Ok(Options {
        context,
        publish: args.publish_cmd,
        start: args.start_cmd,
        filter: args.filter,
        deadline: args.deadline,
        quiet: args.quiet,
        connect: args.connect,
        template,
        ..Options::new(side, role, version, tls)
    })
}

/// One row of the table: three short columns, and text to the end of the line.
fn row(out: &mut Out, columns: [&str; 3], text: &str, outcome: Option<Outcome>) -> std::io::Result<()> {
    let [id, level, result] = columns;
    let result = format!("{result:<8}");
    let result = match outcome {
        Some(Outcome::Passed) if out.colour => result.green().to_string(),
        Some(Outcome::Failed) if out.colour => result.red().bold().to_string(),
        Some(Outcome::Differs) if out.colour => result.yellow().to_string(),
        _ => result,
    };
    writeln!(out, "{id:<15} {level:<7} {result} {}", one_line(text, ROW_BYTES))?;
    out.flush()
}

fn shown(out: &mut Out, case: &CaseResult) -> std::io::Result<()> {
    let text = format!("{}: {}", case.case, case.seen);
    row(out, [&case.id, case.level, case.outcome.name()], &text, Some(case.outcome))
}

fn write(report: &Report, form: Form, out: &mut Out) -> anyhow::Result<()> {
    match form {
        Form::Table => {
            let failed = report.cases.iter().filter(|c| c.outcome == Outcome::Failed);
            for case in failed {
                let text = format!("section {}: {}", case.section, case.requirement);
                writeln!(out, "\n{} {}\n  seen: {}", case.id, text, one_line(&case.seen, ROW_BYTES))?;
            }
            writeln!(out, "\n{}", report.summary())?;
        }
        Form::Json => write!(out, "{}", report.to_json()?)?,
        Form::Junit => write!(out, "{}", report.to_junit())?,
        Form::Markdown => write!(out, "{}", report.to_markdown())?,
    }
    Ok(())
}

fn list(role: Role, version: Version, out: &mut Out) -> anyhow::Result<Exit> {
    let mut last = "";
    for case in cases_of(role, version) {
        let requirement = case.requirement;
        if std::mem::replace(&mut last, requirement.number) != requirement.number {
            let id = requirement.id(version).unwrap_or_default();
            let level = requirement.level(version).name();
            writeln!(out, "{id}  {level}, section {}: {}", requirement.section, requirement.text)?;
        }
        writeln!(out, "  {:<14} {:<8} {}", case.id, case.kind.name(), case.name)?;
    }
    Ok(Exit::Good)
}
