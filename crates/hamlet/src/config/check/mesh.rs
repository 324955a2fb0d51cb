//! The Mesh document, checked.
//!
//! Invariant: no two listeners share a port, and the socket's path fits in a socket address.

use std::collections::BTreeMap;

use hamlet_core::guard::GuardSettings;
use hamlet_core::{Endpoint, MeshName};

use super::Check;
use crate::config::model::{
    DnsConfig, EgressConfig, Limits, Listeners, LogConfig, MeshConfig, Profile, ServedEndpoint, ZoneConfig,
};
use crate::config::problem::Mark;
use crate::config::raw::{At, Mesh, RawServed};
use crate::config::scalar::Listen;

/// Longest path of a unix socket on Linux, in bytes (`sun_path` without its end).
const SOCKET_PATH_MAX: usize = 107;

impl Check<'_> {
    /// `None` if something of it was reported by the walk.
    pub(super) fn mesh(&mut self, raw: &Mesh) -> Option<MeshConfig> {
        let served = raw.bundle_endpoint.as_ref().and_then(|served| served.listen.as_ref());
        self.listeners_differ(raw.listen.iter().flatten().chain(served));
        let bundle_endpoint = raw.bundle_endpoint.as_ref().map(|served| self.served(served, raw));
        let identity = self.identity(&raw.identity, raw.trust_domain.as_ref());
        self.zones_differ(raw);
        let data = raw.data.as_ref().map(|at| self.resolve(&at.value, at.mark))?;
        let socket = match &raw.socket {
            Some(at) => self.resolve(&at.value, at.mark),
            None => data.join("admin.sock"),
        };
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_MAX {
            let mark = raw.socket.as_ref().or(raw.data.as_ref()).map_or(raw.meta.mark, |at| at.mark);
            let path = format!("{} spec.socket", raw.meta.label);
            let message = format!(
                "the path of the admin socket has {bytes} bytes; at most {SOCKET_PATH_MAX} are possible"
            );
            self.problems.error(
                mark,
                &path,
                message,
                "set `socket` to a shorter path, for example /run/hamlet/admin.sock",
            );
        }
        let listen = raw.listen.each_ref().map(|l| l.as_ref().map(|at| at.value.0));
        let [agent_at, ingress, egress_http, dns, admin] = listen;
        Some(MeshConfig {
            name: MeshName::parse(&raw.meta.name.as_ref()?.value).ok()?,
            trust_domain: raw.trust_domain.as_ref()?.value.clone(),
            identity: identity?,
            listen: Listeners {
                agent: agent_at?,
                ingress: ingress?,
                egress_http: egress_http?,
                dns: dns?,
                admin: admin?,
            },
            advertise: endpoints(raw),
            bundle_endpoint: match bundle_endpoint {
                None => None,
                Some(served) => Some(served?),
            },
            bundle_wait: raw.bundle_wait?.0,
            data,
            socket,
            egress: EgressConfig {
                pool: raw.pool?.0,
                listeners: usize::try_from(raw.listeners?).ok()?,
                connect_timeout: raw.connect_timeout?.0,
                idle_timeout: raw.idle_timeout?.0,
                drain: raw.drain?,
            },
            dns: DnsConfig { ttl: raw.ttl?.0, zones: zones(raw) },
            brake: GuardSettings {
                percent: u8::try_from(raw.brake_percent?).ok()?,
                floor: usize::try_from(raw.brake_floor?).ok()?,
                wait: raw.brake_wait?,
            },
            limits: Limits {
                peers: usize::try_from(raw.limits.peers?).ok()?,
                services_per_peer: usize::try_from(raw.limits.services_per_peer?).ok()?,
                bytes_per_peer: raw.limits.bytes_per_peer?.0,
                message_bytes: usize::try_from(raw.limits.message_bytes?.0).ok()?,
                connections_per_peer: usize::try_from(raw.limits.connections_per_peer?).ok()?,
                streams_per_minute: u32::try_from(raw.limits.streams_per_minute?).ok()?,
                control_frames: u32::try_from(raw.limits.control_frames?).ok()?,
                silent_per_prefix: usize::try_from(raw.limits.silent_per_prefix?).ok()?,
                stream_life: raw.limits.stream_life?.0,
            },
            log: LogConfig { level: raw.log_level?, format: raw.log_format? },
        })
    }

    /// The endpoint's own rules: a pair with `https_web` and none otherwise, and CAs to publish.
    fn served(&mut self, raw: &RawServed, mesh: &Mesh) -> Option<ServedEndpoint> {
        let path = format!("{} spec.bundleEndpoint", mesh.meta.label);
        let identity = &mesh.identity;
        let issued = identity.authority.is_some() || identity.workload_api.is_some();
        if identity.bundle.is_none() && identity.ca.is_none() && !issued {
            let message =
                "there is no bundle to publish: `identity` has neither `bundle`, `ca`, `authority` \
                           nor `workloadApi`"
                    .to_owned();
            let fix = "name the file with our CA certificates in `identity.bundle`";
            self.problems.error(raw.mark, &path, message, fix);
        }
        let web = match raw.profile.as_ref()?.value {
            Profile::HttpsWeb if raw.pair.cert.is_none() || raw.pair.key.is_none() => {
                let message = "`https_web` needs `cert` and `key`".to_owned();
                let fix = "name a web certificate for the endpoint's host, or write `profile: https_spiffe`";
                self.problems.error(raw.mark, &path, message, fix);
                return None;
            }
            Profile::HttpsWeb => Some(self.pair(&raw.pair)?),
            Profile::HttpsSpiffe => {
                for at in [&raw.pair.cert, &raw.pair.key].into_iter().flatten() {
                    let message = "with `https_spiffe` the endpoint proves our agent's id".to_owned();
                    self.error(at, message, "remove `cert` and `key`, or write `profile: https_web`");
                }
                None
            }
        };
        let hint = raw.refresh_hint.as_ref()?;
        if hint.value.0.subsec_nanos() != 0 {
            self.error(
                hint,
                "the hint has a fraction of a second".to_owned(),
                "write whole seconds, for example 5m",
            );
        }
        Some(ServedEndpoint { listen: raw.listen.as_ref()?.value.0, web, refresh_hint: hint.value.0 })
    }

    /// Port 0 asks for any free port and collides with nothing.
    fn listeners_differ<'l>(&mut self, listen: impl Iterator<Item = &'l At<Listen>>) {
        let mut taken: Vec<&At<Listen>> = Vec::new();
        for at in listen {
            let Some(address) = at.value.0.filter(|a| a.port() != 0) else { continue };
            let clash = taken.iter().find(|other| {
                other.value.0.is_some_and(|o| {
                    let any = o.ip().is_unspecified() || address.ip().is_unspecified();
                    o.port() == address.port() && (any || o.ip() == address.ip())
                })
            });
            if let Some(other) = clash {
                let message = format!("{address} is the port of `{}` already", other.path);
                self.error(at, message, "give each listener a port of its own");
            }
            taken.push(at);
        }
    }

    fn zones_differ(&mut self, raw: &Mesh) {
        let mut seen: BTreeMap<&str, Mark> = BTreeMap::new();
        for at in raw.zones.iter().filter_map(|(suffix, _)| suffix.as_ref()) {
            if let Some(first) = seen.insert(at.value.as_str(), at.mark) {
                let message =
                    format!("the zone {} stands twice; the first is on line {}", at.value, first.line);
                self.error(at, message, "keep one of the two");
            }
        }
    }
}

fn endpoints(raw: &Mesh) -> Vec<Endpoint> {
    let endpoint = |(at, labels): &(At<crate::config::scalar::Advertised>, Vec<String>)| Endpoint {
        address: at.value.address,
        port: at.value.port,
        labels: labels.clone(),
        description: String::new(),
    };
    raw.advertise.iter().map(endpoint).collect()
}

fn zones(raw: &Mesh) -> Vec<ZoneConfig> {
    let zone = |(suffix, exclusive): &(Option<At<hamlet_core::NameSuffix>>, Option<bool>)| {
        Some(ZoneConfig { suffix: suffix.as_ref()?.value.clone(), exclusive: (*exclusive)? })
    };
    raw.zones.iter().filter_map(zone).collect()
}
