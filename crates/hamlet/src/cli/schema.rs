//! `hamlet schema` and `hamlet completion`: what editors and shells want to know.

use std::io::Write;

use clap::builder::PossibleValuesParser;
use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::Exit;
use super::output::Out;
use crate::config::schema;

/// JSON Schema of the configuration, for editors
///
/// Without a KIND one schema that takes every kind.
///
/// Examples:
///   hamlet schema > hamlet.schema.json
///   hamlet schema Peer
///
/// In an editor with a YAML language server, write as the first line of a file:
///   # yaml-language-server: $schema=hamlet.schema.json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct SchemaArgs {
    /// Only this kind
    #[arg(value_parser = kinds(), ignore_case = true, value_name = "KIND")]
    kind: Option<String>,
}

fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(schema::KINDS.iter().map(|k| k.name))
}

/// Does it.
pub(super) fn run(args: &SchemaArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let asked = args.kind.as_deref();
    let kind = schema::KINDS.iter().find(|k| asked.is_some_and(|a| k.name.eq_ignore_ascii_case(a)));
    let json = kind.and_then(|k| schema::json_schema(k.name)).unwrap_or_else(schema::json_schema_all);
    writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
    Ok(Exit::Good)
}

/// Completion script for your shell
///
/// Examples:
///   hamlet completion bash > /etc/bash_completion.d/hamlet
///   hamlet completion zsh > "${fpath[1]}/_hamlet"
///   hamlet completion fish > ~/.config/fish/completions/hamlet.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Does it.
pub(super) fn run_completion(
    args: &CompletionArgs,
    command: &mut Command,
    out: &mut Out,
) -> anyhow::Result<Exit> {
    // Into memory first: the generator panics when a write fails, as it does on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "hamlet", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Good)
}
