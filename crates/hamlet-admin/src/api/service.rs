//! A service as an operator sees it, whether it runs here or was imported.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::list::{Kind, Listed};

/// Whose service it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Origin {
    /// It runs in this mesh.
    Local,
    /// A peer offers it.
    Imported {
        /// The peer's name.
        peer: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Local => f.write_str("local"),
            Origin::Imported { peer } => f.write_str(peer),
        }
    }
}

/// Whether an instance can be called through our gateways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Programming {
    /// It can.
    Programmed,
    /// Only through a listener that it shares with others, such as the HTTP one.
    Shared {
        /// Why it has none of its own.
        reason: String,
        /// What to do to get one.
        remedy: String,
    },
    /// It can't.
    NotProgrammed {
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// One way to reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Its id within the service.
    pub id: String,
    /// The name that reaches just this instance.
    pub fqdn: String,
    /// What it speaks, as on the wire: `HTTP`.
    pub protocol: String,
    /// The port that consumers use; absent when the owner names none.
    pub port: Option<u16>,
    /// Imported: address and port behind the instance's own name, when it has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
    /// Local: where the ingress forwards to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// The ingress points of the owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Whether it can be called.
    pub programming: Programming,
}

/// Which version of an imported service we serve, and on what grounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The owner's last word.
    #[default]
    Current,
    /// An older version: the update was refused.
    Older,
    /// Withdrawn by the owner, or gone from its source; the guard or the brake holds that back.
    Withheld,
    /// The peer is lost; served until the hold time ends.
    Held,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Current => "current",
            Standing::Older => "older",
            Standing::Withheld => "withheld",
            Standing::Held => "held",
        })
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Unique here: a local service's own name, or `<peer>/<name>` of an imported one.
    pub name: String,
    /// The name that workloads use.
    pub fqdn: String,
    /// Whose it is.
    pub origin: Origin,
    /// Which version is served, and on what grounds.
    #[serde(default)]
    pub standing: Standing,
    /// For people; imported ones carry the owner's text, cleaned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Free tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Imported: addresses and ports behind the fqdn itself, one a port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// Ways to reach it.
    pub instances: Vec<InstanceStatus>,
    /// Local: the peers that can see it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_to: Vec<String>,
    /// Imported: the identities that the far gateway may prove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sans: Vec<String>,
    /// What stands in its way, one line each: a name that is taken, a publication without address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
}

impl ServiceStatus {
    /// How many instances can be called, through a listener of their own or a shared one.
    pub fn callable(&self) -> usize {
        let out = |i: &&InstanceStatus| !matches!(i.programming, Programming::NotProgrammed { .. });
        self.instances.iter().filter(out).count()
    }
}

impl Listed for ServiceStatus {
    const KIND: Kind = Kind::Services;
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> Vec<&str> {
        let mut all = vec![self.fqdn.as_str()];
        if let Origin::Imported { peer } = &self.origin {
            let bare = self.name.strip_prefix(peer.as_str()).and_then(|rest| rest.strip_prefix('/'));
            all.extend(bare);
        }
        all
    }
}
