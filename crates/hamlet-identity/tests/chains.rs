//! Hostile certificate chains, each beside an accepted neighbour: through the check itself and
//! through real handshakes, presented by a client and by a server.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::{
    Expect, NOT_BEFORE_SKEW, PeerTrust, Role, TrustTable, Usage, VerifyError, agent_client_config,
    agent_server_config, refusal_in, verify_peer_chain,
};
use hamlet_runtime::ManualClock;
use hamlet_testkit::pki::{
    CaSpec, DAY, ExtendedKeyUsagePurpose, HOUR, KeyKind, KeyUsagePurpose, LeafSpec, SAN_OID, TestCa,
    TestLeaf, san_content, trust_table,
};
use hamlet_testkit::tls::{handshake, stranger_client, stranger_server};
use rustls_pki_types::CertificateDer;

const MINUTE: i64 = 60;

/// What acme presents, and what we believe of acme.
struct Presented {
    trust: PeerTrust,
    leaf: TestLeaf,
}

struct Case {
    what: &'static str,
    /// The rule that refuses it when accepted from anybody, and when acme was dialled.
    rules: [&'static str; 2],
    bad: Presented,
    good: Presented,
    /// False where the key is only public.
    can_shake_hands: bool,
}

fn acme() -> PeerName {
    PeerName::parse("acme").unwrap()
}

fn agent_spec(ca: &TestCa) -> LeafSpec {
    LeafSpec::of(ca.agent_id().as_str())
}

fn of(ca: &TestCa, leaf: LeafSpec) -> Presented {
    Presented { trust: ca.trust_as("acme"), leaf: ca.leaf(leaf) }
}

fn case(what: &'static str, rules: [&'static str; 2], bad: Presented, good: Presented) -> Case {
    Case { what, rules, bad, good, can_shake_hands: true }
}

/// A bad leaf of a good CA beside a good one.
fn leaf_case(ca: &TestCa, what: &'static str, rule: &'static str, bad: LeafSpec, good: LeafSpec) -> Case {
    case(what, [rule, rule], of(ca, bad), of(ca, good))
}

fn name_cases(ca: &TestCa) -> Vec<Case> {
    let (id, spec) = (ca.agent_id().to_string(), || agent_spec(ca));
    let uris = |uris: &[&str]| LeafSpec { uris: uris.iter().map(|u| (*u).to_owned()).collect(), ..spec() };
    let raw = |content: Vec<u8>| LeafSpec { extensions: vec![(SAN_OID.to_vec(), content)], ..uris(&[]) };
    let uri_and = |tag: u8, second: &[u8]| {
        let mut content = san_content(&id);
        content.extend([tag, second.len() as u8]);
        content.extend(second);
        content[1] += second.len() as u8 + 2;
        raw(content)
    };
    vec![
        leaf_case(
            ca,
            "two URI SANs",
            "uri-count",
            uris(&[&id, "spiffe://acme.example/gateway"]),
            LeafSpec { dns: vec!["agent.acme.example".into()], ..spec() },
        ),
        leaf_case(ca, "the same URI SAN twice", "uri-count", uris(&[&id, &id]), uris(&[&id])),
        leaf_case(ca, "no SAN at all", "uri-count", uris(&[]), spec()),
        leaf_case(
            ca,
            "a DNS SAN only",
            "uri-count",
            LeafSpec { dns: vec!["agent.acme.example".into()], ..uris(&[]) },
            LeafSpec { dns: vec!["agent.acme.example".into()], ..spec() },
        ),
        leaf_case(ca, "an id without path", "not-spiffe", uris(&["spiffe://acme.example"]), spec()),
        leaf_case(ca, "another scheme", "not-spiffe", uris(&["https://acme.example/agent"]), spec()),
        leaf_case(ca, "a NUL in the id", "not-spiffe", uris(&["spiffe://acme.example/agent\0x"]), spec()),
        leaf_case(ca, "an upper-case domain", "not-spiffe", uris(&["spiffe://Acme.example/agent"]), spec()),
        leaf_case(ca, "a longer id", "not-listed", uris(&["spiffe://acme.example/agent/x"]), spec()),
        leaf_case(ca, "another workload's id", "not-listed", uris(&["spiffe://acme.example/web"]), spec()),
        leaf_case(ca, "the gateway's id", "not-listed", uris(&["spiffe://acme.example/gateway"]), spec()),
        case(
            "an id of another trust domain",
            ["unknown-trust-domain", "other-trust-domain"],
            of(ca, uris(&["spiffe://globex.example/agent"])),
            of(ca, spec()),
        ),
        leaf_case(
            ca,
            "two SAN extensions",
            "malformed",
            LeafSpec { extensions: vec![(SAN_OID.to_vec(), san_content(&id))], ..spec() },
            raw(san_content(&id)),
        ),
        leaf_case(
            ca,
            "a second URI that is no text",
            "malformed",
            uri_and(0x86, b"\xff\xfe"),
            uri_and(0x82, b"agent.acme.example"),
        ),
    ]
}

fn leaf_cases(ca: &TestCa) -> Vec<Case> {
    let spec = || agent_spec(ca);
    let usages = |key_usages: &[KeyUsagePurpose]| LeafSpec { key_usages: key_usages.to_vec(), ..spec() };
    let key = |key| LeafSpec { key, ..spec() };
    let from = |not_before| LeafSpec { not_before, ..spec() };
    let until = |not_after| LeafSpec { not_after, ..spec() };
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    vec![
        leaf_case(ca, "expired", "expired", until(-MINUTE), until(HOUR)),
        leaf_case(ca, "not yet valid", "not-yet-valid", from(10 * MINUTE), from(4 * MINUTE)),
        leaf_case(ca, "a CA as leaf", "leaf-is-ca", LeafSpec { ca: true, ..spec() }, spec()),
        leaf_case(
            ca,
            "a leaf that may sign certificates",
            "key-usage",
            usages(&[DigitalSignature, KeyCertSign]),
            usages(&[DigitalSignature, KeyAgreement]),
        ),
        leaf_case(
            ca,
            "a leaf that may sign CRLs",
            "key-usage",
            usages(&[DigitalSignature, CrlSign]),
            usages(&[DigitalSignature]),
        ),
        leaf_case(ca, "no key usage", "key-usage", usages(&[]), usages(&[DigitalSignature])),
        leaf_case(
            ca,
            "no digitalSignature",
            "key-usage",
            usages(&[KeyAgreement]),
            usages(&[DigitalSignature]),
        ),
        leaf_case(
            ca,
            "an extended key usage for something else",
            "extended-key-usage",
            LeafSpec { purposes: vec![ExtendedKeyUsagePurpose::EmailProtection], ..spec() },
            LeafSpec { purposes: Vec::new(), ..spec() },
        ),
        leaf_case(
            ca,
            "any extended key usage",
            "extended-key-usage",
            LeafSpec { purposes: vec![ExtendedKeyUsagePurpose::Any], ..spec() },
            spec(),
        ),
        leaf_case(ca, "a P-521 key", "key-type", key(KeyKind::P521), key(KeyKind::P384)),
        Case {
            can_shake_hands: false,
            ..leaf_case(
                ca,
                "an RSA key of 1024 bits",
                "key-type",
                key(KeyKind::Rsa1024),
                key(KeyKind::Rsa2048),
            )
        },
    ]
}

fn issuer_cases(ca: &TestCa) -> Vec<Case> {
    let under = |issuer: &TestCa| of(issuer, agent_spec(issuer));
    let one = |spec: CaSpec| under(&ca.intermediate(spec));
    let good = || one(CaSpec::default());
    let depth = |n: usize| {
        let mut issuer = ca.intermediate(CaSpec::default());
        for _ in 1..n {
            issuer = issuer.intermediate(CaSpec::default());
        }
        under(&issuer)
    };
    let no_sign = vec![KeyUsagePurpose::CrlSign];
    let of_both = |rule| [rule, rule];
    // Same names, another key: only the signature differs.
    let impostor = Presented { trust: ca.trust_as("acme"), leaf: TestCa::new("acme.example").agent() };
    vec![
        case("another CA of the same name", of_both("untrusted-issuer"), impostor, under(ca)),
        case("five certificates", of_both("chain-too-long"), depth(4), depth(3)),
        case(
            "an intermediate that may not sign",
            of_both("issuer"),
            one(CaSpec { key_usages: no_sign, ..CaSpec::default() }),
            one(CaSpec { key_usages: Vec::new(), ..CaSpec::default() }),
        ),
        case(
            "an intermediate that is no CA",
            of_both("path"),
            one(CaSpec { ca: false, ..CaSpec::default() }),
            good(),
        ),
        case(
            "an intermediate with name constraints for URIs",
            of_both("constrained-issuer"),
            one(CaSpec { permitted_uri: Some("acme.example".into()), ..CaSpec::default() }),
            one(CaSpec { permitted_dns: Some("acme.example".into()), ..CaSpec::default() }),
        ),
        case(
            "an expired intermediate",
            of_both("expired"),
            one(CaSpec { not_after: -HOUR, ..CaSpec::default() }),
            one(CaSpec { not_after: HOUR, ..CaSpec::default() }),
        ),
        case(
            "an intermediate with a P-521 key",
            of_both("issuer"),
            one(CaSpec { key: KeyKind::P521, ..CaSpec::default() }),
            one(CaSpec { key: KeyKind::P384, ..CaSpec::default() }),
        ),
        case(
            "an expired root",
            of_both("bundle-expired"),
            under(&TestCa::with("acme.example", CaSpec { not_after: -HOUR, ..CaSpec::default() })),
            under(&TestCa::with("acme.example", CaSpec { not_after: HOUR, ..CaSpec::default() })),
        ),
    ]
}

fn all_cases() -> Vec<Case> {
    let ca = TestCa::new("acme.example");
    let mut cases = name_cases(&ca);
    cases.extend(leaf_cases(&ca));
    cases.extend(issuer_cases(&ca));
    cases
}

fn rule(result: Result<hamlet_identity::ProvenPeer, VerifyError>) -> Result<(), &'static str> {
    result.map(|_| ()).map_err(|e| e.rule())
}

#[test]
fn a_hostile_chain_is_refused_by_its_rule_and_its_neighbour_is_accepted() {
    let acme = acme();
    for Case { what, rules, bad, good, .. } in all_cases() {
        for (rule_name, usage, expect) in [
            (rules[0], Usage::Client, Expect::AnyPeer),
            (rules[1], Usage::Server, Expect::Peer(&acme)),
            (rules[1], Usage::Client, Expect::Peer(&acme)),
        ] {
            let check = |p: &Presented| {
                let trust = trust_table(vec![p.trust.clone()]);
                rule(verify_peer_chain(&trust, &p.leaf.chain, Role::Agent, usage, expect))
            };
            assert_eq!(check(&bad), Err(rule_name), "{what}, {usage:?}, {expect:?}");
            assert_eq!(check(&good), Ok(()), "the neighbour of {what}, {usage:?}, {expect:?}");
        }
    }
}

#[tokio::test]
async fn a_hostile_chain_fails_real_handshakes_on_both_sides_and_its_neighbour_passes() {
    let us = TestCa::new("initech.example").agent().identity();
    for Case { what, rules, bad, good, can_shake_hands } in all_cases() {
        if !can_shake_hands {
            continue;
        }
        for (presented, rules) in [(good, None), (bad, Some(rules))] {
            let trust = trust_table(vec![presented.trust]);
            let server = agent_server_config(&us, &trust);
            let done = handshake(stranger_client(Some(&presented.leaf), &[b"h2"]), server, "x.example").await;
            assert_eq!(done.is_ok(), rules.is_none(), "{what}, as client");
            if let Some(rules) = rules {
                let error = done.server.expect_err("the server refused");
                assert_eq!(refusal_in(&error).map(VerifyError::rule), Some(rules[0]), "{what}: {error}");
                assert!(done.client.is_err(), "{what}: the client was told");
            }

            let client = agent_client_config(&us, &trust, &acme());
            let done = handshake(client, stranger_server(&presented.leaf, &[b"h2"]), "x.example").await;
            assert_eq!(done.is_ok(), rules.is_none(), "{what}, as server");
            if let Some(rules) = rules {
                let error = done.client.expect_err("the client refused");
                assert_eq!(refusal_in(&error).map(VerifyError::rule), Some(rules[1]), "{what}: {error}");
            }
        }
    }
}

#[test]
fn a_certificate_for_one_use_only_is_accepted_for_that_use_only() {
    let ca = TestCa::new("acme.example");
    let trust = trust_table(vec![ca.trust_as("acme")]);
    let leaf = |purpose| ca.leaf(LeafSpec { purposes: vec![purpose], ..agent_spec(&ca) });
    let check = |leaf: &TestLeaf, usage| {
        rule(verify_peer_chain(&trust, &leaf.chain, Role::Agent, usage, Expect::AnyPeer))
    };
    let (client, server) =
        (leaf(ExtendedKeyUsagePurpose::ClientAuth), leaf(ExtendedKeyUsagePurpose::ServerAuth));
    assert_eq!(check(&client, Usage::Client), Ok(()));
    assert_eq!(check(&client, Usage::Server), Err("extended-key-usage"));
    assert_eq!(check(&server, Usage::Server), Ok(()));
    assert_eq!(check(&server, Usage::Client), Err("extended-key-usage"));
}

#[test]
fn every_allowed_kind_of_key_is_accepted() {
    let ca = TestCa::new("acme.example");
    let trust = trust_table(vec![ca.trust_as("acme")]);
    for key in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa2048] {
        let leaf = ca.leaf(LeafSpec { key, ..agent_spec(&ca) });
        let proven = verify_peer_chain(&trust, &leaf.chain, Role::Agent, Usage::Client, Expect::AnyPeer);
        assert_eq!(proven.map(|p| p.id), Ok(ca.agent_id().into()), "{key:?}");
    }
}

#[test]
fn a_role_is_proven_by_its_own_id_only() {
    let ca = TestCa::new("acme.example");
    let trust = trust_table(vec![ca.trust_as("acme")]);
    let check = |leaf: &TestLeaf, role| {
        rule(verify_peer_chain(&trust, &leaf.chain, role, Usage::Client, Expect::AnyPeer))
    };
    assert_eq!(check(&ca.agent(), Role::Agent), Ok(()));
    assert_eq!(check(&ca.agent(), Role::Gateway), Err("not-listed"));
    assert_eq!(check(&ca.gateway(), Role::Gateway), Ok(()));
    assert_eq!(check(&ca.gateway(), Role::Agent), Err("not-listed"));
}

#[test]
fn at_egress_only_the_exact_sans_of_the_offer_are_accepted() {
    let (ca, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
    let trust = trust_table(vec![ca.trust_as("acme"), globex.trust_as("globex")]);
    let (acme, leaf) = (acme(), ca.gateway());
    let offered = [ca.id("edge"), ca.gateway_id()];
    let check = |leaf: &TestLeaf, sans: &[hamlet_core::SpiffeId]| {
        let expect = Expect::PeerSans(&acme, sans);
        rule(verify_peer_chain(&trust, &leaf.chain, Role::Gateway, Usage::Server, expect))
    };
    assert_eq!(check(&leaf, &offered), Ok(()));
    assert_eq!(check(&leaf, &offered[..1]), Err("not-offered"));
    assert_eq!(check(&leaf, &[]), Err("not-offered"));
    // Listed by a careless offer, but of another peer.
    assert_eq!(check(&globex.gateway(), &[globex.gateway_id()]), Err("other-trust-domain"));
}

#[test]
fn validity_is_judged_by_the_clock_with_a_grace_at_its_begin_only() {
    let ca = TestCa::new("acme.example");
    let clock = ManualClock::at(ca.now());
    let trust = TrustTable::new(clock.clone());
    trust.replace(vec![ca.trust_as("acme")]).unwrap();
    let leaf = ca.leaf(LeafSpec { not_before: HOUR, not_after: 2 * HOUR, ..agent_spec(&ca) });
    let second = Duration::from_secs(1);
    let begin = Duration::from_secs(ca.now().as_secs() + HOUR as u64);
    let end = begin + Duration::from_secs(HOUR as u64);
    for (at, expected) in [
        (begin - NOT_BEFORE_SKEW - second, Err("not-yet-valid")),
        (begin - NOT_BEFORE_SKEW, Ok(())),
        (begin, Ok(())),
        (end, Ok(())),
        (end + second, Err("expired")),
    ] {
        clock.set_wall(at);
        let result = verify_peer_chain(&trust, &leaf.chain, Role::Agent, Usage::Client, Expect::AnyPeer);
        assert_eq!(rule(result), expected, "at {:?} from begin", at.abs_diff(begin));
    }
}

#[test]
fn a_proof_ends_with_the_earliest_certificate_of_its_chain() {
    let root = TestCa::with("acme.example", CaSpec { not_after: 30 * DAY, ..CaSpec::default() });
    let proven = |issuer: &TestCa, not_after: i64| {
        let leaf = issuer.leaf(LeafSpec { not_after, ..agent_spec(issuer) });
        let trust = trust_table(vec![issuer.trust_as("acme")]);
        let proven =
            verify_peer_chain(&trust, &leaf.chain, Role::Agent, Usage::Client, Expect::AnyPeer).unwrap();
        proven.not_after.as_secs() as i64 - issuer.now().as_secs() as i64
    };
    let intermediate = root.intermediate(CaSpec { not_after: 3 * DAY, ..CaSpec::default() });
    assert_eq!(proven(&root, DAY), DAY);
    assert_eq!(proven(&root, 60 * DAY), 30 * DAY);
    assert_eq!(proven(&intermediate, 20 * DAY), 3 * DAY);
}

#[test]
fn a_refusal_says_what_to_do_and_is_kept() {
    let ca = TestCa::new("acme.example");
    let trust = trust_table(vec![ca.trust_as("acme")]);
    let leaf = ca.leaf(LeafSpec::of("spiffe://acme.example/web"));
    let error =
        verify_peer_chain(&trust, &leaf.chain, Role::Agent, Usage::Client, Expect::AnyPeer).unwrap_err();
    let text = error.to_string();
    for part in ["spiffe://acme.example/web", "peer acme", "spiffe://acme.example/agent", "correct"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let kept = trust.failures().latest().unwrap();
    assert_eq!((kept.rule, kept.role, kept.text), ("not-listed", Role::Agent, text));
    assert_eq!(trust.failures().total(), 1);
}

#[test]
fn nothing_presented_and_garbage_are_refused() {
    let ca = TestCa::new("acme.example");
    let trust = trust_table(vec![ca.trust_as("acme")]);
    let check = |chain: &[CertificateDer<'_>]| {
        rule(verify_peer_chain(&trust, chain, Role::Agent, Usage::Client, Expect::AnyPeer))
    };
    assert_eq!(check(&[]), Err("no-certificate"));
    assert_eq!(check(&[CertificateDer::from(vec![0x30, 0x80, 1, 2])]), Err("malformed"));
    let leaf = ca.agent();
    let mut trailing = leaf.chain[0].to_vec();
    trailing.push(0);
    assert_eq!(check(&[CertificateDer::from(trailing)]), Err("malformed"));
    // Garbage above a good leaf is not needed for the path and harms nothing.
    assert_eq!(check(&[leaf.chain[0].clone(), CertificateDer::from(vec![1, 2, 3])]), Ok(()));
}

mod garbage {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static ACME: LazyLock<(Arc<TrustTable>, TestLeaf)> = LazyLock::new(|| {
        let ca = TestCa::new("acme.example");
        let leaf = ca.intermediate(CaSpec::default()).agent();
        (trust_table(vec![ca.trust_as("acme")]), leaf)
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_damaged_chain_is_refused_without_a_panic(
            which in 0usize..2,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let (trust, leaf) = &*ACME;
            let mut chain: Vec<Vec<u8>> = leaf.chain.iter().map(|der| der.to_vec()).collect();
            let target = &mut chain[which];
            for (index, byte) in &damage {
                let at = index.index(target.len());
                target[at] = *byte;
            }
            if let Some(cut) = cut {
                let length = cut.index(target.len());
                target.truncate(length);
            }
            let same = *target == leaf.chain[which].to_vec();
            let chain: Vec<CertificateDer<'_>> = chain.into_iter().map(CertificateDer::from).collect();
            let result = verify_peer_chain(trust, &chain, Role::Agent, Usage::Client, Expect::AnyPeer);
            prop_assert_eq!(result.is_ok(), same);
        }
    }
}

/// The same law that the fuzzer checks, over plans at random; enough of them prove somebody.
#[test]
fn what_is_accepted_is_what_a_second_and_simpler_look_accepts() {
    use proptest::strategy::{Strategy, ValueTree};
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let plans = proptest::collection::vec(proptest::num::u8::ANY, 0..48);
    let accepted = (0..2000).filter(|_| {
        let plan = plans.new_tree(&mut runner).expect("a plan").current();
        hamlet_testkit::law::chain_law(&plan)
    });
    let accepted = accepted.count();
    println!("{accepted} of 2000 plans accepted");
    assert!(accepted > 40, "{accepted}");
}
