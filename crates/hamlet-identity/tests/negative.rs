//! Hostile certificates, chains, bundles and revocation lists, each beside an accepted neighbour
//! that differs in that one property only. Nothing hostile is accepted, and each is refused by the
//! rule that it breaks.

mod forge;
#[path = "negative/ids.rs"]
mod ids;
#[path = "negative/issuers.rs"]
mod issuers;
#[path = "negative/leaves.rs"]
mod leaves;
#[path = "negative/others.rs"]
mod others;
#[path = "negative/structure.rs"]
mod structure;

use std::collections::BTreeSet;
use std::sync::Arc;

use forge::{Authority, Forge, pem};
use hamlet_core::{Fqdn, PeerName, SpiffeId, TrustDomain};
use hamlet_identity::{
    Expect, ForeignIdentity, PeerTrust, RevocationLists, RevocationPolicy, Role, TrustBundle, Usage,
    verify_peer_chain,
};
use hamlet_testkit::pki::trust_table;
use rustls_pki_types::CertificateDer;

/// The fewest cases that the promise names.
const CASES_MIN: usize = 150;

/// What acme presents, and what we believe of acme and of its neighbours.
#[derive(Clone)]
struct Shown {
    roots: Vec<Vec<u8>>,
    chain: Vec<Vec<u8>>,
    id: String,
    foreign: Option<ForeignIdentity>,
    crl: Option<(Vec<u8>, RevocationPolicy)>,
    /// A peer that stands beside.
    beside: Option<PeerTrust>,
}

impl Shown {
    fn new(root: &Authority, chain: Vec<Vec<u8>>) -> Shown {
        Shown {
            roots: vec![root.der.clone()],
            chain,
            id: "spiffe://acme.example/agent".to_owned(),
            foreign: None,
            crl: None,
            beside: None,
        }
    }

    /// The rule that refuses it, `bundle` or `crl` where it isn't even imported.
    fn refusal(&self, usage: Usage, dialled: bool) -> Option<&'static str> {
        let domain = TrustDomain::parse("acme.example").unwrap();
        let pinned = match &self.foreign {
            Some(ForeignIdentity::Fingerprints(all)) => all.clone(),
            _ => Vec::new(),
        };
        let bundle = TrustBundle::from_pem_pinned(domain, &pem("CERTIFICATE", &self.roots), &pinned);
        let Ok(bundle) = bundle else { return Some("bundle") };
        let acme = PeerName::parse("acme").unwrap();
        let ids = vec![SpiffeId::parse(&self.id).unwrap()];
        let mut trust = PeerTrust::new(acme.clone(), Arc::new(bundle), ids, Vec::new());
        if self.foreign.is_some() {
            trust.agent_ids.clear();
            trust.foreign.clone_from(&self.foreign);
        }
        if let Some((der, policy)) = &self.crl {
            let Ok(lists) = RevocationLists::read(der, *policy) else { return Some("crl") };
            trust.revoked = Some(Arc::new(lists));
        }
        let peers = self.beside.clone().into_iter().chain([trust]).collect();
        let chain: Vec<CertificateDer<'_>> =
            self.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let expect = if dialled { Expect::Peer(&acme) } else { Expect::AnyPeer };
        match verify_peer_chain(&trust_table(peers), &chain, Role::Agent, usage, expect) {
            Ok(proven) if proven.peer == acme => None,
            Ok(_) => Some("somebody else"),
            Err(error) => Some(error.rule()),
        }
    }
}

struct Case {
    what: String,
    /// The rule when anybody is accepted, and when acme was dialled.
    rules: [&'static str; 2],
    bad: Shown,
    good: Shown,
}

/// Everything that cases are made from.
struct World {
    root: Authority,
    cases: Vec<Case>,
}

impl World {
    fn add(&mut self, what: impl Into<String>, rule: &'static str, bad: Shown, good: Shown) {
        self.add_both(what, [rule, rule], bad, good);
    }

    fn add_both(&mut self, what: impl Into<String>, rules: [&'static str; 2], bad: Shown, good: Shown) {
        self.cases.push(Case { what: what.into(), rules, bad, good });
    }

    fn shown(&self, edit: impl FnOnce(&mut Forge)) -> Shown {
        Shown::new(&self.root, self.root.chain(edit))
    }

    /// A leaf of acme's CA, spoilt, beside one that isn't.
    fn leaf(&mut self, what: impl Into<String>, rule: &'static str, bad: impl FnOnce(&mut Forge)) {
        self.pair(what, rule, bad, |_| {});
    }

    /// A leaf of acme's CA, spoilt, beside one that comes as near as is allowed.
    fn pair(
        &mut self,
        what: impl Into<String>,
        rule: &'static str,
        bad: impl FnOnce(&mut Forge),
        good: impl FnOnce(&mut Forge),
    ) {
        let (bad, good) = (self.shown(bad), self.shown(good));
        self.add(what, rule, bad, good);
    }
}

fn fqdns(names: &[&str]) -> Vec<Fqdn> {
    names.iter().map(|name| Fqdn::parse(name).unwrap()).collect()
}

#[test]
fn no_hostile_certificate_is_accepted_and_each_has_an_accepted_neighbour() {
    let mut world = World { root: Authority::root("acme root", |_| {}), cases: Vec::new() };
    ids::add(&mut world);
    leaves::add(&mut world);
    structure::add(&mut world);
    issuers::add(&mut world);
    others::add(&mut world);
    let mut wrong = Vec::new();
    let mut accepted = 0;
    for Case { what, rules, bad, good } in &world.cases {
        for (usage, dialled) in [(Usage::Client, false), (Usage::Server, true), (Usage::Client, true)] {
            let refused = bad.refusal(usage, dialled);
            accepted += usize::from(refused.is_none());
            let expected = rules[usize::from(dialled)];
            if refused != Some(expected) {
                wrong.push(format!("{what} ({usage:?}, dialled {dialled}): {refused:?}, not {expected}"));
            }
            if let Some(refused) = good.refusal(usage, dialled) {
                wrong.push(format!("the neighbour of {what} ({usage:?}, dialled {dialled}): {refused}"));
            }
        }
    }
    let named: BTreeSet<&str> = world.cases.iter().map(|c| c.what.as_str()).collect();
    assert_eq!(named.len(), world.cases.len(), "two cases have one name");
    println!("{} hostile certificates, {accepted} accepted", world.cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(accepted, 0);
    assert!(world.cases.len() >= CASES_MIN, "{} cases only", world.cases.len());
}
