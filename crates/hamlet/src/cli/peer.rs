//! `hamlet peer`: two meshes become peers by a token, and stop being it.
//!
//! Invariant: standard output carries what programs take (the token, documents, lists); what a
//! person has to read and do goes to standard error. A token is never an argument.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hamlet_admin::Client;
use hamlet_admin::api::{
    Invited, PeerRemoved, PeeringAnswer, PeeringList, PeeringPeer, PeeringRequest, PeeringStanding,
    PeeringTerms, TokenText,
};
use hamlet_core::rejection::one_line;

use super::connect::ConnectArgs;
use super::duration;
use super::exit::{Exit, Failure};
use super::output::{self, Out};

/// How often `--wait` asks.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Longest file or line that is read in search of a token, in bytes.
const TOKEN_BYTES: u64 = 16 * 1024;
/// Longest text of the agent that is shown, in bytes.
const TEXT_BYTES: usize = 1024;

/// Peer with another mesh by a token, and look after such peers
///
/// One side invites and sends the token to the other by any channel that only the two read, a chat
/// for example. The other side accepts it. Both see the same four words and compare them by voice;
/// then each confirms. Nothing flows before publications and imports say so.
///
/// Examples:
///   hamlet peer invite globex             # prints a token; send it
///   hamlet peer accept                    # there: paste it
///   hamlet peer confirm globex            # on both sides, when the words are the same
///   hamlet peer list
///   hamlet peer remove globex             # tells the peer, which forgets us at once
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct PeerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Invite(InviteArgs),
    Accept(AcceptArgs),
    List(ListArgs),
    Describe(DescribeArgs),
    Confirm(ConfirmArgs),
    /// Keep a peer made by token, but don't talk to it
    Pause(NameArgs),
    /// Talk to a paused peer again
    Resume(NameArgs),
    Remove(NameArgs),
}

/// What both sides can say.
#[derive(Debug, Args)]
struct TermsArgs {
    /// Where the other mesh reaches our agent, HOST:PORT; may be repeated [default: where it listens]
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// A special-purpose range (private, loopback) in which the other side's agent may be
    #[arg(long = "allow-range", value_name = "CIDR")]
    ranges: Vec<String>,
    /// Make the peer active without a confirmation of the words, for scripts that trust the channel
    #[arg(long)]
    yes: bool,
}

impl TermsArgs {
    fn terms(&self) -> PeeringTerms {
        PeeringTerms { addresses: self.addresses.clone(), ranges: self.ranges.clone(), yes: self.yes }
    }
}

/// Make an invitation and print its token
///
/// Only the token goes to standard output, so it can be piped. Whoever has the token may become the
/// peer, so send it by a channel that only the two teams read. It is of no use after its expiry and
/// after its use.
///
/// Examples:
///   hamlet peer invite globex
///   hamlet peer invite globex --expires 2h --expect-domain globex.example
///   hamlet peer invite globex | ssh agent.globex.example hamlet peer accept acme
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct InviteArgs {
    /// What the other mesh will be called here
    name: String,
    /// How long the token can be used
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = duration::parse)]
    expires: Duration,
    /// How many meshes may use it; the second is called NAME-2
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: usize,
    /// Only the mesh of this trust domain may use it
    #[arg(long, value_name = "DOMAIN")]
    expect_domain: Option<String>,
    /// Stay until it is used and show the words, also if the output is no terminal
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    terms: TermsArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Accept a token of another mesh
///
/// The token is read from standard input, one line, or from a file; never from the command line,
/// which other users and the shell's history see.
///
/// Examples:
///   hamlet peer accept
///   hamlet peer accept acme --file token.txt
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct AcceptArgs {
    /// What the inviting mesh will be called here [default: the first label of its trust domain]
    name: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    terms: TermsArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// Columns for people
    Table,
    /// For programs
    Json,
}

/// List peers and invitations
#[derive(Debug, Args)]
struct ListArgs {
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: ListFormat,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DescribeFormat {
    /// A page for people
    Text,
    /// The Peer document, as it could stand in a file
    Yaml,
    /// The peer's CA certificates, for the file that the document names
    Pem,
    /// For programs
    Json,
}

/// Show one peer: its words, roots and document
///
/// A peer made by token can be moved into files: write its document and its bundle there, remove it
/// here, and reload.
///
/// Examples:
///   hamlet peer describe globex
///   hamlet peer describe globex -o yaml > peers/globex.yaml
///   hamlet peer describe globex -o pem > peers/globex.pem
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct DescribeArgs {
    /// The peer
    name: String,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: DescribeFormat,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Say that the words are the same on both sides
///
/// Give the words as the other side reads them out, and they are compared; or answer the question;
/// or say --yes.
///
/// Examples:
///   hamlet peer confirm globex
///   hamlet peer confirm globex robot canyon velvet acid
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct ConfirmArgs {
    /// The peer
    name: String,
    /// The words as the other side reads them out
    words: Vec<String>,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Remove a peer made by token, or withdraw an open invitation
///
/// The peer is told that we leave for good, so it withdraws at once what it has of us; what we have
/// of it goes as well, and all connections with it end within a second.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct NameArgs {
    /// The peer
    name: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: PeerArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.command {
        Command::Invite(args) => invite(args, out).await,
        Command::Accept(args) => accept(args).await,
        Command::List(args) => list(&args, out).await,
        Command::Describe(args) => describe(&args, out).await,
        Command::Confirm(args) => confirm(args).await,
        Command::Pause(args) => {
            let peer = ask_peer(&args.connect.client(), PeeringRequest::Pause { name: args.name }).await?;
            Ok(say_standing(&peer, "is paused: nothing is exchanged with it, and what we have of it is kept"))
        }
        Command::Resume(args) => {
            let peer = ask_peer(&args.connect.client(), PeeringRequest::Resume { name: args.name }).await?;
            Ok(say_standing(&peer, "is talked to again"))
        }
        Command::Remove(args) => remove(args).await,
    }
}

async fn ask(client: &Client, request: PeeringRequest) -> anyhow::Result<PeeringAnswer> {
    Ok(client.peering(&request).await.map_err(Failure::from)?)
}

fn strange() -> anyhow::Error {
    let hint = "compare `hamlet version` with the version of the running agent";
    Failure::new(Exit::Failed, "the agent answered something else than was asked", hint).into()
}

async fn ask_peer(client: &Client, request: PeeringRequest) -> anyhow::Result<PeeringPeer> {
    match ask(client, request).await? {
        PeeringAnswer::Peer(peer) => Ok(peer),
        _ => Err(strange()),
    }
}

async fn ask_list(client: &Client) -> anyhow::Result<PeeringList> {
    match ask(client, PeeringRequest::List).await? {
        PeeringAnswer::List(list) => Ok(list),
        _ => Err(strange()),
    }
}

async fn invite(args: InviteArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let request = PeeringRequest::Invite {
        name: args.name.clone(),
        expires_s: args.expires.as_secs(),
        uses: args.uses,
        expect_domain: args.expect_domain.clone(),
        terms: args.terms.terms(),
    };
    let PeeringAnswer::Invited(invited) = ask(&client, request).await? else { return Err(strange()) };
    writeln!(out, "{}", invited.token.0)?;
    out.flush()?;
    let (name, flags) = (one_line(&args.name, 128), args.connect.flags());
    output::say(&format!(
        "\nSend this line to the people of the other mesh by a channel that only you read. It can be used for {}.\n\
         There it is accepted with:\n  hamlet peer accept",
        life(invited.invitation.expires_in_s)
    ));
    if args.wait || std::io::stdout().is_terminal() {
        output::say("\nWaiting until it is used. Ctrl-C stops the waiting, not the invitation.");
        return wait_until_used(&client, &invited, &flags).await;
    }
    output::say(&format!(
        "\nThen compare the words that both sides see:\n  hamlet peer describe {name}{flags}"
    ));
    Ok(Exit::Good)
}

fn life(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} seconds"),
        120..=7199 => format!("{} minutes", seconds / 60),
        _ => format!("{} hours", seconds / 3600),
    }
}

async fn wait_until_used(client: &Client, invited: &Invited, flags: &str) -> anyhow::Result<Exit> {
    'waiting: loop {
        let list = ask_list(client).await?;
        let invitation = list.invitations.iter().find(|i| i.id == invited.invitation.id);
        let Some(invitation) = invitation else {
            let hint = "make another one with `hamlet peer invite`";
            return Err(Failure::new(Exit::Failed, "the invitation was withdrawn", hint).into());
        };
        let made = invitation.used_by.last().and_then(|name| list.peers.iter().find(|p| p.name == *name));
        if let Some(peer) = made {
            next_steps(peer, flags);
            return Ok(Exit::Good);
        }
        if invitation.expires_in_s <= 0 {
            let hint = "make another one with `hamlet peer invite`, longer with --expires";
            return Err(Failure::new(Exit::TimedOut, "the invitation has expired unused", hint).into());
        }
        tokio::time::sleep(ASK_EVERY).await;
        continue 'waiting;
    }
}

async fn accept(args: AcceptArgs) -> anyhow::Result<Exit> {
    let token = match &args.file {
        Some(file) => read_token(file)?,
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                output::say("Paste the token and press Enter:");
            }
            first_line(stdin.lock())?
        }
    };
    let request = PeeringRequest::Accept { token, name: args.name.clone(), terms: args.terms.terms() };
    let peer = ask_peer(&args.connect.client(), request).await?;
    next_steps(&peer, &args.connect.flags());
    Ok(if peer.warnings.is_empty() { Exit::Good } else { Exit::Degraded })
}

fn read_token(file: &Path) -> anyhow::Result<TokenText> {
    let shown = file.display();
    let failed = |e: std::io::Error| {
        Failure::new(Exit::Failed, format!("{shown}: {e}"), "name the file that holds the token")
    };
    let open = std::fs::File::open(file).map_err(failed)?;
    Ok(first_line(std::io::BufReader::new(open)).map_err(failed)?)
}

/// The first line that says something: whoever pipes a token in may keep the pipe open.
fn first_line(input: impl BufRead) -> std::io::Result<TokenText> {
    let mut input = input.take(TOKEN_BYTES);
    let mut line = String::new();
    while line.trim().is_empty() {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            break;
        }
    }
    Ok(TokenText(line.trim().to_owned()))
}

/// What a person does next, since nothing flows by itself.
fn next_steps(peer: &PeeringPeer, flags: &str) {
    let (name, domain) = (one_line(&peer.name, 128), one_line(&peer.trust_domain, 256));
    let words = one_line(peer.words.as_deref().unwrap_or_default(), 128);
    let mut text = format!("\npeer:   {name}\ndomain: {domain}\nwords:  {words}\n");
    if peer.standing == PeeringStanding::Unconfirmed {
        text += &format!(
            "\nCompare the words by voice with the people of {domain}. If both sides see the same, type here:\n  \
             hamlet peer confirm {name}{flags}\nIf they differ, somebody sits in the middle:\n  hamlet peer remove \
             {name}{flags}\n"
        );
    }
    text += &format!(
        "\nNothing flows yet. What {name} may see of us, and what we take of it, stands in documents like these, \
         in a file of the configuration's folder:\n  \
         {{apiVersion: hamlet.dev/v1, kind: Publication, metadata: {{name: to-{name}}}, spec: {{services: {{names: \
         [SERVICE]}}, peers: [{name}]}}}}\n  ---\n  \
         {{apiVersion: hamlet.dev/v1, kind: Import, metadata: {{name: {name}}}, spec: {{peer: {name}, names: {{suffixes: \
         [{domain}]}}}}}}\nThen:\n  hamlet reload{flags} && hamlet get peers{flags}"
    );
    output::say(&text);
    say_warnings(&peer.warnings);
}

fn say_warnings(warnings: &[String]) {
    for warning in warnings {
        output::say(&format!("warning: {}", one_line(warning, TEXT_BYTES)));
    }
}

fn say_standing(peer: &PeeringPeer, what: &str) -> Exit {
    output::say(&format!("{} {what}", one_line(&peer.name, 128)));
    say_warnings(&peer.warnings);
    if peer.warnings.is_empty() { Exit::Good } else { Exit::Degraded }
}

async fn list(args: &ListArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let list = ask_list(&args.connect.client()).await?;
    if args.output == ListFormat::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(Exit::Good);
    }
    if list.peers.is_empty() && list.invitations.is_empty() {
        output::say("no peers and no invitations; `hamlet peer invite NAME` makes one");
    }
    let peers = list.peers.iter().map(|p| {
        let origin = if p.made_s.is_some() { "token" } else { "files" };
        [&p.name, &p.trust_domain, origin, p.standing.word(), p.address.as_deref().unwrap_or("-")].map(cell)
    });
    write_rows(["PEER", "TRUST DOMAIN", "FROM", "STANDING", "ADDRESS"], peers.collect(), out)?;
    if !list.invitations.is_empty() && !list.peers.is_empty() {
        writeln!(out)?;
    }
    let invitations = list.invitations.iter().map(|i| {
        let open = if i.expires_in_s > 0 { life(i.expires_in_s) } else { "expired".to_owned() };
        let used = format!("{} of {}", i.used_by.len(), i.uses);
        [&i.name, &i.id, &open, &used, &invitation_note(i.alarms, i.wrong_proofs)].map(|text| cell(text))
    });
    write_rows(["INVITATION", "ID", "OPEN FOR", "USED", "NOTE"], invitations.collect(), out)?;
    let alarmed = list.invitations.iter().any(|i| i.alarms > 0);
    Ok(if alarmed { Exit::Degraded } else { Exit::Good })
}

fn invitation_note(alarms: u64, wrong_proofs: u64) -> String {
    match (alarms, wrong_proofs) {
        (0, 0) => "-".to_owned(),
        (0, wrong) => format!("{wrong} wrong proofs"),
        (alarms, _) => {
            format!("ALARM: used by somebody else too ({alarms} times); compare the words, or remove")
        }
    }
}

fn cell(text: &str) -> String {
    one_line(text, 256)
}

fn write_rows<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, out: &mut Out) -> std::io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let head = head.map(str::to_owned);
    let all: Vec<&[String; N]> = std::iter::once(&head).chain(&rows).collect();
    for row in &all {
        let mut line = String::new();
        for (column, text) in row.iter().enumerate() {
            let width = all.iter().map(|r| r[column].chars().count()).max().unwrap_or_default();
            line += &format!("{text:<width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

async fn find_peer(client: &Client, name: &str) -> anyhow::Result<PeeringPeer> {
    let found = ask_list(client).await?.peers.into_iter().find(|peer| peer.name == name);
    let missing = || {
        let message = format!("there is no peer named {}", one_line(name, 128));
        Failure::new(Exit::NotFound, message, "`hamlet peer list` shows them, and open invitations")
    };
    Ok(found.ok_or_else(missing)?)
}

async fn describe(args: &DescribeArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let peer = find_peer(&args.connect.client(), &args.name).await?;
    let of_token = |text: &Option<String>| {
        text.clone().ok_or_else(|| {
            let message = format!("{} stands in the configuration's files", one_line(&peer.name, 128));
            Failure::new(
                Exit::Failed,
                message,
                "look there; `hamlet describe peer NAME` shows how it is doing",
            )
        })
    };
    match args.output {
        DescribeFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&peer)?)?,
        DescribeFormat::Yaml => write!(out, "{}", of_token(&peer.document)?)?,
        DescribeFormat::Pem => write!(out, "{}", of_token(&peer.bundle)?)?,
        DescribeFormat::Text => {
            let mut lines = vec![
                ("Name", peer.name.clone()),
                ("Trust domain", peer.trust_domain.clone()),
                ("Address", peer.address.clone().unwrap_or_else(|| "none; it dials us".to_owned())),
                ("Standing", peer.standing.word().to_owned()),
            ];
            lines.extend(peer.words.iter().map(|words| ("Words", words.clone())));
            lines.extend(peer.roots.iter().map(|root| ("Root (SHA-256)", root.clone())));
            for (label, text) in lines {
                writeln!(out, "{:<16}{}", format!("{label}:"), one_line(&text, TEXT_BYTES))?;
            }
            if peer.standing == PeeringStanding::Unconfirmed {
                let (name, flags) = (one_line(&peer.name, 128), args.connect.flags());
                output::say(&format!(
                    "\nIf the other side sees the same words:\n  hamlet peer confirm {name}{flags}"
                ));
            }
            say_warnings(&peer.warnings);
        }
    }
    Ok(Exit::Good)
}

async fn confirm(args: ConfirmArgs) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let words = (!args.words.is_empty()).then(|| args.words.join(" "));
    if words.is_none() && !args.yes {
        let peer = find_peer(&client, &args.name).await?;
        ask_person(&peer)?;
    }
    let peer = ask_peer(&client, PeeringRequest::Confirm { name: args.name, words }).await?;
    Ok(say_standing(&peer, "is confirmed, and in force from now on"))
}

/// Asks at a terminal; elsewhere somebody has to say it on the command line.
fn ask_person(peer: &PeeringPeer) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let hint = "give the words as the other side reads them out, or say --yes";
        return Err(Failure::new(Exit::Usage, "nobody is there to compare the words", hint).into());
    }
    let words = one_line(peer.words.as_deref().unwrap_or("none: this peer stands in files"), 128);
    output::say(&format!("words:  {words}\nDoes the other side read out the same words? [y/N]"));
    let mut answer = String::new();
    stdin.lock().take(64).read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    let hint = "if they differ, `hamlet peer remove` the peer on both sides, and peer anew";
    Err(Failure::new(Exit::Failed, "not confirmed", hint).into())
}

async fn remove(args: NameArgs) -> anyhow::Result<Exit> {
    let request = PeeringRequest::Remove { name: args.name };
    let PeeringAnswer::Removed(removed) = ask(&args.connect.client(), request).await? else {
        return Err(strange());
    };
    let PeerRemoved { name, told, invitations, warnings } = removed;
    let name = one_line(&name, 128);
    if invitations > 0 {
        output::say(&format!("{invitations} invitation(s) for {name} withdrawn"));
    }
    output::say(&if told {
        format!("{name} is removed; it was told, and forgets us now")
    } else {
        format!("{name} is removed; it could not be told, and keeps what it has of us for its hold time")
    });
    say_warnings(&warnings);
    Ok(if warnings.is_empty() { Exit::Good } else { Exit::Degraded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_piped_in_only_the_first_line_with_text_is_read() {
        let read = |text: &str| first_line(text.as_bytes()).unwrap().0;
        assert_eq!(read("\n  \n hamlet1.abc \nmore"), "hamlet1.abc");
        assert_eq!(read(""), "");
        let long = "x".repeat(100_000);
        assert_eq!(read(&long).len() as u64, TOKEN_BYTES);
    }
}
