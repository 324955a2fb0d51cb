//! Imported services to a [`Zone`]: which names exist, and what they hold. Pure.
//!
//! It is not the wire format (see [`super::answer`]) and holds no policy: the imports it is given
//! were admitted. Invariant: whatever lies between an owned name and its suffix exists, so a
//! resolver that cuts a tree at a non-existing name (RFC 8020) never cuts off an import.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use hamlet_core::{Fqdn, ImportedService, NameSuffix, Protocol};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::SRV;

/// Where one service listens: what an SRV record says (RFC 2782). Priority is always 0, weight 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTarget {
    /// The port.
    pub port: NonZeroU16,
    /// The host; it should be an owned name with addresses.
    pub target: Fqdn,
}

/// A name we answer for, and what it holds. With neither addresses nor services it exists and is
/// empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedName {
    /// The name.
    pub name: Fqdn,
    /// Its A and AAAA records.
    pub addresses: Vec<IpAddr>,
    /// Its SRV records.
    pub services: Vec<ServiceTarget>,
}

/// A domain suffix that imports lie under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneSuffix {
    /// The suffix.
    pub suffix: NameSuffix,
    /// Whether all names under it are ours: unknown ones then do not exist, instead of being
    /// refused (decision 17).
    pub exclusive: bool,
}

/// The records of one name, ready for the wire.
#[derive(Debug, Default)]
pub(super) struct NameRecords {
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
    pub(super) services: Vec<SRV>,
}

impl NameRecords {
    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty() && self.services.is_empty()
    }
}

/// What the zone says of a name. `cut` is how many labels, counted from the right, the owner of the
/// SOA record has.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// It exists; `apex` if SOA and NS records are there too.
    Existing { records: &'a NameRecords, cut: usize, apex: bool },
    /// It does not exist, and that is ours to say.
    Missing { cut: usize },
    /// Not ours.
    Foreign,
}

/// All that the listener answers for, at one moment. Built whole and swapped in.
#[derive(Debug)]
pub struct Zone {
    /// Owned names and the empty names between them and their suffix.
    names: HashMap<Fqdn, NameRecords>,
    /// Suffixes; the value is whether it is exclusive.
    suffixes: HashMap<NameSuffix, bool>,
    /// How many labels the longest suffix has: bounds the search for a name's suffix.
    deepest: usize,
    /// What an apex without an import of its own holds.
    nothing: NameRecords,
    ttl: u32,
    serial: u32,
}

impl Zone {
    /// A zone that answers for nothing.
    pub fn empty() -> Zone {
        Zone::build([], [], super::config::DEFAULT_TTL, 0)
    }

    /// Builds a zone of `names`; of two entries for one name the first is kept, so that no import
    /// can add an address to another's name. A suffix is exclusive if one of its entries is.
    /// `ttl` is in seconds; `serial` goes into SOA records.
    pub fn build(
        names: impl IntoIterator<Item = OwnedName>,
        suffixes: impl IntoIterator<Item = ZoneSuffix>,
        ttl: u32,
        serial: u32,
    ) -> Zone {
        let mut zone = Zone {
            names: HashMap::new(),
            suffixes: HashMap::new(),
            deepest: 0,
            nothing: NameRecords::default(),
            ttl,
            serial,
        };
        for ZoneSuffix { suffix, exclusive } in suffixes {
            zone.deepest = zone.deepest.max(suffix.label_count());
            *zone.suffixes.entry(suffix).or_default() |= exclusive;
        }
        for owned in names {
            zone.names.entry(owned.name).or_insert_with(|| records(&owned.addresses, &owned.services));
        }
        let between: Vec<Fqdn> = zone
            .names
            .keys()
            .map(Fqdn::as_str)
            .chain(zone.suffixes.keys().map(NameSuffix::as_str))
            .flat_map(|name| zone.between(name))
            .collect();
        for name in between {
            zone.names.entry(name).or_default();
        }
        zone
    }

    /// Builds a zone of imported services, in order of precedence: a service whose name an earlier
    /// one holds is left out. `address_of` gives the address our workloads use for a name (the
    /// egress gateway's), if it has one; without one the name exists and is empty.
    ///
    /// Per service: addresses at its fqdn and at each instance's name, and SRV records at
    /// `_http._tcp.<fqdn>`, `_grpc._tcp.<fqdn>`, `_https._tcp.<fqdn>`, `_mongodb._tcp.<fqdn>` or,
    /// for plain TCP, `_tcp.<fqdn>`, one for each reachable instance that speaks it.
    pub fn of_imports(
        imports: &[Arc<ImportedService>],
        address_of: impl Fn(&Fqdn) -> Option<IpAddr>,
        suffixes: impl IntoIterator<Item = ZoneSuffix>,
        ttl: u32,
        serial: u32,
    ) -> Zone {
        let mut claimed = HashSet::new();
        let mut names = Vec::new();
        for service in imports {
            if claimed.contains(&service.fqdn) {
                continue;
            }
            claimed.extend(service.names());
            names.extend(names_of(service, &address_of));
        }
        Zone::build(names, suffixes, ttl, serial)
    }

    /// How long answers may be cached, in seconds.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// The serial of its SOA records.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Looks `name` up: canonical text without the trailing dot, not empty.
    pub(super) fn find(&self, name: &str) -> Found<'_> {
        let labels = name.split('.').count();
        let suffix = self.suffix_of(name);
        let apex = suffix == Some((labels, true));
        let cut = suffix.map_or(labels, |(cut, _)| cut);
        match (self.names.get(name), suffix) {
            (Some(records), _) => Found::Existing { records, cut, apex },
            (None, _) if apex => Found::Existing { records: &self.nothing, cut, apex },
            // What can't be an import's name is not ours either, whatever the suffix.
            (None, Some((cut, true))) if Fqdn::parse(name).is_ok() => Found::Missing { cut },
            _ => Found::Foreign,
        }
    }

    /// The longest suffix that `name` lies under: its number of labels, and whether it is exclusive.
    fn suffix_of(&self, name: &str) -> Option<(usize, bool)> {
        let starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1).chain(iter::once(0));
        let tails = starts.take(self.deepest).enumerate();
        tails
            .filter_map(|(i, start)| self.suffixes.get(&name[start..]).map(|exclusive| (i + 1, *exclusive)))
            .last()
    }

    /// The names above `name` that exist because it does: those below a suffix or below another
    /// owned name. A suffix itself is not among them; whether it exists depends on `exclusive`.
    fn between(&self, name: &str) -> Vec<Fqdn> {
        let above: Vec<&str> = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]).collect();
        let below_owned = above.iter().rposition(|a| self.names.contains_key(*a)).unwrap_or(0);
        let exists = |(i, a): &(usize, &str)| {
            *i < below_owned || (self.suffix_of(a).is_some() && !self.suffixes.contains_key(*a))
        };
        above.into_iter().enumerate().filter(exists).filter_map(|(_, a)| Fqdn::parse(a).ok()).collect()
    }
}

fn records(addresses: &[IpAddr], services: &[ServiceTarget]) -> NameRecords {
    let mut records = NameRecords::default();
    for address in addresses {
        match address {
            IpAddr::V4(ip) if !records.v4.contains(ip) => records.v4.push(*ip),
            IpAddr::V6(ip) if !records.v6.contains(ip) => records.v6.push(*ip),
            _ => {}
        }
    }
    // A checked name always fits the wire; were it not so, leaving it out is the safe answer.
    let rdata = |s: &ServiceTarget| Some(SRV::new(0, 1, s.port.get(), wire_name(&s.target)?));
    records.services = services.iter().filter_map(rdata).collect();
    records
}

/// A checked name as the protocol library has it.
fn wire_name(name: &Fqdn) -> Option<Name> {
    Name::from_labels(name.labels().map(str::as_bytes)).ok()
}

fn names_of(service: &ImportedService, address_of: &impl Fn(&Fqdn) -> Option<IpAddr>) -> Vec<OwnedName> {
    let addressed = |name: &Fqdn| OwnedName {
        name: name.clone(),
        addresses: address_of(name).into_iter().collect(),
        services: Vec::new(),
    };
    let mut names: Vec<OwnedName> = service.names().map(addressed).collect();
    let first_service = names.len();
    for instance in &service.instances {
        let reachable = names.iter().any(|n| n.name == instance.fqdn && !n.addresses.is_empty());
        let Some(port) = instance.port.filter(|_| reachable) else { continue };
        // The longest names leave no room for the prefix; they have addresses all the same.
        let text = format!("{}.{}", service_prefix(instance.protocol), service.fqdn);
        let Ok(name) = Fqdn::parse(&text) else { continue };
        let target = ServiceTarget { port, target: instance.fqdn.clone() };
        match names[first_service..].iter_mut().find(|n| n.name == name) {
            Some(owned) => owned.services.push(target),
            None => names.push(OwnedName { name, addresses: Vec::new(), services: vec![target] }),
        }
    }
    names
}

/// Under which labels a protocol's SRV records stand.
fn service_prefix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http | Protocol::Http2 => "_http._tcp",
        Protocol::Grpc => "_grpc._tcp",
        Protocol::Https | Protocol::Tls | Protocol::Mtls => "_https._tcp",
        Protocol::Mongo => "_mongodb._tcp",
        Protocol::Tcp => "_tcp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(name: &str) -> OwnedName {
        let addresses = vec![IpAddr::V4(Ipv4Addr::new(127, 64, 0, 1))];
        OwnedName { name: Fqdn::parse(name).unwrap(), addresses, services: Vec::new() }
    }

    fn suffix(text: &str, exclusive: bool) -> ZoneSuffix {
        ZoneSuffix { suffix: NameSuffix::parse(text).unwrap(), exclusive }
    }

    fn shape(found: Found<'_>) -> String {
        match found {
            Found::Existing { records, cut, apex } => {
                let kind = if records.is_empty() { "empty" } else { "records" };
                format!("{kind} cut={cut}{}", if apex { " apex" } else { "" })
            }
            Found::Missing { cut } => format!("missing cut={cut}"),
            Found::Foreign => "foreign".to_owned(),
        }
    }

    #[test]
    fn names_between_an_import_and_its_suffix_exist_and_the_rest_depends_on_exclusive() {
        for (exclusive, name, expected) in [
            (false, "a.b.acme.example", "records cut=2"),
            (false, "b.acme.example", "empty cut=2"),
            (false, "acme.example", "foreign"),
            (false, "other.acme.example", "foreign"),
            (false, "example", "foreign"),
            (true, "a.b.acme.example", "records cut=2"),
            (true, "b.acme.example", "empty cut=2"),
            (true, "acme.example", "empty cut=2 apex"),
            (true, "other.acme.example", "missing cut=2"),
            (true, "-odd.acme.example", "foreign"),
            (true, "notacme.example", "foreign"),
            (true, "acme.example.evil.example", "foreign"),
            (true, "example", "foreign"),
        ] {
            let zone = Zone::build([owned("a.b.acme.example")], [suffix("acme.example", exclusive)], 5, 1);
            assert_eq!(shape(zone.find(name)), expected, "{name}, exclusive: {exclusive}");
        }
    }

    #[test]
    fn the_longest_suffix_decides() {
        let suffixes = || [suffix("acme.example", true), suffix("x.shop.acme.example", false)];
        let zone = Zone::build([owned("a.x.shop.acme.example")], suffixes(), 5, 1);
        assert_eq!(shape(zone.find("other.acme.example")), "missing cut=2");
        assert_eq!(shape(zone.find("other.x.shop.acme.example")), "foreign");
        assert_eq!(shape(zone.find("shop.acme.example")), "empty cut=2");
        let zone = Zone::build([], suffixes(), 5, 1);
        assert_eq!(shape(zone.find("shop.acme.example")), "empty cut=2", "above an inner suffix");
    }

    #[test]
    fn a_name_under_no_suffix_exists_with_what_is_below_it_only() {
        let zone = Zone::build([owned("a.example"), owned("x.y.a.example")], [], 5, 1);
        assert_eq!(shape(zone.find("a.example")), "records cut=2");
        assert_eq!(shape(zone.find("y.a.example")), "empty cut=3");
        assert_eq!(shape(zone.find("z.a.example")), "foreign");
        assert_eq!(shape(zone.find("example")), "foreign");
    }

    #[test]
    fn of_two_entries_for_a_name_the_first_is_kept() {
        let mut second = owned("a.example");
        second.addresses = vec![IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))];
        let zone = Zone::build([owned("a.example"), second], [], 5, 1);
        let Found::Existing { records, .. } = zone.find("a.example") else { panic!("not found") };
        assert_eq!(records.v4, [Ipv4Addr::new(127, 64, 0, 1)]);
    }
}
