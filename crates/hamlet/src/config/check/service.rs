//! The Service documents, checked: what runs here.
//!
//! Invariant: over all services every name, each fqdn and each `<id>.<fqdn>`, stands once, and each
//! can be a TLS server name.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use hamlet_core::{CallerForm, DnsLabel, Fqdn, LocalInstance, LocalService, Protocol, ServiceName};

use super::Check;
use crate::config::model::Limits;
use crate::config::problem::Mark;
use crate::config::raw::{Service, ServiceInstance};

/// The services that are right, and the names of all.
pub(super) struct Services {
    pub(super) list: Vec<Arc<LocalService>>,
    /// Every declared name, right or wrong.
    pub(super) names: std::collections::HashSet<String>,
}

/// Who has a DNS name already.
type Taken = HashMap<Fqdn, (String, Mark)>;

impl Check<'_> {
    pub(super) fn services(&mut self, raw: Vec<Service>, limits: Option<&Limits>) -> Services {
        let mut taken = Taken::with_capacity(raw.len() * 2);
        let mut list = Vec::with_capacity(raw.len());
        let mut names = std::collections::HashSet::with_capacity(raw.len());
        for raw in raw {
            names.extend(raw.meta.name.as_ref().map(|n| n.value.clone()));
            let Some(service) = self.service(&raw, &mut taken) else { continue };
            let bytes = offer_bytes(&service);
            if let Some(limits) = limits.filter(|l| bytes > l.message_bytes) {
                let message = format!(
                    "the offer will have about {bytes} bytes; the limit is {} and peers will refuse it",
                    limits.message_bytes
                );
                let path = raw.meta.label.clone();
                self.problems.warning(
                    raw.meta.mark,
                    &path,
                    message,
                    "shorten the description, the labels or the list of instances",
                );
            }
            list.push(Arc::new(service));
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Services { list, names }
    }

    fn service(&mut self, raw: &Service, taken: &mut Taken) -> Option<LocalService> {
        let written = self.written_instances(raw);
        if let Some(at) = &raw.fqdn {
            if !at.value.is_host_name() {
                let message = format!("{} can't be a TLS server name because of the '_'", at.value);
                self.error(at, message, "use letters, digits, '-' and '.' only");
                return None;
            }
            if !self.claim(taken, &at.value, raw, at.mark, &at.path) {
                return None;
            }
        }
        let mut ids: HashMap<DnsLabel, Mark> = HashMap::new();
        let mut instances = Vec::with_capacity(written.len());
        for instance in written {
            let id = self.instance_id(instance, &mut ids);
            let port = self.instance_port(instance);
            self.instance_caller(instance);
            let (Some(id), Some(fqdn)) = (id, &raw.fqdn) else { continue };
            let (mark, path) = match &instance.id {
                Some(at) => (at.mark, at.path.as_str()),
                None if raw.instances_mark.is_some() => (instance.mark, instance.path.as_str()),
                None => (fqdn.mark, fqdn.path.as_str()),
            };
            let sni = match fqdn.value.child(&id) {
                Ok(sni) => sni,
                Err(why) => {
                    let message =
                        format!("the instance's own name {id}.{} is not possible: {why}", fqdn.value);
                    self.problems.error(mark, path, message, "shorten the id or the fqdn");
                    continue;
                }
            };
            self.claim(taken, &sni, raw, mark, path);
            instances.push(LocalInstance {
                id,
                protocol: instance.protocol.as_ref()?.value,
                port: port?,
                sni,
                backends: instance.backends.clone(),
                caller: instance.caller.as_ref().map_or(CallerForm::None, |c| c.value),
            });
        }
        Some(LocalService {
            name: ServiceName::parse(&raw.meta.name.as_ref()?.value).ok()?,
            fqdn: raw.fqdn.as_ref()?.value.clone(),
            description: raw.description.clone().unwrap_or_default(),
            tags: raw.tags.clone(),
            labels: raw.meta.labels.iter().cloned().collect(),
            instances,
        })
    }

    /// The instances of either form; says so if it is both or neither.
    fn written_instances<'r>(&mut self, raw: &'r Service) -> Vec<&'r ServiceInstance> {
        let path = |key: &str| format!("{} spec.{key}", raw.meta.label);
        match (raw.instances_mark, raw.short) {
            (Some(_), Some((key, mark))) => {
                let message = format!("`{key}` stands beside `instances`: the service has two descriptions");
                let fix = format!("move `{key}` into an item of `instances`, or remove `instances`");
                self.problems.error(mark, &path(key), message, fix);
                raw.instances.iter().collect()
            }
            (Some(_), None) => raw.instances.iter().collect(),
            (None, Some(_)) => {
                for (there, key, example) in [
                    (raw.single.has_protocol, "protocol", "HTTP"),
                    (raw.single.has_backends, "backends", "[\"127.0.0.1:8080\"]"),
                ] {
                    if !there {
                        let message = format!("`{key}` is missing");
                        self.problems.error(
                            raw.single.mark,
                            &path(key),
                            message,
                            format!("add `{key}: {example}`"),
                        );
                    }
                }
                vec![&raw.single]
            }
            (None, None) => {
                let message = "the service has no instance";
                let fix =
                    "add `protocol: HTTP`, `port: 8080` and `backends: [\"127.0.0.1:8080\"]`, or `instances`";
                self.problems.error(raw.meta.spec, &path("instances"), message, fix);
                Vec::new()
            }
        }
    }

    fn instance_id(
        &mut self,
        instance: &ServiceInstance,
        ids: &mut HashMap<DnsLabel, Mark>,
    ) -> Option<DnsLabel> {
        let id = match &instance.id {
            Some(at) => at.value.clone(),
            // A wrong id was reported; the protocol's name would only lead to a second report.
            None if instance.has_id => return None,
            None => DnsLabel::parse(instance.protocol.as_ref()?.value.as_str()).ok()?,
        };
        let mark = instance.id.as_ref().map_or(instance.mark, |at| at.mark);
        if let Some(first) = ids.get(&id) {
            let message = format!("the instance id `{id}` stands twice; the first is on line {}", first.line);
            self.problems.error(
                mark,
                &format!("{}.id", instance.path),
                message,
                "give each instance an `id` of its own",
            );
            return None;
        }
        ids.insert(id.clone(), mark);
        Some(id)
    }

    fn instance_port(&mut self, instance: &ServiceInstance) -> Option<NonZeroU16> {
        if instance.has_port {
            return instance.port.as_ref().map(|at| at.value);
        }
        let protocol = instance.protocol.as_ref()?;
        let port = protocol.value.default_port();
        if port.is_none() {
            let message = format!("`port` is missing: {} has no usual one", protocol.value);
            let path = format!("{}.port", instance.path);
            self.problems.error(
                protocol.mark,
                &path,
                message,
                "add `port:` with the port that consumers use",
            );
        }
        port
    }

    fn instance_caller(&mut self, instance: &ServiceInstance) {
        let (Some(caller), Some(protocol)) = (&instance.caller, &instance.protocol) else { return };
        if caller.value == CallerForm::HttpHeader && !protocol.value.is_http() {
            let message = format!("a request header can't be added to {}", protocol.value);
            let known: Vec<&str> = Protocol::ALL.iter().filter(|p| p.is_http()).map(|p| p.as_str()).collect();
            let fix = format!("write `caller: proxy-v2`, or one of the protocols {}", known.join(", "));
            self.error(caller, message, fix);
        }
    }

    /// Takes a name; reports one that another service, or another instance, has.
    fn claim(&mut self, taken: &mut Taken, name: &Fqdn, raw: &Service, mark: Mark, path: &str) -> bool {
        if let Some((other, first)) = taken.get(name) {
            let message = format!("the name {name} belongs to {other} already ({})", self.place(*first));
            self.problems.error(
                mark,
                path,
                message,
                "give each service an fqdn of its own, and each instance an id",
            );
            return false;
        }
        taken.insert(name.clone(), (raw.meta.label.clone(), mark));
        true
    }
}

/// About how large the offer will be on the wire, without endpoints and identities.
fn offer_bytes(service: &LocalService) -> usize {
    /// Field tags, lengths and the fixed texts of one entry.
    const OVERHEAD: usize = 16;
    let labels: usize = service.labels.iter().map(|(k, v)| k.len() + v.len() + OVERHEAD).sum();
    let tags: usize = service.tags.iter().map(|t| t.len() + 4).sum();
    let instances: usize =
        service.instances.iter().map(|i| i.id.as_str().len() + i.sni.as_str().len() + 4 * OVERHEAD).sum();
    service.fqdn.as_str().len() + service.description.len() + labels + tags + instances + OVERHEAD
}
