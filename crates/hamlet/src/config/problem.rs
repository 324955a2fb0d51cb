//! Problems of a configuration: where, what, and what to do, as data. Rendering for people with
//! the source line is in [`super::render`].
//!
//! Invariant: every problem names a file, a line, a column and a fix.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most errors, and most warnings, that are kept of one load; the rest is counted. Nobody reads more
/// at once.
pub const PROBLEMS_MAX: usize = 1000;

/// Whether a problem refuses the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is taken, but probably not what was meant.
    Warning,
}

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was given.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters the wrong part has; at least 1.
    pub width: usize,
    /// Document and field, for example `Peer/globex spec.agentIds[0]`; empty for a whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
    /// Error or warning.
    pub severity: Severity,
    /// The lines around the place, with their numbers; empty when there is no text.
    pub excerpt: Vec<(usize, String)>,
}

impl Problem {
    /// A problem of a whole file or folder.
    pub fn of_file(file: &Path, message: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem {
            file: file.to_owned(),
            line: 1,
            column: 1,
            width: 1,
            path: String::new(),
            message: message.into(),
            fix: fix.into(),
            severity: Severity::Error,
            excerpt: Vec::new(),
        }
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: path: message; fix: what to do`, one line whatever the input was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}:{}:{}: ", self.file.display(), self.line, self.column);
        if self.severity == Severity::Warning {
            text.push_str("warning: ");
        }
        if !self.path.is_empty() {
            text.push_str(&self.path);
            text.push_str(": ");
        }
        text.push_str(&self.message);
        text.push_str("; fix: ");
        text.push_str(&self.fix);
        f.write_str(&hamlet_core::rejection::one_line(&text, LINE_MAX))
    }
}

/// Longest line of a printed problem, in bytes.
const LINE_MAX: usize = 4096;

/// Why a configuration was refused: all its problems, in order of file and place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// At least one error, and the warnings found beside it; at most [`PROBLEMS_MAX`] of each.
    pub list: Vec<Problem>,
    /// How many more errors there were.
    pub more: usize,
    /// How many files were read.
    pub files: usize,
}

impl Problems {
    /// Only the errors.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter().filter(|p| p.severity == Severity::Error)
    }
}

impl fmt::Display for Problems {
    /// One line a problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A place in a file that was read: where a value stands, kept small because every value has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// Index of the file in the load.
    pub file: u32,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Characters; at least 1.
    pub width: u32,
}

/// Collects problems; bounded, errors and warnings apart, so that neither hides the other.
#[derive(Debug, Default)]
pub(super) struct Collector {
    errors: Bounded,
    warnings: Bounded,
}

#[derive(Debug, Default)]
struct Bounded {
    list: Vec<(Mark, Problem)>,
    more: usize,
}

impl Collector {
    pub(super) fn error(
        &mut self,
        mark: Mark,
        path: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.errors.push(mark, path, message.into(), fix.into(), Severity::Error);
    }

    pub(super) fn warning(
        &mut self,
        mark: Mark,
        path: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.warnings.push(mark, path, message.into(), fix.into(), Severity::Warning);
    }

    pub(super) fn any_error(&self) -> bool {
        !self.errors.list.is_empty()
    }

    /// All problems in order, with their files and the lines around them, and how many errors there
    /// were beside them.
    pub(super) fn finish(self, sources: &[super::SourceFile]) -> (Vec<Problem>, usize) {
        let mut list = self.errors.list;
        list.extend(self.warnings.list);
        list.sort_by_key(|(m, _)| (m.file, m.line, m.column));
        let mut lines: Option<(u32, Vec<&str>)> = None;
        let mut out = Vec::with_capacity(list.len());
        for (mark, mut problem) in list {
            if let Some(source) = sources.get(mark.file as usize) {
                problem.file = source.path.clone();
                let current = match lines.take() {
                    Some((file, known)) if file == mark.file => known,
                    _ => super::tree::lines(&source.text).collect(),
                };
                let first = problem.line.saturating_sub(2);
                let around = current.iter().enumerate().skip(first).take(problem.line - first + 1);
                problem.excerpt = around.map(|(i, l)| (i + 1, (*l).to_owned())).collect();
                lines = Some((mark.file, current));
            }
            out.push(problem);
        }
        if let (more @ 1.., Some(source)) = (self.warnings.more, sources.first()) {
            let message = format!("{more} more warnings are not shown");
            let rest = Problem::of_file(&source.path, message, "put the others right first");
            out.push(Problem { severity: Severity::Warning, ..rest });
        }
        (out, self.errors.more)
    }
}

impl Bounded {
    fn push(&mut self, mark: Mark, path: &str, message: String, fix: String, severity: Severity) {
        if self.list.len() >= PROBLEMS_MAX {
            self.more += 1;
            return;
        }
        let problem = Problem {
            file: PathBuf::new(),
            line: mark.line.max(1) as usize,
            column: mark.column.max(1) as usize,
            width: mark.width.max(1) as usize,
            path: path.to_owned(),
            message,
            fix,
            severity,
            excerpt: Vec::new(),
        };
        self.list.push((mark, problem));
    }
}
