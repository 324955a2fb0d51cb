//! A refusal is data, not an error: it becomes the NACK, the status line and the metric.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of refusal; maps to one gRPC status code (protocol text, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectionCode {
    /// Malformed, or a required field is missing: `INVALID_ARGUMENT`.
    Malformed,
    /// Refused by import policy: `PERMISSION_DENIED`.
    Policy,
    /// Over a quota or size limit: `RESOURCE_EXHAUSTED`.
    Quota,
    /// The name belongs to another owner, or to a local service: `ALREADY_EXISTS`.
    NameTaken,
    /// Unknown operation or resource type: `UNIMPLEMENTED`.
    Unknown,
    /// Could not be persisted now; offer it again later: `UNAVAILABLE`.
    Unavailable,
}

/// Why one service was refused: which rule, which field, what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The kind of refusal.
    pub code: RejectionCode,
    /// The rule's stable name in lower kebab case, for example `name-outside-suffixes`.
    pub rule: String,
    /// The path of the offending field, for example `endpoints[2].address`.
    pub field: String,
    /// What is wrong and what to do, one line, with no secret and no control character in it.
    pub message: String,
}

/// Longest text of a refusal that we send or keep, in bytes.
pub const MESSAGE_MAX: usize = 512;

impl Rejection {
    /// A refusal; the message is cleaned of control characters and cut to [`MESSAGE_MAX`] bytes.
    pub fn new(
        code: RejectionCode,
        rule: impl Into<String>,
        field: impl Into<String>,
        message: impl AsRef<str>,
    ) -> Rejection {
        Rejection {
            code,
            rule: rule.into(),
            field: one_line(&field.into(), 128),
            message: one_line(message.as_ref(), MESSAGE_MAX),
        }
    }

    /// The reason as `google.rpc.ErrorInfo` wants it: upper snake case.
    pub fn reason(&self) -> String {
        self.rule.to_ascii_uppercase().replace('-', "_")
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.field, self.message)
    }
}

/// Makes hostile text safe for one log line, table cell or status message: control characters
/// (C0, C1, line and paragraph separators, bidirectional controls, characters without width) become `\u{..}` escapes and
/// the result is cut at a character boundary to at most `max` bytes.
pub fn one_line(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}' | '\u{feff}');
        let piece = if hidden { c.escape_unicode().to_string() } else { c.to_string() };
        if out.len() + piece.len() > max {
            break;
        }
        out.push_str(&piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_becomes_one_bounded_line_without_control_characters() {
        let line = one_line("a\nb\x1b[31mc\u{202e}d", 64);
        assert_eq!(line, "a\\u{a}b\\u{1b}[31mc\\u{202e}d");
        // An Arabic letter mark turns the direction; a space without width makes two names look alike.
        assert_eq!(one_line("a\u{61c}b\u{200b}c", 64), "a\\u{61c}b\\u{200b}c");
        assert!(one_line(&"é".repeat(100), 11).len() <= 11);
    }
}
