//! `hamlet validate`: a configuration as the agent would take it, without an agent.
//!
//! Invariant: it prints a summary line in every case, and writes nothing but to `out`.

use std::io::{self, Write};
use std::path::Path;

use super::render::{count, render};
use super::{Loaded, load};

/// Checks the file or folder and prints what it found to `out`: rendered problems, then
/// `N problems in M files`; or warnings, then `ok: 1 mesh, 2 peers, ...`. Returns whether the agent
/// would take it; the error is that of writing.
pub fn validate_command(path: &Path, colour: bool, out: &mut dyn Write) -> io::Result<bool> {
    match load(path) {
        Ok(loaded) => {
            write!(out, "{}", render(&loaded.warnings, colour))?;
            writeln!(out, "{}", loaded.summary())?;
            Ok(true)
        }
        Err(problems) => {
            write!(out, "{}", problems.render(colour))?;
            Ok(false)
        }
    }
}

impl Loaded {
    /// `ok: 1 mesh, 2 peers, 1 publication, 1 import, 10 services`, and the number of warnings.
    pub fn summary(&self) -> String {
        let config = &self.config;
        let mut text = format!(
            "ok: 1 mesh, {}, {}, {}, {} in {}",
            count(config.peers.len(), "peer"),
            count(config.publications.len(), "publication"),
            count(config.imports.len(), "import"),
            count(config.services.len(), "service"),
            count(self.files, "file"),
        );
        if !self.warnings.is_empty() {
            text.push_str(&format!("; {}", count(self.warnings.len(), "warning")));
        }
        text
    }
}
