//! Import policy: what we accept from a peer, and what it becomes here. *Hardened to untrusted
//! peer.* Pure; default deny; the first rule that an offer breaks is named in the rejection.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::address::{AddressRange, PortRange};
use crate::name::{Fqdn, NameSuffix, PeerName};
use crate::rejection::{Rejection, RejectionCode};
use crate::service::{
    Endpoint, FederatedService, ImportedInstance, ImportedService, Instance, NotProgrammed, ServiceId,
};
use crate::spiffe::{SpiffeId, TrustDomain};

/// Zones that no peer may ever name, whatever an import says (threat T1).
pub const RESERVED_ZONES: &[&str] =
    &["localhost", "local", "svc", "cluster.local", "arpa", "invalid", "onion", "metadata.google.internal"];

/// What we accept from one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRules {
    /// The peer.
    pub peer: PeerName,
    /// Its trust domain: every SAN must lie in it.
    pub trust_domain: TrustDomain,
    /// Suffixes that each derived name must lie under.
    pub suffixes: Vec<NameSuffix>,
    /// The exact SANs allowed. Never empty in a checked configuration: the peer's gateway ids.
    pub sans: Vec<SpiffeId>,
    /// Address ranges of endpoints. Empty: every address that isn't special-purpose.
    pub ranges: Vec<AddressRange>,
    /// Ports of endpoints.
    pub endpoint_ports: Vec<PortRange>,
    /// Service ports for owners that name none, by service name; `*` is for all others.
    pub service_ports: BTreeMap<String, NonZeroU16>,
}

/// Whether a name lies in a zone that no peer may name.
pub fn reserved_zone(name: &Fqdn) -> Option<&'static str> {
    RESERVED_ZONES.iter().copied().find(|zone| {
        name.as_str().strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn refuse(rule: &str, field: String, message: String) -> Rejection {
    Rejection::new(RejectionCode::Policy, rule, field, message)
}

impl ImportRules {
    /// Admits an offer and says what it becomes here, or names the rule it breaks.
    /// Whether a name already belongs to somebody else is the name table's business
    /// ([`crate::lease`]), not this function's.
    pub fn admit(&self, offer: &FederatedService) -> Result<ImportedService, Rejection> {
        self.check_name(&offer.fqdn, "fqdn")?;
        self.check_sans(&offer.sans)?;
        for (i, endpoint) in offer.endpoints.iter().enumerate() {
            self.check_endpoint(endpoint, i)?;
        }
        let mut instances = Vec::with_capacity(offer.instances.len());
        for (i, instance) in offer.instances.iter().enumerate() {
            let fqdn = offer.fqdn.child(&instance.id).map_err(|e| {
                let field = format!("instances[{i}].id");
                Rejection::new(RejectionCode::Malformed, "instance-name", field, e.to_string())
            })?;
            self.check_name(&fqdn, &format!("instances[{i}].id"))?;
            instances.push(self.instance(offer, instance, fqdn));
        }
        Ok(ImportedService {
            id: ServiceId { owner: self.peer.clone(), name: offer.name.clone() },
            fqdn: offer.fqdn.clone(),
            description: offer.description.clone(),
            tags: offer.tags.clone(),
            labels: offer.labels.clone(),
            sans: offer.sans.clone(),
            instances,
        })
    }

    fn instance(&self, offer: &FederatedService, instance: &Instance, fqdn: Fqdn) -> ImportedInstance {
        let port = instance
            .port
            .or_else(|| self.service_ports.get(offer.name.as_str()).copied())
            .or_else(|| self.service_ports.get("*").copied())
            .or_else(|| instance.protocol.default_port());
        let not_programmed = match (&instance.sni, port) {
            (None, _) => Some(NotProgrammed::ClearTextRefused),
            (_, None) => Some(NotProgrammed::PortUnknown),
            _ => None,
        };
        ImportedInstance {
            id: instance.id.clone(),
            fqdn,
            protocol: instance.protocol,
            port,
            sni: instance.sni.clone(),
            hostname: instance.hostname.clone(),
            endpoints: offer.endpoints_of(instance).into_iter().map(Endpoint::socket_addr).collect(),
            not_programmed,
        }
    }

    fn check_name(&self, name: &Fqdn, field: &str) -> Result<(), Rejection> {
        if let Some(zone) = reserved_zone(name) {
            let message =
                format!("{name} lies in the reserved zone {zone}; offer it under a domain of yours");
            return Err(refuse("name-reserved", field.into(), message));
        }
        if !self.suffixes.iter().any(|s| s.contains(name)) {
            let allowed: Vec<&str> = self.suffixes.iter().map(NameSuffix::as_str).collect();
            let message = format!(
                "{name} lies under none of the suffixes we accept ({}); rename it or have the importing mesh add the suffix",
                allowed.join(", ")
            );
            return Err(refuse("name-outside-suffixes", field.into(), message));
        }
        Ok(())
    }

    fn check_sans(&self, sans: &[SpiffeId]) -> Result<(), Rejection> {
        if sans.is_empty() {
            let message = "the offer names no identity; set the gateway's SPIFFE id".to_owned();
            return Err(refuse("san-missing", "sans".into(), message));
        }
        for (i, san) in sans.iter().enumerate() {
            let field = format!("sans[{i}]");
            if san.trust_domain() != &self.trust_domain {
                let message = format!(
                    "{san} is outside the trust domain {}; offer identities of your own",
                    self.trust_domain
                );
                return Err(refuse("san-outside-trust-domain", field, message));
            }
            if !self.sans.contains(san) {
                let message =
                    format!("{san} is not among the gateway ids we accept; have the importing mesh add it");
                return Err(refuse("san-not-accepted", field, message));
            }
        }
        Ok(())
    }

    fn check_endpoint(&self, endpoint: &Endpoint, i: usize) -> Result<(), Rejection> {
        let address = endpoint.address;
        let field = format!("endpoints[{i}].address");
        if address.never_an_endpoint() {
            let message = format!("{address} can never be an ingress; offer your gateway's address");
            return Err(refuse("endpoint-address-denied", field, message));
        }
        if self.ranges.is_empty() {
            if let Some(block) = address.special_purpose() {
                let message = format!(
                    "{address} is a special-purpose address ({block}); have the importing mesh list its range"
                );
                return Err(refuse("endpoint-address-denied", field, message));
            }
        } else if !self.ranges.iter().any(|r| r.contains(address.ip())) {
            let message = format!("{address} lies in none of the ranges that the importing mesh accepts");
            return Err(refuse("endpoint-address-denied", field, message));
        }
        let port = endpoint.port.get();
        if !self.endpoint_ports.iter().any(|r| r.contains(port)) {
            let allowed: Vec<String> = self.endpoint_ports.iter().map(ToString::to_string).collect();
            let message = format!("port {port} is not among the accepted ports ({})", allowed.join(", "));
            return Err(refuse("endpoint-port-denied", format!("endpoints[{i}].port"), message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::EndpointAddress;
    use crate::name::DnsLabel;
    use crate::service::{Protocol, ServiceName};

    fn rules() -> ImportRules {
        ImportRules {
            peer: PeerName::parse("acme").unwrap(),
            trust_domain: TrustDomain::parse("acme.example").unwrap(),
            suffixes: vec![NameSuffix::parse("acme.example").unwrap()],
            sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
            ranges: vec![],
            endpoint_ports: vec![PortRange::parse("443").unwrap()],
            service_ports: BTreeMap::new(),
        }
    }

    fn offer() -> FederatedService {
        FederatedService {
            name: ServiceName::parse("ledger").unwrap(),
            fqdn: Fqdn::parse("ledger.acme.example").unwrap(),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            endpoints: vec![Endpoint {
                address: EndpointAddress::parse("8.8.4.4").unwrap(),
                port: NonZeroU16::new(443).unwrap(),
                labels: vec![],
                description: String::new(),
            }],
            sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
            instances: vec![Instance {
                id: DnsLabel::parse("http").unwrap(),
                protocol: Protocol::Http,
                sni: Some(Fqdn::parse("http.ledger.acme.example").unwrap()),
                hostname: None,
                port: NonZeroU16::new(80),
                metadata: BTreeMap::new(),
                endpoint_selector: vec![],
                description: String::new(),
            }],
        }
    }

    fn rule_of(change: impl FnOnce(&mut FederatedService)) -> String {
        let mut changed = offer();
        change(&mut changed);
        match rules().admit(&changed) {
            Ok(_) => "admitted".into(),
            Err(rejection) => rejection.rule,
        }
    }

    #[test]
    fn a_proper_offer_is_admitted_with_its_names_port_and_endpoints() {
        let imported = rules().admit(&offer()).unwrap();
        let names: Vec<&str> = imported.names().map(Fqdn::as_str).collect();
        assert_eq!(names, ["ledger.acme.example", "http.ledger.acme.example"]);
        assert_eq!(imported.instances[0].port, NonZeroU16::new(80));
        assert_eq!(imported.instances[0].endpoints, ["8.8.4.4:443".parse().unwrap()]);
        assert_eq!(imported.instances[0].not_programmed, None);
    }

    #[test]
    fn each_breach_names_its_rule() {
        let fqdn = |text: &'static str| move |o: &mut FederatedService| o.fqdn = Fqdn::parse(text).unwrap();
        let san = |text: &'static str| {
            move |o: &mut FederatedService| o.sans = vec![SpiffeId::parse(text).unwrap()]
        };
        let address = |text: &'static str| {
            move |o: &mut FederatedService| o.endpoints[0].address = EndpointAddress::parse(text).unwrap()
        };
        assert_eq!(rule_of(fqdn("ledger.globex.example")), "name-outside-suffixes");
        assert_eq!(rule_of(fqdn("ledger.notacme.example")), "name-outside-suffixes");
        assert_eq!(rule_of(fqdn("acme.example.evil.example")), "name-outside-suffixes");
        assert_eq!(rule_of(fqdn("kubernetes.default.svc")), "name-reserved");
        assert_eq!(rule_of(fqdn("a.b.svc.cluster.local")), "name-reserved");
        assert_eq!(rule_of(fqdn("x.localhost")), "name-reserved");
        assert_eq!(rule_of(fqdn("other.acme.example")), "admitted");
        assert_eq!(rule_of(|o| o.sans.clear()), "san-missing");
        assert_eq!(rule_of(san("spiffe://globex.example/gateway")), "san-outside-trust-domain");
        assert_eq!(rule_of(san("spiffe://acme.example/other")), "san-not-accepted");
        for denied in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "64:ff9b::a00:1"] {
            assert_eq!(rule_of(address(denied)), "endpoint-address-denied", "{denied}");
        }
        assert_eq!(rule_of(address("8.8.8.8")), "admitted");
        assert_eq!(rule_of(|o| o.endpoints[0].port = NonZeroU16::new(22).unwrap()), "endpoint-port-denied");
    }

    #[test]
    fn listed_ranges_admit_loopback_but_never_link_local() {
        let mut rules = rules();
        rules.ranges = vec![AddressRange::parse("0.0.0.0/0").unwrap()];
        let mut o = offer();
        o.endpoints[0].address = EndpointAddress::parse("127.0.0.1").unwrap();
        assert!(rules.admit(&o).is_ok());
        o.endpoints[0].address = EndpointAddress::parse("169.254.169.254").unwrap();
        assert_eq!(rules.admit(&o).unwrap_err().rule, "endpoint-address-denied");
    }

    #[test]
    fn an_instance_without_sni_or_port_is_admitted_but_not_programmed() {
        let mut o = offer();
        o.instances[0].sni = None;
        let imported = rules().admit(&o).unwrap();
        assert_eq!(imported.instances[0].not_programmed, Some(NotProgrammed::ClearTextRefused));
        let mut o = offer();
        o.instances[0].port = None;
        o.instances[0].protocol = Protocol::Tcp;
        assert_eq!(rules().admit(&o).unwrap().instances[0].not_programmed, Some(NotProgrammed::PortUnknown));
        let mut with_port = rules();
        with_port.service_ports.insert("*".into(), NonZeroU16::new(5432).unwrap());
        assert_eq!(with_port.admit(&o).unwrap().instances[0].port, NonZeroU16::new(5432));
    }
}
