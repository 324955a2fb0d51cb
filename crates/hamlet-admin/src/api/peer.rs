//! A peer as an operator sees it: how the two streams stand, both ways, and what was refused.
//!
//! "Connected" is no state: an open socket proves nothing (protocol text, section 7).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::age::human_age;
use super::bundle::BundleStatus;
use super::list::{Kind, Listed};

/// Who opened the connection that carries the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
    /// There is none.
    #[default]
    None,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Dialled => "dialled",
            Direction::Accepted => "accepted",
            Direction::None => "none",
        })
    }
}

/// One of the two ways services travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// From us to the peer.
    Publish,
    /// From the peer to us.
    Import,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flow::Publish => "publish",
            Flow::Import => "import",
        })
    }
}

/// What makes no progress although a stream is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallKind {
    /// A change of ours that the peer doesn't answer.
    #[default]
    Unanswered,
    /// Something of ours that the connection doesn't take: the peer doesn't read.
    Unwritten,
    /// Anything of ours: the peer takes no data at all.
    Untaken,
    /// A change that we could send, and don't.
    Unsent,
    /// Changes that the peer has, and that no proof of ours covers.
    Unproven,
    /// Changes that came, and that our store doesn't take.
    Uncommitted,
}

impl StallKind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [StallKind; 6] = [
        StallKind::Unanswered,
        StallKind::Unwritten,
        StallKind::Untaken,
        StallKind::Unsent,
        StallKind::Unproven,
        StallKind::Uncommitted,
    ];

    /// The stable word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            StallKind::Unanswered => "unanswered",
            StallKind::Unwritten => "unwritten",
            StallKind::Untaken => "untaken",
            StallKind::Unsent => "unsent",
            StallKind::Unproven => "unproven",
            StallKind::Uncommitted => "uncommitted",
        }
    }

    /// Which way it stands.
    pub fn flow(self) -> Flow {
        match self {
            StallKind::Unanswered | StallKind::Untaken | StallKind::Unsent => Flow::Publish,
            StallKind::Unwritten | StallKind::Unproven | StallKind::Uncommitted => Flow::Import,
        }
    }

    /// What that means, as part of a sentence before an age.
    fn meaning(self) -> &'static str {
        match self {
            StallKind::Unanswered => "the peer has left a change unanswered for",
            StallKind::Unwritten => "the peer has taken none of our answers for",
            StallKind::Untaken => "the peer takes no data, and has not for",
            StallKind::Unsent => "a change of ours has waited to be sent for",
            StallKind::Unproven => "the peer has had changes that we can't prove to hold for",
            StallKind::Uncommitted => "our store has not taken the peer's changes for",
        }
    }
}

/// One thing that makes no progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StallStatus {
    /// What.
    pub what: StallKind,
    /// For how long.
    pub age_ms: u64,
}

impl fmt::Display for StallStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what.meaning(), human_age(self.age_ms))
    }
}

/// How we stand with a peer. Only [`PeerState::InSync`] is proven health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum PeerState {
    /// Switched off in the configuration.
    Paused,
    /// No stream yet, and none was lost: dialling, or waiting to be dialled for the first time.
    #[default]
    Connecting,
    /// A stream is up and the first full state is under way.
    Syncing {
        /// Services heard or acknowledged so far.
        received: u64,
        /// How many there will be, where known.
        expected: Option<u64>,
    },
    /// Both sides hold the same set, proven by equal digests.
    InSync {
        /// Age of the newest proof.
        proven_ms: u64,
        /// Services that the consumer refused.
        refused: u64,
        /// Withdrawals that the guard holds back.
        withheld: u64,
        /// Refused updates whose older version is still in force.
        older_in_force: u64,
    },
    /// The stream is up and nothing is under way, but this peer can't prove what it holds.
    Quiet {
        /// For how long nothing has happened.
        since_ms: u64,
    },
    /// The stream is up, yet work in this direction makes no progress.
    Stalled {
        /// Which way.
        flow: Flow,
        /// What makes none.
        #[serde(default)]
        what: StallKind,
        /// For how long.
        age_ms: u64,
    },
    /// One side refuses the other.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The stream was lost.
    Down {
        /// For how long.
        since_ms: u64,
        /// Time to the next attempt; absent when the peer has to dial us.
        next_attempt_ms: Option<u64>,
        /// What is left of the hold time; absent when it is `forever` or nothing is held.
        hold_left_ms: Option<u64>,
    },
}

impl PeerState {
    /// The stable word for tables and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            PeerState::Paused => "paused",
            PeerState::Connecting => "connecting",
            PeerState::Syncing { .. } => "syncing",
            PeerState::InSync { .. } => "in-sync",
            PeerState::Quiet { .. } => "quiet",
            PeerState::Stalled { .. } => "stalled",
            PeerState::Refused { .. } => "refused",
            PeerState::Down { .. } => "down",
        }
    }

    /// Every word, in the order of declaration.
    pub const WORDS: [&'static str; 8] =
        ["paused", "connecting", "syncing", "in-sync", "quiet", "stalled", "refused", "down"];

    /// Whether a person should look at it: stalled, refused or down.
    pub fn is_trouble(&self) -> bool {
        matches!(self, PeerState::Stalled { .. } | PeerState::Refused { .. } | PeerState::Down { .. })
    }

    /// One cell of a table: the state with its exceptions, but without ages.
    pub fn cell(&self) -> String {
        match self {
            PeerState::Paused => "Paused".into(),
            PeerState::Connecting => "Connecting".into(),
            PeerState::Syncing { received, expected: Some(n) } => format!("Syncing ({received} of {n})"),
            PeerState::Syncing { received, expected: None } => format!("Syncing ({received})"),
            PeerState::InSync { refused, withheld, older_in_force, .. } => {
                format!("InSync{}", exceptions(*refused, *older_in_force, *withheld))
            }
            PeerState::Quiet { .. } => "Quiet".into(),
            PeerState::Stalled { flow, .. } => format!("Stalled ({flow})"),
            PeerState::Refused { .. } => "Refused".into(),
            PeerState::Down { .. } => "Down".into(),
        }
    }
}

fn exceptions(refused: u64, older: u64, withheld: u64) -> String {
    let mut out = String::new();
    if refused > 0 {
        out += &format!(", {refused} refused");
        if older > 0 {
            out += &format!(" ({older} older version in force)");
        }
    }
    if withheld > 0 {
        out += &format!(", {withheld} withheld");
    }
    out
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerState::InSync { proven_ms, refused, withheld, older_in_force } => write!(
                f,
                "in sync, proven {} ago{}",
                human_age(*proven_ms),
                exceptions(*refused, *older_in_force, *withheld)
            ),
            PeerState::Quiet { since_ms } => {
                write!(f, "quiet for {}; this peer offers no proof of what it holds", human_age(*since_ms))
            }
            PeerState::Stalled { flow, what, age_ms } => {
                let stall = StallStatus { what: *what, age_ms: *age_ms };
                write!(f, "stalled: {flow}: {stall}")
            }
            PeerState::Refused { reason } => write!(f, "refused: {reason}"),
            PeerState::Down { since_ms, next_attempt_ms, hold_left_ms } => {
                write!(f, "down for {}", human_age(*since_ms))?;
                match next_attempt_ms {
                    Some(ms) => write!(f, ", next attempt in {}", human_age(*ms))?,
                    None => write!(f, ", waiting for the peer to dial us")?,
                }
                match hold_left_ms {
                    Some(ms) => write!(f, ", hold time left {}", human_age(*ms)),
                    None => Ok(()),
                }
            }
            other => f.write_str(&other.cell().to_lowercase()),
        }
    }
}

/// What the peer said about itself in its hello.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelloStatus {
    /// Its program and version, as it says.
    pub agent: String,
    /// The version of the extensions.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Most unanswered changes that it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_messages: Option<u64>,
    /// The same in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u64>,
    /// Largest message that it takes, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<u64>,
    /// How often it gives a sign of life; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beat_every_ms: Option<u64>,
}

/// What a peer said in its last beat, which comes every few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BeatStatus {
    /// Its age.
    pub age_ms: u64,
    /// Changes that the peer has not sent us yet.
    pub unsent: u64,
    /// Age of the oldest of them.
    pub oldest_unsent_ms: u64,
    /// Age of the oldest change of ours that it has received and not committed; 0 if none.
    pub oldest_uncommitted_ms: u64,
}

/// How much a peer may have unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WindowStatus {
    /// Changes.
    pub messages: u64,
    /// Their bytes; absent without a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl fmt::Display for WindowStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.messages)?;
        match self.bytes {
            Some(bytes) if bytes >= 1024 => write!(f, "/{}KiB", bytes / 1024),
            Some(bytes) => write!(f, "/{bytes}B"),
            None => Ok(()),
        }
    }
}

/// Rounds of comparison on the present stream, by how they went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoundsStatus {
    /// Both held the same: nothing was sent.
    pub equal: u64,
    /// Only the parts that differed were sent.
    pub buckets: u64,
    /// Everything was sent.
    pub all: u64,
}

impl fmt::Display for RoundsStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} equal, {} by buckets, {} of everything", self.equal, self.buckets, self.all)
    }
}

/// How far two agents have proven that they hold the same set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Proof {
    /// Not possible with this peer, or not asked for yet.
    #[default]
    None,
    /// Asked for, not answered.
    Pending,
    /// Equal.
    Equal {
        /// Age of the newest proof.
        age_ms: u64,
    },
    /// Different: a round of repair follows.
    Different {
        /// Age of the newest answer.
        age_ms: u64,
    },
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::None => f.write_str("none"),
            Proof::Pending => f.write_str("pending"),
            Proof::Equal { age_ms } => write!(f, "equal, {} ago", human_age(*age_ms)),
            Proof::Different { age_ms } => write!(f, "different, {} ago", human_age(*age_ms)),
        }
    }
}

/// One refused service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RefusedService {
    /// The owner's name for it.
    pub service: String,
    /// The rule that refused it, lower kebab case.
    pub rule: String,
    /// The offending field, where known.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether an older version is still in force.
    pub older_in_force: bool,
    /// Age of the refusal, where known.
    pub age_ms: Option<u64>,
    /// The gRPC status code that the consumer answered with, where known: `PERMISSION_DENIED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The owner's version that was refused, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// A service that the peer isn't offered because its version of the protocol can't say it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnsaidService {
    /// Our name for it.
    pub service: String,
    /// What can't be said, and what to do.
    pub reason: String,
}

/// What we publish to the peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishProgress {
    /// Services that policy makes visible to it.
    pub offered: u64,
    /// Of these, how many it has acknowledged in their present version.
    pub acknowledged: u64,
    /// How many it refused; may exceed the list below, which is cut.
    pub refused_total: u64,
    /// Refused ones, by service.
    pub refused: Vec<RefusedService>,
    /// How many it admitted but can't use, as it says; may exceed the list below, which is cut.
    pub unusable_total: u64,
    /// Those, by service.
    pub unusable: Vec<RefusedService>,
    /// How often it has reported on the present stream that its workloads can use a service.
    pub usable_reports: u64,
    /// Changes that it has not been sent yet.
    pub unsent: u64,
    /// How much it may have unanswered; absent without a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowStatus>,
    /// Rounds of comparison; absent with peers that offer none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<RoundsStatus>,
    /// Messages that wait for its answer.
    pub in_flight: u64,
    /// Age of the oldest unanswered change; absent when nothing waits.
    pub oldest_unanswered_ms: Option<u64>,
    /// Whether it has proven that it holds what we said.
    pub proof: Proof,
    /// Age of the last change of what it should have.
    pub last_change_ms: Option<u64>,
    /// How many services its version of the protocol can't say; may exceed the list below.
    pub unsaid_total: u64,
    /// Services that policy makes visible to it but that its version can't say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unsaid: Vec<UnsaidService>,
}

/// What we import from the peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportProgress {
    /// Services in the owner's last word, admitted or refused.
    pub heard: u64,
    /// Services that we really serve of it.
    pub in_force: u64,
    /// How many we refused; may exceed the list below, which is cut.
    pub refused_total: u64,
    /// Refused ones, by service.
    pub refused: Vec<RefusedService>,
    /// Refused updates whose older version is still in force.
    pub older_in_force: u64,
    /// How many withdrawals the guard holds back; may exceed the list below, which is cut.
    pub withheld_total: u64,
    /// Services whose withdrawal the guard holds back.
    pub withheld: Vec<String>,
    /// Time until the guard lets go, when it holds something.
    pub guard_left_ms: Option<u64>,
    /// Rounds of comparison that ended on the present stream.
    pub rounds: u64,
    /// Whether we have proven that we hold what the owner said.
    pub proof: Proof,
    /// Age of the last change we received.
    pub last_change_ms: Option<u64>,
    /// Of a peer that can't prove anything: for how long nothing has confirmed what we hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
    /// How many services its last whole state left out; they go when a second one confirms that.
    pub left_out: u64,
}

/// A message and its age.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// What happened, and what to do.
    pub message: String,
    /// How long ago.
    pub age_ms: u64,
}

/// The revocation lists of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CrlStatus {
    /// How many lists there are, one a CA.
    pub lists: u64,
    /// How many certificates they revoke.
    pub revoked: u64,
    /// How long the first of them is good still; absent once it is outdated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_ms: Option<u64>,
    /// For how long the first of them has been outdated; absent while none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outdated_ms: Option<u64>,
    /// Whether the peer is refused because of that.
    pub refuses: bool,
}

impl fmt::Display for CrlStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lists: {}, revoked: {}", self.lists, self.revoked)?;
        match (self.good_ms, self.outdated_ms) {
            (_, Some(ms)) if self.refuses => {
                write!(f, ", OUTDATED for {}: nobody is believed on it, renew it", human_age(ms))
            }
            (_, Some(ms)) => write!(f, ", outdated for {}, which is allowed", human_age(ms)),
            (Some(ms), None) => write!(f, ", good for {}", human_age(ms)),
            (None, None) => Ok(()),
        }
    }
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name in our configuration.
    pub name: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Where we dial; absent when it dials us.
    pub address: Option<String>,
    /// Who opened the present connection.
    #[serde(default)]
    pub direction: Direction,
    /// How we stand.
    pub state: PeerState,
    /// Age of that state.
    pub state_age_ms: u64,
    /// What in its certificate proved the present connection: a SPIFFE id, `dns:` and a name, or
    /// `sha256:` and a fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven_by: Option<String>,
    /// Its revocation lists, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<CrlStatus>,
    /// The version of the protocol in use, or that worked last, or that is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What that version makes impossible as things are configured, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_note: Option<String>,
    /// What it said about itself; absent with peers that know no extensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<HelloStatus>,
    /// What makes no progress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stalls: Vec<StallStatus>,
    /// Its last sign of life; absent with peers that know no extensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beat: Option<BeatStatus>,
    /// Breaches of the protocol on the present stream that were passed over.
    #[serde(default)]
    pub violations: u64,
    /// What we publish to it; absent when the configuration says that we don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<PublishProgress>,
    /// What we import from it; absent when the configuration says that we don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportProgress>,
    /// Failed attempts since the last proven health.
    #[serde(default)]
    pub attempts: u64,
    /// Connections that were closed because the peer sent too many streams or frames, or broke HTTP/2.
    #[serde(default)]
    pub floods: u64,
    /// Time to the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_ms: Option<u64>,
    /// What is left of the hold time, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_left_ms: Option<u64>,
    /// Why the last stream or attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Event>,
    /// What proves its ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleStatus>,
    /// Refused handshakes in this peer's name, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub auth_failures: Vec<Event>,
    /// Its Peer document, if a token made it: as it could stand in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

impl Listed for PeerStatus {
    const KIND: Kind = Kind::Peers;
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> Vec<&str> {
        vec![&self.trust_domain]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_shows_its_exceptions_and_never_says_connected() {
        let state = PeerState::InSync { proven_ms: 3000, refused: 3, withheld: 40, older_in_force: 1 };
        assert_eq!(
            state.to_string(),
            "in sync, proven 3s ago, 3 refused (1 older version in force), 40 withheld"
        );
        assert_eq!(state.cell(), "InSync, 3 refused (1 older version in force), 40 withheld");
        let down = PeerState::Down { since_ms: 5000, next_attempt_ms: None, hold_left_ms: Some(3_000_000) };
        assert_eq!(down.to_string(), "down for 5s, waiting for the peer to dial us, hold time left 50m");
        assert!(down.is_trouble() && !state.is_trouble());
    }

    #[test]
    fn every_stall_says_which_way_what_and_for_how_long() {
        for what in StallKind::ALL {
            let state = PeerState::Stalled { flow: what.flow(), what, age_ms: 45_000 };
            let text = state.to_string();
            assert!(
                text.starts_with(&format!("stalled: {}: ", what.flow())) && text.ends_with(" 45s"),
                "{text}"
            );
            assert!(state.is_trouble());
            let json = serde_json::to_value(what).unwrap();
            assert_eq!(json, what.word());
        }
        let text = PeerState::Stalled { flow: Flow::Publish, what: StallKind::Unanswered, age_ms: 45_000 };
        assert_eq!(text.to_string(), "stalled: publish: the peer has left a change unanswered for 45s");
    }

    #[test]
    fn a_state_survives_json_and_carries_its_kind() {
        let state = PeerState::Syncing { received: 3, expected: None };
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(json, serde_json::json!({"kind": "syncing", "received": 3, "expected": null}));
        assert_eq!(serde_json::from_value::<PeerState>(json).unwrap(), state);
    }
}
