//! `hamlet transcript`: what was said on a peer's streams, for people who look for a fault.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hamlet_admin::api::{TranscriptLine, TranscriptPage, Way};
use hamlet_core::rejection::one_line;

use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::output::{self, Out};

/// How often `--follow` asks for more.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Longest text of a line, in bytes.
const TEXT_BYTES: usize = 512;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// A line for people
    #[default]
    Text,
    /// An object a line, for programs
    Json,
}

/// Show what was said on a peer's streams
///
/// The agent keeps the last 512 messages of each peer: which way, what kind, the service's key, its
/// version and size, and how it was answered. It keeps no values, no context and no metadata. Signs
/// of life that only repeat are one line. `->` is what we said, `<-` what the peer said, times are
/// UTC.
///
/// Examples:
///   hamlet transcript globex
///   hamlet transcript globex -n 20 --follow
///   hamlet transcript globex -o json | jq 'select(.kind == "nack")'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct TranscriptArgs {
    /// The peer
    peer: String,
    /// Only the last N
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Stay, and write what comes
    #[arg(long)]
    follow: bool,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: TranscriptArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let mut page = client.transcript(&args.peer, 0).await.map_err(Failure::from)?;
    let shown = args.lines.unwrap_or(usize::MAX).min(page.entries.len());
    let before = page.entries.len() - shown;
    page.entries.drain(..before);
    page.gone += before as u64;
    if page.entries.is_empty() && !args.follow {
        output::say(&format!("nothing was said with {} yet", one_line(&args.peer, 256)));
    }
    let mut after = 0;
    'following: loop {
        after = page.entries.last().map_or(after, |e| e.seq);
        write(&page, args.output, out)?;
        if !args.follow {
            break 'following Ok(Exit::Good);
        }
        out.flush()?;
        tokio::time::sleep(ASK_EVERY).await;
        page = client.transcript(&args.peer, after).await.map_err(Failure::from)?;
    }
}

fn write(page: &TranscriptPage, format: Format, out: &mut Out) -> anyhow::Result<()> {
    if format == Format::Text && page.gone > 0 {
        writeln!(out, "({} earlier entries are not shown)", page.gone)?;
    }
    for line in &page.entries {
        match format {
            Format::Text => writeln!(out, "{}", text(line))?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(line)?)?,
        }
    }
    Ok(())
}

/// One line: time, way, kind, and what belongs to the kind.
fn text(line: &TranscriptLine) -> String {
    let way = match line.way {
        Way::In => "<-",
        Way::Out => "->",
        Way::None => "--",
    };
    let stream = (line.way == Way::None).then(|| format!("stream {}", line.stream));
    let parts = [
        line.key.clone(),
        stream,
        line.nonce.as_ref().map(|nonce| format!("nonce {nonce}")),
        line.version.map(|version| format!("version {version}")),
        line.bytes.map(|bytes| format!("{bytes} bytes")),
        line.code.clone(),
        line.rule.clone(),
        line.text.clone(),
        (line.times > 1).then(|| format!("{} times", line.times)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().map(|part| one_line(&part, TEXT_BYTES)).collect();
    let kind = one_line(&line.kind, 16).to_uppercase();
    format!("{}  {way} {kind:10} {}", clock(line.at_ms), parts.join(", ")).trim_end().to_owned()
}

/// The time of day, UTC.
fn clock(at_ms: u64) -> String {
    let (ms, s) = (at_ms % 1000, at_ms / 1000 % 86_400);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_which_way_and_what_and_stays_one_line() {
        let line = TranscriptLine {
            at_ms: 45_296_007,
            way: Way::In,
            kind: "upsert".into(),
            key: Some("evil\n\u{1b}[2J".into()),
            nonce: Some("4".into()),
            version: Some(9),
            bytes: Some(213),
            times: 1,
            ..TranscriptLine::default()
        };
        let text = text(&line);
        assert_eq!(text, "12:34:56.007  <- UPSERT     evil\\u{a}\\u{1b}[2J, nonce 4, version 9, 213 bytes");
    }
}
