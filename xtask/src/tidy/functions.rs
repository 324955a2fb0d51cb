//! How long functions are. Counts from `fn` to the closing brace of the body.

use super::lexer::blank;
use super::{Findings, SourceFile};

/// Longer ones are listed.
const LONG: usize = 100;
/// Longer ones fail.
const TOO_LONG: usize = 150;

/// A function in a file.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Complains about functions that are too long, and notes those that are long.
pub(super) fn lengths(files: &[SourceFile]) -> Findings {
    let mut findings = Findings::default();
    for file in files.iter().filter(|f| f.path.ends_with(".rs")) {
        for Function { name, line, lines } in functions(&file.text) {
            let text = format!("{}:{line}: fn {name} has {lines} lines", file.path);
            if lines > TOO_LONG {
                findings.complaints.push(format!("{text}; split it into steps with names"));
            } else if lines > LONG {
                findings.notes.push(text);
            }
        }
    }
    findings
}

/// All functions with a body, nested ones too.
fn functions(text: &str) -> Vec<Function> {
    let code = blank(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue; // the type of a function
        }
        let Some(end) = body_end(rest) else { continue };
        let lines = rest[..end].matches('\n').count() + 1;
        found.push(Function { name, line: code[..at].matches('\n').count() + 1, lines });
    }
    found
}

/// Where the body that follows a signature ends; `None` for a declaration without one.
fn body_end(signature: &str) -> Option<usize> {
    let (mut round, mut braces) = (0i32, 0i32);
    for (at, c) in signature.char_indices() {
        match c {
            '(' | '[' if braces == 0 => round += 1,
            ')' | ']' if braces == 0 => round -= 1,
            ';' if braces == 0 && round == 0 => return None,
            '{' if round == 0 => braces += 1,
            '}' if round == 0 => {
                braces -= 1;
                if braces <= 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_counted_from_fn_to_their_closing_brace() {
        let text =
            "trait T { fn no(&self); }\nfn a(x: [u8; 2]) {\n let f: fn (u8) = g;\n fn b() { \"}\"; }\n}\n";
        let found = functions(text);
        let expected = |name: &str, line, lines| Function { name: name.to_owned(), line, lines };
        assert_eq!(found, [expected("a", 2, 4), expected("b", 4, 1)]);
        let body = |lines: usize| {
            vec![SourceFile { path: "a.rs".into(), text: format!("fn a() {{\n{}}}\n", "x;\n".repeat(lines)) }]
        };
        assert!(lengths(&body(98)).notes.is_empty());
        assert_eq!(lengths(&body(99)).notes.len(), 1);
        assert!(lengths(&body(148)).complaints.is_empty());
        assert_eq!(lengths(&body(149)).complaints.len(), 1);
    }
}
