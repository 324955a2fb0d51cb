//! What stands in the owner's folder, and what the consumer must therefore hold.
//!
//! The truth of the run: it is changed first, then written, and never read back from an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use hamlet_admin::api::ServiceStatus;
use rand::Rng;
use rand::rngs::StdRng;

/// Services are spread over so many files.
const FILES: u32 = 16;
/// Below this no service is deleted.
const FEW: usize = 120;
/// Above this none is created.
const MANY: usize = 500;

/// How often what was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    /// New services.
    pub(super) created: u64,
    /// New versions.
    pub(super) updated: u64,
    /// Services that went.
    pub(super) deleted: u64,
}

/// The services of the owner.
pub(super) struct Model {
    folder: PathBuf,
    next: u32,
    /// Number of a service, and its version.
    services: BTreeMap<u32, u64>,
    version: u64,
    stale: BTreeSet<u32>,
    /// What was done so far.
    pub(super) changes: Changes,
}

impl Model {
    /// None yet.
    pub(super) fn new(folder: PathBuf) -> Model {
        let (services, stale) = (BTreeMap::new(), BTreeSet::new());
        Model { folder, next: 0, services, version: 0, stale, changes: Changes::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.services.len()
    }

    /// Creates, updates or deletes `count` times.
    pub(super) fn change(&mut self, count: usize, rng: &mut StdRng) {
        for _ in 0..count {
            self.version += 1;
            let at = rng.random_range(0..self.services.len().max(1));
            let any = self.services.keys().nth(at).copied();
            match (any, rng.random_range(0..3)) {
                (Some(number), 0) if self.services.len() > FEW => {
                    self.services.remove(&number);
                    self.stale.insert(number % FILES);
                    self.changes.deleted += 1;
                }
                (Some(number), choice) if choice == 1 || self.services.len() >= MANY => {
                    self.services.insert(number, self.version);
                    self.stale.insert(number % FILES);
                    self.changes.updated += 1;
                }
                _ => {
                    self.services.insert(self.next, self.version);
                    self.stale.insert(self.next % FILES);
                    self.next += 1;
                    self.changes.created += 1;
                }
            }
        }
    }

    /// Writes what has changed since the last time, each file whole.
    pub(super) fn write(&mut self) -> std::io::Result<()> {
        for file in std::mem::take(&mut self.stale) {
            let path = self.folder.join(format!("services-{file:02}.yaml"));
            let mut text = String::new();
            for (number, version) in self.services.iter().filter(|(n, _)| *n % FILES == file) {
                let _ = write!(text, "{}", document(*number, *version));
            }
            if text.is_empty() {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let temporary = self.folder.join(".services.new");
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, &path)?;
        }
        Ok(())
    }

    /// How the consumer's services differ from these, in words; nothing if they are the same set.
    pub(super) fn difference(&self, held: &[ServiceStatus]) -> Option<String> {
        let wanted: BTreeMap<String, String> =
            self.services.iter().map(|(number, version)| (fqdn(*number), description(*version))).collect();
        let held: BTreeMap<&str, &str> =
            held.iter().map(|s| (s.fqdn.as_str(), s.description.as_str())).collect();
        let missing = wanted.keys().filter(|k| !held.contains_key(k.as_str())).count();
        let extra = held.keys().filter(|k| !wanted.contains_key(**k)).count();
        let old = wanted.iter().filter(|(k, v)| held.get(k.as_str()).is_some_and(|h| h != v)).count();
        (missing + extra + old > 0).then(|| {
            format!("{missing} missing, {extra} too many, {old} of another version, of {}", wanted.len())
        })
    }
}

fn fqdn(number: u32) -> String {
    format!("svc-{number:05}.{}.example", super::setup::OWNER)
}

fn description(version: u64) -> String {
    format!("version {version}")
}

fn document(number: u32, version: u64) -> String {
    format!(
        "\
---
apiVersion: hamlet.dev/v1
kind: Service
metadata:
  name: svc-{number:05}
  labels: {{team: chaos}}
spec:
  fqdn: {}
  description: {}
  protocol: HTTP
  port: 8080
  backends: [\"127.0.0.1:9\"]
",
        fqdn(number),
        description(version)
    )
}

#[cfg(test)]
mod tests {
    use hamlet_admin::api::{Origin, Standing};
    use rand::SeedableRng;

    use super::*;

    fn held(number: u32, version: u64) -> ServiceStatus {
        ServiceStatus {
            name: format!("owner/svc-{number:05}"),
            fqdn: fqdn(number),
            origin: Origin::Imported { peer: "owner".into() },
            standing: Standing::Current,
            description: description(version),
            tags: vec![],
            labels: BTreeMap::new(),
            egress: vec![],
            instances: vec![],
            published_to: vec![],
            sans: vec![],
            conflicts: vec![],
        }
    }

    #[test]
    fn what_is_written_is_the_model_and_every_difference_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::new(folder.path().to_owned());
        model.change(400, &mut StdRng::seed_from_u64(1));
        model.write().unwrap();
        let mut documents = 0;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            documents += text.matches("kind: Service").count();
        }
        assert_eq!(documents, model.len());
        let Changes { created, updated, deleted } = model.changes;
        assert!(created > 0 && updated > 0 && deleted > 0 && created + updated + deleted == 400);

        let good: Vec<_> = model.services.iter().map(|(n, v)| held(*n, *v)).collect();
        assert_eq!(model.difference(&good), None);
        assert!(model.difference(&good[1..]).unwrap().starts_with("1 missing, 0 too many, 0 of"));
        let mut extra = good.clone();
        extra.push(held(99_999, 1));
        assert!(model.difference(&extra).unwrap().starts_with("0 missing, 1 too many, 0 of"));
        let mut old = good;
        old[0].description = "version 0".into();
        assert!(model.difference(&old).unwrap().starts_with("0 missing, 0 too many, 1 of"));
    }
}
