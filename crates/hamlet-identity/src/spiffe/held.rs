//! What is held of one peer's bundle, and which document may follow it. *Hardened to untrusted peer.*
//!
//! Pure: time comes in, and what to keep goes out as bytes. Source: `spec/extensions.md`, section 9.
//! Invariants: the sequence never goes back by a channel, the same sequence never stands for two
//! contents, and a document that is refused changes nothing.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use hamlet_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use super::{Authorities, BASE64, SpiffeBundle};
use crate::bundle::{BundleError, TrustBundle};
use crate::trust::fingerprint_of;

/// How far a sequence may run ahead of the one held. A larger jump is a mistake or an attempt to
/// make every later bundle look old.
pub const SEQUENCE_JUMP_MAX: u64 = 1 << 32;
/// Shortest time between the notice of a new CA that came on a stream and its use, unless the
/// caller says otherwise (tests of rotation do).
pub const ADDITIONS_WAIT_MIN: Duration = Duration::from_secs(300);

/// How a bundle came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// A file of the operator: the first bundle, or the only one.
    File,
    /// The exchange of a peering by token: the first bundle.
    Token,
    /// The peer's bundle endpoint.
    Endpoint,
    /// The peer's agent, on a stream.
    Stream,
    /// An operator, by command.
    Operator,
}

impl Channel {
    const ALL: [Channel; 5] =
        [Channel::File, Channel::Token, Channel::Endpoint, Channel::Stream, Channel::Operator];

    /// The stable word.
    pub fn word(self) -> &'static str {
        match self {
            Channel::File => "file",
            Channel::Token => "token",
            Channel::Endpoint => "endpoint",
            Channel::Stream => "stream",
            Channel::Operator => "operator",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why a document may not follow the one held. What is held stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BundleRefusal {
    #[error("its sequence {found} is older than {held}, which is held; the newer one stays in force")]
    Stale { held: u64, found: u64 },
    #[error(
        "its sequence {0} is the one held, but with other content: somebody publishes two bundles as one; \
         compare fingerprints with the peer, then `hamlet bundle set` the right one"
    )]
    Fork(u64),
    #[error(
        "its sequence {found} is more than 2^32 ahead of {held}; if the peer means it, take it with \
         `hamlet bundle set`"
    )]
    Jump { held: u64, found: u64 },
    #[error(
        "it leaves none of the CAs in force, which a stream may not do; use the bundle endpoint, or \
         `hamlet bundle set`"
    )]
    NothingLeft,
    #[error("it belongs to {found}, not to {expected}; check whose bundle it is")]
    OtherDomain { found: TrustDomain, expected: TrustDomain },
}

impl BundleRefusal {
    /// A stable name of the rule, for metrics and status.
    pub fn rule(&self) -> &'static str {
        match self {
            BundleRefusal::Stale { .. } => "stale",
            BundleRefusal::Fork(_) => "fork",
            BundleRefusal::Jump { .. } => "jump",
            BundleRefusal::NothingLeft => "nothing-left",
            BundleRefusal::OtherDomain { .. } => "other-domain",
        }
    }
}

/// What a document that was taken changed: SHA-256 of the CAs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleChange {
    /// In force from now on.
    pub added: Vec<[u8; 32]>,
    /// Not in force any more.
    pub removed: Vec<[u8; 32]>,
    /// Announced, and in force later.
    pub waiting: Vec<[u8; 32]>,
}

impl BundleChange {
    /// Whether everything is as it was.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.waiting.is_empty()
    }
}

/// What is held of one trust domain.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldBundle {
    /// What may prove the domain's ids now.
    in_force: Authorities,
    domain: TrustDomain,
    channel: Channel,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
    /// Of the last document that counted for the sequence. An operator's override doesn't, so that
    /// it stays until the source has something newer.
    seen: [u8; 32],
    /// Announced CAs, each with the time from which it is used.
    waiting: Vec<(CertificateDer<'static>, Duration)>,
}

impl HeldBundle {
    /// The first bundle of a domain: nothing to compare it with.
    pub fn first(bundle: SpiffeBundle, channel: Channel) -> HeldBundle {
        HeldBundle {
            seen: bundle.authorities.fingerprint(),
            in_force: bundle.authorities,
            domain: bundle.domain,
            channel,
            sequence: bundle.sequence,
            refresh_hint: bundle.refresh_hint,
            waiting: Vec::new(),
        }
    }

    /// Takes a document, or says why not. `now` is monotonic; `wait` is how long a CA that came on
    /// a stream is announced before it is used ([`ADDITIONS_WAIT_MIN`] or the hint, the longer).
    /// Removals act at once.
    pub fn offer(
        &mut self,
        found: &SpiffeBundle,
        channel: Channel,
        now: Duration,
        wait: Duration,
    ) -> Result<BundleChange, BundleRefusal> {
        if found.domain != self.domain {
            let (found, expected) = (found.domain.clone(), self.domain.clone());
            return Err(BundleRefusal::OtherDomain { found, expected });
        }
        let print = found.authorities.fingerprint();
        if channel != Channel::Operator {
            self.follows(found.sequence, &print)?;
            if print == self.seen {
                // Nothing new, and an operator's override since then stays.
                self.sequence = found.sequence.or(self.sequence);
                self.refresh_hint = found.refresh_hint;
                return Ok(BundleChange::default());
            }
        }
        let change = match channel {
            Channel::Stream => self.take_slowly(&found.authorities, now, wait)?,
            Channel::File | Channel::Token | Channel::Endpoint | Channel::Operator => {
                self.take_now(&found.authorities)
            }
        };
        if channel == Channel::Operator {
            // A person may even go back; from PEM, which has no sequence, the source's still counts.
            if let Some(sequence) = found.sequence {
                self.sequence = Some(sequence);
                self.seen = print;
            }
        } else {
            self.sequence = found.sequence.or(self.sequence);
            self.refresh_hint = found.refresh_hint;
            self.seen = print;
        }
        self.channel = channel;
        Ok(change)
    }

    fn follows(&self, found: Option<u64>, print: &[u8; 32]) -> Result<(), BundleRefusal> {
        let (Some(held), Some(found)) = (self.sequence, found) else { return Ok(()) };
        if found < held {
            return Err(BundleRefusal::Stale { held, found });
        }
        if found == held && *print != self.seen {
            return Err(BundleRefusal::Fork(held));
        }
        if found - held > SEQUENCE_JUMP_MAX {
            return Err(BundleRefusal::Jump { held, found });
        }
        Ok(())
    }

    fn take_now(&mut self, found: &Authorities) -> BundleChange {
        let (old, new) = (prints(&self.in_force), prints(found));
        self.in_force = found.clone();
        self.waiting.clear();
        BundleChange {
            added: new.iter().filter(|p| !old.contains(p)).copied().collect(),
            removed: old.into_iter().filter(|p| !new.contains(p)).collect(),
            waiting: Vec::new(),
        }
    }

    /// What goes, goes; what comes waits. Something of what is in force has to remain, or the
    /// peer would be shut out until the wait is over.
    fn take_slowly(
        &mut self,
        found: &Authorities,
        now: Duration,
        wait: Duration,
    ) -> Result<BundleChange, BundleRefusal> {
        let Some(found) = found.bundle() else { return Err(BundleRefusal::NothingLeft) };
        let held = self.in_force.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let remain: Vec<CertificateDer<'static>> = held
            .iter()
            .filter(|a| found.fingerprints().contains(&a.fingerprint))
            .map(|a| a.der.clone())
            .collect();
        let Ok(kept) = TrustBundle::from_ders(self.domain.clone(), remain) else {
            return Err(BundleRefusal::NothingLeft);
        };
        let old = prints(&self.in_force);
        let left = kept.fingerprints();
        let mut waiting = Vec::new();
        for anchor in found.anchors().iter().filter(|a| !left.contains(&a.fingerprint)) {
            // One that waits already keeps its time.
            let since = self.waiting.iter().find(|(der, _)| *der == anchor.der).map(|(_, due)| *due);
            waiting.push((anchor.der.clone(), since.unwrap_or(now.saturating_add(wait))));
        }
        let change = BundleChange {
            added: Vec::new(),
            removed: old.into_iter().filter(|p| !left.contains(p)).collect(),
            waiting: found.fingerprints().into_iter().filter(|p| !left.contains(p)).collect(),
        };
        self.in_force = Authorities::Certificates(kept);
        self.waiting = waiting;
        Ok(change)
    }

    /// Puts in force what has waited long enough; returns what that is.
    pub fn ripen(&mut self, now: Duration) -> Vec<[u8; 32]> {
        let (ripe, green): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(_, due)| *due <= now);
        self.waiting = green;
        if ripe.is_empty() {
            return Vec::new();
        }
        let before = prints(&self.in_force);
        let held = self.in_force.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let ders = held.iter().map(|a| a.der.clone()).chain(ripe.into_iter().map(|(der, _)| der)).collect();
        // They passed the rules of a bundle together when they were announced.
        if let Ok(bundle) = TrustBundle::from_ders(self.domain.clone(), ders) {
            self.in_force = Authorities::Certificates(bundle);
        }
        prints(&self.in_force).into_iter().filter(|p| !before.contains(p)).collect()
    }

    /// When the next announced CA may be used, on the clock of [`Self::offer`].
    pub fn due(&self) -> Option<Duration> {
        self.waiting.iter().map(|(_, due)| *due).min()
    }

    /// What may prove the domain's ids now.
    pub fn in_force(&self) -> &Authorities {
        &self.in_force
    }

    /// The source is another one now: its sequence counts from what it says first.
    pub fn forget_sequence(&mut self) {
        self.sequence = None;
    }

    /// Whose it is.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// How what is in force came.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The sequence that the next document is compared with.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the source wants to be looked at.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The announced CAs: SHA-256 of each, and when it may be used.
    pub fn announced(&self) -> impl Iterator<Item = ([u8; 32], Duration)> {
        self.waiting.iter().map(|(der, due)| (fingerprint_of(der), *due))
    }

    /// How many announced CAs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What to keep over a restart, for [`Self::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let certificates = |ders: &mut dyn Iterator<Item = &CertificateDer<'static>>| -> Vec<String> {
            ders.map(|der| BASE64.encode(der)).collect()
        };
        let anchors = self.in_force.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let says = match self.in_force {
            Authorities::Certificates(_) => "certificates",
            Authorities::Revoked => "revoked",
            Authorities::NoX509 => "no-x509",
        };
        let kept = json!({
            "version": VERSION,
            "domain": self.domain.as_str(),
            "channel": self.channel.word(),
            "sequence": self.sequence,
            "refreshHint": self.refresh_hint.map(|every| every.as_secs()),
            "seen": BASE64.encode(self.seen),
            "says": says,
            "certificates": certificates(&mut anchors.iter().map(|a| &a.der)),
            "waiting": certificates(&mut self.waiting.iter().map(|(der, _)| der)),
        });
        kept.to_string().into_bytes()
    }

    /// What [`Self::to_bytes`] made. CAs that waited begin to wait anew at `now`, for `wait`: how
    /// long we were gone is not known.
    pub fn from_bytes(bytes: &[u8], now: Duration, wait: Duration) -> Result<HeldBundle, BundleError> {
        let kept = super::object(bytes)?;
        read(&kept, now.saturating_add(wait)).unwrap_or_else(|| {
            Err(BundleError::Json("what was kept of the bundle has another form".to_owned()))
        })
    }
}

/// Of the form that is kept.
const VERSION: u64 = 1;

fn prints(authorities: &Authorities) -> Vec<[u8; 32]> {
    authorities.bundle().map(TrustBundle::fingerprints).unwrap_or_default()
}

/// `None` for another form.
fn read(kept: &Map<String, Value>, due: Duration) -> Option<Result<HeldBundle, BundleError>> {
    let text = |name: &str| kept.get(name).and_then(Value::as_str);
    let number = |name: &str| kept.get(name).map(Value::as_u64);
    if number("version")? != Some(VERSION) {
        return None;
    }
    let ders = |name: &str| -> Option<Vec<CertificateDer<'static>>> {
        let list = kept.get(name)?.as_array()?;
        list.iter().map(|one| Some(BASE64.decode(one.as_str()?).ok()?.into())).collect()
    };
    let domain = TrustDomain::parse(text("domain")?).ok()?;
    let word = text("channel")?;
    let in_force = match text("says")? {
        "revoked" => Authorities::Revoked,
        "no-x509" => Authorities::NoX509,
        "certificates" => match TrustBundle::from_ders(domain.clone(), ders("certificates")?) {
            Ok(bundle) => Authorities::Certificates(bundle),
            Err(error) => return Some(Err(error)),
        },
        _ => return None,
    };
    Some(Ok(HeldBundle {
        in_force,
        domain,
        channel: Channel::ALL.into_iter().find(|c| c.word() == word)?,
        sequence: number("sequence")?,
        refresh_hint: number("refreshHint")?.map(Duration::from_secs),
        seen: BASE64.decode(text("seen")?).ok()?.try_into().ok()?,
        waiting: ders("waiting")?.into_iter().map(|der| (der, due)).collect(),
    }))
}
