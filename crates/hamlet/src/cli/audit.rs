//! `hamlet audit`: who changed what, and whether that record is whole.
//!
//! It reads the audit's files themselves: with or without a running agent, and a copy of them as well.
//! Who may read them could ask the admin socket too: both are the owner's alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use hamlet_core::rejection::one_line;
use hamlet_runtime::{Clock, SystemClock};
use serde_json::json;

use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::output::{self, Out};
use crate::audit::{Action, AnchorSeen, Entry, Head, Report, Tail, folder_in, parse_time, walk};

/// Longest cell of the table, in bytes.
const CELL_BYTES: usize = 4096;
/// Blanks between columns.
const GAP: u16 = 3;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// Columns for people; they may change
    #[default]
    Table,
    /// Stable, for programs: an object a line
    Json,
}

/// Show who changed what: peers, their roots, our own, the configuration
///
/// The agent writes an entry for each change of trust or configuration: when (UTC), who (an operator
/// with the user id, the files, a peer and by which way, a stranger, the agent itself), what, and which
/// fingerprints came (+) and went (-). Never a key, a token or a secret. What strangers cause is counted
/// after the first ten an hour.
///
/// Each entry names the SHA-256 of the one before; `hamlet audit verify` checks that. The files are read
/// where they are (`audit` in the data folder), with or without a running agent.
///
/// Examples:
///   hamlet audit
///   hamlet audit --peer globex --action peer-roots-changed
///   hamlet audit --since 2h
///   hamlet audit --since 2026-11-23T08:00:00Z -o json | jq 'select(.outcome == "refused")'
///   hamlet audit verify
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    Verify(VerifyArgs),
}

/// Where the files are.
#[derive(Debug, Args)]
struct Where {
    /// The folder of the audit's files, for a copy [default: `audit` in the agent's data folder]
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only what concerns this peer
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Only this action; may be given several times
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(Action::WORDS))]
    action: Vec<String>,
    /// Only what is younger: 90s, 30m, 12h, 7d, or a time as 2026-11-23T08:00:00Z
    #[arg(long, value_name = "DURATION|TIME", value_parser = Since::parse)]
    since: Option<Since>,
    /// Only the last N
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    #[command(flatten)]
    at: Where,
}

/// Check that no entry was changed, removed, moved or put in
///
/// Says where the chain is broken, file and line, and ends with exit code 1; with 3 if something should
/// be looked at. What a chain alone can't show is that its end was cut off, or that somebody who may
/// write the files wrote all of it anew. So keep the head that is printed somewhere else, and give it
/// back later with `--anchor`: then everything up to it is the same as it was. A running agent is asked
/// for its own head, which shows a cut end too; its log has the head of each start and stop.
///
/// Examples:
///   hamlet audit verify
///   hamlet audit verify -o json | jq -r .head > /elsewhere/acme-audit-head
///   hamlet audit verify --anchor "$(cat /elsewhere/acme-audit-head)"
///   hamlet audit verify --folder /copies/acme/audit
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct VerifyArgs {
    /// A head that was printed earlier
    #[arg(long, value_name = "NUMBER:SHA256")]
    anchor: Option<Head>,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    #[command(flatten)]
    at: Where,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Ago(Duration),
    At(Duration),
}

impl Since {
    fn parse(text: &str) -> Result<Since, String> {
        if let Some(at) = parse_time(text) {
            return Ok(Since::At(at));
        }
        let bad = || "write it like 90s, 30m, 12h, 7d or 2026-11-23T08:00:00Z".to_owned();
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (digits, unit) = text.split_at(split);
        let number: u64 = digits.parse().map_err(|_| bad())?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(bad()),
        };
        Ok(Since::Ago(Duration::from_secs(number.saturating_mul(seconds))))
    }

    fn begin(self, now: Duration) -> Duration {
        match self {
            Since::Ago(ago) => now.saturating_sub(ago),
            Since::At(at) => at,
        }
    }
}

/// Does it.
pub(super) async fn run(args: AuditArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.what {
        None => list(&args.list, out).await,
        Some(What::Verify(args)) => verify(&args, out).await,
    }
}

impl Where {
    /// The folder as it was named, beside the configuration, or as the agent says.
    async fn folder(&self) -> anyhow::Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        if let Some(data) = self.connect.data() {
            return Ok(folder_in(&data));
        }
        let agent = self.connect.client().agent().await.map_err(Failure::from)?;
        let missing = || {
            let hint = "is it of the same version? Name the files with -f DIR or --folder PATH";
            Failure::new(Exit::Failed, "the agent doesn't say where its audit is", hint)
        };
        Ok(agent.audit.ok_or_else(missing)?.folder.into())
    }

    /// The head that a running agent has written, if one of this folder answers.
    async fn running(&self, folder: &Path) -> Option<Head> {
        if self.folder.is_some() {
            return None;
        }
        let audit = self.connect.client().agent().await.ok()?.audit?;
        let same = std::fs::canonicalize(folder).ok()? == std::fs::canonicalize(&audit.folder).ok()?;
        let head: Head = audit.head.parse().ok()?;
        (same && head.sequence > 0).then_some(head)
    }
}

fn read(folder: &Path, anchor: Option<Head>, visit: &mut dyn FnMut(&Entry)) -> anyhow::Result<Report> {
    let failed = |error: std::io::Error| {
        let (exit, hint) = match error.kind() {
            std::io::ErrorKind::NotFound => (
                Exit::NotFound,
                "no agent has run there yet; name its configuration with -f DIR, or the files with --folder PATH",
            ),
            std::io::ErrorKind::PermissionDenied => (Exit::Failed, "run this as the agent's user"),
            _ => (Exit::Failed, "see to the folder and its files"),
        };
        Failure::new(exit, format!("{}: {error}", folder.display()), hint)
    };
    Ok(walk(folder, anchor, visit).map_err(failed)?)
}

async fn list(args: &ListArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let folder = args.at.folder().await?;
    let now = SystemClock::new().wall();
    let begin = args.since.map(|since| since.begin(now));
    let fits = |entry: &Entry| {
        let peer = args.peer.as_ref().is_none_or(|peer| entry.peer.as_ref() == Some(peer));
        let action = args.action.is_empty() || args.action.contains(&entry.action);
        peer && action && begin.is_none_or(|begin| entry.at().is_none_or(|at| at >= begin))
    };
    let mut entries = vec![];
    let report = read(&folder, None, &mut |entry| {
        if fits(entry) {
            entries.push(entry.clone());
        }
    })?;
    let shown = args.lines.unwrap_or(usize::MAX).min(entries.len());
    entries.drain(..entries.len() - shown);
    match args.output {
        Format::Table if entries.is_empty() => output::say("no entries"),
        Format::Table => write_table(&entries, out)?,
        Format::Json => {
            for entry in &entries {
                writeln!(out, "{}", serde_json::to_string(entry)?)?;
            }
        }
    }
    if report.breaks.is_empty() {
        return Ok(Exit::Good);
    }
    output::say("warning: the chain of these entries is broken; `hamlet audit verify` says where");
    Ok(Exit::Degraded)
}

fn write_table(entries: &[Entry], out: &mut Out) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty();
    table.set_header(["TIME", "WHO", "ACTION", "PEER", "DETAILS"]);
    let safe = |text: &str| match text {
        "" => "-".to_owned(),
        text => one_line(text, CELL_BYTES),
    };
    for entry in entries {
        let mut action = entry.action.clone();
        if entry.outcome != "done" {
            action += &format!(" ({})", entry.outcome);
        }
        let mut details = entry.subject.text();
        if entry.times > 1 {
            let gap = if details.is_empty() { "" } else { ", " };
            details += &format!("{gap}{} times", entry.times);
        }
        let peer = entry.peer.as_deref().unwrap_or_default();
        let cells = [&entry.time, &entry.actor.to_string(), &action, peer, &details];
        table.add_row(cells.map(safe));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

async fn verify(args: &VerifyArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let folder = args.at.folder().await?;
    // Before the files are read: they may only have grown since.
    let running = args.at.running(&folder).await;
    let mut report = read(&folder, args.anchor, &mut |_| {})?;
    let agent = match running {
        None => None,
        Some(head) => {
            let again = read(&folder, Some(head), &mut |_| {})?;
            for found in again.breaks.into_iter().filter(|_| again.anchor == Some(AnchorSeen::Broken)) {
                if !report.breaks.contains(&found) {
                    report.breaks.push(found);
                }
            }
            again.anchor
        }
    };
    let exit = match (report.breaks.is_empty(), report.tail, report.anchor) {
        (false, ..) | (_, _, Some(AnchorSeen::Broken)) => Exit::Failed,
        (_, Tail::Torn { .. }, _) | (_, _, Some(AnchorSeen::Older)) => Exit::Degraded,
        _ => Exit::Good,
    };
    match args.output {
        Format::Json => write_json(&folder, &report, exit, out)?,
        Format::Table => write_report(&folder, &report, agent, out)?,
    }
    Ok(exit)
}

fn word(seen: AnchorSeen) -> &'static str {
    match seen {
        AnchorSeen::Held => "held",
        AnchorSeen::Older => "older",
        AnchorSeen::Broken => "broken",
    }
}

fn write_json(folder: &Path, report: &Report, exit: Exit, out: &mut Out) -> anyhow::Result<()> {
    let torn: Vec<String> = report.torn.iter().map(ToString::to_string).collect();
    let breaks: Vec<String> = report.breaks.iter().map(ToString::to_string).collect();
    let object = json!({
        "folder": folder.display().to_string(),
        "good": exit == Exit::Good,
        "files": report.files.len(),
        "entries": report.entries,
        "first": report.first,
        "head": report.head.to_string(),
        "anchor": report.anchor.map(word),
        "breaks": breaks,
        "torn": torn,
        "tornTail": matches!(report.tail, Tail::Torn { .. }),
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?)
}

fn write_report(
    folder: &Path,
    report: &Report,
    agent: Option<AnchorSeen>,
    out: &mut Out,
) -> anyhow::Result<()> {
    let plural = |n: u64, one: &str, more: &str| format!("{n} {}", if n == 1 { one } else { more });
    let entries = plural(report.entries, "entry", "entries");
    let files = plural(report.files.len() as u64, "file", "files");
    let last = report.head.sequence;
    writeln!(out, "{}: {entries} in {files}", folder.display())?;
    match report.first {
        None => {}
        Some(1) => writeln!(out, "entries 1 to {last}: from the very first")?,
        Some(first) => writeln!(
            out,
            "entries {first} to {last}: what was before is no longer kept; the files can't show whether somebody removed it"
        )?,
    }
    for place in &report.torn {
        writeln!(out, "{place}: left by half in a crash, and marked so")?;
    }
    if let Tail::Torn { bytes } = report.tail {
        writeln!(
            out,
            "the last line is a part of {bytes} bytes, as a crash leaves it; the agent marks it at its start"
        )?;
    }
    match report.anchor {
        Some(AnchorSeen::Held) => writeln!(out, "the anchor holds: nothing up to it was changed")?,
        Some(AnchorSeen::Older) => {
            writeln!(out, "the anchor is older than what is kept, so it shows nothing; take a newer one")?;
        }
        Some(AnchorSeen::Broken) | None => {}
    }
    if agent == Some(AnchorSeen::Held) {
        writeln!(out, "the running agent wrote the same end")?;
    }
    writeln!(out, "head {}", report.head)?;
    if report.breaks.is_empty() {
        writeln!(out, "\nThe chain is whole.")?;
        return Ok(());
    }
    writeln!(out, "\nThe chain is BROKEN:")?;
    for found in &report.breaks {
        writeln!(out, "  {}", one_line(&found.to_string(), CELL_BYTES))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_look_back_to_is_a_duration_or_a_moment_and_odd_ones_are_refused() {
        assert_eq!(Since::parse("7d"), Ok(Since::Ago(Duration::from_secs(7 * 86_400))));
        assert_eq!(Since::parse("2026-11-23T08:00:00Z"), Ok(Since::At(Duration::from_secs(1_795_420_800))));
        for (bad, good) in [("", "1s"), ("5", "5m"), ("5x", "5h"), ("-1s", "1s"), ("2026-11-23", "9d")] {
            assert!(Since::parse(bad).is_err(), "{bad:?} was accepted");
            assert!(Since::parse(good).is_ok(), "{good:?} was refused");
        }
        let now = Duration::from_secs(100);
        assert_eq!(Since::Ago(Duration::from_secs(1_000)).begin(now), Duration::ZERO);
    }
}
