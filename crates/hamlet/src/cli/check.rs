//! `hamlet check`: the doctor's findings, for people and programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hamlet_runtime::SystemClock;
use owo_colors::OwoColorize as _;
use serde::Serialize;

use super::connect::ConnectArgs;
use super::duration;
use super::exit::Exit;
use super::output::Out;
use crate::doctor::{self, Finding, Outcome, Report};

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// A line a finding, for people
    #[default]
    Text,
    /// One object, for programs
    Json,
}

/// Look at everything that a federation needs, and say what to do
///
/// Checks the configuration, the clock, the data folder, our certificates and their ends, each
/// peer's bundle, whether its agent can be reached and both sides prove themselves, the far
/// gateways' ports, and the way of a name through DNS. It connects to the peers as the agent does,
/// changes nothing, and works beside a running agent as well as without one (names and gateways
/// need one).
///
/// Certificates are spoken of 30, 7 and 1 days before their end; those that live for days only,
/// when a sixth of their life is left.
///
/// Exit code 0 when all is well, 3 with warnings only, 1 when something fails.
///
/// Examples:
///   hamlet check -f acme
///   hamlet check -f acme --all             # also what is well
///   hamlet check -f acme -o json | jq '.findings[] | select(.outcome != "pass")'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CheckArgs {
    /// Show also what is well
    #[arg(long)]
    all: bool,
    /// How long a single look may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    patience: Duration,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// The whole as one object.
#[derive(Serialize)]
struct Document<'a> {
    outcome: Outcome,
    passed: usize,
    warned: usize,
    failed: usize,
    #[serde(flatten)]
    report: &'a Report,
}

/// Does it.
pub(super) async fn run(args: CheckArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let path = args.connect.config().map_or_else(|| PathBuf::from("."), Path::to_owned);
    let clock = SystemClock::shared();
    let report = doctor::examine(&path, &args.connect.client(), &clock, args.patience).await;
    let count = |outcome| report.count(outcome);
    let (passed, warned, failed) = (count(Outcome::Pass), count(Outcome::Warn), count(Outcome::Fail));
    match args.output {
        Format::Json => {
            let document = Document { outcome: report.worst(), passed, warned, failed, report: &report };
            writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
        }
        Format::Text => {
            let shown = report.findings.iter().filter(|f| args.all || f.outcome != Outcome::Pass);
            for finding in shown {
                write_finding(finding, out)?;
            }
            writeln!(out, "{passed} passed, {warned} warned, {failed} failed")?;
        }
    }
    Ok(match report.worst() {
        Outcome::Pass => Exit::Good,
        Outcome::Warn => Exit::Degraded,
        Outcome::Fail => Exit::Failed,
    })
}

fn write_finding(finding: &Finding, out: &mut Out) -> std::io::Result<()> {
    let word = finding.outcome.to_string();
    let word = match (out.colour, finding.outcome) {
        (false, _) => word,
        (true, Outcome::Pass) => word.green().to_string(),
        (true, Outcome::Warn) => word.yellow().to_string(),
        (true, Outcome::Fail) => word.red().to_string(),
    };
    writeln!(out, "{word}  {}: {}", finding.about, finding.found)?;
    if let Some(remedy) = &finding.remedy {
        writeln!(out, "      {remedy}")?;
    }
    Ok(())
}
