//! What the documentation names exists: files, functions, tests, and the other ends of links.

use std::path::Path;

use crate::source::{Text, code_spans, has_word, page, pages, root, rust};

/// `a/{b,c}.rs` means two files.
fn expanded(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?))) {
        Some((head, (choices, tail))) => {
            choices.split(',').map(|c| format!("{head}{}{tail}", c.trim())).collect()
        }
        None => vec![path.to_owned()],
    }
}

fn is_path(span: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-{},".contains(c);
    let named =
        [".rs", ".md", ".yaml", ".toml", ".proto", ".service", "/"].iter().any(|end| span.ends_with(end));
    span.contains('/') && named && !span.starts_with('/') && span.chars().all(plain)
}

/// Whether some file defines `function` for `owner`: a type's, a trait's, or a module's own.
fn defined(sources: &[Text], owner: &str, function: &str) -> bool {
    let has_function =
        |text: &str| [format!("fn {function}("), format!("fn {function}<")].iter().any(|f| text.contains(f));
    let of_type = |text: &str| {
        let heads =
            text.lines().map(str::trim_start).filter(|l| l.starts_with("impl") || l.contains("trait "));
        heads.into_iter().any(|l| has_word(l, owner))
    };
    let of_module =
        |path: &str| path.ends_with(&format!("/{owner}.rs")) || path.ends_with(&format!("/{owner}/mod.rs"));
    let is_type = owner.starts_with(|c: char| c.is_ascii_uppercase());
    sources
        .iter()
        .any(|s| has_function(&s.text) && if is_type { of_type(&s.text) } else { of_module(&s.path) })
}

#[test]
fn every_file_and_function_that_the_map_names_exists() {
    let sources = rust();
    let text = page("ARCHITECTURE.md");
    let mut missing = vec![];
    let (mut paths, mut functions) = (0, 0);
    for span in code_spans(&text) {
        let span = span.trim_end_matches("()");
        if is_path(span) {
            paths += 1;
            let there = |p: &String| root().join(p).exists() || root().join("crates").join(p).exists();
            missing.extend(expanded(span).into_iter().filter(|p| !there(p)));
        } else if let Some((owner, function)) =
            span.rsplit_once("::").filter(|_| !span.starts_with("tokio::"))
        {
            let owner = owner.rsplit("::").next().unwrap_or(owner);
            let plain = |s: &str| s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if plain(owner) && plain(function) && function.starts_with(|c: char| c.is_ascii_lowercase()) {
                functions += 1;
                missing.extend((!defined(&sources, owner, function)).then(|| span.to_owned()));
            }
        }
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md names what isn't there: {missing:?}");
    assert!(paths > 20 && functions > 20, "{paths} paths and {functions} functions were looked at");
}

#[test]
fn every_test_that_the_security_page_names_exists() {
    let sources = rust();
    let page = page("docs/operate/security.md");
    let test = |s: &String| {
        s.matches('_').count() >= 3
            && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let named: Vec<String> = code_spans(&page).into_iter().filter(test).collect();
    let there = |name: &String| sources.iter().any(|s| s.text.contains(&format!("fn {name}(")));
    let missing: Vec<&String> = named.iter().filter(|n| !there(n)).collect();
    assert!(missing.is_empty(), "docs/operate/security.md names tests that aren't there: {missing:#?}");
    assert!(named.len() > 50, "only {} tests are named", named.len());
}

#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let mut broken = vec![];
    for page in pages() {
        let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
        for target in page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(' ') {
                continue;
            }
            if !root().join(folder).join(file).exists() {
                broken.push(format!("{}: {target}", page.path));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_index_lists_every_page() {
    let index = page("docs/README.md");
    let pages = pages().into_iter().filter_map(|p| p.path.strip_prefix("docs/").map(str::to_owned));
    let unlisted: Vec<String> =
        pages.filter(|p| p != "README.md" && !index.contains(&format!("({p})"))).collect();
    assert!(unlisted.is_empty(), "docs/README.md doesn't list {unlisted:?}");
}

/// Source with the line breaks of long literals taken away.
fn flowing(text: &str) -> String {
    text.replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_message_that_the_page_of_troubles_quotes_is_said_somewhere() {
    let sources: String =
        rust().iter().filter(|s| s.path.contains("/src/")).map(|s| flowing(&s.text)).collect();
    let page = page("docs/operate/troubleshooting.md");
    let part = page.split("## Last error of a peer").nth(1).expect("the table is there");
    // Words with blanks between them, no command and no key: a message.
    let quoted = code_spans(part).into_iter().filter(|s| s.matches(' ').count() >= 2);
    let quoted: Vec<String> = quoted.filter(|s| !s.starts_with("hamlet ") && !s.contains("'*'")).collect();
    let said = |fragment: &str| sources.contains(flowing(fragment).trim_matches([' ', ';', ':']));
    let strange: Vec<&String> = quoted.iter().filter(|q| !q.split("...").all(said)).collect();
    assert!(strange.is_empty(), "nothing says: {strange:#?}");
    assert!(quoted.len() > 15, "{quoted:#?}");
}
