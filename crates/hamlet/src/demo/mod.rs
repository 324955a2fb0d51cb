//! The demo (being written; this file is replaced).
#![allow(missing_docs, unused)]
pub struct Settings { pub check: bool, pub keep: bool, pub dir: Option<std::path::PathBuf>, pub colour: bool, pub terminal: bool, pub proxied: bool }
pub fn run(_: Settings) -> anyhow::Result<bool> { anyhow::bail!("being written") }
pub fn run_workload(_: std::net::SocketAddr, _: &str) -> anyhow::Result<()> { anyhow::bail!("being written") }
pub fn run_warden() -> anyhow::Result<()> { anyhow::bail!("being written") }
