//! What came of a run, and the forms it is shown in. Texts only; no judgement.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::registry::{Kind, Level};
use crate::speech::{Role, Version};

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The requirement is met.
    Passed,
    /// A "must" is not met.
    Failed,
    /// A "should" is not met: the implementation differs where the text leaves it open.
    Differs,
    /// It can't be judged here; what was seen says why.
    NotApplicable,
}

impl Outcome {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "pass",
            Outcome::Failed => "FAIL",
            Outcome::Differs => "differs",
            Outcome::NotApplicable => "n/a",
        }
    }
}

/// One case that was run.
#[derive(Debug, Clone, Serialize)]
pub struct CaseResult {
    /// `A1-OWN-003.2`.
    pub id: String,
    /// Of the protocol text.
    pub section: &'static str,
    /// What is required.
    pub requirement: &'static str,
    /// `must` or `should`.
    pub level: &'static str,
    /// `happy` or `hostile`.
    pub kind: &'static str,
    /// What happened.
    pub case: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// In one line.
    pub seen: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl CaseResult {
    pub(crate) fn took(&self) -> Duration {
        Duration::from_millis(self.took_ms)
    }
}

/// Numbers of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cases that passed.
    pub passed: usize,
    /// Cases of a "must" that didn't.
    pub failed: usize,
    /// Cases of a "should" that didn't.
    pub differs: usize,
    /// Cases that could not be judged.
    pub not_applicable: usize,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Role of the implementation under test.
    pub role: &'static str,
    /// Version.
    pub version: &'static str,
    /// Each case, in the order of the requirements.
    pub cases: Vec<CaseResult>,
}

pub(crate) fn level(level: Level) -> &'static str {
    level.name()
}

pub(crate) fn kind(kind: Kind) -> &'static str {
    kind.name()
}

impl Report {
    pub(crate) fn new(role: Role, version: Version) -> Report {
        Report { role: role.name(), version: version.name(), cases: vec![] }
    }

    /// How many cases ended how.
    pub fn counts(&self) -> Counts {
        let count = |outcome| self.cases.iter().filter(|c| c.outcome == outcome).count();
        Counts {
            passed: count(Outcome::Passed),
            failed: count(Outcome::Failed),
            differs: count(Outcome::Differs),
            not_applicable: count(Outcome::NotApplicable),
        }
    }

    /// Whether nothing failed, and something passed.
    pub fn is_good(&self) -> bool {
        let counts = self.counts();
        counts.failed == 0 && counts.passed > 0
    }

    /// The last line of every form for people.
    pub fn summary(&self) -> String {
        let Counts { passed, failed, differs, not_applicable } = self.counts();
        format!(
            "{passed} passed, {failed} failed, {differs} differ (should), {not_applicable} not applicable"
        )
    }

    /// JSON, indented.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            counts: Counts,
        }
        serde_json::to_string_pretty(&Whole { report: self, counts: self.counts() }).map(|json| json + "\n")
    }

    /// JUnit's XML: a case that can't be judged is skipped, and so is a "should" that isn't met.
    pub fn to_junit(&self) -> String {
        let Counts { failed, differs, not_applicable, .. } = self.counts();
        let time: Duration = self.cases.iter().map(CaseResult::took).sum();
        let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
        let _ = writeln!(
            xml,
            "<testsuite name=\"hamlet conformance: {} {}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{}\" time=\"{:.3}\">",
            self.version,
            self.role,
            self.cases.len(),
            differs + not_applicable,
            time.as_secs_f64()
        );
        for case in &self.cases {
            let _ = write!(
                xml,
                "  <testcase classname=\"{}.{}\" name=\"{} {}\" time=\"{:.3}\">",
                self.version,
                self.role,
                case.id,
                escaped(case.case),
                case.took().as_secs_f64()
            );
            let seen = escaped(&case.seen);
            let _ = match case.outcome {
                Outcome::Passed => write!(xml, "<system-out>{seen}</system-out>"),
                Outcome::Failed => {
                    write!(
                        xml,
                        "<failure message=\"{seen}\">{} (section {})</failure>",
                        escaped(case.requirement),
                        case.section
                    )
                }
                Outcome::Differs => write!(xml, "<skipped message=\"differs from a should: {seen}\"/>"),
                Outcome::NotApplicable => write!(xml, "<skipped message=\"not applicable: {seen}\"/>"),
            };
            xml.push_str("</testcase>\n");
        }
        xml + "</testsuite>\n"
    }

    /// A table in Markdown, without times, so that two runs can be compared.
    pub fn to_markdown(&self) -> String {
        let mut text =
            "| id | section | level | case | result | seen |\n|---|---|---|---|---|---|\n".to_owned();
        for case in &self.cases {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                case.id,
                case.section,
                case.level,
                case.case.replace('|', "\\|"),
                case.outcome.name(),
                case.seen.replace('|', "\\|")
            );
        }
        format!("{text}\n{}\n", self.summary())
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no form for most control characters.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(outcome: Outcome) -> CaseResult {
        CaseResult {
            id: "A1-OWN-001.1".into(),
            section: "1",
            requirement: "a & b",
            level: "must",
            kind: "happy",
            case: "c",
            outcome,
            seen: "\"<|>\"\u{1}".into(),
            took_ms: 1_500,
        }
    }

    #[test]
    fn a_should_that_is_not_met_is_no_failure_and_nothing_at_all_is_not_good() {
        let mut report = Report::new(Role::Owner, Version::V1alpha1);
        assert!(!report.is_good());
        report.cases = [Outcome::Passed, Outcome::Differs, Outcome::NotApplicable].map(case).into();
        assert!(report.is_good());
        assert_eq!(report.summary(), "1 passed, 0 failed, 1 differ (should), 1 not applicable");
        report.cases.push(case(Outcome::Failed));
        assert!(!report.is_good());
    }

    #[test]
    fn what_was_seen_cannot_break_out_of_a_form() {
        let mut report = Report::new(Role::Owner, Version::V1alpha1);
        report.cases = vec![case(Outcome::Failed)];
        let xml = report.to_junit();
        assert!(
            xml.contains("<failure message=\"&quot;&lt;|&gt;&quot; \">a &amp; b (section 1)</failure>"),
            "{xml}"
        );
        assert!(xml.contains("failures=\"1\" skipped=\"0\" time=\"1.500\""), "{xml}");
        assert!(report.to_markdown().contains("\"<\\|>\""));
        assert!(report.to_json().unwrap().contains("\"failed\": 1"));
    }
}
