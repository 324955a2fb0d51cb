//! `spec.identity` of the Mesh document, checked: our own authority, or a Workload API, or files, never
//! two of them.

use hamlet_core::{Fqdn, TrustDomain};
use hamlet_identity::SvidChoice;
use hamlet_identity::authority::plan::Lives;
use hamlet_identity::workload::socket_path;

use super::Check;
use crate::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use crate::config::model::{AuthorityConfig, IdentityConfig, IdentityFiles, PairFiles, WorkloadApiConfig};
use crate::config::raw::{At, Pair, RawAuthority, RawIdentity, RawSvid, RawWorkloadApi};

const NO_PAIR: &str = "put the PEM file there; or have `hamlet init DIR` make an authority in a new folder";
const NO_SOCKET: &str =
    "start the SPIRE agent, or correct the path; the agent waits for it, and listens to no peer before";
const NO_AUTHORITY: &str =
    "`hamlet init DIR` makes one in a new folder, `hamlet ca adopt` makes one of a CA that you have";

impl Check<'_> {
    /// `None` if something of it was reported.
    pub(super) fn identity(
        &mut self,
        raw: &RawIdentity,
        domain: Option<&At<TrustDomain>>,
    ) -> Option<IdentityConfig> {
        let files = [("agent", &raw.agent), ("gateway", &raw.gateway), ("ca", &raw.ca)];
        if let Some(api) = &raw.workload_api {
            let bundle = raw.bundle.as_ref().map(|_| "bundle");
            let authority = raw.authority.as_ref().map(|_| "authority");
            let file = files.iter().find(|(_, pair)| pair.is_some()).map(|(key, _)| *key);
            if let Some(key) = authority.or(file).or(bundle) {
                let message =
                    format!("`workloadApi` gives certificates and bundle, and `{key}` is there as well");
                let fix = format!("remove `{key}`, or `workloadApi`; one of them says who we are");
                self.problems.error(api.mark, &api.path, message, fix);
                return None;
            }
            return self.workload_api(api, &domain?.value).map(IdentityConfig::WorkloadApi);
        }
        if let Some(authority) = &raw.authority {
            if let Some((key, _)) = files.iter().find(|(_, pair)| pair.is_some()) {
                let message = format!("`authority` and `{key}` say both where certificates come from");
                let fix = format!("keep `authority`, which makes them, or `{key}`, which names files");
                self.problems.error(authority.mark, &authority.path, message, fix);
                return None;
            }
            if let Some(bundle) = &raw.bundle {
                let message = "`authority` knows the CA certificates of our trust domain".to_owned();
                self.error(bundle, message, "remove `bundle`");
                return None;
            }
            return self.authority(authority).map(IdentityConfig::Authority);
        }
        let mut needed = |key: &str, pair: &Option<Pair>| {
            if pair.is_none() {
                let fix = format!(
                    "add `authority: {{folder: identity}}`, `workloadApi: {{socket: \"unix:///run/spire/sockets/agent.sock\"}}`, or `{key}: {{cert: identity/{key}.pem, key: identity/{key}.key}}`"
                );
                let message = format!("neither `authority`, `workloadApi` nor `{key}` is there");
                self.problems.error(raw.mark, &raw.path, message, fix);
            }
        };
        needed("agent", &raw.agent);
        needed("gateway", &raw.gateway);
        let agent = raw.agent.as_ref().map(|pair| self.pair(pair));
        let gateway = raw.gateway.as_ref().map(|pair| self.pair(pair));
        let ca = match &raw.ca {
            None => None,
            Some(pair) => Some(self.pair(pair)?),
        };
        let bundle = raw.bundle.as_ref().map(|at| self.file(at, "export the CA certificates there as PEM"));
        Some(IdentityConfig::Files(IdentityFiles { agent: agent??, gateway: gateway??, ca, bundle }))
    }

    pub(super) fn pair(&mut self, raw: &Pair) -> Option<PairFiles> {
        let cert = raw.cert.as_ref().map(|at| self.file(at, NO_PAIR));
        let key = raw.key.as_ref().map(|at| self.file(at, NO_PAIR));
        Some(PairFiles { cert: cert?, key: key? })
    }

    fn workload_api(&mut self, raw: &RawWorkloadApi, domain: &TrustDomain) -> Option<WorkloadApiConfig> {
        let agent = self.svid(raw, "agent", &raw.agent, AGENT_ID_PATH, domain);
        let gateway = self.svid(raw, "gateway", &raw.gateway, GATEWAY_ID_PATH, domain);
        let socket = raw.socket.as_ref()?;
        if let Some(path) = socket_path(&socket.value.0) {
            self.reference(path, socket, NO_SOCKET);
        }
        let config = WorkloadApiConfig { socket: socket.value.0.clone(), agent: agent?, gateway: gateway? };
        if config.agent == config.gateway {
            let message =
                "agent and gateways have one identity: a gateway could speak for the mesh".to_owned();
            let fix = "register an id of its own for the gateways, and name it in `gateway`";
            self.problems.warning(raw.mark, &raw.path, message, fix);
        }
        Some(config)
    }

    /// By id or by hint; by our usual id where nothing is said.
    fn svid(
        &mut self,
        api: &RawWorkloadApi,
        key: &str,
        raw: &RawSvid,
        usual: &str,
        domain: &TrustDomain,
    ) -> Option<SvidChoice> {
        let path = format!("{}.{key}", api.path);
        match (&raw.id, &raw.hint, raw.written) {
            (Some(_), Some(hint), _) => {
                let message = "`spiffeId` and `hint` stand together".to_owned();
                self.error(hint, message, "keep the one that you know the entry by");
                None
            }
            (Some(id), None, _) if id.value.trust_domain() != domain => {
                let message = format!("{} is outside our trust domain {domain}", id.value);
                let fix =
                    format!("write an id that starts with spiffe://{domain}/, or correct `trustDomain`");
                self.error(id, message, fix);
                None
            }
            (Some(id), None, _) => Some(SvidChoice::Id(id.value.clone())),
            (None, Some(hint), _) => Some(SvidChoice::Hint(hint.value.clone())),
            // What stands there is wrong, which was reported.
            (None, None, Some(_)) if raw.says => None,
            (None, None, Some(mark)) => {
                let message = "neither `spiffeId` nor `hint` is there".to_owned();
                self.problems.error(mark, &path, message, format!("write one of the two, or remove `{key}`"));
                None
            }
            (None, None, None) => match domain.id(usual) {
                Ok(id) => Some(SvidChoice::Id(id)),
                Err(error) => {
                    let message = format!("the trust domain can't carry our usual id: {error}");
                    self.problems.error(api.mark, &path, message, format!("name an id in `{key}`"));
                    None
                }
            },
        }
    }

    fn authority(&mut self, raw: &RawAuthority) -> Option<AuthorityConfig> {
        for host in raw.hosts.iter().filter(|host| !host.value.is_host_name()) {
            let message = format!("{} has '_' and can't be a host name in a certificate", host.value);
            self.error(host, message, "use letters, digits and '-'");
        }
        let lives = Lives {
            leaf: raw.leaf_life?.0,
            issuing: raw.issuing_life?.0,
            root: raw.root_life?.0,
            overlap: raw.overlap?,
        };
        if let Err(error) = lives.check() {
            let text = error.to_string();
            let (message, fix) = text.split_once("; ").unwrap_or((&text, "choose others"));
            self.problems.error(raw.mark, &raw.path, message, fix);
            return None;
        }
        let at = raw.folder.as_ref()?;
        let folder = self.resolve(&at.value, at.mark);
        let state = hamlet_identity::authority::state_file(&folder);
        self.reference(state, at, NO_AUTHORITY);
        let hosts: Vec<Fqdn> = raw.hosts.iter().map(|host| host.value.clone()).collect();
        Some(AuthorityConfig { folder, hosts, lives })
    }
}
