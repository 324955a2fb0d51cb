//! The other side's refusal of our certificate, as far as TLS tells it: an alert.
//!
//! In TLS 1.3 that alert comes after our handshake is done, on the first read, so whoever reads a
//! connection has to look for it. What *we* refuse is in [`crate::refusal_in`].
//!
//! Invariant: only an alert that is about a certificate or its owner counts (RFC 8446, section 6.2). A
//! connection that merely ends says nothing of the kind, and neither does any other alert.

use std::error::Error;
use std::fmt;

use rustls::AlertDescription;

use crate::failures::found_in;

/// The other side refuses our certificate, or who it says we are. As text: that it does, with which
/// alert, and what to do; whoever shows it puts the other side's address in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateRefused(AlertDescription);

impl CertificateRefused {
    /// What a fatal alert says of our certificate; `None` for one that is about something else.
    pub fn by(alert: AlertDescription) -> Option<CertificateRefused> {
        let refused = CertificateRefused(alert);
        (!refused.name().is_empty()).then_some(refused)
    }

    /// The same of what came inside an error of a TLS stack.
    pub fn found_in(error: &(dyn Error + 'static)) -> Option<CertificateRefused> {
        found_in(error, |error| match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::AlertReceived(alert)) => CertificateRefused::by(*alert),
            _ => None,
        })
    }

    /// Whether it can be about a certificate only. `handshake_failure` can't before ours was shown: there
    /// it means that the two have no cipher in common.
    pub fn is_of_certificates_only(self) -> bool {
        self.0 != AlertDescription::HandshakeFailure
    }

    /// The alert as RFC 8446 calls it; empty for one that refuses no certificate.
    fn name(self) -> &'static str {
        match self.0 {
            AlertDescription::HandshakeFailure => "handshake_failure",
            AlertDescription::BadCertificate => "bad_certificate",
            AlertDescription::UnsupportedCertificate => "unsupported_certificate",
            AlertDescription::CertificateRevoked => "certificate_revoked",
            AlertDescription::CertificateExpired => "certificate_expired",
            AlertDescription::CertificateUnknown => "certificate_unknown",
            AlertDescription::UnknownCA => "unknown_ca",
            AlertDescription::AccessDenied => "access_denied",
            AlertDescription::CertificateRequired => "certificate_required",
            _ => "",
        }
    }

    fn remedy(self) -> &'static str {
        match self.0 {
            AlertDescription::CertificateExpired => {
                "it finds it expired, or not valid yet: see what `hamlet check` says of our identity, and \
                 compare both clocks"
            }
            AlertDescription::CertificateRevoked => {
                "its revocation list names it, or a CA of it: use a new one, or let its operators correct \
                 the list"
            }
            AlertDescription::CertificateRequired => {
                "it saw none of ours: see what `hamlet check` says of our identity"
            }
            AlertDescription::UnknownCA => {
                "no CA that it knows has signed it: give its operators our bundle as it is now (`hamlet \
                 bundle show`)"
            }
            _ => {
                "it has no Peer for us (any more), or another bundle, trust domain or agent id of ours; its \
                 log says which, and `hamlet describe peer` there under \"Refused logins\""
            }
        }
    }
}

impl fmt::Display for CertificateRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refuses our certificate (TLS alert {}): {}", self.name(), self.remedy())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::refused::VerifyError;

    /// As a TLS stream gives it to whoever reads.
    fn read(error: rustls::Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn alerts_about_a_certificate_are_a_refusal_and_all_others_are_not() {
        let refusals = [
            (40, "handshake_failure", "no Peer for us"),
            (42, "bad_certificate", "no Peer for us"),
            (43, "unsupported_certificate", "no Peer for us"),
            (44, "certificate_revoked", "revocation list"),
            (45, "certificate_expired", "both clocks"),
            (46, "certificate_unknown", "no Peer for us"),
            (48, "unknown_ca", "our bundle"),
            (49, "access_denied", "no Peer for us"),
            (116, "certificate_required", "it saw none"),
        ];
        for (code, name, remedy) in refusals {
            let found = CertificateRefused::found_in(&read(rustls::Error::AlertReceived(code.into())));
            let text = found.unwrap_or_else(|| panic!("{name} is a refusal")).to_string();
            assert!(text.contains(&format!("refuses our certificate (TLS alert {name})")), "{text}");
            assert!(text.contains(remedy) && text.len() < 300, "{text}");
        }
        // close_notify, unexpected_message, bad_record_mac, illegal_parameter, decrypt_error,
        // protocol_version, internal_error, no_application_protocol, and all that nobody knows.
        for code in (0..=u8::MAX).filter(|code| refusals.iter().all(|(refusal, ..)| refusal != code)) {
            let error = read(rustls::Error::AlertReceived(code.into()));
            assert_eq!(CertificateRefused::found_in(&error), None, "alert {code}");
        }
    }

    #[test]
    fn a_connection_that_only_ends_and_a_certificate_that_we_refuse_are_no_refusal_of_ours() {
        let alert = AlertDescription::CertificateUnknown;
        let refused = CertificateRefused::by(alert);
        let wrapped = io::Error::other(read(rustls::Error::AlertReceived(alert)));
        assert_eq!(CertificateRefused::found_in(&wrapped), refused, "however deep it is");
        let others = [
            io::ErrorKind::ConnectionReset.into(),
            io::ErrorKind::BrokenPipe.into(),
            io::ErrorKind::UnexpectedEof.into(),
            read(VerifyError::NoCertificate.into()),
            read(rustls::Error::DecryptError),
            io::Error::other("received fatal alert: CertificateUnknown"),
        ];
        for other in others {
            assert_eq!(CertificateRefused::found_in(&other), None, "{other}");
        }
    }

    #[test]
    fn only_handshake_failure_can_also_be_about_something_else() {
        let only =
            |alert| CertificateRefused::by(alert).is_some_and(CertificateRefused::is_of_certificates_only);
        assert!(!only(AlertDescription::HandshakeFailure));
        assert!(only(AlertDescription::AccessDenied) && only(AlertDescription::CertificateUnknown));
    }
}
