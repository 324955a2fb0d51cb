//! `cargo xtask chaos`: two real agents, a stream of changes, and kill -9 at random moments, most
//! of them with messages in flight. Between the two lies a line as long as one between sites, and
//! half of the kills also lose what is under way on it. After every kill the store that is left must
//! be sound, and both sides must prove the same set, which is the one in the owner's folder.
//!
//! With `--rotate` nobody is killed: both agents' certificates and roots rotate within seconds while
//! services change and calls go through the gateways, and nothing of that may be lost.
//!
//! kill -9 keeps the page cache: this shows that a crash of the program loses nothing, not that a
//! loss of power doesn't. The store's own tests show that, on a disk that drops unsynced writes.

mod model;
mod process;
mod rotate;
mod run;
mod setup;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};

use crate::report::say;
use crate::scratch::Scratch;
use crate::tree;

/// Kill -9 either of two agents during a stream of changes; both must prove the same set
///
/// An owner and a consumer as real `hamlet agent` processes with folders, certificates and stores
/// of their own. Services are created, updated and deleted in the owner's folder; then one of the
/// two is killed, most often with messages in flight, and started again. Each kill is a check: the
/// store that it leaves is sound, both sides prove the same set within 30 seconds, and the
/// consumer's is that of the owner's folder. The line between the two has a round trip of 40 ms and
/// 8 Mbit/s; half of the kills lose what is under way on it.
///
/// The seed decides what changes, who is killed and how long is waited; the moments themselves
/// depend on the machine.
///
/// With --rotate nobody is killed. Two agents that were peered by token have certificates of a few
/// seconds and roots of less than a minute, changed by `hamlet ca rotate` and by the schedule, while
/// 100 services change each second and 50 calls go through the gateways each second, half of them on
/// new connections. Not one update may be lost and not one call may fail; nothing is tried again.
///
/// Examples:
///   cargo xtask chaos --kills 200
///   cargo xtask chaos --kills 10 --seed 7 --agent target/debug/hamlet
///   cargo xtask chaos --rotate
///   cargo xtask chaos --rotate --leaves 10 --roots 2
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ChaosOptions {
    /// How many kills
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// Repeats a run's choices [default: random, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Rotate certificates and roots under load instead of killing
    #[arg(long, conflicts_with_all = ["kills", "seed"])]
    rotate: bool,
    /// With --rotate: new certificates of the agent, and of the gateway, on each side
    #[arg(long, default_value_t = 100, requires = "rotate", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    leaves: u32,
    /// With --rotate: new roots on each side
    #[arg(long, default_value_t = 10, requires = "rotate", value_parser = clap::value_parser!(u32).range(0..=1_000))]
    roots: u32,
    /// With --rotate: how long a certificate lives, in seconds; an issuing CA three times, a root nine
    /// times as long
    #[arg(long, default_value_t = 6, requires = "rotate", value_parser = clap::value_parser!(u64).range(4..=600))]
    leaf_life: u64,
    /// The program to run [default: built by cargo, release]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Keep the two folders with their logs, also when all is good
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub(crate) fn run(options: &ChaosOptions) -> anyhow::Result<bool> {
    let program = match &options.agent {
        Some(program) => {
            program.canonicalize().with_context(|| format!("no program at {}", program.display()))?
        }
        None => build()?,
    };
    let goals = rotate::Goals {
        leaves: options.leaves,
        roots: options.roots,
        leaf_life: Duration::from_secs(options.leaf_life),
    };
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    if options.rotate {
        say(&format!("{goals} of {}", program.display()));
    } else {
        say(&format!("{} kills of {}, seed {seed}", options.kills, program.display()));
    }
    let folder = Scratch::new(&std::env::temp_dir(), "hamlet-chaos-")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let running = async {
            match options.rotate {
                true => rotate::rotate(&program, folder.path(), &goals).await,
                false => run::chaos(&program, folder.path(), options.kills, seed).await,
            }
        };
        // Dropping the run kills its agents.
        tokio::select! {
            outcome = running => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to stop"),
        }
    });
    if options.keep || !matches!(outcome, Ok(true)) {
        say(&format!("folders and logs are kept in {}", folder.keep().display()));
    }
    outcome
}

fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--release", "--quiet", "--package", "hamlet"];
    let status = Command::new(cargo).args(build).current_dir(tree::root()).status()?;
    ensure!(status.success(), "the agent doesn't build");
    Ok(tree::workspace()?.target_directory.join("release/hamlet"))
}
