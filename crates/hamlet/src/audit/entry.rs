//! What one entry of the audit says, and how it becomes a line.
//!
//! A line's bytes are what is hashed; they are written once and never made again from the values.

use std::time::Duration;

use hamlet_core::rejection::one_line;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{AUDIT_LIST_MAX, AUDIT_TEXT_BYTES};

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase", tag = "by")]
pub(crate) enum Actor {
    /// Whoever opened the admin socket.
    Operator {
        /// The user id of that process, as the kernel says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
    },
    /// The configuration's files, or a file that they name: whoever may write them.
    Files,
    /// A configured peer, proven.
    Peer {
        /// Its name.
        name: String,
        /// How it spoke: `stream`, `endpoint`, `token`.
        channel: String,
    },
    /// Somebody whom nothing proves.
    Stranger {
        /// From which IP address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
    /// Our Workload API.
    WorkloadApi,
    /// Our own authority: by its plan, or by `hamlet ca`, which works on its folder without the agent.
    Authority,
    /// The agent, by itself.
    Agent,
    /// One that this version doesn't know.
    #[serde(other)]
    Other,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Actor::Operator { uid: Some(uid) } => write!(f, "operator (uid {uid})"),
            Actor::Operator { uid: None } => f.write_str("operator"),
            Actor::Files => f.write_str("files"),
            Actor::Peer { name, channel } => write!(f, "peer {name} ({channel})"),
            Actor::Stranger { address: Some(address) } => write!(f, "stranger ({address})"),
            Actor::Stranger { address: None } => f.write_str("stranger"),
            Actor::WorkloadApi => f.write_str("workload-api"),
            Actor::Authority => f.write_str("authority"),
            Actor::Agent => f.write_str("agent"),
            Actor::Other => f.write_str("other"),
        }
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// What was done. The words are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Action { $($(#[$doc])* $name,)* }

        impl Action {
            /// The words of all of them.
            pub(crate) const WORDS: &'static [&'static str] = &[$($word,)*];

            /// Its word.
            pub(crate) fn word(self) -> &'static str {
                match self { $(Action::$name => $word,)* }
            }
        }
    };
}

actions! {
    /// The agent has started.
    AgentStarted = "agent-started";
    /// The agent has stopped in order.
    AgentStopped = "agent-stopped";
    /// A configuration is in force.
    ConfigurationApplied = "configuration-applied";
    /// A configuration can't be used; the last good one stays.
    ConfigurationRefused = "configuration-refused";
    /// Withdrawals that the brake held back were let go.
    WithdrawalsConfirmed = "withdrawals-confirmed";
    /// A peer stands in the configuration's files.
    PeerAdded = "peer-added";
    /// An invitation was made.
    PeerInvited = "peer-invited";
    /// We accepted a token.
    PeerAccepted = "peer-accepted";
    /// Somebody used our invitation, and is a peer now.
    InvitationUsed = "invitation-used";
    /// An exchange by token was refused.
    PeeringRefused = "peering-refused";
    /// The words of a peer made by token were confirmed, or typed wrongly.
    PeerConfirmed = "peer-confirmed";
    /// Nothing is exchanged with a peer until it is resumed.
    PeerPaused = "peer-paused";
    /// A pause has ended.
    PeerResumed = "peer-resumed";
    /// A peer, or the invitation of one, is gone.
    PeerRemoved = "peer-removed";
    /// A peer said goodbye for good; what it had offered was withdrawn.
    PeerLeft = "peer-left";
    /// The CAs that prove a peer changed.
    PeerRootsChanged = "peer-roots-changed";
    /// A peer announced CAs that count later.
    PeerRootsAnnounced = "peer-roots-announced";
    /// A bundle of a peer was refused.
    PeerRootsRefused = "peer-roots-refused";
    /// An operator set a peer's bundle by hand.
    PeerBundleSet = "peer-bundle-set";
    /// Certificates were presented that nobody believes.
    LoginsRefused = "logins-refused";
    /// What we publish as our CAs changed.
    OwnRootsChanged = "own-roots-changed";
    /// Our authority has a new root, which waits.
    RootStaged = "own-root-staged";
    /// Our authority issues from another root.
    RootSwitched = "own-root-switched";
    /// A root of our authority left the bundle.
    RootDropped = "own-root-dropped";
    /// The first entry of a file.
    FileBegun = "file-begun";
    /// The line before this one was left by half when the machine or the agent stopped.
    LineTorn = "line-torn";
    /// The agent found the chain broken when it opened the files.
    ChainBroken = "chain-broken";
    /// Entries could not be written, and are not here.
    EntriesLost = "entries-lost";
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Outcome {
    /// It is so.
    #[default]
    Done,
    /// It was asked for, and refused.
    Refused,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
        }
    }
}

fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// What it was done to. Never a key, a token, a secret or a `context` value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Subject {
    /// The trust domain.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) trust_domain: Option<String>,
    /// From where a bundle came: `file`, `token`, `endpoint`, `stream`, `operator`, `workload-api`.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) source: Option<String>,
    /// The bundle's sequence.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) bundle_sequence: Option<u64>,
    /// SHA-256 of CAs that count from now on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) added: Vec<String>,
    /// SHA-256 of CAs that count no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) removed: Vec<String>,
    /// SHA-256 of CAs that are announced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) announced: Vec<String>,
    /// SHA-256 of all CAs, where they are not told by what changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) roots: Vec<String>,
    /// The short id of an invitation; not its token.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) invitation: Option<String>,
    /// SHA-256 of the configuration's files.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) configuration: Option<String>,
    /// Which documents changed: kind, name, how.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) changes: Vec<String>,
    /// How many: problems, services, entries, bytes, as the action says.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) count: Option<u64>,
    /// Whether the other side was told.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) told: Option<bool>,
    /// A fixed word: the rule that refused, or why.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) reason: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) note: Option<String>,
    /// Items left out of a list.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) left_out: Option<u64>,
}

impl Subject {
    /// With every text bounded and in one line, and every list bounded.
    fn bounded(mut self) -> Subject {
        let text = |t: &mut Option<String>| *t = t.take().map(|t| one_line(&t, AUDIT_TEXT_BYTES));
        for field in [
            &mut self.trust_domain,
            &mut self.source,
            &mut self.invitation,
            &mut self.configuration,
            &mut self.reason,
            &mut self.note,
        ] {
            text(field);
        }
        let mut left_out = 0;
        for list in
            [&mut self.added, &mut self.removed, &mut self.announced, &mut self.roots, &mut self.changes]
        {
            left_out += list.len().saturating_sub(AUDIT_LIST_MAX);
            list.truncate(AUDIT_LIST_MAX);
            for item in list {
                *item = one_line(item, AUDIT_TEXT_BYTES);
            }
        }
        self.left_out = (left_out > 0).then_some(left_out as u64);
        self
    }

    /// For people, on one line.
    pub(crate) fn text(&self) -> String {
        let signed = |sign: &str, list: &[String]| -> Vec<String> {
            list.iter().map(|item| format!("{sign}{item}")).collect()
        };
        let named = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!("{name} {v}"));
        let mut parts: Vec<String> = vec![];
        parts.extend(named("from", &self.source));
        parts.extend(signed("+", &self.added));
        parts.extend(signed("-", &self.removed));
        parts.extend(signed("announced ", &self.announced));
        parts.extend(signed("", &self.roots));
        parts.extend(self.bundle_sequence.map(|n| format!("sequence {n}")));
        parts.extend(named("invitation", &self.invitation));
        parts.extend(self.changes.iter().cloned());
        parts.extend(named("configuration", &self.configuration));
        parts.extend(self.count.map(|n| n.to_string()));
        parts.extend(self.told.map(|told| if told { "told" } else { "not told" }.to_owned()));
        parts.extend(self.reason.clone());
        parts.extend(self.note.clone());
        parts.extend(self.left_out.map(|n| format!("and {n} more")));
        parts.join(", ")
    }
}

/// An entry that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draft {
    /// Wall clock since the epoch.
    pub(crate) at: Duration,
    /// Who.
    pub(crate) actor: Actor,
    /// What.
    pub(crate) action: Action,
    /// To which peer.
    pub(crate) peer: Option<String>,
    /// To what of it.
    pub(crate) subject: Subject,
    /// How it went.
    pub(crate) outcome: Outcome,
    /// How often; more than once where repeated entries are one.
    pub(crate) times: u64,
}

impl Draft {
    /// Something that was done once.
    pub(crate) fn new(at: Duration, actor: Actor, action: Action) -> Draft {
        let (peer, subject, outcome) = (None, Subject::default(), Outcome::Done);
        Draft { at, actor, action, peer, subject, outcome, times: 1 }
    }

    /// The entry with its place in the chain.
    pub(super) fn numbered(&self, sequence: u64, previous: String) -> Entry {
        let short = |text: &str| one_line(text, AUDIT_TEXT_BYTES);
        Entry {
            sequence,
            time: time_text(self.at),
            actor: self.actor.clone(),
            action: self.action.word().to_owned(),
            peer: self.peer.as_deref().map(short),
            subject: self.subject.clone().bounded(),
            outcome: self.outcome.word().to_owned(),
            times: self.times,
            previous,
        }
    }
}

fn once() -> u64 {
    1
}

fn is_once(times: &u64) -> bool {
    *times == 1
}

/// One line of the audit. Fields that this version doesn't know are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// From 1, without a gap.
    pub(crate) sequence: u64,
    /// RFC 3339, UTC.
    pub(crate) time: String,
    /// Who.
    pub(crate) actor: Actor,
    /// What: a word of [`Action`], or of a later version.
    pub(crate) action: String,
    /// To which peer.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) peer: Option<String>,
    /// To what of it.
    #[serde(default)]
    pub(crate) subject: Subject,
    /// `done` or `refused`.
    pub(crate) outcome: String,
    /// How often since the entry before of the same kind.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub(crate) times: u64,
    /// SHA-256 of the line before this one without its line feed; zeros in the very first.
    pub(crate) previous: String,
}

impl Entry {
    /// When it was, since the epoch.
    pub(crate) fn at(&self) -> Option<Duration> {
        parse_time(&self.time)
    }
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn time_text(at: Duration) -> String {
    let whole = Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    let time = i128::try_from(whole.as_nanos()).ok();
    let time = time.and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{}s", at.as_secs()))
}

/// What [`time_text`] wrote, or any other time of RFC 3339.
pub(crate) fn parse_time(text: &str) -> Option<Duration> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos()).ok().map(Duration::from_nanos)
}
