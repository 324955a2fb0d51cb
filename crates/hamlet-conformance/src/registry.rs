//! What is required, and the cases that look whether it is so.
//!
//! A requirement has an id in each version (`A1-OWN-003` is number 3 of a v1alpha1 owner), a section
//! of the protocol text, and a level. Invariant: each has a happy and a hostile case, in each
//! version and over each transport it stands for.

use futures::future::BoxFuture;

use crate::cases;
use crate::kit::{Kit, Verdict};
use crate::speech::{Role, Version};

/// How binding a requirement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Without it the two sides don't work together, or not safely.
    Must,
    /// Our reading of what the text leaves open; implementations that differ are no failures.
    Should,
}

impl Level {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Level::Must => "must",
            Level::Should => "should",
        }
    }
}

/// In which versions something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum In {
    Both,
    One,
    Two,
}

impl In {
    pub(crate) fn has(self, version: Version) -> bool {
        match self {
            In::Both => true,
            In::One => version == Version::V1alpha1,
            In::Two => version == Version::V1alpha2,
        }
    }
}

/// One requirement.
#[derive(Debug)]
pub struct Requirement {
    /// Number within its role: `OWN-003`, `CON-012`.
    pub number: &'static str,
    pub(crate) versions: In,
    /// Of the protocol text, or of the extensions.
    pub section: &'static str,
    /// What is required of the implementation under test.
    pub text: &'static str,
    pub(crate) levels: (Level, Level),
}

impl Requirement {
    /// Its id in a version; `None` if it doesn't stand there.
    pub fn id(&self, version: Version) -> Option<String> {
        let letter = if version == Version::V1alpha1 { "A1" } else { "A2" };
        self.versions.has(version).then(|| format!("{letter}-{}", self.number))
    }

    /// How binding it is in a version.
    pub fn level(&self, version: Version) -> Level {
        if version == Version::V1alpha1 { self.levels.0 } else { self.levels.1 }
    }

    /// Whose it is.
    pub fn role(&self) -> Role {
        if self.number.starts_with("OWN") { Role::Owner } else { Role::Consumer }
    }
}

/// Whether a case does what a good peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Happy,
    /// It does what must not hurt.
    Hostile,
}

impl Kind {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Happy => "happy",
            Kind::Hostile => "hostile",
        }
    }
}

/// What a case needs of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// That we dial.
    Target,
    /// That we are dialled.
    Listen,
    /// A configured context value.
    Context,
}

pub(crate) type Run = for<'a> fn(&'a mut Kit) -> BoxFuture<'a, Verdict>;

/// One case.
pub struct Case {
    pub(crate) requirement: &'static str,
    pub(crate) versions: In,
    pub(crate) kind: Kind,
    pub(crate) needs: Needs,
    pub(crate) name: &'static str,
    pub(crate) run: Run,
}

/// A case as one version knows it.
pub struct Listed {
    /// Its requirement's id and its own number: `A1-OWN-003.2`.
    pub id: String,
    /// What it looks at.
    pub requirement: &'static Requirement,
    /// What happens.
    pub name: &'static str,
    /// Whether it is what a good peer does.
    pub kind: Kind,
    pub(crate) needs: Needs,
    pub(crate) run: Run,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listed").field("id", &self.id).field("name", &self.name).finish()
    }
}

/// All requirements, in order.
pub fn requirements() -> impl Iterator<Item = &'static Requirement> {
    [cases::owner::REQUIREMENTS, cases::consumer::REQUIREMENTS].into_iter().flatten()
}

fn all() -> impl Iterator<Item = &'static Case> {
    let tables: [&'static [Case]; 8] = [
        cases::owner::CASES,
        cases::owner_hostile::CASES,
        cases::owner_changes::CASES,
        cases::transport::OWNER,
        cases::consumer::CASES,
        cases::consumer_hostile::CASES,
        cases::consumer_link::CASES,
        cases::transport::CONSUMER,
    ];
    tables.into_iter().flatten()
}

/// The cases of one role in one version, by requirement.
pub fn cases_of(role: Role, version: Version) -> Vec<Listed> {
    let mut listed = vec![];
    for requirement in requirements().filter(|r| r.role() == role) {
        let Some(id) = requirement.id(version) else { continue };
        let own = all().filter(|c| c.requirement == requirement.number && c.versions.has(version));
        for (at, case) in own.enumerate() {
            listed.push(Listed {
                id: format!("{id}.{}", at + 1),
                requirement,
                name: case.name,
                kind: case.kind,
                needs: case.needs,
                run: case.run,
            });
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(Role, Version); 4] = [
        (Role::Owner, Version::V1alpha1),
        (Role::Consumer, Version::V1alpha1),
        (Role::Owner, Version::V1alpha2),
        (Role::Consumer, Version::V1alpha2),
    ];

    #[test]
    fn every_requirement_has_a_happy_and_a_hostile_case_in_each_of_its_versions() {
        for (role, version) in ALL {
            let cases = cases_of(role, version);
            for requirement in requirements().filter(|r| r.role() == role) {
                let Some(id) = requirement.id(version) else { continue };
                for kind in [Kind::Happy, Kind::Hostile] {
                    let has =
                        cases.iter().any(|c| c.requirement.number == requirement.number && c.kind == kind);
                    assert!(has, "{id} has no {} case", kind.name());
                }
            }
        }
    }

    #[test]
    fn there_are_enough_cases_and_none_is_lost() {
        let count: usize = ALL.iter().map(|(role, version)| cases_of(*role, *version).len()).sum();
        assert!(count >= 150, "{count} cases");
        for case in all() {
            assert!(requirements().any(|r| r.number == case.requirement), "{} of no requirement", case.name);
        }
    }

    #[test]
    fn numbers_are_unique_and_in_order() {
        for role in [Role::Owner, Role::Consumer] {
            let numbers: Vec<_> = requirements().filter(|r| r.role() == role).map(|r| r.number).collect();
            assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{numbers:?}");
        }
    }
}
