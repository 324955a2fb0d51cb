//! The last refusals of a trust table, for logs and status: a TLS alert tells nobody why.
//!
//! Not an audit log. Bounded; an old refusal makes room for a new one.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Duration;

use parking_lot::Mutex;

use crate::refused::VerifyError;
use crate::trust::Role;

/// How many refusals are kept.
pub const RECENT_FAILURES_MAX: usize = 32;

/// One certificate chain that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Wall clock since the epoch.
    pub at: Duration,
    /// The role it wanted to play.
    pub role: Role,
    /// The rule that refused it ([`VerifyError::rule`]).
    pub rule: &'static str,
    /// What was presented and what to do.
    pub text: String,
}

#[derive(Debug, Default)]
struct Kept {
    refusals: VecDeque<Refusal>,
    total: u64,
}

/// The last [`RECENT_FAILURES_MAX`] refusals and how many there ever were.
#[derive(Debug, Default)]
pub struct RecentFailures {
    kept: Mutex<Kept>,
}

impl RecentFailures {
    /// The kept refusals, oldest first.
    pub fn list(&self) -> Vec<Refusal> {
        self.kept.lock().refusals.iter().cloned().collect()
    }

    /// The latest refusal.
    pub fn latest(&self) -> Option<Refusal> {
        self.kept.lock().refusals.back().cloned()
    }

    /// How many refusals there were since the start, kept or not.
    pub fn total(&self) -> u64 {
        self.kept.lock().total
    }

    pub(crate) fn record(&self, refusal: Refusal) {
        let mut kept = self.kept.lock();
        kept.total = kept.total.saturating_add(1);
        if kept.refusals.len() == RECENT_FAILURES_MAX {
            kept.refusals.pop_front();
        }
        kept.refusals.push_back(refusal);
    }
}

/// Our refusal inside an error of a TLS stack (`std::io::Error`, `rustls::Error`, or anything that
/// has one of them as a source); `None` when the other side refused or the error is another one.
pub fn refusal_in<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e VerifyError> {
    found_in(error, |error| {
        if let Some(found) = error.downcast_ref::<VerifyError>() {
            return Some(found);
        }
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
                other.0.downcast_ref::<VerifyError>()
            }
            _ => None,
        }
    })
}

/// The first of an error and its sources in which `look` finds something.
pub(crate) fn found_in<'e, T>(
    error: &'e (dyn Error + 'static),
    look: impl Fn(&'e (dyn Error + 'static)) -> Option<T>,
) -> Option<T> {
    const DEPTH_MAX: usize = 16;
    let mut next = Some(error);
    for _ in 0..DEPTH_MAX {
        let error = next?;
        if let Some(found) = look(error) {
            return Some(found);
        }
        // The source of an io::Error is the source of what it wraps: look at that itself.
        next = match error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_refusals_are_kept_and_all_are_counted() {
        let failures = RecentFailures::default();
        for n in 0..40 {
            let text = n.to_string();
            failures.record(Refusal { at: Duration::ZERO, role: Role::Agent, rule: "x", text });
        }
        let list = failures.list();
        assert_eq!((list.len(), failures.total()), (RECENT_FAILURES_MAX, 40));
        assert_eq!((list[0].text.as_str(), failures.latest().unwrap().text.as_str()), ("8", "39"));
    }

    #[test]
    fn a_refusal_is_found_under_the_errors_of_the_tls_stack() {
        let ours = rustls::Error::from(VerifyError::NoCertificate);
        assert_eq!(refusal_in(&ours), Some(&VerifyError::NoCertificate));
        let io = std::io::Error::new(std::io::ErrorKind::InvalidData, ours);
        assert_eq!(refusal_in(&io), Some(&VerifyError::NoCertificate));
        assert_eq!(refusal_in(&std::io::Error::other("something else")), None);
    }
}
