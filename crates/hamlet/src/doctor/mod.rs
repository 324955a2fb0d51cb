//! The doctor: looks at everything that a federation needs, from outside the agent, and says for each
//! thing whether it holds and what to do if not.
//!
//! It changes nothing and works without a running agent, as far as there is something to look at.
//! Invariants: every look has a deadline; one that fails keeps no other from being taken; what isn't
//! a pass has a remedy.

mod house;
mod identity;
mod peers;
mod traffic;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::Client;
use hamlet_core::expiry::Expiry;
use hamlet_core::rejection::one_line;
use hamlet_identity::Validity;
use hamlet_runtime::Clock;
use serde::Serialize;

use crate::config::{self, Severity};

/// How many things are reached for at a time.
const AT_ONCE: usize = 16;
/// Longest text of a finding, in bytes.
const TEXT_BYTES: usize = 1024;

/// What became of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It holds.
    Pass,
    /// It works now; somebody should see to it.
    Warn,
    /// It doesn't work.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Pass => "pass",
            Outcome::Warn => "warn",
            Outcome::Fail => "fail",
        })
    }
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at: `identity/agent`, `peer/globex`, `dns`.
    pub(crate) about: String,
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// What was seen, one line.
    pub(crate) found: String,
    /// What to do, one line; never absent unless it is a pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Finding {
    fn new(about: impl Into<String>, outcome: Outcome, found: &str, remedy: Option<&str>) -> Finding {
        let line = |text: &str| one_line(text, TEXT_BYTES);
        Finding { about: about.into(), outcome, found: line(found), remedy: remedy.map(line) }
    }

    fn pass(about: impl Into<String>, found: impl AsRef<str>) -> Finding {
        Finding::new(about, Outcome::Pass, found.as_ref(), None)
    }

    fn warn(about: impl Into<String>, found: impl AsRef<str>, remedy: impl AsRef<str>) -> Finding {
        Finding::new(about, Outcome::Warn, found.as_ref(), Some(remedy.as_ref()))
    }

    fn fail(about: impl Into<String>, found: impl AsRef<str>, remedy: impl AsRef<str>) -> Finding {
        Finding::new(about, Outcome::Fail, found.as_ref(), Some(remedy.as_ref()))
    }

    /// A failure whose text is one of our errors, which end in what to do: `what: ...; do this`.
    fn of_error(about: impl Into<String>, error: impl fmt::Display) -> Finding {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((found, remedy)) => Finding::fail(about, found, remedy),
            None => Finding::fail(about, &text, "see the agent's log for what led to it"),
        }
    }
}

/// All looks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// In the order of looking.
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    /// The worst of them.
    pub(crate) fn worst(&self) -> Outcome {
        self.findings.iter().map(|f| f.outcome).max().unwrap_or(Outcome::Pass)
    }

    /// How many there are of one outcome.
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.findings.iter().filter(|f| f.outcome == outcome).count()
    }
}

/// What the looks share.
struct Examination<'a> {
    config: &'a config::Config,
    clock: &'a Arc<dyn Clock>,
    /// How long a single look may take.
    patience: Duration,
}

/// Looks at everything that the configuration in `path` names, and at the agent behind `client`.
pub(crate) async fn examine(
    path: &Path,
    client: &Client,
    clock: &Arc<dyn Clock>,
    patience: Duration,
) -> Report {
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            return Report { findings: problems.list.iter().map(configuration).collect() };
        }
    };
    let mut findings: Vec<Finding> = loaded.warnings.iter().map(configuration).collect();
    if findings.is_empty() {
        let text = format!("{} files, {} peers", loaded.files, loaded.config.peers.len());
        findings.push(Finding::pass("configuration", text));
    }
    let look = Examination { config: &loaded.config, clock, patience };
    findings.extend(house::clock(&look));
    findings.extend(house::data(&look));
    let own = identity::own(&look, &mut findings).await;
    let agent = house::agent(&look, client, &mut findings).await;
    findings.extend(peers::all(&look, &own).await);
    findings.extend(traffic::listeners(&look, agent.as_ref()).await);
    if let Some(agent) = &agent {
        findings.extend(traffic::gateways(&look, agent).await);
        findings.extend(traffic::names(&look, agent).await);
    }
    Report { findings }
}

fn configuration(problem: &config::Problem) -> Finding {
    let outcome = match problem.severity {
        Severity::Error => Outcome::Fail,
        Severity::Warning => Outcome::Warn,
    };
    let at = format!("{}:{}:{}", problem.file.display(), problem.line, problem.column);
    let found = format!("{at}: {}: {}", problem.path, problem.message);
    Finding::new("configuration", outcome, &found, Some(&problem.fix))
}

/// What the end of a validity means for `about`: nothing is said of one that is far.
fn of_expiry(
    look: &Examination<'_>,
    about: &str,
    what: &str,
    validity: Validity,
    remedy: &str,
) -> Option<Finding> {
    let now = look.clock.wall();
    if now < validity.not_before {
        let ahead = age(validity.not_before.saturating_sub(now));
        let found = format!("{what} begins to be valid in {ahead} only");
        let remedy = "compare this machine's clock with that of the issuer";
        return Some(Finding::warn(about, found, remedy));
    }
    let left = || age(validity.not_after.saturating_sub(now));
    match Expiry::at(now, validity.not_before, validity.not_after) {
        Expiry::Far => None,
        Expiry::Over => {
            let ago = age(now.saturating_sub(validity.not_after));
            Some(Finding::fail(about, format!("{what} expired {ago} ago"), remedy))
        }
        Expiry::Month | Expiry::Week | Expiry::Day => {
            Some(Finding::warn(about, format!("{what} expires in {}", left()), remedy))
        }
    }
}

fn age(time: Duration) -> String {
    hamlet_admin::api::human_age(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
