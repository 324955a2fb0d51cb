//! A law of the verification function over any bytes: what it accepts, a second and much simpler
//! look accepts as well; and what that look finds good, it accepts.
//!
//! The bytes are a plan for a chain and for what is believed. The chain is really signed, so most
//! plans get past signatures to the rules behind them. The second look judges the plan and not the
//! certificates, so it shares no code with what it judges.

use std::sync::OnceLock;

use hamlet_core::PeerName;
use hamlet_identity::{Expect, PeerTrust, Role, Usage, verify_peer_chain};

use crate::pki::{
    CaSpec, DAY, ExtendedKeyUsagePurpose, HOUR, KeyUsagePurpose, LeafSpec, TestCa, trust_table,
};

const DOMAINS: [&str; 3] = ["acme.example", "globex.example", "sub.acme.example"];
const NAMES: [&str; 3] = ["acme", "globex", "sub"];
/// Constraints of the roots, as URI hosts.
const PERMITTED: [Option<&str>; 4] =
    [None, Some("acme.example"), Some(".acme.example"), Some("other.example")];
const INTERMEDIATES_MAX: usize = 4;

/// The authorities: for each trust domain one root for each constraint.
fn roots() -> &'static Vec<Vec<TestCa>> {
    static ROOTS: OnceLock<Vec<Vec<TestCa>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let root = |domain: &str, permitted: Option<&str>| {
            let permitted_uri = permitted.map(str::to_owned);
            TestCa::with(domain, CaSpec { permitted_uri, ..CaSpec::default() })
        };
        DOMAINS.iter().map(|domain| PERMITTED.iter().map(|p| root(domain, *p)).collect()).collect()
    })
}

/// Bytes one by one; zeros at the end, so that short inputs are plans as well.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, most: usize) -> usize {
        usize::from(self.next()) % most
    }

    /// True for one byte in eight: most of a plan is good, or no plan would be.
    fn rarely(&mut self) -> bool {
        self.next() % 8 == 7
    }
}

/// What a chain is made of, and whether each part is good.
struct Plan {
    signer: usize,
    permitted: usize,
    leaf: LeafSpec,
    intermediates: Vec<(CaSpec, bool)>,
    role: Role,
    usage: Usage,
    dialled: Option<usize>,
}

fn id(bytes: &mut Bytes<'_>) -> String {
    let domain = DOMAINS[bytes.below(DOMAINS.len())];
    let path = ["agent", "gateway", "web"][bytes.below(3)];
    let mut text = format!("spiffe://{domain}/{path}").into_bytes();
    for _ in 0..if bytes.rarely() { 1 + bytes.below(3) } else { 0 } {
        let (at, byte) = (bytes.below(text.len()), bytes.next() & 0x7f);
        match bytes.below(3) {
            0 => text[at] = byte,
            1 => text.insert(at, byte),
            _ => drop(text.remove(at)),
        }
    }
    String::from_utf8(text).unwrap_or_default()
}

fn plan(bytes: &mut Bytes<'_>) -> Plan {
    use ExtendedKeyUsagePurpose::{ClientAuth, EmailProtection, ServerAuth};
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    let signer = bytes.below(DOMAINS.len());
    let permitted = if bytes.rarely() { bytes.below(PERMITTED.len()) } else { 0 };
    let mut leaf = LeafSpec::of(id(bytes));
    for _ in 0..if bytes.rarely() { bytes.below(3) } else { 0 } {
        leaf.uris.push(id(bytes));
    }
    if bytes.rarely() {
        leaf.uris.remove(0);
    }
    leaf.dns = vec!["agent.acme.example".to_owned(); bytes.below(3)];
    if bytes.rarely() {
        leaf.not_before = [-2 * DAY, 30 * DAY][bytes.below(2)];
        leaf.not_after = [60 * DAY, -DAY][bytes.below(2)];
    }
    if bytes.rarely() {
        let flags = bytes.next();
        let all = [DigitalSignature, KeyAgreement, KeyCertSign, CrlSign];
        leaf.key_usages = pick(&all, flags);
    }
    if bytes.rarely() {
        let flags = bytes.next();
        leaf.purposes = pick(&[ServerAuth, ClientAuth, EmailProtection], flags);
    }
    leaf.ca = bytes.rarely();
    let count = if bytes.rarely() { bytes.below(INTERMEDIATES_MAX + 1) } else { 0 };
    let intermediates = (0..count)
        .map(|_| {
            let mut spec = CaSpec::default();
            match bytes.next() % 16 {
                0 => spec.ca = false,
                1 => spec.key_usages = vec![CrlSign],
                2 => spec.not_after = -HOUR,
                3 => spec.permitted_uri = Some("acme.example".to_owned()),
                4 => spec.uris = vec!["spiffe://other.example".to_owned()],
                _ => return (spec, true),
            }
            (spec, false)
        })
        .collect();
    let role = if bytes.next() % 4 == 3 { Role::Gateway } else { Role::Agent };
    let usage = if bytes.next().is_multiple_of(2) { Usage::Client } else { Usage::Server };
    let dialled = (bytes.next() % 2 == 1).then(|| bytes.below(DOMAINS.len()));
    Plan { signer, permitted, leaf, intermediates, role, usage, dialled }
}

fn pick<T: Clone>(all: &[T], flags: u8) -> Vec<T> {
    let chosen = all.iter().enumerate().filter(|(at, _)| flags & (1 << at) != 0);
    chosen.map(|(_, value)| value.clone()).collect()
}

impl Plan {
    /// The second look: the peer that this plan proves.
    fn proves(&self) -> Option<usize> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
        let [uri] = self.leaf.uris.as_slice() else { return None };
        let role = match self.role {
            Role::Agent => "agent",
            Role::Gateway => "gateway",
        };
        let peer = DOMAINS.iter().position(|domain| *uri == format!("spiffe://{domain}/{role}"))?;
        let has = |usage| self.leaf.key_usages.contains(&usage);
        let purpose = match self.usage {
            Usage::Client => ClientAuth,
            Usage::Server => ServerAuth,
        };
        let constrained = match PERMITTED[self.permitted] {
            None => true,
            Some(below) if below.starts_with('.') => DOMAINS[peer].ends_with(below),
            Some(host) => host == DOMAINS[peer],
        };
        let good = self.signer == peer
            && self.dialled.is_none_or(|dialled| dialled == peer)
            && constrained
            && has(DigitalSignature)
            && !has(KeyCertSign)
            && !has(CrlSign)
            && (self.leaf.purposes.is_empty() || self.leaf.purposes.contains(&purpose))
            && !self.leaf.ca
            && self.leaf.not_before <= 0
            && self.leaf.not_after > 0
            && self.intermediates.len() < INTERMEDIATES_MAX
            && self.intermediates.iter().all(|(_, good)| *good);
        good.then_some(peer)
    }
}

/// Checks the law for one plan. Returns whether the chain was accepted. Panics if the law is broken.
pub fn chain_law(input: &[u8]) -> bool {
    let plan = plan(&mut Bytes(input));
    if plan.leaf.uris.iter().any(|uri| !uri.is_ascii()) {
        return false;
    }
    let root = &roots()[plan.signer][plan.permitted];
    let mut made: Option<TestCa> = None;
    for (spec, _) in &plan.intermediates {
        made = Some(made.as_ref().unwrap_or(root).intermediate(spec.clone()));
    }
    let leaf = made.as_ref().unwrap_or(root).leaf(plan.leaf.clone());
    let peers: Vec<PeerTrust> =
        roots().iter().zip(NAMES).map(|(of_domain, name)| of_domain[plan.permitted].trust_as(name)).collect();
    let dialled = plan.dialled.map(|at| PeerName::parse(NAMES[at]).expect("a peer name"));
    let expect = dialled.as_ref().map_or(Expect::AnyPeer, Expect::Peer);
    let proven = verify_peer_chain(&trust_table(peers), &leaf.chain, plan.role, plan.usage, expect);
    let found = proven.as_ref().ok().map(|p| p.peer.to_string());
    assert_eq!(found, plan.proves().map(|at| NAMES[at].to_owned()), "{:?} {proven:?}", plan.leaf);
    found.is_some()
}
