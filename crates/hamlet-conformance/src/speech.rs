//! What is said on a stream, in one form for both versions: requests, offers and services.
//!
//! Knows the versions' numbers and shapes; does no IO and judges nothing.

use prost::Message;

use crate::wire::{Any, Status, field, fields, v1, v2};

/// Fields numbered from here on are extensions (protocol text, section 6).
pub(crate) const EXTENSIONS_FROM: u64 = 1000;
/// A field that no version and no extension has.
pub(crate) const UNKNOWN_FIELD: u32 = 1999;

/// Which of the published versions is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `federation.resourcediscovery.v1alpha1`.
    V1alpha1,
    /// `federation.resourcediscovery.v1alpha2`.
    V1alpha2,
}

/// A role in the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Offers services.
    Owner,
    /// Takes them.
    Consumer,
}

/// What an offer says about its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// CREATE, or UPSERT.
    Create,
    /// UPDATE, or UPSERT.
    Update,
    /// DELETE.
    Delete,
}

impl Version {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Version::V1alpha1 => "v1alpha1",
            Version::V1alpha2 => "v1alpha2",
        }
    }

    /// The method's path.
    pub fn path(self) -> String {
        format!("/federation.resourcediscovery.{}.DiscoveryService/EstablishStream", self.name())
    }

    /// The type of services.
    pub fn type_url(self) -> String {
        format!("type.googleapis.com/federation.types.{}.FederatedService", self.name())
    }

    /// The number of an operation; the same number means different things in the two versions.
    pub fn operation(self, operation: Operation) -> i32 {
        match (self, operation) {
            (_, Operation::Create) | (Version::V1alpha2, Operation::Update) => 1,
            (Version::V1alpha1, Operation::Update) | (Version::V1alpha2, Operation::Delete) => 2,
            (Version::V1alpha1, Operation::Delete) => 3,
        }
    }
}

impl Role {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Owner => "owner",
            Role::Consumer => "consumer",
        }
    }
}

/// A request: initial, ACK or NACK.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    /// What is asked for.
    pub resource_url: String,
    /// The nonce of the offer that is answered.
    pub nonce: String,
    /// The answer.
    pub status: Option<Status>,
    /// v1alpha2 only.
    pub context: String,
}

impl Ask {
    /// Whether it asks for the first time.
    pub fn is_initial(&self) -> bool {
        !self.resource_url.is_empty() && self.nonce.is_empty() && self.status.is_none()
    }
}

/// A response: one service, whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Offer {
    /// What the answer repeats.
    pub nonce: String,
    /// The stream's type.
    pub resource_url: String,
    /// The key; v1alpha2 only.
    pub resource_id: String,
    /// The service.
    pub resource: Option<Any>,
    /// As on the wire.
    pub operation: i32,
    /// v1alpha2 only.
    pub context: String,
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Its request.
    pub ask: Option<Ask>,
    /// Its response.
    pub offer: Option<Offer>,
    /// Whether a field numbered from 1000 on is in it.
    pub extended: bool,
    /// Its length.
    pub bytes: usize,
}

impl Said {
    /// A request alone.
    pub fn ask(ask: Ask) -> Said {
        Said { ask: Some(ask), ..Said::default() }
    }

    /// A response alone.
    pub fn offer(offer: Offer) -> Said {
        Said { offer: Some(offer), ..Said::default() }
    }

    /// As bytes. In v1alpha1 a message is either a request or a response.
    pub fn encode(&self, version: Version) -> Vec<u8> {
        match version {
            Version::V1alpha1 => match (&self.ask, &self.offer) {
                (Some(a), _) => v1::StreamRequest {
                    resource_url: a.resource_url.clone(),
                    response_nonce: a.nonce.clone(),
                    status: a.status.clone(),
                }
                .encode_to_vec(),
                (None, Some(o)) => v1::StreamResponse {
                    nonce: o.nonce.clone(),
                    resource_url: o.resource_url.clone(),
                    resource: o.resource.clone(),
                    operation: o.operation,
                }
                .encode_to_vec(),
                (None, None) => vec![],
            },
            Version::V1alpha2 => v2::BidirectionalStream {
                request: self.ask.clone().map(|a| v2::StreamRequest {
                    resource_url: a.resource_url,
                    response_nonce: a.nonce,
                    status: a.status,
                    context: a.context,
                }),
                response: self.offer.clone().map(|o| v2::StreamResponse {
                    nonce: o.nonce,
                    resource_url: o.resource_url,
                    resource_id: o.resource_id,
                    resource: o.resource,
                    operation: o.operation,
                    context: o.context,
                }),
            }
            .encode_to_vec(),
        }
    }

    /// As bytes, with a field added that nobody knows, where the version's extensions have theirs.
    pub fn encode_with_unknown(&self, version: Version, content: &[u8]) -> Vec<u8> {
        let unknown = field(UNKNOWN_FIELD, content);
        let mut bytes = self.encode(version);
        if version == Version::V1alpha2 {
            // A second part of a submessage is merged into the first.
            if self.ask.is_some() {
                bytes.extend(field(1, &unknown));
            }
            if self.offer.is_some() {
                bytes.extend(field(2, &unknown));
            }
        }
        bytes.extend(unknown);
        bytes
    }

    /// Reads what somebody of this role says.
    pub fn decode(version: Version, speaker: Role, bytes: &[u8]) -> Result<Said, String> {
        let failed = |e: prost::DecodeError| format!("no {} message: {e}", version.name());
        let said = match (version, speaker) {
            (Version::V1alpha1, Role::Consumer) => {
                let r = v1::StreamRequest::decode(bytes).map_err(failed)?;
                Said::ask(Ask {
                    resource_url: r.resource_url,
                    nonce: r.response_nonce,
                    status: r.status,
                    context: String::new(),
                })
            }
            (Version::V1alpha1, Role::Owner) => {
                let r = v1::StreamResponse::decode(bytes).map_err(failed)?;
                Said::offer(Offer {
                    nonce: r.nonce,
                    resource_url: r.resource_url,
                    resource_id: String::new(),
                    resource: r.resource,
                    operation: r.operation,
                    context: String::new(),
                })
            }
            (Version::V1alpha2, _) => {
                let m = v2::BidirectionalStream::decode(bytes).map_err(failed)?;
                Said {
                    ask: m.request.map(|r| Ask {
                        resource_url: r.resource_url,
                        nonce: r.response_nonce,
                        status: r.status,
                        context: r.context,
                    }),
                    offer: m.response.map(|r| Offer {
                        nonce: r.nonce,
                        resource_url: r.resource_url,
                        resource_id: r.resource_id,
                        resource: r.resource,
                        operation: r.operation,
                        context: r.context,
                    }),
                    ..Said::default()
                }
            }
        };
        Ok(Said { extended: extended(version, bytes), bytes: bytes.len(), ..said })
    }
}

fn extended(version: Version, bytes: &[u8]) -> bool {
    let any = |bytes: &[u8]| fields(bytes).into_iter().flatten().any(|(n, _)| n >= EXTENSIONS_FROM);
    let parts = || fields(bytes).into_iter().flatten().filter(|(n, _)| matches!(n, 1 | 2));
    any(bytes) || (version == Version::V1alpha2 && parts().any(|(_, content)| any(content)))
}

/// A service with what both versions can say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its unique id: `id` of v1alpha1, `name` of v1alpha2.
    pub key: String,
    /// Its name in DNS.
    pub fqdn: String,
    /// Free text.
    pub description: String,
    /// Free words.
    pub tags: Vec<String>,
    /// Key and value; a key may stand twice.
    pub labels: Vec<(String, String)>,
    /// Identities of its servers.
    pub sans: Vec<String>,
    /// One instance each.
    pub protocols: Vec<String>,
    /// Address and port.
    pub endpoints: Vec<(String, u32)>,
    /// Of each instance; v1alpha2 only.
    pub metadata: Vec<(String, String)>,
    /// Of each instance; v1alpha2 only.
    pub selector: Vec<String>,
}

impl Service {
    /// As bytes.
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let Service { key, fqdn, description, tags, sans, .. } = self.clone();
        let labels = self.labels.iter().cloned().collect();
        match version {
            Version::V1alpha1 => v1::FederatedService {
                name: key.clone(),
                description,
                tags,
                labels,
                fqdn,
                id: key,
                san: sans.first().cloned().unwrap_or_default(),
                protocols: self.protocols.clone(),
                endpoints: self
                    .endpoints
                    .iter()
                    .cloned()
                    .map(|(address, port)| v1::Endpoint { address, port })
                    .collect(),
            }
            .encode_to_vec(),
            Version::V1alpha2 => v2::FederatedService {
                name: key,
                description,
                tags,
                labels,
                fqdn,
                endpoints: self
                    .endpoints
                    .iter()
                    .cloned()
                    .map(|(address, port)| v2::Endpoint { address, port, ..v2::Endpoint::default() })
                    .collect(),
                sans,
                instances: self.protocols.iter().enumerate().map(|(at, p)| self.instance(at, p)).collect(),
            }
            .encode_to_vec(),
        }
    }

    fn instance(&self, at: usize, protocol: &str) -> v2::Instance {
        v2::Instance {
            id: format!("i{at}"),
            protocol: protocol.to_owned(),
            metadata: self.metadata.iter().cloned().collect(),
            endpoint_selector: self.selector.clone(),
            description: String::new(),
        }
    }

    /// Reads one.
    pub fn decode(version: Version, bytes: &[u8]) -> Result<Service, String> {
        let failed = |e: prost::DecodeError| format!("no FederatedService of {}: {e}", version.name());
        Ok(match version {
            Version::V1alpha1 => {
                let s = v1::FederatedService::decode(bytes).map_err(failed)?;
                Service {
                    key: s.id,
                    fqdn: s.fqdn,
                    description: s.description,
                    tags: s.tags,
                    labels: s.labels.into_iter().collect(),
                    sans: Some(s.san).filter(|san| !san.is_empty()).into_iter().collect(),
                    protocols: s.protocols,
                    endpoints: s.endpoints.into_iter().map(|e| (e.address, e.port)).collect(),
                    ..Service::default()
                }
            }
            Version::V1alpha2 => {
                let s = v2::FederatedService::decode(bytes).map_err(failed)?;
                Service {
                    key: s.name,
                    fqdn: s.fqdn,
                    description: s.description,
                    tags: s.tags,
                    labels: s.labels.into_iter().collect(),
                    sans: s.sans,
                    metadata: s.instances.iter().flat_map(|i| i.metadata.clone()).collect(),
                    selector: s.instances.iter().flat_map(|i| i.endpoint_selector.clone()).collect(),
                    protocols: s.instances.into_iter().map(|i| i.protocol).collect(),
                    endpoints: s.endpoints.into_iter().map(|e| (e.address, e.port)).collect(),
                }
            }
        })
    }

    /// What the text requires and this service lacks.
    pub fn lacks(&self) -> Vec<&'static str> {
        let complete = |(address, port): &(String, u32)| !address.is_empty() && (1..=65_535).contains(port);
        let found = [
            (!self.key.is_empty(), "its id"),
            (!self.fqdn.is_empty(), "fqdn"),
            (!self.sans.is_empty(), "a SAN"),
            (!self.protocols.is_empty(), "a protocol"),
            (!self.endpoints.is_empty(), "endpoints"),
            (self.endpoints.iter().all(complete), "address and port of each endpoint"),
        ];
        found.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_two_is_update_in_one_version_and_delete_in_the_other() {
        assert_eq!(Version::V1alpha1.operation(Operation::Update), 2);
        assert_eq!(Version::V1alpha2.operation(Operation::Delete), 2);
    }

    #[test]
    fn an_unknown_field_changes_nothing_but_that_it_is_seen() {
        for version in [Version::V1alpha1, Version::V1alpha2] {
            let ask = Said::ask(Ask { resource_url: version.type_url(), ..Ask::default() });
            let plain = Said::decode(version, Role::Consumer, &ask.encode(version)).unwrap();
            let bytes = ask.encode_with_unknown(version, b"?");
            let with = Said::decode(version, Role::Consumer, &bytes).unwrap();
            assert_eq!((plain.ask, plain.extended), (ask.ask.clone(), false));
            assert_eq!((with.ask, with.extended), (ask.ask, true));
        }
    }

    #[test]
    fn services_survive_both_versions_and_what_is_missing_is_named() {
        let service = Service {
            key: "k".into(),
            fqdn: "k.example".into(),
            sans: vec!["spiffe://x/y".into()],
            protocols: vec!["http".into()],
            endpoints: vec![("192.0.2.1".into(), 443)],
            ..Service::default()
        };
        for version in [Version::V1alpha1, Version::V1alpha2] {
            assert_eq!(Service::decode(version, &service.encode(version)).unwrap(), service);
        }
        assert!(service.lacks().is_empty());
        assert_eq!(Service { endpoints: vec![("a".into(), 0)], ..service }.lacks().len(), 1);
        assert_eq!(Service::default().lacks().len(), 5);
    }
}
