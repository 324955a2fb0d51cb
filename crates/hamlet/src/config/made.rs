//! Peers made by token as ordinary Peer documents. The store is where they live; beside it, in
//! `peers/` of the data folder, stand the documents and their bundles as files, so that the one
//! check takes them together with those of the configuration, and `hamlet validate` sees them too.
//!
//! Invariant: the files are derived. The agent writes them from the store, and never reads one as
//! the truth about a peer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hamlet_core::PeerName;
use hamlet_peering::MadePeer;

use super::{PeerConfig, SourceFile};

/// The folder in the data folder.
const FOLDER: &str = "peers";
/// A document's file. Not `.yaml`: a data folder within the configuration's is read with it.
const DOCUMENT: &str = "peer";
/// A bundle's file.
const BUNDLE: &str = "pem";

/// Where the documents stand.
pub fn folder_in(data: &Path) -> PathBuf {
    data.join(FOLDER)
}

/// A peer's document, as it could stand in a file beside its bundle.
pub fn document(peer: &MadePeer) -> String {
    let mesh = &peer.document;
    let ids = |ids: &[hamlet_core::SpiffeId]| {
        let quoted: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
        quoted.join(", ")
    };
    // Every text is of a type whose characters need no escape.
    let mut text =
        format!("apiVersion: hamlet.dev/v1\nkind: Peer\nmetadata:\n  name: \"{}\"\nspec:\n", peer.name);
    if let Some(address) = mesh.addresses.first() {
        let _ = writeln!(text, "  address: \"{address}\"");
    }
    let _ = writeln!(text, "  trustDomain: \"{}\"", mesh.trust_domain);
    let _ = writeln!(text, "  trust:\n    bundle: \"{}.{BUNDLE}\"\n    follow: stream", peer.name);
    let _ = writeln!(text, "  agentIds: [{}]", ids(&mesh.agent_ids));
    let _ = writeln!(text, "  gatewayIds: [{}]", ids(&mesh.gateway_ids));
    let _ = writeln!(text, "  extensions: required");
    if peer.paused {
        let _ = writeln!(text, "  paused: true");
    }
    text
}

/// The documents of these peers, to be checked with the files of the configuration.
pub fn sources<'p>(data: &Path, peers: impl Iterator<Item = &'p MadePeer>) -> Vec<SourceFile> {
    let folder = folder_in(data);
    let file = |name: &PeerName| folder.join(format!("{name}.{DOCUMENT}"));
    peers.map(|peer| SourceFile { path: file(&peer.name), text: document(peer).into() }).collect()
}

/// The documents that an agent wrote into this data folder; none if there is none, or they can't be
/// read: who checks a configuration often isn't the agent.
pub fn sources_in(data: &Path) -> Vec<SourceFile> {
    let read = std::fs::read_dir(folder_in(data)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == DOCUMENT));
    files.sort();
    files.truncate(hamlet_peering::MADE_MAX);
    let source = |path: PathBuf| Some(SourceFile { text: std::fs::read_to_string(&path).ok()?.into(), path });
    files.into_iter().filter_map(source).collect()
}

/// Whether a token made this peer: its bundle is among the derived files of this data folder.
pub fn is_made(data: &Path, peer: &PeerConfig) -> bool {
    peer.bundle.as_ref().is_some_and(|bundle| bundle.parent() == Some(&folder_in(data)))
}

/// Makes the files say what the store does (blocking): each whole or not at all, owner only.
///
/// # Errors
/// The file system's; what stands there already stays.
pub fn write<'p>(data: &Path, peers: impl Iterator<Item = &'p MadePeer>) -> io::Result<()> {
    let folder = folder_in(data);
    let mut wanted = BTreeSet::new();
    for peer in peers {
        if wanted.is_empty() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        }
        for (extension, text) in [(BUNDLE, peer.document.bundle_pem()), (DOCUMENT, document(peer))] {
            let path = folder.join(format!("{}.{extension}", peer.name));
            if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                write_whole(&path, text.as_bytes())?;
            }
            wanted.insert(path);
        }
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let derived = path.extension().is_some_and(|e| e == DOCUMENT || e == BUNDLE || e == "new");
        if derived && !wanted.contains(&path) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
