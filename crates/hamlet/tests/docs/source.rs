//! The tree as the checks read it: our sources, our pages, and what is committed of them.

use std::fs;
use std::path::{Path, PathBuf};

/// One file of the tree.
#[derive(Debug)]
pub(crate) struct Text {
    /// Below the root.
    pub(crate) path: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The environment is read here only; a test may ask to be told the truth anew.
#[allow(clippy::disallowed_methods)]
fn bless() -> bool {
    std::env::var("HAMLET_BLESS").is_ok_and(|v| v == "1")
}

/// Compares with a committed page, or rewrites it.
pub(crate) fn committed(page: &str, text: &str) {
    let path = root().join(page);
    if bless() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{page} is not up to date: HAMLET_BLESS=1 cargo test -p hamlet --test docs");
}

/// Every file below `folder` that ends in `ending`, in order of the paths.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<Text> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut paths = vec![];
    walk(&root().join(folder), ending, &mut paths);
    paths.sort();
    let read = |path: PathBuf| Text {
        path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(read).collect()
}

/// All Rust files of the crates.
pub(crate) fn rust() -> Vec<Text> {
    files("crates", ".rs")
}

pub(crate) fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All our pages.
pub(crate) fn pages() -> Vec<Text> {
    let mut pages = files("docs", ".md");
    pages.extend(files("examples", ".md"));
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            pages.push(Text { text: page(&name), path: name });
        }
    }
    pages
}

/// Whether `text` has `word` with no letter, digit or underscore right beside it.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    text.match_indices(word)
        .any(|(at, _)| edge(text[..at].chars().next_back()) && edge(text[at + word.len()..].chars().next()))
}

/// What stands between single backticks, outside of fenced blocks.
pub(crate) fn code_spans(text: &str) -> Vec<String> {
    let mut spans = vec![];
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    spans
}
