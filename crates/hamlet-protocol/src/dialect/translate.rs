//! `federation.types.v1alpha1.FederatedService` to and from our own service (protocol text, 2.4).
//! *Hardened to untrusted peer*: the result is at most a small multiple of what came.
//!
//! [`up`] says a v1alpha1 resource in v1alpha2's words without judging it, so that one set of
//! rules ([`super::service::decode`], import policy) judges both, and what is stored and compared
//! has one form; [`field`] gives refusals v1alpha1's field names again. It is lossless. [`down`]
//! is not: what v1alpha1 can't say is an error with the reason, never said wrong.

use std::collections::BTreeMap;

use bytes::Bytes;
use hamlet_core::service::limits;
use hamlet_core::{FederatedService, Protocol, Rejection, RejectionCode};
use prost::Message;

use crate::wire::federation::types::{v1alpha1 as v1, v1alpha2 as v2};

/// Type URL of the v1alpha1 resource, which is also the stream's `resource_url`.
pub const TYPE_URL: &str = "type.googleapis.com/federation.types.v1alpha1.FederatedService";

/// Translates an encoded v1alpha1 resource: its key, which is the `id`, and an encoded v1alpha2
/// resource. The only error is bytes that are no such message.
///
/// The id becomes name and SNI; each protocol an instance, under the protocol's own word; `san`
/// the only SAN. The human-readable name stays as the first instance's description.
pub fn up(value: &[u8]) -> Result<(String, Bytes), Rejection> {
    let service = v1::FederatedService::decode(value).map_err(|_| {
        let text = "not a v1alpha1 FederatedService; check the encoder";
        Rejection::new(RejectionCode::Malformed, "resource-undecodable", "resource.value", text)
    })?;
    // One more than may be, so that the rules see too many of them.
    let protocols = service.protocols.iter().take(limits::INSTANCES + 1);
    let mut names: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut instances: Vec<_> = protocols.map(|p| instance(p, &service.id, &mut names)).collect();
    if let Some(first) = instances.first_mut() {
        first.description = service.name;
    }
    let endpoints = service.endpoints.into_iter().map(|e| v2::federated_service::Endpoint {
        address: e.address,
        port: e.port,
        ..v2::federated_service::Endpoint::default()
    });
    let message = v2::FederatedService {
        name: service.id.clone(),
        description: service.description,
        tags: service.tags,
        labels: service.labels,
        fqdn: service.fqdn,
        endpoints: endpoints.collect(),
        sans: if service.san.is_empty() { vec![] } else { vec![service.san] },
        instances,
    };
    Ok((service.id, message.encode_to_vec().into()))
}

fn instance(
    protocol: &str,
    id: &str,
    names: &mut BTreeMap<&'static str, usize>,
) -> v2::federated_service::Instance {
    // One that no rule knows gets a name that is valid, so that the protocol is what is refused.
    let word = Protocol::parse(protocol).map_or("unknown", Protocol::as_str);
    let count = names.entry(word).or_default();
    *count += 1;
    let name = word.to_ascii_lowercase();
    v2::federated_service::Instance {
        id: if *count == 1 { name } else { format!("{name}-{count}") },
        protocol: protocol.to_owned(),
        metadata: [("SNI".to_owned(), id.to_owned())].into(),
        ..v2::federated_service::Instance::default()
    }
}

/// v1alpha1's name for what v1alpha2 calls `field`.
pub fn field(field: &str) -> String {
    let indexed = |list: &str| {
        let rest = field.strip_prefix(list)?.strip_prefix('[')?;
        rest.split_once(']')
    };
    if let Some((i, member)) = indexed("instances") {
        return match member {
            ".metadata" | ".metadata.SNI" => "id".to_owned(),
            ".description" => "name".to_owned(),
            _ => format!("protocols[{i}]"),
        };
    }
    match field {
        "instances" => "protocols".to_owned(),
        "sans" => "san".to_owned(),
        "resource_id" | "name" => "id".to_owned(),
        _ if indexed("sans").is_some() => "san".to_owned(),
        _ => field.to_owned(),
    }
}

/// Says a service in v1alpha1: key and encoded resource, or why it can't be said there. Ports,
/// instance ids, metadata other than SNI, and descriptions and labels of endpoints are left out;
/// a consumer of v1alpha1 knows of none.
pub fn down(service: &FederatedService) -> Result<(String, Bytes), String> {
    let san = service.sans.first().ok_or("it has no SAN, which v1alpha1 requires")?;
    if service.endpoints.is_empty() {
        return Err("it has no endpoint, which v1alpha1 requires".to_owned());
    }
    let first = service.instances.first().ok_or("it has no instance, so no protocol to name")?;
    if let Some(other) = service.instances.iter().find(|i| i.sni != first.sni) {
        return Err(format!(
            "its instances {} and {} need different SNIs, and v1alpha1 has one for each service; declare a service for each",
            first.id, other.id
        ));
    }
    let all = service.endpoints.len();
    if let Some(some) = service.instances.iter().find(|i| service.endpoints_of(i).len() != all) {
        return Err(format!(
            "its instance {} belongs to some of the endpoints only, and in v1alpha1 all belong to all",
            some.id
        ));
    }
    let id = first.sni.as_ref().map_or_else(|| service.name.to_string(), ToString::to_string);
    // What `up` made of a v1alpha1 service has the id as its name, and its own name there.
    let name = if service.name.as_str() == id { first.description.clone() } else { service.name.to_string() };
    let endpoints = service.endpoints.iter().map(|e| v1::federated_service::Endpoint {
        address: e.address.to_string(),
        port: e.port.get().into(),
    });
    let message = v1::FederatedService {
        name,
        description: service.description.clone(),
        tags: service.tags.clone(),
        labels: service.labels.clone(),
        fqdn: service.fqdn.to_string(),
        id: id.clone(),
        san: san.to_string(),
        protocols: service.instances.iter().map(|i| i.protocol.to_string()).collect(),
        endpoints: endpoints.collect(),
    };
    Ok((id, message.encode_to_vec().into()))
}
