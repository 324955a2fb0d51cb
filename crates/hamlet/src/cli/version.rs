//! `hamlet version`.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::exit::Exit;
use super::output::Out;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VersionFormat {
    Text,
    Json,
}

/// Show version, commit and protocols
///
/// Examples:
///   hamlet version
///   hamlet version -o json | jq -r .version
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct VersionArgs {
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: VersionFormat,
}

/// The build, as `-o json` writes it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// The version of the program.
    pub version: &'static str,
    /// The commit it was built from; `unknown` unless `HAMLET_COMMIT` was set for the build.
    pub commit: &'static str,
    /// The wire protocols it speaks.
    pub protocols: &'static [&'static str],
    /// The configuration it reads.
    pub config: &'static str,
}

/// This build.
pub const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("HAMLET_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
    protocols: &["federation.resourcediscovery.v1alpha2"],
    config: "hamlet.dev/v1",
};

/// Does it.
pub(super) fn run(args: &VersionArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.output {
        VersionFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&BUILD)?)?,
        VersionFormat::Text => {
            writeln!(out, "hamlet {} (commit {})", BUILD.version, BUILD.commit)?;
            writeln!(out, "protocols: {}", BUILD.protocols.join(", "))?;
            writeln!(out, "configuration: {}", BUILD.config)?;
        }
    }
    Ok(Exit::Good)
}
