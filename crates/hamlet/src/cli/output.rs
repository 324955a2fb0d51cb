//! Standard output as a command sees it: buffered, a closed pipe is an ordinary `io::Error`, and
//! colour only where a person looks.

use std::io::{IsTerminal, Write};

/// Where a command writes its data.
pub(super) struct Out {
    to: Box<dyn Write>,
    /// Whether colours may be used.
    pub(super) colour: bool,
}

impl Out {
    /// Standard output.
    pub(super) fn stdout(no_color: bool) -> Out {
        let stdout = std::io::stdout();
        let colour = colour(&stdout, no_color);
        Out { to: Box::new(std::io::BufWriter::new(stdout)), colour }
    }

    /// Everything must have been written, or the command has failed.
    pub(super) fn finish(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.to.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// Whether to colour what goes to `to`: a terminal, no `--no-color`, no `NO_COLOR` (any value but
/// the empty one), and not a dumb terminal.
pub(super) fn colour(to: &impl IsTerminal, no_color: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    to.is_terminal() && !no_color && set("NO_COLOR").is_none() && set("TERM").is_none_or(|t| t != "dumb")
}

/// A message for a person, on standard error; that nobody reads it is no failure.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
