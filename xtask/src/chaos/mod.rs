//! Chaos.
use clap::Args;
/// X
#[derive(Debug, Args)]
pub(crate) struct ChaosOptions {}
/// X
pub(crate) fn run(_: &ChaosOptions) -> anyhow::Result<bool> { Ok(true) }
