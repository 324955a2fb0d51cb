//! Problems as a person reads them: the line they stand in, with the place marked. Colour only
//! when asked. Not the one-line form for logs; that is `Display` of [`Problem`].
//!
//! Invariant: no control character of a configuration file reaches the terminal.

use std::fmt::Write as _;

use super::problem::{Problem, Problems, Severity};

/// Widest part of a source line that is shown, in characters.
const SHOWN: usize = 120;

/// ANSI styles, empty when colour is off.
struct Paint {
    error: &'static str,
    warning: &'static str,
    dim: &'static str,
    bold: &'static str,
    fix: &'static str,
    end: &'static str,
}

const PLAIN: Paint = Paint { error: "", warning: "", dim: "", bold: "", fix: "", end: "" };
const COLOUR: Paint = Paint {
    error: "\x1b[1;31m",
    warning: "\x1b[1;33m",
    dim: "\x1b[2m",
    bold: "\x1b[1m",
    fix: "\x1b[32m",
    end: "\x1b[0m",
};

/// All problems, one after the other, with a blank line after each.
pub fn render(problems: &[Problem], colour: bool) -> String {
    let mut out = String::new();
    for problem in problems {
        render_one(&mut out, problem, if colour { &COLOUR } else { &PLAIN });
        out.push('\n');
    }
    out
}

impl Problems {
    /// All problems with their source lines, then how many there were.
    pub fn render(&self, colour: bool) -> String {
        let mut out = render(&self.list, colour);
        out.push_str(&self.summary());
        out.push('\n');
        out
    }

    /// `3 problems in 2 files`, counting errors and naming warnings apart.
    pub fn summary(&self) -> String {
        let errors = self.errors().count() + self.more;
        let files: std::collections::BTreeSet<_> = self.errors().map(|p| &p.file).collect();
        let warnings = self.list.len() - self.errors().count();
        let mut text = format!("{} in {}", count(errors, "problem"), count(files.len(), "file"));
        if warnings > 0 {
            let _ = write!(text, ", {}", count(warnings, "warning"));
        }
        if self.more > 0 {
            let _ = write!(text, " (the first {} shown)", self.list.len());
        }
        text
    }
}

/// `1 peer`, `2 peers`.
pub(super) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn render_one(out: &mut String, problem: &Problem, paint: &Paint) {
    let Paint { dim, bold, fix, end, .. } = paint;
    let (style, word) = match problem.severity {
        Severity::Error => (paint.error, "error"),
        Severity::Warning => (paint.warning, "warning"),
    };
    let message = clean(&problem.message);
    let path = clean(&problem.path);
    let separator = if path.is_empty() { "" } else { ": " };
    let _ = writeln!(out, "{style}{word}{end}{bold}: {path}{separator}{message}{end}");
    let gutter = problem.excerpt.iter().map(|(n, _)| n.to_string().len()).max().unwrap_or(1);
    let file = clean(&problem.file.display().to_string());
    let _ = writeln!(out, "{:gutter$}{dim}-->{end} {file}:{}:{}", "", problem.line, problem.column);
    let start = problem.column.saturating_sub(SHOWN * 2 / 3 + 1);
    for (number, text) in &problem.excerpt {
        let shown: String = text.chars().skip(start).take(SHOWN).map(visible).collect();
        let _ = writeln!(out, "{dim}{number:>gutter$} |{end} {}", shown.trim_end());
        if *number == problem.line {
            let before = problem.column - 1 - start;
            let room = text.chars().count().saturating_sub(problem.column - 1).clamp(1, SHOWN - before);
            let mark = "^".repeat(problem.width.clamp(1, room));
            let _ = writeln!(out, "{dim}{:>gutter$} |{end} {:before$}{style}{mark}{end}", "", "");
        }
    }
    let _ = writeln!(out, "{:gutter$} {dim}={end} {fix}fix{end}: {}", "", clean(&problem.fix));
}

/// One character for one column: what a terminal would act on becomes a visible stand-in.
fn visible(c: char) -> char {
    match c {
        '\t' => '→',
        c if hamlet_core::rejection::one_line(c.encode_utf8(&mut [0; 4]), 8).starts_with('\\')
            && c != '\\' =>
        {
            '�'
        }
        c => c,
    }
}

fn clean(text: &str) -> String {
    hamlet_core::rejection::one_line(text, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: &str, column: usize, width: usize) -> Problem {
        Problem {
            line: 7,
            column,
            width,
            path: "Peer/globex spec".into(),
            excerpt: vec![(6, "spec:".into()), (7, line.into())],
            ..Problem::of_file("peer.yaml".as_ref(), "unknown key `adress`", "did you mean `address`?")
        }
    }

    #[test]
    fn the_place_is_marked_under_its_line() {
        let text = render(&[problem("  adress: x", 3, 6)], false);
        let expected = "error: Peer/globex spec: unknown key `adress`\n --> peer.yaml:7:3\n6 | spec:\n\
                        7 |   adress: x\n  |   ^^^^^^\n  = fix: did you mean `address`?\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_terminal_escape_in_a_file_is_shown_and_not_sent() {
        let text = render(&[problem("  \x1b[31madress: x", 3, 6)], false);
        assert!(!text.contains('\x1b'));
        assert!(render(&[problem("  adress: x", 3, 6)], true).contains("\x1b[1;31m"));
    }

    #[test]
    fn a_place_far_to_the_right_is_shown_and_one_past_the_end_is_marked() {
        let long = format!("{}adress", " ".repeat(5000));
        let text = render(&[problem(&long, 5001, 6)], false);
        assert!(text.contains("^^^^^^") && text.len() < 1000, "{text}");
        assert!(render(&[problem("  a:", 9, 1)], false).contains('^'));
    }
}
