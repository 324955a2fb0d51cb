//! The page of limits is read off the constants: every one that has a number or a time and says what
//! it is.

use std::fmt::Write as _;

use crate::source::{Text, committed, files};

/// Numbers and times; other constants are no limits.
const TYPES: [&str; 7] = ["usize", "u8", "u16", "u32", "u64", "i64", "Duration"];
/// The tools around the program, and what is no limit although it is a number.
const LEFT_OUT: [&str; 5] = [
    "hamlet-testkit/",
    "hamlet-conformance/",
    "hamlet/src/demo/",
    "hamlet/src/cli/",
    "hamlet-core/src/digest.rs",
];

struct Limit {
    meaning: String,
    value: String,
    name: String,
    file: String,
}

/// `2 * 3`, `1 << 20`, `64 * 1024`: what a constant of ours may be made of.
fn number(expression: &str) -> Option<u64> {
    let clean = expression.trim();
    if let Some((a, b)) = clean.split_once("<<") {
        return number(a)?.checked_shl(u32::try_from(number(b)?).ok()?);
    }
    if let Some((a, b)) = clean.rsplit_once('*') {
        return number(a)?.checked_mul(number(b)?);
    }
    match clean {
        "u16::MAX as usize" => Some(u16::MAX.into()),
        _ => clean.replace('_', "").parse().ok(),
    }
}

fn time(seconds: u64) -> String {
    match seconds {
        s if s > 0 && s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s > 0 && s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s > 60 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

fn bytes(n: u64) -> String {
    match n {
        n if n > 0 && n % (1 << 30) == 0 => format!("{} GiB", n >> 30),
        n if n > 0 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n >= 1 << 13 && n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

fn shown(name: &str, meaning: &str, expression: &str) -> String {
    let within = |call: &str| expression.strip_prefix(call)?.strip_suffix(')').and_then(number);
    if let Some(seconds) = within("Duration::from_secs(") {
        return time(seconds);
    }
    if let Some(ms) = within("Duration::from_millis(") {
        return format!("{ms} ms");
    }
    let sized = name.contains("BYTES") || meaning.contains("in bytes");
    match number(expression) {
        Some(n) if sized => bytes(n),
        Some(n) => n.to_string(),
        None => format!("`{}`", expression.split("::").last().unwrap_or(expression)),
    }
}

/// `pub(crate) const NAME: TYPE = EXPRESSION;`
fn constant(line: &str) -> Option<(&str, &str, &str)> {
    let (visibility, rest) = line.trim_start().split_once("const ")?;
    (visibility.is_empty() || visibility.starts_with("pub")).then_some(())?;
    let (name, rest) = rest.split_once(": ")?;
    let (kind, expression) = rest.strip_suffix(';')?.split_once(" = ")?;
    (TYPES.contains(&kind) && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .then_some((name, kind, expression))
}

fn limits_of(file: &Text) -> Vec<Limit> {
    let code = file.text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut limits = vec![];
    let mut meaning = String::new();
    for line in code.lines() {
        if let Some(doc) = line.trim_start().strip_prefix("/// ") {
            let gap = if meaning.is_empty() { "" } else { " " };
            write!(meaning, "{gap}{}", doc.trim()).unwrap();
            continue;
        }
        let said = std::mem::take(&mut meaning).replace("[`", "`").replace("`]", "`").replace('|', "\\|");
        if let Some((name, _, expression)) = constant(line).filter(|_| !said.is_empty()) {
            limits.push(Limit {
                value: shown(name, &said, expression),
                meaning: said,
                name: name.to_owned(),
                file: file.path.trim_start_matches("crates/").to_owned(),
            });
        }
    }
    limits
}

const HEAD: &str = "# Limits

<!-- Generated from the constants in crates/*/src. Don't edit: HAMLET_BLESS=1 cargo test -p hamlet --test docs -->

Nothing is unbounded: every queue, catalogue, message, connection, retry and name in a metric has a bound with a name.
What an operator may change is in the [configuration](configuration.md): `spec.limits` and `spec.egress` of the `Mesh`,
`spec.quotas`, `spec.holdTime`, `spec.refusedHold` and `spec.guard` of a `Peer`. Everything below is compiled in; where
a key of the configuration exists for it, this is the default.

Times that aren't limits (how often something is looked at, how long a wait doubles) are listed too, so that no number in
the program is a secret.
";

#[test]
fn the_page_of_limits_lists_every_constant() {
    let mut page = HEAD.to_owned();
    let mut part = "";
    let files: Vec<Text> = files("crates", ".rs").into_iter().filter(|f| f.path.contains("/src/")).collect();
    let kept = |f: &&Text| !LEFT_OUT.iter().any(|l| f.path.trim_start_matches("crates/").starts_with(l));
    let limits: Vec<Limit> = files.iter().filter(kept).flat_map(limits_of).collect();
    for limit in &limits {
        let of = limit.file.split('/').next().unwrap_or_default();
        if of != part {
            part = of;
            write!(page, "\n## {part}\n\n| what | value | constant | in |\n|---|---|---|---|\n").unwrap();
        }
        let file = limit.file.split_once("/src/").map_or(limit.file.as_str(), |(_, f)| f);
        writeln!(page, "| {} | {} | `{}` | `{file}` |", limit.meaning, limit.value, limit.name).unwrap();
    }
    assert!(limits.len() > 80, "only {} limits were found", limits.len());
    committed("docs/reference/limits.md", &page);
}
