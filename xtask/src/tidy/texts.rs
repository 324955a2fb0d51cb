//! Rules about texts: how files open, how long they are, and what must not stand in them.

use std::collections::BTreeMap;

use super::{Findings, SourceFile};

/// Most lines of a file.
const LINES_MAX: usize = 800;
/// The rules name what they forbid, so they don't apply to their own file.
const OWN: &str = "xtask/src/tidy/texts.rs";
/// Written by cargo.
const LOCK: &str = "Cargo.lock";

/// Paths that exist on one machine only.
const PLACES: &[&str] = &["/work/", "/root/", "/tmp/brief", "/home/"];
/// Hosts that packages come from: which one is the machine's business, never the project's.
const HOSTS: &[&str] = &[
    "index.crates.io",
    "static.crates.io",
    "registry.npmjs.org",
    "files.pythonhosted.org",
    "proxy.golang.org",
    "registry-1.docker.io",
    "artifactory",
];
/// Ends of names that say nothing.
const EMPTY_WORDS: &[&str] = &["manager", "helper", "helpers", "util", "utils", "info", "data"];
/// What only ever stands in unfinished work, as whole words.
const WORDS: &[&str] = &["TODO", "FIXME", "XXX"];
/// And as parts of lines.
const PHRASES: &[&str] = &["unimplemented!(", "todo!(", "for now"];

fn rust(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|f| f.path.ends_with(".rs"))
}

/// Every Rust file says what it is before anything else.
pub(super) fn openings(files: &[SourceFile]) -> Findings {
    let silent = rust(files).filter(|f| !f.text.starts_with("//!"));
    let complain =
        |f: &SourceFile| format!("{}:1: open with `//!`: what it is, what it is not, its invariant", f.path);
    Findings { complaints: silent.map(complain).collect(), ..Findings::default() }
}

/// No Rust file is too long.
pub(super) fn lengths(files: &[SourceFile]) -> Findings {
    let mut findings = Findings::default();
    for file in rust(files) {
        let lines = file.text.lines().count();
        if lines > LINES_MAX {
            findings.complaints.push(format!("{}: {lines} lines; split it by noun", file.path));
        }
    }
    findings
}

/// No type or module is named by a word that says nothing.
pub(super) fn names(files: &[SourceFile]) -> Findings {
    let mut findings = Findings::default();
    for file in rust(files) {
        for (number, line) in file.text.lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|w| w.starts_with("pub"));
            let defines =
                words.next().is_some_and(|w| matches!(w, "struct" | "enum" | "trait" | "type" | "mod"));
            let name = words.next().filter(|_| defines).unwrap_or_default();
            let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let lower = name.to_lowercase();
            if let Some(word) = EMPTY_WORDS.iter().find(|w| lower.ends_with(**w)) {
                let hint = "say what it is, in a word of the glossary";
                findings.complaints.push(format!("{}:{}: {name}: `{word}`: {hint}", file.path, number + 1));
            }
        }
    }
    findings
}

/// Finds `needles` in all files but this and the lock file.
fn search(
    files: &[SourceFile],
    needles: &[&str],
    hint: &str,
    fits: fn(&str, usize, &str) -> bool,
) -> Findings {
    let mut findings = Findings::default();
    for file in files.iter().filter(|f| f.path != OWN && f.path != LOCK) {
        for (number, line) in file.text.lines().enumerate() {
            for needle in needles {
                if line.match_indices(needle).any(|(at, _)| fits(line, at, needle)) {
                    findings.complaints.push(format!("{}:{}: `{needle}`: {hint}", file.path, number + 1));
                }
            }
        }
    }
    findings
}

fn anywhere(_: &str, _: usize, _: &str) -> bool {
    true
}

fn whole_word(line: &str, at: usize, needle: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    edge(line[..at].chars().next_back()) && edge(line[at + needle.len()..].chars().next())
}

/// A path begins there, rather than being the tail of a longer one or of a URL.
fn path_start(line: &str, at: usize, _: &str) -> bool {
    line[..at]
        .chars()
        .next_back()
        .is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '}' | '$'))
}

/// No path of one machine, no registry host, and only one source of crates in the lock file.
pub(super) fn places(files: &[SourceFile]) -> Findings {
    let hint = "a path of one machine; say it relative to the tree, or take it as an option";
    let mut findings = search(files, PLACES, hint, path_start);
    let hint = "a registry's host; leave it to the machine's own cargo configuration";
    findings.complaints.extend(search(files, HOSTS, hint, anywhere).complaints);
    for file in files.iter().filter(|f| f.path == LOCK) {
        let strange = |l: &&str| {
            l.starts_with("source = ")
                && !l.contains("\"registry+https://github.com/rust-lang/crates.io-index\"")
        };
        let complain = |l: &str| format!("{LOCK}: {l}: only crates.io is a source");
        findings.complaints.extend(file.text.lines().filter(strange).map(complain));
    }
    for file in files.iter().filter(|f| f.path == ".cargo/config.toml") {
        if file.text.contains("[source") || file.text.contains("[registries") {
            findings
                .complaints
                .push(format!("{}: sources and registries are the machine's business", file.path));
        }
    }
    findings
}

/// Nothing that says of itself that it isn't done.
pub(super) fn unfinished(files: &[SourceFile]) -> Findings {
    let hint = "finish it, or open an issue and say what isn't there yet in the README";
    let mut findings = search(files, WORDS, hint, whole_word);
    findings.complaints.extend(search(files, PHRASES, hint, anywhere).complaints);
    findings
}

/// The changelog tells of what is coming, or of a release.
pub(super) fn changelog(files: &[SourceFile]) -> Findings {
    let mut findings = Findings::default();
    let section = |line: &str| {
        let heading = line.strip_prefix("## ").map(|h| h.trim_start_matches('['));
        heading.is_some_and(|h| h.starts_with("Unreleased") || h.starts_with(|c: char| c.is_ascii_digit()))
    };
    match files.iter().find(|f| f.path == "CHANGELOG.md") {
        None => findings.complaints.push("CHANGELOG.md: missing".to_owned()),
        Some(file) if !file.text.lines().any(section) => findings
            .complaints
            .push("CHANGELOG.md: add a section `## Unreleased` or `## <version>`".to_owned()),
        Some(_) => {}
    }
    findings
}

/// `docs/decisions/0042-why-so.md`.
pub(super) fn decisions(files: &[SourceFile]) -> Findings {
    let mut findings = Findings::default();
    let mut numbers: BTreeMap<&str, &str> = BTreeMap::new();
    for file in files {
        let Some(name) = file.path.strip_prefix("docs/decisions/").filter(|n| n.ends_with(".md")) else {
            continue;
        };
        match name.split_once('-') {
            Some((number, _)) if number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit()) => {
                if let Some(other) = numbers.insert(number, name) {
                    findings.complaints.push(format!("{}: {other} has that number already", file.path));
                }
            }
            _ => findings.complaints.push(format!("{}: call it NNNN-name.md", file.path)),
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Vec<SourceFile> {
        vec![SourceFile { path: path.to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn a_forbidden_text_is_found_and_its_benign_neighbour_is_not() {
        for (text, complaints) in [
            ("a TODO: b", 1),
            ("MASTODON", 0),
            ("a TODOS b", 0),
            ("todo!()", 1),
            ("todo = \"warn\"", 0),
            ("this will do for now", 1),
            ("look for nowhere", 1), // a phrase, not a word: rephrase it
            ("XXXX", 0),
        ] {
            assert_eq!(unfinished(&file("a.md", text)).complaints.len(), complaints, "{text}");
        }
        for (text, complaints) in [
            ("cd /work/main", 1),
            ("\"/root/x\"", 1),
            ("https://example.com/work/main", 0),
            ("$DIR/work/", 0),
            ("see static.crates.io", 1),
            ("see crates.io", 0),
        ] {
            assert_eq!(places(&file("a.md", text)).complaints.len(), complaints, "{text}");
        }
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert!(places(&file(LOCK, lock)).complaints.is_empty());
        assert_eq!(places(&file(LOCK, "source = \"git+https://example.com/x\"\n")).complaints.len(), 1);
    }

    #[test]
    fn openings_lengths_changelog_and_decisions_are_judged() {
        assert!(openings(&file("a.rs", "//! A.\n")).complaints.is_empty());
        assert_eq!(openings(&file("a.rs", "// A.\n")).complaints.len(), 1);
        assert!(openings(&file("a.md", "A.\n")).complaints.is_empty());
        for (line, complaints) in [
            ("pub(crate) struct RouteManager {", 1),
            ("    mod utils;", 1),
            ("pub struct Route<Data> {", 0),
            ("let data = 1;", 0),
        ] {
            assert_eq!(names(&file("a.rs", line)).complaints.len(), complaints, "{line}");
        }
        assert!(lengths(&file("a.rs", &"x\n".repeat(800))).complaints.is_empty());
        assert_eq!(lengths(&file("a.rs", &"x\n".repeat(801))).complaints.len(), 1);
        assert_eq!(changelog(&[]).complaints.len(), 1);
        assert_eq!(changelog(&file("CHANGELOG.md", "## Later\n")).complaints.len(), 1);
        assert!(changelog(&file("CHANGELOG.md", "## [Unreleased]\n")).complaints.is_empty());
        assert!(changelog(&file("CHANGELOG.md", "## 0.1.0\n")).complaints.is_empty());
        assert!(decisions(&file("docs/decisions/0003-a.md", "")).complaints.is_empty());
        assert_eq!(decisions(&file("docs/decisions/a.md", "")).complaints.len(), 1);
        let mut twice = file("docs/decisions/0003-a.md", "");
        twice.extend(file("docs/decisions/0003-b.md", ""));
        assert_eq!(decisions(&twice).complaints.len(), 1);
    }
}
