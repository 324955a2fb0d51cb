//! The page of refusals names every rule by which an offer can be refused, and no other; likewise the
//! codes of the gateway's own HTTP answers.

use std::collections::BTreeSet;

use crate::source::{files, page};

/// The arguments of a call that starts at the front of `text`, up to its closing bracket.
fn arguments(text: &str) -> &str {
    let mut depth = 1;
    let end = text.char_indices().find(|(_, c)| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth == 0
    });
    end.map_or(text, |(at, _)| &text[..at])
}

/// Rules are the first literal in a call that makes a rejection.
fn rules_of(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut rules = BTreeSet::new();
    for call in ["Rejection::new(", "refuse(", "malformed(", "quota("] {
        for (at, _) in code.match_indices(call) {
            let inside = arguments(&code[at + call.len()..]);
            let Some(rule) = inside.split('"').nth(1) else { continue };
            if !rule.is_empty() && rule.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
                rules.insert(rule.to_owned());
            }
        }
    }
    rules
}

#[test]
fn the_page_of_refusals_lists_exactly_the_rules_of_the_source() {
    let mut rules = BTreeSet::new();
    for folder in ["crates/hamlet-core/src", "crates/hamlet-protocol/src"] {
        for file in files(folder, ".rs").iter().filter(|f| !f.path.ends_with("_tests.rs")) {
            rules.extend(rules_of(&file.text));
        }
    }
    let page = page("docs/reference/refusals.md");
    let first_cells = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<String> = first_cells.map(str::to_owned).collect();
    let missing: Vec<_> = rules.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&rules).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not on the page: {missing:?}; on it but not a rule: {unknown:?}"
    );
    assert!(rules.len() > 20, "{rules:?}");
}

#[test]
fn the_page_of_troubles_lists_exactly_the_gateways_error_codes() {
    let mut codes = BTreeSet::new();
    for file in files("crates/hamlet-gateway/src", ".rs") {
        let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
        for rest in code.split("StatusCode::").skip(1) {
            let literal = rest
                .split_once(", \"")
                .filter(|(constant, _)| !constant.contains(|c: char| !c.is_ascii_uppercase() && c != '_'));
            codes.extend(literal.and_then(|(_, rest)| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
    let page = page("docs/operate/troubleshooting.md");
    let section = page
        .split("`x-hamlet-error`:")
        .nth(1)
        .and_then(|s| s.split("\n\nOn an egress").next())
        .expect("the table is there");
    let cells = section.lines().filter_map(|l| l.strip_prefix("| `")?.split(" | ").next());
    let listed: BTreeSet<String> =
        cells.flat_map(|c| c.split(", ").map(|w| w.trim_matches('`').to_owned())).collect();
    assert_eq!(listed, codes);
    assert!(codes.len() > 8, "{codes:?}");
}
