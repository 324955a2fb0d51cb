//! Trust bundles and trust tables: what can't prove anybody, or could prove somebody else, is
//! refused at load.

use std::sync::Arc;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::{ANCHORS_MAX, BundleError, TrustBundle, TrustError, TrustTable};
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{CaSpec, DAY, KeyKind, KeyUsagePurpose, TestCa};
use proptest::prelude::*;

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

fn load(pem: &str) -> Result<TrustBundle, BundleError> {
    TrustBundle::from_pem(domain("acme.example"), pem.as_bytes())
}

fn ca(spec: CaSpec) -> TestCa {
    TestCa::with("acme.example", spec)
}

#[test]
fn a_file_that_is_no_bundle_is_refused_with_the_way_out_and_its_neighbour_is_loaded() {
    let good = TestCa::new("acme.example");
    let pem = |spec: CaSpec| ca(spec).pem().to_owned();
    let spec = CaSpec::default;
    let truncated = good.pem().replace("-----END CERTIFICATE-----", "");
    let leaf_beside = format!("{}{}", good.pem(), good.agent().cert_pem);
    let rolled = format!("# old, then new\n{}\n{}", good.pem(), TestCa::new("acme.example").pem());
    let many: String = (0..=ANCHORS_MAX).map(|_| TestCa::new("acme.example").pem().to_owned()).collect();
    let few: String = (0..ANCHORS_MAX).map(|_| TestCa::new("acme.example").pem().to_owned()).collect();
    let uris = |uri: &str| pem(CaSpec { uris: vec![uri.into()], ..spec() });
    for (what, bad, hint, neighbour) in [
        ("empty", String::new(), "ca.pem", good.pem().to_owned()),
        ("a key only", good.agent().key_pem, "ca.pem", good.pem().to_owned() + &good.agent().key_pem),
        ("truncated", truncated, "export it again", good.pem().to_owned() + "\n\n"),
        ("a leaf beside the CA", leaf_beside, "not a CA", rolled),
        ("too many", many, "keep only", few),
        ("not a CA", pem(CaSpec { ca: false, ..spec() }), "not a CA", pem(spec())),
        (
            "may not sign",
            pem(CaSpec { key_usages: vec![KeyUsagePurpose::CrlSign], ..spec() }),
            "keyCertSign",
            pem(CaSpec { key_usages: vec![], ..spec() }),
        ),
        (
            "name constraints that say nothing clear",
            pem(CaSpec { permitted_uri: Some("*.example".into()), ..spec() }),
            "can't be honoured",
            pem(CaSpec { permitted_uri: Some("acme.example".into()), ..spec() }),
        ),
        ("a P-521 key", pem(CaSpec { key: KeyKind::P521, ..spec() }), "P-256", {
            pem(CaSpec { key: KeyKind::P384, ..spec() })
        }),
        ("another's CA", uris("spiffe://globex.example"), "acme.example", uris("spiffe://acme.example")),
    ] {
        let error = load(&bad).expect_err(what).to_string();
        assert!(error.contains(hint), "{what}: {error}");
        assert!(load(&neighbour).is_ok(), "the neighbour of {what}: {:?}", load(&neighbour));
    }
}

#[test]
fn a_bundle_shows_its_cas_and_when_the_first_of_them_ends() {
    let (short, long) = (ca(CaSpec { not_after: DAY, ..CaSpec::default() }), TestCa::new("acme.example"));
    let bundle = load(&format!("{}{}{}", long.pem(), short.pem(), long.pem())).unwrap();
    assert_eq!(bundle.anchors().len(), 2, "the same CA counts once");
    assert_eq!(bundle.fingerprints().len(), 2);
    assert_eq!(bundle.earliest_not_after().as_secs(), short.now().as_secs() + DAY as u64);
    assert_eq!(bundle.anchors()[0].der, *long.root());
}

#[test]
fn peers_that_can_not_be_believed_together_leave_the_table_as_it_was() {
    let (acme, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
    let table = TrustTable::new(SystemClock::shared());
    table.set_own_trust_domain(domain("home.example"));
    table.replace(vec![acme.trust_as("acme"), globex.trust_as("globex")]).unwrap();
    let generation = *table.changed().borrow();

    let foreign_id = || {
        let mut trust = acme.trust_as("acme");
        trust.gateway_ids.push(globex.gateway_id());
        trust
    };
    let foreign_bundle = || {
        let mut trust = acme.trust_as("acme");
        trust.bundle = globex.bundle();
        trust
    };
    let home = TestCa::new("home.example");
    for (what, peers) in [
        ("one domain, two peers", vec![acme.trust_as("acme"), acme.trust_as("acme-2")]),
        ("one name, two domains", vec![acme.trust_as("acme"), globex.trust_as("acme")]),
        ("our own domain", vec![home.trust_as("home")]),
        ("an id of another domain", vec![foreign_id()]),
        ("a bundle of another domain", vec![foreign_bundle()]),
    ] {
        assert!(table.replace(peers).is_err(), "{what}");
    }
    assert_eq!(*table.changed().borrow(), generation);
    assert_eq!(table.peers().len(), 2);
    assert!(table.peer(&PeerName::parse("globex").unwrap()).is_some());
    assert!(table.peer_of_domain(&domain("acme.example")).is_some());

    let error = table.replace(vec![home.trust_as("home")]).unwrap_err();
    assert!(matches!(error, TrustError::OwnTrustDomain { .. }));
}

#[test]
fn a_bundle_for_another_domain_can_be_loaded_but_not_believed_for_this_one() {
    let acme = TestCa::new("acme.example");
    let mut trust = acme.trust_as("acme");
    trust.bundle = acme.bundle_for("globex.example");
    let table = TrustTable::new(SystemClock::shared());
    assert!(matches!(table.replace(vec![trust]), Err(TrustError::ForeignBundle { .. })));
    assert!(table.replace(vec![acme.trust_as("acme")]).is_ok());
    assert_eq!(Arc::strong_count(&table), 1);
}

proptest! {
    #[test]
    fn a_damaged_bundle_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let _ = TrustBundle::from_pem(domain("acme.example"), &bytes);
        let mut pem = PEM.clone().into_bytes();
        let at = at.index(pem.len());
        pem[at] = byte;
        let _ = TrustBundle::from_pem(domain("acme.example"), &pem);
    }
}

static PEM: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| TestCa::new("acme.example").pem().to_owned());
