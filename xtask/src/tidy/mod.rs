//! `cargo xtask tidy`: the rules of the house that neither rustc nor clippy knows.
//!
//! Each rule gives complaints that name file, line and what to do. It changes nothing.

mod functions;
mod lexer;
mod manifests;
mod texts;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::report::{Tally, say};
use crate::tree;

/// Check the rules of the house
///
/// Who may depend on whom, opening comments, lengths, stray paths and unfinished words, the order
/// of decisions and changelog. `cargo test --workspace` runs the same checks.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TidyOptions {
    /// Also list functions of more than 100 lines, which are allowed but shouldn't grow
    #[arg(long)]
    long: bool,
}

/// A file of the tree that is read as text.
struct SourceFile {
    /// Below the root, with `/`.
    path: String,
    text: String,
}

/// What one rule has to say.
#[derive(Default)]
struct Findings {
    complaints: Vec<String>,
    notes: Vec<String>,
}

/// Longest file that is read; none of ours is near it.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Runs it.
pub(crate) fn run(options: &TidyOptions) -> anyhow::Result<bool> {
    let mut tally = Tally::default();
    for (rule, findings) in check()? {
        let list = findings.complaints.join("\n  ");
        tally.check(findings.complaints.is_empty(), &format!("{rule}\n  {list}"));
        if options.long {
            findings.notes.iter().for_each(|note| say(&format!("note: {note}")));
        }
    }
    Ok(tally.finish())
}

/// All rules, each with its findings.
fn check() -> anyhow::Result<Vec<(&'static str, Findings)>> {
    let root = tree::root();
    let workspace = tree::workspace()?;
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(vec![
        ("crates depend only on those below them", manifests::own(&workspace)),
        ("third-party crates stay in their homes", manifests::homes(&workspace)),
        ("crates and folders match, and take the workspace's lints", manifests::members(&root, &workspace)?),
        ("every Rust file opens with //!", texts::openings(&files)),
        ("no file has more than 800 lines", texts::lengths(&files)),
        ("no function has more than 150 lines", functions::lengths(&files)),
        ("names come from the glossary", texts::names(&files)),
        ("no path of one machine, no registry host", texts::places(&files)),
        ("nothing unfinished", texts::unfinished(&files)),
        ("the changelog has an open or a released section", texts::changelog(&files)),
        ("decisions are numbered, each number once", texts::decisions(&files)),
    ])
}

/// Reads every text file below `folder`, except what is built, hidden or fetched.
fn collect(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let meta = std::fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            let ours = !name.starts_with('.') || matches!(name, ".ci" | ".cargo" | ".github");
            if ours && !matches!(name, "target" | "node_modules" | "testdata") {
                collect(root, &path, files)?;
            }
        // In a further work tree of git's, `.git` is a file that says where the first one is.
        } else if meta.is_file() && meta.len() <= FILE_BYTES_MAX && !name.ends_with(".swp") && name != ".git"
        {
            // What isn't UTF-8 is a binary, and no rule speaks of binaries.
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(SourceFile { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let mut complaints = Vec::new();
        for (rule, findings) in super::check().unwrap() {
            complaints.extend(findings.complaints.into_iter().map(|c| format!("{rule}: {c}")));
        }
        assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    }
}
