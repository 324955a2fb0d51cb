//! Configuration: texts in, a checked [`Config`] out, or all problems at once.
//!
//! The way of a text: `source` reads files; `tree` makes a tree with positions; `walk`
//! compares it with the declarative [`schema`] and reports everything that is wrong in one document;
//! `raw` reads it into types; `check` looks at all documents together and makes the [`Config`].
//! Nothing here watches files or starts anything. *Trusted input only*, but no input panics.
//!
//! Invariant: there is no configuration that is half taken. A folder that can't be read is an error,
//! never an empty catalogue.

mod check;
mod endpoint;
pub mod init;
pub mod made;
mod model;
mod problem;
mod raw;
mod render;
mod scalar;
pub mod schema;
mod secret;
mod source;
mod tree;
mod validate;
mod walk;

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

pub use endpoint::{EndpointUrl, URL_BYTES_MAX};
pub use model::{
    AuthorityConfig, Config, CrlFile, DnsConfig, EgressConfig, EndpointProof, Extensions, Follow,
    FollowedEndpoint, HoldTime, IdentityConfig, IdentityFiles, ImportConfig, Limits, Listeners, LogConfig,
    LogFormat, LogLevel, MeshConfig, PairFiles, PeerAddress, PeerConfig, Profile, Resync, Secret,
    SecretError, SecretFile, ServedEndpoint, Version, WorkloadApiConfig, ZoneConfig,
};
pub use problem::{PROBLEMS_MAX, Problem, Problems, Severity};
pub use render::render;
pub use source::{DOCUMENTS_MAX, SourceFile, nothing_to_read, read_sources, unreadable};
pub use validate::validate_command;

use problem::{Collector, Mark};

/// A configuration that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What to do.
    pub config: Config,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
    /// How many files it came from.
    pub files: usize,
}

/// The Mesh among these texts, if it is right. Says nothing about what is wrong: that is for
/// [`load_sources`].
pub fn mesh_in(sources: &[SourceFile]) -> Option<MeshConfig> {
    let mut problems = Collector::default();
    let (documents, incomplete) = read_documents(sources, &mut problems);
    check::mesh_alone(documents, incomplete, sources, &mut problems)
}

/// Reads one file or a folder (blocking) and checks it, with the peers that tokens made. Files that the configuration names but that
/// don't exist are warnings: whoever checks a configuration often doesn't hold the keys.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let mut sources = read_sources(path)?;
    if let Some(mesh) = mesh_in(&sources) {
        sources.extend(made::sources_in(&mesh.data));
    }
    load_from(&sources, |reference| !is_there(&reference.file))
}

/// A file, or the socket of a Workload API.
fn is_there(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() || found.file_type().is_socket())
}

/// Checks texts that were read before; pure. Relative paths start at each file's folder.
pub fn load_sources(sources: Vec<SourceFile>) -> Result<Loaded, Problems> {
    load_from(&sources, |_| false)
}

fn load_from(
    sources: &[SourceFile],
    is_missing: impl Fn(&check::FileReference) -> bool,
) -> Result<Loaded, Problems> {
    let mut problems = Collector::default();
    if sources.is_empty() {
        return Err(source::nothing_to_read(Path::new(".")));
    }
    let (documents, incomplete) = read_documents(sources, &mut problems);
    let config = check::check(documents, incomplete, sources, &mut problems);
    if let Some((_, references)) = &config {
        for reference in references.iter().filter(|r| is_missing(r)) {
            let message = format!("there is no file {}", reference.file.display());
            problems.warning(reference.mark, &reference.path, message, reference.fix);
        }
    }
    let failed = problems.any_error();
    let (mut list, more) = problems.finish(sources);
    match config {
        Some((config, _)) if !failed => Ok(Loaded { config, warnings: list, files: sources.len() }),
        _ => {
            if !failed {
                // A document was dropped without a word: say so rather than run on half of it.
                let fix = "please report this with the configuration";
                list.push(Problem::of_file(&sources[0].path, "the configuration could not be checked", fix));
            }
            Err(Problems { list, more, files: sources.len() })
        }
    }
}

fn read_documents(sources: &[SourceFile], problems: &mut Collector) -> (Vec<raw::Document>, bool) {
    let mut documents = Vec::new();
    let mut incomplete = false;
    for (i, source) in sources.iter().enumerate() {
        let parsed = tree::parse(i as u32, &source.text, problems);
        incomplete |= parsed.incomplete;
        for node in &parsed.documents {
            if documents.len() >= DOCUMENTS_MAX {
                let message = format!("more than {DOCUMENTS_MAX} documents");
                let fix = "split the mesh, or have several services share one document";
                problems.error(Mark { width: 1, ..node.mark }, "", message, fix);
                return (documents, true);
            }
            match walk::document(node, problems) {
                Some(head) => documents.push(raw::read(head, node)),
                None => incomplete = true,
            }
        }
    }
    (documents, incomplete)
}
