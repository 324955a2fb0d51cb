//! The two policies as an operator sees them: what they say, and what they did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::list::{Kind, Listed};
use super::peer::RefusedService;

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicationStatus {
    /// Its name in the configuration.
    pub name: String,
    /// The service names it lists.
    pub names: Vec<String>,
    /// The labels it selects by.
    pub labels: BTreeMap<String, String>,
    /// The peers it makes services visible to.
    pub peers: Vec<String>,
    /// The services it selects now.
    pub services: Vec<String>,
    /// Names it lists that no service has.
    pub missing: Vec<String>,
}

impl Listed for PublicationStatus {
    const KIND: Kind = Kind::Publications;
    fn name(&self) -> &str {
        &self.name
    }
}

/// An import.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportStatus {
    /// Its name in the configuration.
    pub name: String,
    /// The peer it accepts from.
    pub peer: String,
    /// The name suffixes it accepts.
    pub suffixes: Vec<String>,
    /// The identities that far gateways may prove.
    pub sans: Vec<String>,
    /// The address ranges that endpoints may lie in.
    pub ranges: Vec<String>,
    /// The ports that endpoints may have.
    pub endpoint_ports: Vec<String>,
    /// How many services it admitted that are in force.
    pub admitted: u64,
    /// How many it refused; may exceed the list below, which is cut.
    pub refused_total: u64,
    /// Refused ones, by service.
    pub refused: Vec<RefusedService>,
}

impl Listed for ImportStatus {
    const KIND: Kind = Kind::Imports;
    fn name(&self) -> &str {
        &self.name
    }
    fn aliases(&self) -> Vec<&str> {
        vec![&self.peer]
    }
}
