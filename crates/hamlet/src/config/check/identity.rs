//! `spec.identity` of the Mesh document, checked: our own authority, or files, never both.

use hamlet_core::Fqdn;
use hamlet_identity::authority::plan::Lives;

use super::Check;
use crate::config::model::{AuthorityConfig, IdentityConfig, IdentityFiles, PairFiles};
use crate::config::raw::{Pair, RawAuthority, RawIdentity};

const NO_PAIR: &str = "put the PEM file there; or have `hamlet init DIR` make an authority in a new folder";
const NO_AUTHORITY: &str =
    "`hamlet init DIR` makes one in a new folder, `hamlet ca adopt` makes one of a CA that you have";

impl Check<'_> {
    /// `None` if something of it was reported.
    pub(super) fn identity(&mut self, raw: &RawIdentity) -> Option<IdentityConfig> {
        let files = [("agent", &raw.agent), ("gateway", &raw.gateway), ("ca", &raw.ca)];
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
                    "add `authority: {{folder: identity}}`, or `{key}: {{cert: identity/{key}.pem, key: identity/{key}.key}}`"
                );
                let message = format!("neither `authority` nor `{key}` is there");
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
