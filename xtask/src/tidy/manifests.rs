//! Who depends on whom. Reads what cargo makes of the manifests, and knows nothing of the code.
//!
//! Core imports none of ours; siblings never import each other; `hamlet` is the only place where
//! the parts meet. Tests may use what they like, except in core.

use std::collections::BTreeSet;
use std::path::Path;

use super::Findings;
use crate::tree::{Package, Workspace};

/// Each of our crates and those of ours that it may use.
const BELOW: &[(&str, &[&str])] = &[
    ("hamlet-core", &[]),
    ("hamlet-runtime", &["hamlet-core"]),
    ("hamlet-identity", &["hamlet-core", "hamlet-runtime"]),
    // The protocol with a feature only: for those who drive its sessions.
    ("hamlet-testkit", &["hamlet-core", "hamlet-runtime", "hamlet-identity", "hamlet-protocol"]),
    ("hamlet-protocol", PARTS),
    ("hamlet-adapters", PARTS),
    ("hamlet-gateway", PARTS),
    ("hamlet-store", PARTS),
    ("hamlet-admin", PARTS),
    ("hamlet-peering", PARTS),
    // Judges the protocol from outside: it shares nothing with what it tests.
    ("hamlet-conformance", &["hamlet-runtime"]),
    // For development only: it plays protocol and store against each other, and nothing uses it.
    (
        "hamlet-hardship",
        &["hamlet-core", "hamlet-runtime", "hamlet-identity", "hamlet-protocol", "hamlet-store"],
    ),
    (
        "hamlet",
        &[
            "hamlet-core",
            "hamlet-runtime",
            "hamlet-identity",
            "hamlet-protocol",
            "hamlet-adapters",
            "hamlet-gateway",
            "hamlet-store",
            "hamlet-admin",
            "hamlet-peering",
            "hamlet-conformance",
        ],
    ),
];

/// What the siblings stand on.
const PARTS: &[&str] = &["hamlet-core", "hamlet-runtime", "hamlet-identity"];

/// Uses whatever it measures; nothing uses it.
const XTASK: &str = "xtask";

/// Feeds whatever reads bytes; only xtask uses it.
const FUZZ: &str = "hamlet-fuzz";

/// Plays the protocol's peers and the store's disk; nothing uses it.
const HARDSHIP: &str = "hamlet-hardship";

/// Third-party crates with one home, or a few that are named.
const HOMES: &[(&str, &[&str])] = &[
    // Identity for the one call of the Workload API.
    ("tonic", &["hamlet-protocol", "hamlet-identity", HARDSHIP]),
    ("prost", &["hamlet-protocol", "hamlet-identity", "hamlet-conformance", HARDSHIP, FUZZ]),
    ("prost-build", &["hamlet-protocol"]),
    ("protox", &["hamlet-protocol"]),
    ("kube", &["hamlet-adapters"]),
    ("hickory-proto", &["hamlet-adapters"]),
    // Identity makes the configurations; the others only take them.
    ("rustls", &["hamlet-identity", "hamlet-gateway", "hamlet-conformance", "hamlet-testkit", FUZZ]),
    (
        "tokio-rustls",
        &[
            "hamlet-protocol",
            "hamlet-gateway",
            "hamlet-conformance",
            "hamlet-testkit",
            "hamlet-peering",
            "hamlet",
            XTASK,
        ],
    ),
    ("rustls-webpki", &["hamlet-identity"]),
    ("x509-parser", &["hamlet-identity"]),
    ("rcgen", &["hamlet-identity", "hamlet-conformance", "hamlet-testkit"]),
    ("aws-lc-rs", &["hamlet-peering"]),
    ("bip39", &["hamlet-peering"]),
    ("redb", &["hamlet-store", HARDSHIP, FUZZ]),
    ("postcard", &["hamlet-store", FUZZ]),
    ("axum", &["hamlet-admin"]),
    ("clap", &["hamlet", XTASK, HARDSHIP]),
    ("anyhow", &["hamlet", XTASK, HARDSHIP]),
    ("miette", &["hamlet", XTASK]),
    // For tests only.
    ("tempfile", &[]),
];

fn is_ours(name: &str) -> bool {
    [XTASK, FUZZ].contains(&name) || BELOW.iter().any(|(ours, _)| *ours == name)
}

fn manifest(package: &Package) -> String {
    let folder = match package.name.as_str() {
        XTASK => XTASK.to_owned(),
        FUZZ => "fuzz".to_owned(),
        name => format!("crates/{name}"),
    };
    format!("{folder}/Cargo.toml")
}

/// Ours on ours.
pub(super) fn own(workspace: &Workspace) -> Findings {
    let mut findings = Findings::default();
    for package in &workspace.packages {
        let Some((_, allowed)) = BELOW.iter().find(|(name, _)| *name == package.name) else {
            if ![XTASK, FUZZ].contains(&package.name.as_str()) {
                findings.complaints.push(format!(
                    "{}: a crate that no rule speaks of; give it a place in xtask/src/tidy/manifests.rs",
                    manifest(package)
                ));
            }
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| is_ours(&d.name)) {
            let exempt = dependency.kind.as_deref() == Some("dev") && package.name != "hamlet-core";
            if !exempt && !allowed.contains(&dependency.name.as_str()) {
                findings.complaints.push(format!(
                    "{}: {} may not depend on {}; let `hamlet` join the two, or move what both need into hamlet-core",
                    manifest(package),
                    package.name,
                    dependency.name
                ));
            }
        }
    }
    findings
}

/// Ours on third parties.
pub(super) fn homes(workspace: &Workspace) -> Findings {
    let mut findings = Findings::default();
    for package in &workspace.packages {
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
            let Some((_, homes)) = HOMES.iter().find(|(name, _)| *name == dependency.name) else { continue };
            if !homes.contains(&package.name.as_str()) {
                let homes = if homes.is_empty() { "tests only".to_owned() } else { homes.join(", ") };
                findings.complaints.push(format!(
                    "{}: {} may not depend on {}; its home: {homes}",
                    manifest(package),
                    package.name,
                    dependency.name
                ));
            }
        }
    }
    findings
}

/// Folders on disk, members of the workspace, names and lints.
pub(super) fn members(root: &Path, workspace: &Workspace) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let known: BTreeSet<&str> = workspace.packages.iter().map(|p| p.name.as_str()).collect();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let folder = entry?.file_name().to_string_lossy().into_owned();
        if !known.contains(folder.as_str()) {
            findings.complaints.push(format!("crates/{folder}: no crate of that name is in the workspace"));
        }
    }
    for package in &workspace.packages {
        let expected = root.join(manifest(package));
        if package.manifest_path != expected {
            findings.complaints.push(format!(
                "{}: the crate {} belongs into a folder of its own name",
                package.manifest_path.display(),
                package.name
            ));
            continue;
        }
        let text = std::fs::read_to_string(&expected)?;
        if !text.contains("[lints]\nworkspace = true") {
            findings.complaints.push(format!("{}: add `[lints]` with `workspace = true`", manifest(package)));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tree::Dependency;

    fn with(package: &str, dependency: &str, kind: Option<&str>) -> Workspace {
        let dependency = Dependency { name: dependency.to_owned(), kind: kind.map(str::to_owned) };
        let package = Package {
            name: package.to_owned(),
            manifest_path: PathBuf::new(),
            dependencies: vec![dependency],
        };
        Workspace { packages: vec![package], target_directory: PathBuf::new() }
    }

    #[test]
    fn a_breach_is_found_and_its_benign_neighbour_is_not() {
        let cases = [
            ("hamlet-core", "hamlet-runtime", None, 1),
            ("hamlet-core", "hamlet-testkit", Some("dev"), 1),
            ("hamlet-runtime", "hamlet-core", None, 0),
            ("hamlet-protocol", "hamlet-store", None, 1),
            ("hamlet-protocol", "hamlet-store", Some("dev"), 0),
            ("hamlet-gateway", "hamlet-testkit", Some("build"), 1),
            ("hamlet-gateway", "hamlet-testkit", Some("dev"), 0),
            ("hamlet", "hamlet-testkit", None, 1),
            ("hamlet", "hamlet-store", None, 0),
            ("hamlet-new", "hamlet-core", None, 1),
            ("hamlet-fuzz", "hamlet", None, 0),
            ("hamlet", "hamlet-fuzz", None, 1),
        ];
        for (package, dependency, kind, complaints) in cases {
            let found = own(&with(package, dependency, kind)).complaints;
            assert_eq!(found.len(), complaints, "{package} on {dependency} ({kind:?}): {found:?}");
        }
        for (package, dependency, kind, complaints) in [
            ("hamlet-store", "tonic", None, 1),
            ("hamlet-store", "tonic", Some("dev"), 0),
            ("hamlet-protocol", "tonic", None, 0),
            ("hamlet-admin", "anyhow", None, 1),
            ("hamlet", "anyhow", None, 0),
            ("hamlet-core", "serde", None, 0),
        ] {
            let found = homes(&with(package, dependency, kind)).complaints;
            assert_eq!(found.len(), complaints, "{package} on {dependency} ({kind:?}): {found:?}");
        }
    }
}
