//! `hamlet status`: the agent on one page, and whether a person has to look at it.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use hamlet_admin::api::{StatusReport, human_age};
use hamlet_admin::{Client, ClientError};
use hamlet_core::rejection::one_line;
use owo_colors::OwoColorize as _;

use super::connect::ConnectArgs;
use super::describe::Page;
use super::exit::{Exit, Failure};
use super::get::{Format, write_document};
use super::output::{self, Out};

/// How often `--wait` asks.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The agent's health in one page; exit code 3 when degraded
///
/// Degraded means that a person should look: a configuration that could not be loaded, a failed
/// task or listener, a certificate that is about to expire, services that the brake on withdrawals
/// holds back, a peer that is down, stalled (either way) or refused. A lost peer degrades, but never makes the agent unready.
///
/// Examples:
///   hamlet status
///   hamlet status -o json | jq .problems
///   hamlet status --wait --timeout 60s   # until nothing is wrong; exit code 4 if that takes longer
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct StatusArgs {
    /// How to write it: table, json or yaml
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Wait until nothing is wrong, at most as long as --timeout
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: StatusArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let (report, exit) = if args.wait {
        wait(&client, args.connect.timeout).await?
    } else {
        let report = client.status().await.map_err(Failure::from)?;
        let exit = if report.degraded { Exit::Degraded } else { Exit::Good };
        (report, exit)
    };
    match args.output {
        Format::Json | Format::Yaml => write_document(&report, args.output, out)?,
        Format::Name => writeln!(out, "{}", one_line(&report.agent.mesh, 256))?,
        Format::Table | Format::Wide => write_page(&report, out)?,
    }
    let ours = env!("CARGO_PKG_VERSION");
    if report.agent.version != ours {
        let theirs = one_line(&report.agent.version, 64);
        output::say(&format!("note: the agent is version {theirs}, this command is {ours}"));
    }
    Ok(exit)
}

/// Asks until nothing is wrong. In the end shows the last report, if there ever was one.
async fn wait(client: &Client, patience: Duration) -> anyhow::Result<(StatusReport, Exit)> {
    let mut last: Option<Result<StatusReport, ClientError>> = None;
    let calm = tokio::time::timeout(patience, async {
        loop {
            match client.status().await {
                Ok(report) if !report.degraded => return report,
                other => last = Some(other),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    });
    match (calm.await, last) {
        (Ok(report), _) => Ok((report, Exit::Good)),
        (Err(_), Some(Ok(report))) => Ok((report, Exit::TimedOut)),
        (Err(_), Some(Err(error))) => {
            let failure = Failure { exit: Exit::TimedOut, ..Failure::from(error) };
            Err(failure.into())
        }
        (Err(_), None) => {
            let after = human_age(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
            let message = format!("the agent gave no answer within {after}");
            Err(Failure::new(Exit::TimedOut, message, "give it longer with --timeout").into())
        }
    }
}

fn write_page(report: &StatusReport, out: &mut Out) -> std::io::Result<()> {
    let agent = &report.agent;
    let mut page = Page::default();
    page.field("Mesh", format!("{} ({})", agent.mesh, agent.trust_domain));
    let up = human_age(agent.uptime_ms);
    page.field("Agent", format!("hamlet {}, process {}, up {up}", agent.version, agent.pid));
    let (files, age) = (agent.config.files, human_age(agent.config.loaded_ms));
    page.field("Configuration", format!("{}, {files} files, loaded {age} ago", agent.config.path));
    page.list("  warnings", &agent.config.warnings);
    page.field("Store", format!("{}, {} entries", agent.store.path, agent.store.entries));
    // What fails is among the problems below; what was set aside at the start is told here.
    if let Some(message) = agent.store.message.as_ref().filter(|_| agent.store.healthy) {
        page.field("  at start", message.clone());
    }
    let states: Vec<_> = report.peers.iter().map(|(state, n)| format!("{n} {state}")).collect();
    page.field("Peers", if states.is_empty() { "none".to_owned() } else { states.join(", ") });
    page.field("Services", format!("{} local, {} imported", report.local_services, report.imported_services));
    page.field("Tasks", format!("{} running, {} failed", agent.tasks.running, agent.tasks.failed.len()));
    let listening = agent.listeners.iter().filter(|l| l.error.is_none());
    page.list("Listeners", listening.map(|l| format!("{} {}", l.name, l.address)));
    let left = |s: i64| human_age(u64::try_from(s).unwrap_or(0).saturating_mul(1000));
    let identities = agent.identities.iter().filter(|i| i.problem().is_none());
    page.list(
        "Identities",
        identities.map(|i| format!("{} {}, expires in {}", i.role, i.id, left(i.expires_in_s))),
    );
    out.write_all(page.text.as_bytes())?;
    if !report.degraded {
        let good = if out.colour { "good".green().to_string() } else { "good".to_owned() };
        return writeln!(out, "\nHealth: {good}");
    }
    let bad = if out.colour { "degraded".red().to_string() } else { "degraded".to_owned() };
    writeln!(out, "\nHealth: {bad}")?;
    for problem in &report.problems {
        writeln!(out, "  {}: {}", one_line(&problem.about, 256), one_line(&problem.message, 2048))?;
    }
    Ok(())
}
