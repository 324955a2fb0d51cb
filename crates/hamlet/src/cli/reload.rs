//! `hamlet reload`: takes the configuration over, or shows why not.

use std::io::Write;

use clap::Args;
use hamlet_admin::ClientError;
use hamlet_core::rejection::one_line;

use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::output::{self, Out};

/// Load the configuration again; waits and shows what is wrong
///
/// The agent reads its files, checks all of them, and swaps the result in as a whole. With any
/// problem nothing changes: every problem is shown with its place and fix, the last good
/// configuration stays in force, and the exit code is 1. The agent also watches its files; this
/// command is for scripts and people who want to know.
///
/// When many services are gone from the files at once, the agent serves them for five more minutes
/// (`spec.brake` of the Mesh): `--confirm-withdrawals` says that they are meant to go.
///
/// Examples:
///   hamlet reload
///   hamlet reload --confirm-withdrawals
///   hamlet reload -f acme && hamlet get services
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct ReloadArgs {
    /// Let services go that are gone from the files, although they are many
    #[arg(long)]
    confirm_withdrawals: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: ReloadArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let report = match client.reload().await {
        Ok(report) => report,
        Err(error) => {
            if let ClientError::Configuration(problems) = &error {
                output::say(&problem_text(&problems.rendered, &problems.problems));
            }
            return Err(Failure::from(error).into());
        }
    };
    for warning in &report.warnings {
        output::say(&format!("warning: {}", one_line(warning, 4096)));
    }
    for change in &report.needs_restart {
        output::say(&format!("warning: takes effect after a restart only: {}", one_line(change, 4096)));
    }
    let confirmed = match args.confirm_withdrawals {
        true => Some(client.confirm_withdrawals().await.map_err(Failure::from)?),
        false => None,
    };
    if !report.changed {
        writeln!(out, "nothing has changed (load {})", report.generation)?;
    } else {
        writeln!(out, "reloaded (load {})", report.generation)?;
        for change in &report.changes {
            writeln!(out, "  {}", one_line(change, 4096))?;
        }
    }
    if let Some(released) = confirmed {
        writeln!(out, "{released} withheld services withdrawn")?;
    }
    Ok(Exit::Good)
}

/// The rendering with the places shown where there is one, else one line a problem.
fn problem_text(rendered: &str, problems: &[String]) -> String {
    let lines: Vec<String> = if rendered.is_empty() {
        problems.iter().map(|p| one_line(p, 4096)).collect()
    } else {
        rendered.lines().map(|l| one_line(l, 4096)).collect()
    };
    lines.join("\n")
}
