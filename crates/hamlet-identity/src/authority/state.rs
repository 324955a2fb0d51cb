//! What the authority's folder holds, as its one file of state says: `authority.json`.
//!
//! Values and their rules; it reads and writes nothing. Invariant of a [`State`] that was read:
//! exactly one root issues, at most one waits and at most one leaves, and every number is used
//! once. Files that the state doesn't name mean nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use hamlet_core::TrustDomain;
use serde::{Deserialize, Serialize};

/// Which form of the file this program writes and reads.
const FORMAT: u32 = 1;
/// Most roots at a time: one that issues, one that waits and one that leaves.
pub const ROOTS_MAX: usize = 3;

/// Which of our own leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeafRole {
    /// What the agent proves to other agents.
    Agent,
    /// What the gateways prove to other gateways.
    Gateway,
}

impl LeafRole {
    /// Both, in order.
    pub const ALL: [LeafRole; 2] = [LeafRole::Agent, LeafRole::Gateway];

    /// The stem of its files' names, and its word in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            LeafRole::Agent => "agent",
            LeafRole::Gateway => "gateway",
        }
    }
}

impl fmt::Display for LeafRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a root is for at the moment. Times are whole seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "is")]
pub enum Stage {
    /// In the bundle, so that peers learn it; issues nothing yet.
    Staged {
        /// When it begins to issue, unless it is released sooner.
        issue_at_s: u64,
    },
    /// Everything new comes from it.
    Issuing,
    /// Still in the bundle, for the leaves that it issued.
    Leaving {
        /// When none of its leaves can live any more.
        gone_at_s: u64,
    },
}

/// One root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// Names its files: `root-N.pem`, `root-N.key`, `root-N-cross.pem`.
    pub number: u64,
    /// When it was made.
    pub made_s: u64,
    /// End of its validity.
    pub not_after_s: u64,
    /// SHA-256 of its certificate, in hexadecimal digits.
    pub sha256: String,
    /// How many CAs may stand between it and a leaf; `None` is any number.
    pub path_len: Option<u32>,
    /// Whether the root before it signed it too (`root-N-cross.pem`).
    pub cross: bool,
    /// What it is for.
    #[serde(flatten)]
    pub stage: Stage,
}

/// The CA that signs leaves: an intermediate, or a root that may not have one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuing {
    /// Names its files: `issuing-N.pem`, `issuing-N.key`. That of its root if it is the root.
    pub number: u64,
    /// The root that signed it, or that it is.
    pub root: u64,
    /// When it was made.
    pub made_s: u64,
    /// End of its validity.
    pub not_after_s: u64,
    /// No leaf that it signs lives longer.
    pub leaf_life_s: u64,
    /// SHA-256 of its certificate, in hexadecimal digits.
    pub sha256: String,
}

impl Issuing {
    /// Whether it is the root itself.
    pub fn is_root(&self) -> bool {
        self.number == self.root
    }
}

/// One of our own leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Leaf {
    /// The root that it goes back to.
    pub root: u64,
    /// When it was issued.
    pub made_s: u64,
    /// End of its validity.
    pub not_after_s: u64,
    /// SHA-256 of its certificate, in hexadecimal digits.
    pub sha256: String,
    /// Its SPIFFE id.
    pub id: String,
    /// Its DNS names.
    pub names: Vec<String>,
}

/// Everything the authority knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    format: u32,
    /// Whose identities it issues.
    pub trust_domain: String,
    /// Grows with each change of the set of roots.
    pub sequence: u64,
    /// The next unused number.
    pub next: u64,
    /// Oldest first.
    pub roots: Vec<Root>,
    /// `None` only in between: the next step makes one.
    pub issuing: Option<Issuing>,
    /// Our own leaves.
    pub leaves: BTreeMap<LeafRole, Leaf>,
}

impl State {
    /// Of a new authority that has `root` only.
    pub fn new(domain: &TrustDomain, root: Root) -> State {
        State {
            format: FORMAT,
            trust_domain: domain.to_string(),
            sequence: 1,
            next: root.number + 1,
            roots: vec![root],
            issuing: None,
            leaves: BTreeMap::new(),
        }
    }

    /// Reads the file's text; the error says what is wrong with it.
    pub fn read(text: &[u8]) -> Result<State, String> {
        let state: State = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        state.check()?;
        Ok(state)
    }

    /// The file's text.
    pub fn write(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| e.to_string())?;
        text.push(b'\n');
        Ok(text)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("it has format {}, and this program knows {FORMAT}", self.format));
        }
        TrustDomain::parse(&self.trust_domain).map_err(|e| format!("its trust domain: {e}"))?;
        let numbers: BTreeSet<u64> = self.roots.iter().map(|r| r.number).collect();
        if numbers.len() != self.roots.len() || numbers.last().is_some_and(|last| *last >= self.next) {
            return Err("its roots' numbers are not its own".to_owned());
        }
        let count = |wanted: fn(&Stage) -> bool| self.roots.iter().filter(|r| wanted(&r.stage)).count();
        let issue = count(|s| matches!(s, Stage::Issuing));
        if issue != 1 {
            return Err(format!("{issue} of its roots issue; exactly one does"));
        }
        let staged = count(|s| matches!(s, Stage::Staged { .. }));
        if staged > 1 || self.roots.len() > ROOTS_MAX {
            return Err(format!("it has {} roots, {staged} of them staged", self.roots.len()));
        }
        match &self.issuing {
            Some(issuing) if Some(issuing.root) != self.active().map(|r| r.number) => {
                Err(format!("its issuing CA {} is not of the root that issues", issuing.number))
            }
            Some(issuing) if issuing.number >= self.next => Err("its numbers are not its own".to_owned()),
            _ => Ok(()),
        }
    }

    /// The root that everything new comes from.
    pub fn active(&self) -> Option<&Root> {
        self.roots.iter().find(|r| r.stage == Stage::Issuing)
    }

    /// The root that waits, and when it begins to issue.
    pub fn staged(&self) -> Option<(&Root, Duration)> {
        self.roots.iter().find_map(|root| match root.stage {
            Stage::Staged { issue_at_s } => Some((root, Duration::from_secs(issue_at_s))),
            _ => None,
        })
    }

    /// The roots that leave the bundle, and when.
    pub fn leaving(&self) -> impl Iterator<Item = (&Root, Duration)> {
        self.roots.iter().filter_map(|root| match root.stage {
            Stage::Leaving { gone_at_s } => Some((root, Duration::from_secs(gone_at_s))),
            _ => None,
        })
    }

    /// The root of that number.
    pub fn root(&self, number: u64) -> Option<&Root> {
        self.roots.iter().find(|r| r.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(number: u64, stage: Stage) -> Root {
        let (made_s, not_after_s) = (1_000, 2_000);
        Root { number, made_s, not_after_s, sha256: "00".into(), path_len: Some(2), cross: false, stage }
    }

    fn state() -> State {
        State::new(&TrustDomain::parse("acme.example").unwrap(), root(1, Stage::Issuing))
    }

    #[test]
    fn a_state_reads_back_as_it_was_written() {
        let mut state = state();
        state.roots.push(root(2, Stage::Staged { issue_at_s: 1_500 }));
        state.next = 3;
        assert_eq!(State::read(&state.write().unwrap()).unwrap(), state);
        assert_eq!(state.staged().map(|(r, at)| (r.number, at.as_secs())), Some((2, 1_500)));
        assert_eq!((state.active().map(|r| r.number), state.leaving().count()), (Some(1), 0));
    }

    /// Changes a good state into a bad one.
    type Damage = fn(&mut State);

    #[test]
    fn a_state_that_breaks_a_rule_is_refused_and_its_neighbour_read() {
        let issuing = |root| Issuing {
            number: 3,
            root,
            made_s: 1,
            not_after_s: 2,
            leaf_life_s: 1,
            sha256: String::new(),
        };
        let good = State { next: 4, issuing: Some(issuing(1)), ..state() };
        let text = String::from_utf8(good.write().unwrap()).unwrap();
        let cases: [(&str, Damage); 6] = [
            ("another format", |s| s.format = 2),
            ("no trust domain", |s| s.trust_domain = "/".into()),
            ("a number twice", |s| s.roots.push(root(1, Stage::Leaving { gone_at_s: 1 }))),
            ("no root that issues", |s| s.roots[0].stage = Stage::Leaving { gone_at_s: 1 }),
            ("an issuing CA of another root", |s| s.issuing.as_mut().unwrap().root = 2),
            ("a number that is still to come", |s| s.next = 3),
        ];
        for (what, damage) in cases {
            let mut bad = good.clone();
            damage(&mut bad);
            assert!(bad.write().is_err(), "{what} is not written");
            let text = serde_json::to_vec(&bad).unwrap();
            assert!(State::read(&text).is_err(), "{what} is not read");
            assert!(State::read(&good.write().unwrap()).is_ok());
        }
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            assert!(State::read(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        assert!(State::read(text.replace("\"sequence\"", "\"sequel\"").as_bytes()).is_err());
    }
}
