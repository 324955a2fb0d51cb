//! `federation.types.v1alpha2.FederatedService` to and from [`FederatedService`].
//! *Hardened to untrusted peer*: sizes are checked before anything is built from them, and every
//! refusal names its field.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use bytes::Bytes;
use hamlet_core::service::limits;
use hamlet_core::{
    DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, Protocol, Rejection,
    RejectionCode, ServiceName, SpiffeId,
};
use prost::Message;

use crate::wire::federation::types::v1alpha2 as pb;

/// Type URL of the resource, which is also the stream's `resource_url`.
pub const TYPE_URL: &str = "type.googleapis.com/federation.types.v1alpha2.FederatedService";

/// Encodes deterministically: fields in order of their numbers, maps in order of their keys.
pub fn encode(service: &FederatedService) -> Bytes {
    let endpoint = |e: &Endpoint| pb::federated_service::Endpoint {
        address: e.address.to_string(),
        port: e.port.get().into(),
        labels: e.labels.clone(),
        description: e.description.clone(),
    };
    let message = pb::FederatedService {
        name: service.name.to_string(),
        description: service.description.clone(),
        tags: service.tags.clone(),
        labels: service.labels.clone(),
        fqdn: service.fqdn.to_string(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
        sans: service.sans.iter().map(ToString::to_string).collect(),
        instances: service.instances.iter().map(encode_instance).collect(),
    };
    message.encode_to_vec().into()
}

fn encode_instance(i: &Instance) -> pb::federated_service::Instance {
    let mut metadata = i.metadata.clone();
    let reserved = [
        ("SNI", i.sni.as_ref().map(ToString::to_string)),
        ("HOSTNAME", i.hostname.clone()),
        ("PORT", i.port.map(|p| p.to_string())),
    ];
    for (key, value) in reserved {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
    }
    pb::federated_service::Instance {
        id: i.id.to_string(),
        protocol: i.protocol.to_string(),
        metadata,
        endpoint_selector: i.endpoint_selector.clone(),
        description: i.description.clone(),
    }
}

fn malformed(rule: &str, field: impl Into<String>, message: impl AsRef<str>) -> Rejection {
    Rejection::new(RejectionCode::Malformed, rule, field, message)
}

fn too_many(field: &str, n: usize, max: usize) -> Result<(), Rejection> {
    if n <= max {
        return Ok(());
    }
    let message = format!("{n} entries; at most {max} are taken");
    Err(Rejection::new(RejectionCode::Quota, "too-many-entries", field, message))
}

fn too_long(field: &str, text: &str, max: usize) -> Result<(), Rejection> {
    if text.len() <= max {
        return Ok(());
    }
    let message = format!("{} bytes; at most {max} are taken", text.len());
    Err(Rejection::new(RejectionCode::Quota, "text-too-long", field, message))
}

fn texts(field: &str, texts: &[String]) -> Result<(), Rejection> {
    too_many(field, texts.len(), limits::TAGS)?;
    texts.iter().try_for_each(|t| too_long(field, t, limits::LABEL_VALUE_BYTES))
}

fn map(field: &str, map: &BTreeMap<String, String>) -> Result<(), Rejection> {
    too_many(field, map.len(), limits::LABELS)?;
    map.iter().try_for_each(|(k, v)| {
        too_long(field, k, limits::LABEL_KEY_BYTES)?;
        too_long(field, v, limits::LABEL_VALUE_BYTES)
    })
}

/// Decodes and checks the value of the entry under `key`. The key, not the message's name, makes
/// the name here: it is what is unique on the wire (known peers put the fqdn into it).
pub fn decode(key: &str, value: &[u8]) -> Result<FederatedService, Rejection> {
    let message = pb::FederatedService::decode(value).map_err(|_| {
        malformed("resource-undecodable", "resource.value", "not a FederatedService; check the encoder")
    })?;
    let name = ServiceName::parse(key).map_err(|e| malformed("name", "resource_id", e.to_string()))?;
    if message.name.is_empty() {
        return Err(malformed("name-missing", "name", "required; set the service's unique name"));
    }
    too_long("name", &message.name, limits::NAME_BYTES)?;
    too_long("description", &message.description, limits::DESCRIPTION_BYTES)?;
    texts("tags", &message.tags)?;
    map("labels", &message.labels)?;
    too_many("endpoints", message.endpoints.len(), limits::ENDPOINTS)?;
    too_many("instances", message.instances.len(), limits::INSTANCES)?;
    too_many("sans", message.sans.len(), limits::SANS)?;
    let fqdn = Fqdn::parse(&message.fqdn).map_err(|e| malformed("fqdn", "fqdn", e.to_string()))?;
    if message.endpoints.is_empty() {
        return Err(malformed(
            "endpoints-missing",
            "endpoints",
            "required; offer at least one ingress address",
        ));
    }
    if message.instances.is_empty() {
        return Err(malformed("instances-missing", "instances", "required; offer at least one protocol"));
    }
    let endpoints = message.endpoints.into_iter().enumerate().map(|(i, e)| decode_endpoint(i, e));
    let sans = message.sans.iter().enumerate().map(|(i, san)| {
        let id = SpiffeId::parse(san.strip_prefix("URI:").unwrap_or(san));
        id.map_err(|e| malformed("san", format!("sans[{i}]"), e.to_string()))
    });
    let instances = message.instances.into_iter().enumerate().map(|(i, inst)| decode_instance(i, inst));
    let service = FederatedService {
        name,
        fqdn,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        sans: sans.collect::<Result<_, _>>()?,
        instances: instances.collect::<Result<Vec<Instance>, _>>()?,
        description: message.description,
        tags: message.tags,
        labels: message.labels,
    };
    let mut ids: Vec<&DnsLabel> = service.instances.iter().map(|i| &i.id).collect();
    ids.sort();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("the id {} is used twice; ids are unique within a service", pair[0]);
        return Err(malformed("instance-id-duplicate", "instances", message));
    }
    Ok(service)
}

fn decode_endpoint(i: usize, e: pb::federated_service::Endpoint) -> Result<Endpoint, Rejection> {
    let field = |name: &str| format!("endpoints[{i}].{name}");
    texts(&field("labels"), &e.labels)?;
    too_long(&field("description"), &e.description, limits::DESCRIPTION_BYTES)?;
    let address = EndpointAddress::parse(&e.address)
        .map_err(|err| malformed("endpoint-address", field("address"), err.to_string()))?;
    let port = u16::try_from(e.port).ok().and_then(NonZeroU16::new);
    let port = port.ok_or_else(|| malformed("endpoint-port", field("port"), "not a port; use 1 to 65535"))?;
    Ok(Endpoint { address, port, labels: e.labels, description: e.description })
}

fn decode_instance(i: usize, inst: pb::federated_service::Instance) -> Result<Instance, Rejection> {
    let field = |name: &str| format!("instances[{i}].{name}");
    map(&field("metadata"), &inst.metadata)?;
    texts(&field("endpoint_selector"), &inst.endpoint_selector)?;
    too_long(&field("description"), &inst.description, limits::DESCRIPTION_BYTES)?;
    let id = DnsLabel::parse(&inst.id).map_err(|e| malformed("instance-id", field("id"), e.to_string()))?;
    let protocol = Protocol::parse(&inst.protocol).ok_or_else(|| {
        let known = Protocol::ALL.map(Protocol::as_str).join(", ");
        malformed("protocol", field("protocol"), format!("unknown protocol; use one of {known}"))
    })?;
    let mut reserved: BTreeMap<&str, String> = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    for (key, value) in inst.metadata {
        match ["SNI", "HOSTNAME", "PORT"].into_iter().find(|r| r.eq_ignore_ascii_case(&key)) {
            Some(name) => {
                if reserved.insert(name, value).is_some() {
                    let message = format!("{name} stands twice in different case; keep one");
                    return Err(malformed("metadata-duplicate", field("metadata"), message));
                }
            }
            None => {
                metadata.insert(key, value);
            }
        }
    }
    let metadata_field = |name: &str| field(&format!("metadata.{name}"));
    let sni = reserved
        .get("SNI")
        .map(|text| Fqdn::parse(text).map_err(|e| malformed("sni", metadata_field("SNI"), e.to_string())));
    let port = reserved.get("PORT").map(|text| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let port = text.parse::<u16>().ok().filter(|_| digits).and_then(NonZeroU16::new);
        port.ok_or_else(|| malformed("service-port", metadata_field("PORT"), "not a port; use 1 to 65535"))
    });
    let hostname = reserved.get("HOSTNAME").map(|text| {
        let name =
            Fqdn::parse(text).map_err(|e| malformed("hostname", metadata_field("HOSTNAME"), e.to_string()));
        name.map(|n| n.to_string())
    });
    Ok(Instance {
        id,
        protocol,
        sni: sni.transpose()?,
        hostname: hostname.transpose()?,
        port: port.transpose()?,
        metadata,
        endpoint_selector: inst.endpoint_selector,
        description: inst.description,
    })
}
