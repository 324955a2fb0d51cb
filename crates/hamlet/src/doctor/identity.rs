//! Looks at our own certificates: whether they load, are ours, hold, and name what callers ask for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamlet_identity::authority::state::LeafRole;
use hamlet_identity::ca::LocalCa;
use hamlet_identity::{
    Authority, IdentityError, LocalIdentity, SvidChoice, TrustBundle, Validity, WorkloadApi,
};

use super::{Examination, Finding, age, of_expiry};
use crate::config::{AuthorityConfig, IdentityConfig, PairFiles, WorkloadApiConfig};

/// How long something may be due before it is called overdue: an agent looks much more often.
const OVERDUE: Duration = Duration::from_secs(60);
/// Most missing names that are shown.
const NAMES_SHOWN: usize = 3;

/// What could be loaded.
pub(super) struct Own {
    pub(super) agent: Option<Arc<LocalIdentity>>,
    /// What was asked, if our identity comes from there.
    pub(super) workload_api: Option<Arc<WorkloadApi>>,
}

/// The agent's and the gateways' identity, and the CA if there is one.
pub(super) async fn own(look: &Examination<'_>, findings: &mut Vec<Finding>) -> Own {
    let files = match &look.config.mesh.identity {
        IdentityConfig::Files(files) => files,
        IdentityConfig::Authority(config) => {
            return Own { agent: authority(look, config, findings), workload_api: None };
        }
        IdentityConfig::WorkloadApi(config) => return workload_api(look, config, findings).await,
    };
    let agent = one(look, "agent", &files.agent, findings);
    let gateway = one(look, "gateway", &files.gateway, findings);
    match &files.ca {
        Some(pair) => findings.push(ca(look, pair)),
        None => findings.extend(gateway.as_ref().and_then(|id| unnamed(look, id))),
    }
    Own { agent, workload_api: None }
}

/// What the Workload API gives to this command. To the agent it may give something else: it tells
/// processes apart by their user, program or container.
async fn workload_api(
    look: &Examination<'_>,
    config: &WorkloadApiConfig,
    findings: &mut Vec<Finding>,
) -> Own {
    const ABOUT: &str = "identity/workload-api";
    let api = match WorkloadApi::new(&config.socket) {
        Ok(api) => api,
        Err(error) => {
            findings.push(Finding::of_error(ABOUT, error));
            return Own { agent: None, workload_api: None };
        }
    };
    api.ask(look.patience).await;
    if let Some(problem) = api.problem() {
        let finding = Finding::of_error(ABOUT, problem);
        // Who is refused at least reached it: the agent may well be somebody else to it.
        findings.push(match api.is_refused() {
            true => {
                let remedy = "run as the agent's user to see what the agent is given; `hamlet status` tells what it has";
                Finding::warn(ABOUT, format!("{} (asked by this command, not by the agent)", finding.found), remedy)
            }
            false => finding,
        });
        return Own { agent: None, workload_api: None };
    }
    let domain = &look.config.mesh.trust_domain;
    findings.push(match api.bundle(domain) {
        Some(Ok(bundle)) => {
            let n = bundle.anchors().len();
            let text =
                format!("{} identities, {} bundles, {n} CA of {domain}", api.ids().len(), api.bundles());
            Finding::pass(ABOUT, text)
        }
        Some(Err(why)) => {
            Finding::fail(ABOUT, why, "see what the SPIRE server signs with: `spire-server bundle show`")
        }
        None => {
            let remedy = "correct spec.trustDomain, or the socket: it belongs to another trust domain";
            Finding::fail(ABOUT, format!("it gives no bundle of {domain}"), remedy)
        }
    });
    if let Some(problem) = api.lists_problem() {
        findings.push(Finding::of_error(ABOUT, problem));
    }
    let one = |role: &str, choice: &SvidChoice, findings: &mut Vec<Finding>| {
        let about = format!("identity/{role}");
        let given = LocalIdentity::from_provider(api.provider(choice.clone()), look.clock.clone());
        match given {
            Ok(identity) => {
                let remedy = "see the log of the SPIRE agent: it should have renewed it".to_owned();
                judged(look, &about, identity, &remedy, findings)
            }
            Err(error) => {
                findings.push(Finding::of_error(&about, error));
                None
            }
        }
    };
    let agent = one("agent", &config.agent, findings);
    let gateway = one("gateway", &config.gateway, findings);
    findings.extend(gateway.as_ref().and_then(|id| unnamed(look, id)));
    Own { agent, workload_api: Some(api) }
}

/// Our own authority and the leaves that it made. Looking changes nothing of it.
fn authority(
    look: &Examination<'_>,
    config: &AuthorityConfig,
    findings: &mut Vec<Finding>,
) -> Option<Arc<LocalIdentity>> {
    const ABOUT: &str = "identity/authority";
    let opened = config
        .settings(&look.config.mesh.trust_domain, look.clock.clone())
        .map_err(|error| Finding::fail(ABOUT, error.to_string(), "choose a shorter trust domain"))
        .and_then(|settings| Authority::new(settings).map_err(|error| Finding::of_error(ABOUT, error)));
    let authority = match opened {
        Ok(authority) => authority,
        Err(finding) => {
            findings.push(finding);
            return None;
        }
    };
    let leaf = |role: LeafRole, findings: &mut Vec<Finding>| {
        let (cert, key) = authority.leaf_files(role);
        one(look, role.as_str(), &PairFiles { cert, key }, findings)
    };
    let agent = leaf(LeafRole::Agent, findings);
    leaf(LeafRole::Gateway, findings);
    let wall = look.clock.wall();
    findings.push(match authority.read() {
        Err(error) => Finding::of_error(ABOUT, error),
        Ok(state) => match authority.schedule(&state).into_iter().next() {
            Some(planned) if planned.at + OVERDUE <= wall => {
                let found = format!("it is overdue to {}: {}", planned.step, planned.why);
                Finding::warn(ABOUT, found, "start the agent, or see `hamlet status` for why it can't")
            }
            Some(planned) => {
                let left = age(planned.at.saturating_sub(wall));
                Finding::pass(ABOUT, format!("{} roots; in {left}: {}", state.roots.len(), planned.step))
            }
            None => Finding::pass(ABOUT, format!("{} roots", state.roots.len())),
        },
    });
    agent
}

fn one(
    look: &Examination<'_>,
    role: &str,
    pair: &PairFiles,
    findings: &mut Vec<Finding>,
) -> Option<Arc<LocalIdentity>> {
    let about = format!("identity/{role}");
    let loaded = LocalIdentity::from_pem_files(&pair.cert, &pair.key, look.clock.clone());
    let identity = match loaded {
        Ok(identity) => identity,
        Err(error) => {
            findings.push(unloadable(&about, &pair.cert, error));
            return None;
        }
    };
    let remedy =
        format!("issue a new one into {}; the agent takes it without a restart", pair.cert.display());
    judged(look, &about, identity, &remedy, findings)
}

/// Whether it is ours and holds.
fn judged(
    look: &Examination<'_>,
    about: &str,
    identity: Arc<LocalIdentity>,
    remedy: &str,
    findings: &mut Vec<Finding>,
) -> Option<Arc<LocalIdentity>> {
    let (id, domain) = (identity.spiffe_id(), &look.config.mesh.trust_domain);
    if id.trust_domain() != domain {
        let remedy = format!("issue a certificate of {domain}, or correct spec.trustDomain");
        findings.push(Finding::fail(about, format!("{id} is outside our trust domain {domain}"), remedy));
        return None;
    }
    let chain = identity.chain();
    let ends = chain.iter().enumerate().filter_map(|(at, der)| {
        let what = if at == 0 { format!("{id}") } else { format!("certificate {} of its chain", at + 1) };
        of_expiry(look, about, &what, Validity::of(der)?, remedy)
    });
    let ends: Vec<Finding> = ends.collect();
    if ends.is_empty() {
        let left = age(identity.not_after().saturating_sub(look.clock.wall()));
        findings.push(Finding::pass(about, format!("{id}, expires in {left}")));
    }
    findings.extend(ends);
    Some(identity)
}

fn unloadable(about: &str, cert: &Path, error: IdentityError) -> Finding {
    let finding = Finding::of_error(about, error);
    match finding.found.contains(&cert.display().to_string()) {
        true => finding,
        false => Finding { found: format!("{}: {}", cert.display(), finding.found), ..finding },
    }
}

fn ca(look: &Examination<'_>, pair: &PairFiles) -> Finding {
    let about = "identity/ca";
    let domain = &look.config.mesh.trust_domain;
    let ca = match LocalCa::open_files(&pair.cert, &pair.key, Some(domain), look.clock.clone()) {
        Ok(ca) => ca,
        Err(error) => return Finding::of_error(about, error),
    };
    let left = age(ca.not_after().saturating_sub(look.clock.wall()));
    let remedy = "make a new CA in time and give its certificate to every peer before the first use";
    let bundle = TrustBundle::from_pem(domain.clone(), ca.pem().as_bytes());
    let first = bundle.ok().and_then(|b| Validity::of(&b.anchors().first()?.der));
    first
        .and_then(|validity| of_expiry(look, about, "the CA", validity, remedy))
        .unwrap_or_else(|| Finding::pass(about, format!("signs for {domain}, expires in {left}")))
}

/// With a CA elsewhere nobody mints a leaf for each name: what the gateway's leaf doesn't name is
/// unreachable for callers that compare it with the name they called (decision 22).
fn unnamed(look: &Examination<'_>, gateway: &LocalIdentity) -> Option<Finding> {
    let names = gateway.dns_names();
    let published = look.config.services.iter().flat_map(|s| s.instances.iter().map(|i| i.sni.to_string()));
    let missing: Vec<String> = published.filter(|sni| !names.contains(sni)).collect();
    let first = missing.first()?;
    let shown = missing.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = missing.len().saturating_sub(NAMES_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let remedy = format!(
        "issue the gateway's certificate with these DNS names (`DNS:{first}`): gateways that compare names \
         refuse it otherwise; gateways that compare SPIFFE ids, as Hamlet's, don't care"
    );
    Some(Finding::warn("identity/gateway", format!("the certificate doesn't name {shown}{more}"), remedy))
}
