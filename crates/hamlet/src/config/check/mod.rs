//! From documents as written to the checked configuration: references, uniqueness, and every rule
//! that needs more than one value. Pure.
//!
//! Invariant: a [`Config`] is made only if there was no error, and then everything it says holds.

mod exchange;
mod foreign;
mod identity;
mod mesh;
mod peer;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use hamlet_core::PeerName;

use super::SourceFile;
use super::model::{Config, MeshConfig};
use super::problem::{Collector, Mark};
use super::raw::{At, Document, Meta};

/// A file that the configuration names; whether it exists is looked up by [`super::load`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileReference {
    pub(super) file: PathBuf,
    pub(super) mark: Mark,
    pub(super) path: String,
    pub(super) fix: &'static str,
}

/// What the check works on.
struct Check<'c> {
    problems: &'c mut Collector,
    sources: &'c [SourceFile],
    /// Whether some document could not be read: then nothing is said about missing ones.
    incomplete: bool,
    references: Vec<FileReference>,
    /// How many more names are compared with all known ones.
    suggestions: usize,
}

/// Most unknown names for which a near one is looked for: each is compared with every service.
const SUGGESTIONS_MAX: usize = 32;

/// Checks all documents together.
pub(super) fn check(
    documents: Vec<Document>,
    incomplete: bool,
    sources: &[SourceFile],
    problems: &mut Collector,
) -> Option<(Config, Vec<FileReference>)> {
    let mut check =
        Check { problems, sources, incomplete, references: Vec::new(), suggestions: SUGGESTIONS_MAX };
    check.incomplete |= documents.iter().any(|d| d.meta().name.is_none());
    check.unique(&documents);
    let (mut meshes, mut peers, mut publications) = (Vec::new(), Vec::new(), Vec::new());
    let (mut imports, mut services) = (Vec::new(), Vec::new());
    for document in documents {
        match document {
            Document::Mesh(d) => meshes.push(*d),
            Document::Peer(d) => peers.push(*d),
            Document::Publication(d) => publications.push(*d),
            Document::Import(d) => imports.push(*d),
            Document::Service(d) => services.push(*d),
        }
    }
    let raw_mesh = check.one_mesh(meshes);
    let mesh = raw_mesh.as_ref().and_then(|raw| check.mesh(raw));
    let limits = mesh.as_ref().map(|m| m.limits.clone());
    let known = known_peers(&peers);
    let peers = check.peers(&peers, mesh.as_ref());
    let services = check.services(services, limits.as_ref());
    let context = exchange::Known { peers: &peers, names: &known, services: &services };
    let rules = check.publications(&publications, &context);
    if let (Some(raw), Some(first)) = (&raw_mesh, publications.first()) {
        check.advertised(raw, first);
    }
    let imports = check.imports(imports, &context);
    if check.problems.any_error() {
        return None;
    }
    let references = check.references;
    let services = services.list;
    let config = Config { mesh: mesh?, peers, publications: rules, imports, services };
    Some((config, references))
}

/// The Mesh alone, if it is right.
pub(super) fn mesh_alone(
    documents: Vec<Document>,
    incomplete: bool,
    sources: &[SourceFile],
    problems: &mut Collector,
) -> Option<MeshConfig> {
    let mut check =
        Check { problems, sources, incomplete, references: Vec::new(), suggestions: SUGGESTIONS_MAX };
    let meshes = documents.into_iter().filter_map(|document| match document {
        Document::Mesh(mesh) => Some(*mesh),
        _ => None,
    });
    let raw = check.one_mesh(meshes.collect())?;
    check.mesh(&raw)
}

/// The names of all Peer documents, right or wrong, with their places.
fn known_peers(peers: &[super::raw::Peer]) -> BTreeMap<PeerName, Mark> {
    let named = peers.iter().filter_map(|p| p.meta.name.as_ref());
    named.filter_map(|n| Some((PeerName::parse(&n.value).ok()?, n.mark))).collect()
}

impl Check<'_> {
    fn error<T>(&mut self, at: &At<T>, message: impl Into<String>, fix: impl Into<String>) {
        self.problems.error(at.mark, &at.path, message, fix);
    }

    fn warning<T>(&mut self, at: &At<T>, message: impl Into<String>, fix: impl Into<String>) {
        self.problems.warning(at.mark, &at.path, message, fix);
    }

    /// "did you mean", as long as it doesn't take long.
    fn suggest<'k>(&mut self, text: &str, known: impl Iterator<Item = &'k str>) -> Option<String> {
        self.suggestions = self.suggestions.checked_sub(1)?;
        super::walk::suggestion(text, known)
    }

    /// `file:line` of another document, for a message.
    fn place(&self, mark: Mark) -> String {
        let file = self.sources.get(mark.file as usize).map(|s| s.path.display().to_string());
        format!("{}:{}", file.unwrap_or_default(), mark.line)
    }

    /// A path of a document: relative ones start at the folder of the document's file.
    fn resolve(&self, path: &Path, mark: Mark) -> PathBuf {
        let folder = self.sources.get(mark.file as usize).and_then(|s| s.path.parent());
        folder.map_or_else(|| path.to_owned(), |f| f.join(path))
    }

    /// Resolves a path to a file that should exist, and remembers it.
    fn file(&mut self, at: &At<PathBuf>, fix: &'static str) -> PathBuf {
        let file = self.resolve(&at.value, at.mark);
        self.reference(file.clone(), at, fix);
        file
    }

    /// Remembers a file that should exist because of the value at `at`.
    fn reference<T>(&mut self, file: PathBuf, at: &At<T>, fix: &'static str) {
        let reference = FileReference { file, mark: at.mark, path: at.path.clone(), fix };
        self.references.push(reference);
    }

    /// Kind and name together stand once.
    fn unique(&mut self, documents: &[Document]) {
        let mut seen: HashMap<(&'static str, String), Mark> = HashMap::with_capacity(documents.len());
        for document in documents {
            let Meta { kind, name: Some(name), .. } = document.meta() else { continue };
            // The second Mesh is reported as such, whatever its name.
            if *kind == "Mesh" {
                continue;
            }
            let text = match *kind {
                "Service" => name.value.clone(),
                _ => name.value.to_ascii_lowercase(),
            };
            if let Some(first) = seen.get(&(*kind, text.clone())) {
                let message = format!(
                    "{kind} `{}` is declared twice; the first is at {}",
                    name.value,
                    self.place(*first)
                );
                self.error(name, message, "rename one of the two, or remove it");
            } else {
                seen.insert((*kind, text), name.mark);
            }
        }
    }

    fn one_mesh(&mut self, meshes: Vec<super::raw::Mesh>) -> Option<super::raw::Mesh> {
        let mut meshes = meshes.into_iter();
        let Some(first) = meshes.next() else {
            if !self.incomplete {
                let fix = "add a document with `kind: Mesh`; `hamlet init DIR` writes one";
                self.problems.error(Mark::default(), "Mesh", "there is no Mesh document", fix);
            }
            return None;
        };
        for other in meshes {
            let place = self.place(first.meta.mark);
            let message = format!("a second Mesh; the first is at {place}");
            self.problems.error(
                other.meta.mark,
                &other.meta.label,
                message,
                "an agent is one mesh: remove one, or give each agent a folder of its own",
            );
        }
        Some(first)
    }

    /// Publications are of no use to a peer that isn't told where our ingress is.
    fn advertised(&mut self, mesh: &super::raw::Mesh, publication: &super::raw::Publication) {
        if mesh.advertise.is_empty() && !mesh.advertise_written {
            let message = format!(
                "{} publishes services, but peers aren't told where our ingress is",
                publication.meta.label
            );
            let path = format!("{} spec.advertise.ingress", mesh.meta.label);
            let fix =
                "add `advertise: {ingress: [\"203.0.113.10:7444\"]}` with the address that peers connect to";
            self.problems.error(mesh.meta.spec, &path, message, fix);
        }
    }
}
