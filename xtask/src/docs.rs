//! `cargo xtask docs`: writes the generated pages of `docs/reference/`, or says which are stale.
//!
//! The texts themselves are made where their subject lives; this only knows the files.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Args;
use hamlet::config::schema;

use crate::report::{Tally, say};
use crate::tree;

/// Write the generated pages of docs/reference/
///
/// The configuration reference and the JSON Schemas come from the same declarations that the
/// loader checks files with. Commands, limits and metrics are read off the program by the tests in
/// crates/hamlet/tests/docs/, which this has write their pages; `cargo test` compares them.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DocsOptions {
    /// Write nothing; fail if a page of the configuration isn't up to date
    #[arg(long)]
    check: bool,
}

/// Every generated page: its path below the root, and what it should hold.
pub(crate) fn pages() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let reference = PathBuf::from("docs/reference");
    let mut pages = vec![(reference.join("configuration.md"), schema::reference_markdown())];
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).map(|text| text + "\n");
    for kind in schema::KINDS {
        let schema = schema::json_schema(kind.name).context("a kind without a schema")?;
        pages.push((reference.join(format!("schema/{}.json", kind.name.to_lowercase())), pretty(&schema)?));
    }
    pages.push((reference.join("schema/hamlet.json"), pretty(&schema::json_schema_all())?));
    Ok(pages)
}

/// Runs it.
pub(crate) fn run(options: &DocsOptions) -> anyhow::Result<bool> {
    let root = tree::root();
    let mut tally = Tally::default();
    for (page, text) in pages()? {
        let path = root.join(&page);
        let current = std::fs::read_to_string(&path).is_ok_and(|found| found == text);
        if options.check {
            tally.check(current, &format!("{} is stale; run: cargo xtask docs", page.display()));
            continue;
        }
        if !current {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("can't make {}", folder.display()))?;
            }
            std::fs::write(&path, text).with_context(|| format!("can't write {}", page.display()))?;
        }
        say(&format!("{} {}", if current { "unchanged" } else { "written  " }, page.display()));
    }
    if options.check {
        return Ok(tally.finish());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut bless = Command::new(cargo);
    bless.args(["test", "--quiet", "--package", "hamlet", "--test", "docs"]);
    let status = bless.env("HAMLET_BLESS", "1").current_dir(root).status().context("cargo doesn't start")?;
    Ok(status.success())
}
