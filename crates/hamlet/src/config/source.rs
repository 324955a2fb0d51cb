//! The files of a configuration, read as the agent's folder watch reads them, so that what
//! `hamlet validate` sees is what the agent will take. Knows nothing of YAML.
//!
//! Invariant: what can't be read is a problem, and a folder without a file is one too.

use std::path::Path;

pub use hamlet_adapters::file::SourceFile;
use hamlet_adapters::file::{FolderError, FolderLimits, read_folder};

use super::problem::{Problem, Problems};

/// Most documents of all files.
pub const DOCUMENTS_MAX: usize = 200_000;

/// Reads one file, or a folder's `*.yaml` and `*.yml` files (blocking), sorted by path.
pub fn read_sources(path: &Path) -> Result<Vec<SourceFile>, Problems> {
    let snapshot = read_folder(path, &FolderLimits::default()).map_err(|error| unreadable(&error))?;
    if snapshot.files.is_empty() {
        return Err(nothing_to_read(path));
    }
    Ok(snapshot.files)
}

/// An empty folder is never an empty catalogue.
pub fn nothing_to_read(path: &Path) -> Problems {
    let fix = "`hamlet init DIR` writes a first configuration; or name the right folder";
    one(Problem::of_file(path, "there is no *.yaml or *.yml file here", fix))
}

/// A folder that couldn't be read, as the problem that it is; also for the folder watch's errors.
pub fn unreadable(error: &FolderError) -> Problems {
    let (path, line) = match error {
        FolderError::NotText { path, line } => (path, *line),
        FolderError::Missing { path }
        | FolderError::Unreadable { path, .. }
        | FolderError::NotAFile { path }
        | FolderError::LinkedFolder { path }
        | FolderError::TooDeep { path, .. }
        | FolderError::FileTooLarge { path, .. }
        | FolderError::FolderTooLarge { path, .. }
        | FolderError::TooManyFiles { path, .. }
        | FolderError::Vanished { path } => (path, 1),
    };
    // The error's own text is `PATH[:LINE]: what; what to do`.
    let text = error.to_string();
    let rest = text.strip_prefix(&path.display().to_string()).unwrap_or(&text);
    let rest = rest.trim_start_matches(|c: char| c == ':' || c == ' ' || c.is_ascii_digit());
    let (message, fix) = rest.split_once("; ").unwrap_or((rest, "make it readable"));
    one(Problem { line, ..Problem::of_file(path, message, fix) })
}

fn one(problem: Problem) -> Problems {
    Problems { list: vec![problem], more: 0, files: 0 }
}
