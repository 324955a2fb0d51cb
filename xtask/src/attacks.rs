//! `cargo xtask attacks`: what each attack on HTTP/2 costs an honest peer while it goes on.
//!
//! The attacks are those of the hostile-peer tests (`crates/hamlet-protocol/tests/common/attacks.rs`),
//! and the measurement is a test that isn't run by itself. Loopback only; it stops by itself.

use std::process::Command;

use anyhow::Context;
use clap::Args;

use crate::tree;

/// Measures an honest peer beside each attack on HTTP/2
///
/// An agent, its honest peer and an attacker with a good certificate, over real TLS on loopback.
/// For each attack of the hostile-peer tests: how many changes the honest peer got meanwhile, the
/// 99th percentile from a change until it was imported and answered, and how much the memory grew
/// (both agents and the attacker). Fails if the honest peer misses a change.
///
/// Examples:
///   cargo xtask attacks
///   cargo xtask attacks --seconds 60
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AttackOptions {
    /// How long each attack goes on, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Runs it.
pub(crate) fn run(options: &AttackOptions) -> anyhow::Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--release", "--quiet", "--package", "hamlet-protocol", "--test", "under_attack"]);
    command.args(["--", "--ignored", "--nocapture"]);
    command.env("HAMLET_ATTACK_SECONDS", options.seconds.to_string());
    let status = command.current_dir(tree::root()).status().context("cargo doesn't start; is it in PATH?")?;
    let passed = status.success();
    println!("{} passed, {} failed", u8::from(passed), u8::from(!passed));
    Ok(passed)
}
