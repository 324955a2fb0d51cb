//! The command line: what a person types, and what comes back.
//!
//! Data goes to standard output, messages to standard error, the outcome into the exit code
//! ([`exit::Exit`]). It can do nothing that the admin API can't. This is the only part of the
//! program that reads the environment.

pub mod agent;
mod audit;
mod bundle;
mod ca;
mod check;
mod conformance;
mod connect;
pub mod demo;
mod describe;
mod duration;
pub mod exit;
mod get;
mod init;
mod output;
mod peer;
mod reload;
mod schema;
mod status;
mod table;
mod transcript;
mod validate;
pub mod version;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use exit::Exit;
use output::Out;

/// The command line as clap sees it; its doc comments are the help texts.
#[derive(Debug, Parser)]
#[command(
    name = "hamlet",
    version,
    about = "Federated service discovery between service meshes",
    long_about = "Hamlet lets meshes of different organisations offer each other services without \
                  trusting each other: each side says what it publishes, to whom, and what it accepts; \
                  every call travels through both gateways under mutual TLS.",
    help_template = HELP_TEMPLATE,
    after_help = EXIT_CODES,
    disable_help_subcommand = false,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Never use colour (so does NO_COLOR, and any output that is not a terminal)
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    command: Command,
}

const HELP_TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

Set up:
  init          Make a working folder: mesh.yaml, an authority, certificates, an example
  validate      Check configuration; shows every problem with its place and fix
  agent         Run the agent: federation, gateways and DNS
  demo          Start two meshes on this machine and watch them federate
  conformance   Test any implementation of the protocol from outside

Look:
  get           List peers, services, publications or imports
  describe      Show one of them in full, with what was refused and why
  status        The agent's health in one page; exit code 3 when degraded
  check         Look at everything a federation needs, and say what to do
  transcript    Show what was said on a peer's streams, without values and secrets
  audit         Show who changed what (peers, roots, configuration), and verify that record

Trust:
  bundle        Show our own CA certificates, list the peers', or set one's by hand

Change:
  peer          Peer with another mesh by a token; list, confirm, remove such peers
  reload        Load the configuration again; waits and shows what is wrong
  ca            Show, rotate or adopt the mesh's own certificate authority

Reference:
  schema        JSON Schema of the configuration, for editors
  completion    Completion script for your shell
  version       Version, commit and protocols
  help          This text, or that of a command

Options:
{options}{after-help}
";

const EXIT_CODES: &str = "\
First steps:
  hamlet init acme --mesh acme --trust-domain acme.example
  hamlet agent -f acme
  hamlet get peers -f acme

Exit codes: 0 good, 1 failed, 2 usage, 3 degraded, 4 timed out, 5 not found.
`hamlet help COMMAND` explains a command with examples.";

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::InitArgs),
    Validate(validate::ValidateArgs),
    Agent(agent::AgentOptions),
    Demo(demo::DemoOptions),
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadOptions),
    /// Ends the demo's processes when the demo is gone, however it went.
    #[command(hide = true)]
    DemoWarden,
    Conformance(Box<conformance::ConformanceArgs>),
    Get(get::GetArgs),
    Describe(describe::DescribeArgs),
    Status(status::StatusArgs),
    Check(check::CheckArgs),
    Transcript(transcript::TranscriptArgs),
    Audit(Box<audit::AuditArgs>),
    Peer(Box<peer::PeerArgs>),
    Reload(reload::ReloadArgs),
    Ca(ca::CaArgs),
    Bundle(bundle::BundleArgs),
    Schema(schema::SchemaArgs),
    Completion(schema::CompletionArgs),
    Version(version::VersionArgs),
}

/// Parses the process's arguments and does what they say. Returns the exit code of decision 27.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no error. A closed pipe is none either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Good.into() };
        }
    };
    let mut out = Out::stdout(cli.no_color);
    let outcome = run(cli.command, &mut out);
    let outcome = outcome.and_then(|code| out.finish().map(|()| code).map_err(anyhow::Error::from));
    outcome.unwrap_or_else(|error| exit::report(&error, cli.no_color))
}

fn run(command: Command, out: &mut Out) -> anyhow::Result<ExitCode> {
    let exit = match command {
        Command::Agent(options) => return agent::run(options),
        Command::Demo(options) => return demo::run(options, out.colour),
        Command::DemoWorkload(options) => return demo::run_workload(options),
        Command::DemoWarden => return demo::run_warden(),
        Command::Init(args) => init::run(args, out),
        Command::Validate(args) => validate::run(&args, out),
        Command::Conformance(args) => block_on(conformance::run(*args, out))?,
        Command::Get(args) => block_on(get::run(args, out))?,
        Command::Describe(args) => block_on(describe::run(args, out))?,
        Command::Check(args) => block_on(check::run(args, out))?,
        Command::Status(args) => block_on(status::run(args, out))?,
        Command::Transcript(args) => block_on(transcript::run(args, out))?,
        Command::Audit(args) => block_on(audit::run(*args, out))?,
        Command::Bundle(args) => block_on(bundle::run(args, out))?,
        Command::Peer(args) => block_on(peer::run(*args, out))?,
        Command::Reload(args) => block_on(reload::run(args, out))?,
        Command::Ca(args) => block_on(ca::run(args, out))?,
        Command::Schema(args) => schema::run(&args, out),
        Command::Completion(args) => schema::run_completion(&args, &mut Cli::command(), out),
        Command::Version(args) => version::run(&args, out),
    };
    exit.map(ExitCode::from)
}

/// Runs one client call on a runtime of one thread.
fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_is_in_the_grouped_help() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let line = format!("\n  {} ", command.get_name());
            assert!(HELP_TEMPLATE.contains(&line), "{} is missing", command.get_name());
            assert!(command.get_long_about().is_some(), "{} explains nothing", command.get_name());
        }
    }
}
