//! From when to when a certificate is valid, for those who warn of its end. Decides nothing.

use std::time::Duration;

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// From when to when a certificate is valid, both since the epoch; times before it count as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Begin.
    pub not_before: Duration,
    /// End.
    pub not_after: Duration,
}

impl Validity {
    /// Of one DER certificate; `None` if it can't be read.
    pub fn of(der: &[u8]) -> Option<Validity> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let since_epoch = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = cert.validity();
        Some(Validity {
            not_before: since_epoch(validity.not_before.timestamp()),
            not_after: since_epoch(validity.not_after.timestamp()),
        })
    }
}
