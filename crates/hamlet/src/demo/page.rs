//! What the demo prints: a row for each step as it ends, failures in full, the commands to try.
//! Colour and a moving line only where a person looks. That nobody reads is no failure.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use owo_colors::{OwoColorize as _, Style};

use super::world::{Failed, World};

/// Width of the column of step names.
pub(super) const NAME_WIDTH: usize = 42;

/// Standard output of the demo.
pub(super) struct Page {
    colour: bool,
    terminal: bool,
}

impl Page {
    /// Prints to standard output.
    pub(super) fn new(colour: bool, terminal: bool) -> Page {
        Page { colour, terminal }
    }

    /// A line, or several.
    pub(super) fn line(&self, text: impl Display) {
        let _ = writeln!(io::stdout(), "{text}");
    }

    fn paint(&self, text: impl Display, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_string() }
    }

    /// The head of the table.
    pub(super) fn head(&self) {
        let head = format!("  {:>2}  {:<NAME_WIDTH$} {:>8}  {}", "#", "STEP", "TIME", "SEEN");
        self.line(self.paint(head, Style::new().bold()));
    }

    /// A step begins: on a terminal its row is there before it ends.
    pub(super) fn begin(&self, number: usize, all: usize, name: &str) {
        if self.terminal {
            let mut out = io::stdout();
            let _ = write!(out, "  {number:>2}  {name} (of {all}) ...");
            let _ = out.flush();
        }
    }

    fn row(&self, mark: &str, style: Style, number: usize, name: &str, took: &str, note: &str) {
        // Takes the place of what `begin` wrote.
        let start = if self.terminal { "\r\x1b[2K" } else { "" };
        let mark = self.paint(mark, style);
        self.line(format!("{start}{mark} {number:>2}  {name:<NAME_WIDTH$} {took:>8}  {note}"));
    }

    /// A step that saw what it expected.
    pub(super) fn passed(&self, number: usize, name: &str, took: Duration, note: &str) {
        self.row("✓", Style::new().green(), number, name, &seconds(took), note);
    }

    /// A step that did not.
    pub(super) fn failed(&self, number: usize, name: &str, took: Duration, failed: &Failed, logs: &str) {
        self.row("✗", Style::new().red().bold(), number, name, &seconds(took), "FAILED");
        self.line(indented(&format!("expected: {}\nseen:     {}", failed.expected, failed.seen)));
        self.line(indented(logs));
    }

    /// A step that was not begun because one before it failed.
    pub(super) fn skipped(&self, number: usize, name: &str) {
        self.row("-", Style::new().dimmed(), number, name, "", "not run");
    }

    /// How many steps passed, in a line of its own.
    pub(super) fn total(&self, passed: usize, failed: usize) {
        let style = if failed == 0 { Style::new().green() } else { Style::new().red().bold() };
        self.line(format!("\n{}", self.paint(format!("{passed} passed, {failed} failed"), style)));
    }

    /// What to try while both run.
    pub(super) fn commands(&self, world: &World, program: &Path, ledger: std::net::Ipv4Addr, proxied: bool) {
        let head = |text: &str| self.line(format!("\n{}", self.paint(text, Style::new().bold())));
        let command = |text: String| self.line(format!("  {}", self.paint(text, Style::new().cyan())));
        let name = world.acme.fqdn("ledger");
        let (port, ports) = (world.service_port, world.globex.ports);
        let (acme, globex) = (quoted(&world.acme.folder), quoted(&world.globex.folder));
        let hamlet = quoted(program);
        let curl = if proxied { "curl --noproxy '*'" } else { "curl" };
        head("Call ledger from globex: by its egress address, and by Host through the shared listener");
        command(format!("{curl} --resolve {name}:{port}:{ledger} http://{name}:{port}/hello"));
        command(format!("{curl} -H 'Host: {name}' http://{}/hello", ports.egress_http));
        head("Ask globex's DNS");
        command(format!("dig @{} -p {} {name} +short", ports.dns.ip(), ports.dns.port()));
        head("Look at both sides");
        command(format!("{hamlet} get peers -f {globex} -o wide"));
        command(format!("{hamlet} get services -f {globex}"));
        command(format!("{hamlet} describe service acme/ledger -f {globex}"));
        command(format!("{hamlet} get services -f {acme}"));
        head("Withdraw ledger by an edit at acme, look at globex again, publish it again");
        let file = quoted(&world.acme.folder.join("publication-ledger.yaml"));
        command(format!("mv {file} {file}.off"));
        command(format!("mv {file}.off {file}"));
        head("Kill acme's agent: globex keeps what it imported; calls fail with a reason; start it again");
        command(format!("kill -9 {}", world.acme.pid()));
        command(format!("{hamlet} agent -f {acme}"));
        let logs = world.folder().join("logs");
        let folders = if world.kept() { "keeps" } else { "removes" };
        self.line(format!("\nLogs are in {}. Ctrl-C ends both and {folders} the folders.", logs.display()));
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("      {line}")).collect();
    lines.join("\n")
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_only_where_the_shell_needs_it() {
        assert_eq!(quoted(Path::new("/tmp/demo-1/acme")), "/tmp/demo-1/acme");
        assert_eq!(quoted(Path::new("/tmp/my demo")), "'/tmp/my demo'");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
