//! SPIFFE bundles: what another implementation wrote is read, what we write is fixed, what is
//! hostile is refused beside a neighbour that is not, and which document may follow which.
//!
//! `golden/spiffe` was made with go-spiffe (`interop/spiffe`), which also reads `ours.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hamlet_core::TrustDomain;
use hamlet_identity::{
    ANCHORS_MAX, Authorities, BUNDLE_BYTES_MAX, BUNDLE_KEYS_MAX, BundleError, BundleRefusal, Channel,
    HeldBundle, MAP_DOMAINS_MAX, SEQUENCE_JUMP_MAX, SpiffeBundle, TrustBundle,
};
use hamlet_testkit::pki::{CaSpec, KeyKind, TestCa};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

fn acme() -> TrustDomain {
    domain("acme.example")
}

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/spiffe").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(bytes: &[u8]) -> Result<SpiffeBundle, BundleError> {
    SpiffeBundle::from_bytes(acme(), bytes)
}

/// A bundle of these CAs with a sequence.
fn bundle(cas: &[&TestCa], sequence: impl Into<Option<u64>>) -> SpiffeBundle {
    let pem: String = cas.iter().map(|ca| ca.pem()).collect();
    let authorities = match cas.is_empty() {
        true => Authorities::Revoked,
        false => Authorities::Certificates(TrustBundle::from_pem(acme(), pem.as_bytes()).unwrap()),
    };
    SpiffeBundle { domain: acme(), sequence: sequence.into(), refresh_hint: None, authorities }
}

fn prints(of: &Authorities) -> Vec<[u8; 32]> {
    of.bundle().map(TrustBundle::fingerprints).unwrap_or_default()
}

#[test]
fn what_go_spiffe_wrote_is_read_whole() {
    let pem = TrustBundle::from_pem(acme(), &golden("certificates.pem")).unwrap();
    assert_eq!(pem.anchors().len(), 4, "P-256, P-384, RSA, Ed25519");
    for name in ["x509.json", "x509-and-jwt.json"] {
        let read = read(&golden(name)).unwrap();
        assert_eq!(read.authorities, Authorities::Certificates(pem.clone()), "{name}");
        assert_eq!((read.sequence, read.refresh_hint), (Some(7), Some(Duration::from_secs(300))), "{name}");
    }
    let tokens_only = read(&golden("jwt-only.json")).unwrap();
    assert_eq!(tokens_only.authorities, Authorities::NoX509);
    // Written as a set without keys it would revoke everything.
    assert_eq!(tokens_only.to_jwks(), Err(BundleError::NothingToWrite));
    assert_eq!(SpiffeBundle::to_map([&tokens_only]), Err(BundleError::NothingToWrite));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "golden files are blessed by the environment")]
fn what_we_write_is_fixed_and_read_back_the_same() {
    let bundle = read(&golden("x509-and-jwt.json")).unwrap();
    let written = bundle.to_jwks().unwrap();
    if std::env::var_os("HAMLET_BLESS").is_some() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/spiffe/ours.json");
        std::fs::write(path, &written).unwrap();
    }
    assert_eq!(written, String::from_utf8(golden("ours.json")).unwrap());
    assert_eq!(read(written.as_bytes()).unwrap(), bundle);
    // The same members as the other implementation's, beside the order.
    let keys = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["keys"].clone();
    assert_eq!(keys(written.as_bytes()), keys(&golden("x509.json")));

    let pem = bundle.to_pem();
    assert_eq!(prints(&read(pem.as_bytes()).unwrap().authorities), prints(&bundle.authorities));
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 4);
}

#[test]
fn a_bundle_map_is_written_and_read_and_each_domain_finds_its_own() {
    let acme_bundle = read(&golden("x509.json")).unwrap();
    let globex = TestCa::new("globex.example");
    let globex_bundle = SpiffeBundle::of((*globex.bundle()).clone());
    let map = SpiffeBundle::to_map([&acme_bundle, &globex_bundle]).unwrap();
    assert!(!map.contains("refresh_hint"), "a map has no hints");
    let back = SpiffeBundle::from_map(map.as_bytes()).unwrap();
    let of_acme = SpiffeBundle { refresh_hint: None, ..acme_bundle.clone() };
    assert_eq!(back, BTreeMap::from([(acme(), of_acme.clone()), (domain("globex.example"), globex_bundle)]));
    assert_eq!(read(map.as_bytes()).unwrap(), of_acme);
    let nobody = SpiffeBundle::from_bytes(domain("initech.example"), map.as_bytes()).unwrap_err();
    assert!(nobody.to_string().contains("acme.example, globex.example"), "{nobody}");
    assert!(SpiffeBundle::to_map([&acme_bundle, &acme_bundle]).is_err(), "one domain twice");
}

#[test]
fn an_empty_bundle_revokes_everything_and_an_unknown_entry_nothing() {
    assert_eq!(read(br#"{"keys": []}"#).unwrap().authorities, Authorities::Revoked);
    let written = bundle(&[], 9).to_jwks().unwrap();
    assert_eq!(read(written.as_bytes()).unwrap(), bundle(&[], 9));
    let unknown =
        json!({"keys": [{"kty": "lattice", "use": "x509-svid"}, {"kty": "EC"}, {"use": "x509-svid"}]});
    assert_eq!(read(unknown.to_string().as_bytes()).unwrap().authorities, Authorities::NoX509);
}

/// The document of go-spiffe with one entry, edited.
fn edited(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(&golden("x509.json")).unwrap();
    document["keys"].as_array_mut().unwrap().truncate(1);
    edit(&mut document);
    document.to_string().into_bytes()
}

fn entry(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    edited(|document| edit(&mut document["keys"][0]))
}

#[test]
fn a_document_with_a_bad_certificate_or_form_is_refused_and_its_neighbour_is_read() {
    let other: Value = serde_json::from_slice(&golden("x509.json")).unwrap();
    let other_key = other["keys"][1]["x5c"][0].clone();
    let x5c = |text: &str| {
        let text = text.to_owned();
        entry(move |e| e["x5c"] = json!([text]))
    };
    let good = other["keys"][0]["x5c"][0].clone();
    let good = good.as_str().unwrap().to_owned();
    let wrapped: String = good.as_bytes().chunks(64).map(|c| String::from_utf8_lossy(c) + "\n").collect();
    let doubled = |text: &str| {
        String::from_utf8(edited(|_| {})).unwrap().replacen('{', &format!("{{{text},"), 1).into_bytes()
    };
    let keys = |n: usize| edited(|d| d["keys"] = vec![json!({"kty": "EC", "use": "jwt-svid"}); n].into());
    let leaf = TestCa::with("acme.example", CaSpec { ca: false, ..CaSpec::default() });
    let p521 = TestCa::with("acme.example", CaSpec { key: KeyKind::P521, ..CaSpec::default() });
    let cert = |ca: &TestCa| {
        use base64::Engine as _;
        json!([base64::engine::general_purpose::STANDARD.encode(ca.root())])
    };
    let bare = |ca: &TestCa| {
        json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": cert(ca)}]}).to_string().into_bytes()
    };
    let many = |n: usize| {
        let list: Vec<Value> = (0..n)
            .map(|_| json!({"kty": "EC", "use": "x509-svid", "x5c": cert(&TestCa::new("acme.example"))}))
            .collect();
        json!({ "keys": list }).to_string().into_bytes()
    };
    let padded = |n: usize| [edited(|_| {}), vec![b' '; n]].concat();
    let exact = BUNDLE_BYTES_MAX - edited(|_| {}).len();
    for (what, bad, neighbour) in [
        (
            "no keys",
            edited(|d| drop(d.as_object_mut().unwrap().remove("keys"))),
            edited(|d| d["extra"] = json!([{}])),
        ),
        ("keys of another form", edited(|d| d["keys"] = json!({})), edited(|d| d["keys"] = json!([]))),
        ("a list", b"[{}]".to_vec(), br#"{"keys":[]}"#.to_vec()),
        (
            "a sequence below zero",
            edited(|d| d["spiffe_sequence"] = json!(-1)),
            edited(|d| d["spiffe_sequence"] = json!(0)),
        ),
        (
            "a sequence in words",
            edited(|d| d["spiffe_sequence"] = json!("7")),
            edited(|d| d["spiffe_sequence"] = Value::Null),
        ),
        (
            "a broken hint",
            edited(|d| d["spiffe_refresh_hint"] = json!(1.5)),
            edited(|d| d["spiffe_refresh_hint"] = json!(u64::MAX)),
        ),
        (
            "no x5c",
            entry(|e| drop(e.as_object_mut().unwrap().remove("x5c"))),
            entry(|e| e["x5c"] = json!([good, "what follows is no chain"])),
        ),
        (
            "an empty x5c",
            entry(|e| e["x5c"] = json!([])),
            entry(|e| e["kid"] = json!("not expected, and of no matter")),
        ),
        ("x5c in the other alphabet", x5c(&good.replace('+', "-").replace('/', "_")), x5c(&wrapped)),
        ("x5c cut", x5c(&good[..good.len() - 8]), x5c(good.trim_end_matches('='))),
        ("x5c with armour", x5c(&format!("-----BEGIN CERTIFICATE-----{good}")), x5c(&good)),
        (
            "another key's certificate",
            entry(|e| e["x5c"] = json!([other_key])),
            entry(|e| drop(e.as_object_mut().unwrap().remove("x"))),
        ),
        ("another key", entry(|e| e["x"] = json!("AAAA")), entry(|e| e["alg"] = json!("ES256"))),
        ("an entry of another form", edited(|d| d["keys"] = json!([7])), edited(|d| d["keys"] = json!([{}]))),
        ("a certificate that is no CA", bare(&leaf), bare(&TestCa::new("acme.example"))),
        (
            "a key that we don't take",
            bare(&p521),
            bare(&TestCa::with("acme.example", CaSpec { key: KeyKind::P384, ..CaSpec::default() })),
        ),
        (
            "another domain's CA",
            bare(&TestCa::with(
                "globex.example",
                CaSpec { uris: vec!["spiffe://globex.example".into()], ..CaSpec::default() },
            )),
            bare(&TestCa::with(
                "acme.example",
                CaSpec { uris: vec!["spiffe://acme.example".into()], ..CaSpec::default() },
            )),
        ),
        ("doubled keys", doubled(r#""keys":[]"#), doubled(r#""Keys":[]"#)),
        ("too many entries", keys(BUNDLE_KEYS_MAX + 1), keys(BUNDLE_KEYS_MAX)),
        ("too many CAs", many(ANCHORS_MAX + 1), many(ANCHORS_MAX)),
        ("too large", padded(exact + 1), padded(exact)),
        ("cut off", edited(|_| {}).split_last().unwrap().1.to_vec(), edited(|_| {})),
    ] {
        let error = read(&bad).expect_err(what).to_string();
        assert!(!error.contains('\n') && error.len() < 1024, "{what}: {error}");
        assert!(read(&neighbour).is_ok(), "the neighbour of {what}: {:?}", read(&neighbour));
    }
}

#[test]
fn a_leaf_that_a_fingerprint_names_stands_in_pem_and_in_no_other_format() {
    let ca = TestCa::new("acme.example");
    let leaf = ca.agent();
    let pem = format!("{}{}", ca.pem(), leaf.cert_pem);
    let print: [u8; 32] = Sha256::digest(&leaf.chain[0]).into();
    let pinned = |bytes: &[u8], prints: &[[u8; 32]]| SpiffeBundle::from_bytes_pinned(acme(), bytes, prints);
    let both = pinned(pem.as_bytes(), &[print]).unwrap();
    assert_eq!(prints(&both.authorities).len(), 2);
    assert!(matches!(read(pem.as_bytes()), Err(BundleError::NotCa { .. })));
    assert!(matches!(pinned(pem.as_bytes(), &[[7; 32]]), Err(BundleError::NotCa { .. })));
    let jwks = both.to_jwks().unwrap();
    assert!(matches!(pinned(jwks.as_bytes(), &[print]), Err(BundleError::NotCa { .. })));
    assert!(pinned(bundle(&[&ca], 1).to_jwks().unwrap().as_bytes(), &[print]).is_ok());
}

#[test]
fn a_map_that_could_be_read_in_two_ways_is_refused_and_its_neighbour_is_read() {
    let set = r#"{"keys":[]}"#;
    let map = |inner: &str| format!(r#"{{"trust_domains":{{{inner}}}}}"#);
    let two = |a: &str, b: &str| map(&format!(r#""{a}":{set},"{b}":{set}"#));
    let names = |n: usize| (0..n).map(|i| format!(r#""d{i}.example":{set}"#)).collect::<Vec<_>>().join(",");
    for (what, bad, neighbour) in [
        ("one domain twice", two("acme.example", "acme.example"), two("acme.example", "globex.example")),
        (
            "once as an id",
            two("acme.example", "spiffe://acme.example"),
            two("acme.example", "spiffe://globex.example/"),
        ),
        ("no domain", map(&format!(r#""Acme Example":{set}"#)), map(&format!(r#""acme.example":{set}"#))),
        ("no set", map(r#""acme.example":[]"#), map(r#""acme.example":{"keys":[],"x":[]}"#)),
        ("too many", map(&names(MAP_DOMAINS_MAX + 1)), map(&names(MAP_DOMAINS_MAX))),
        ("no map", r#"{"trust_domains":[]}"#.to_owned(), r#"{"trust_domains":{}}"#.to_owned()),
    ] {
        assert!(SpiffeBundle::from_map(bad.as_bytes()).is_err(), "{what}");
        let read = SpiffeBundle::from_map(neighbour.as_bytes());
        assert!(read.is_ok(), "the neighbour of {what}: {read:?}");
    }
}

const NOW: Duration = Duration::from_secs(1000);
const WAIT: Duration = Duration::from_secs(300);

fn offer(held: &mut HeldBundle, found: &SpiffeBundle, channel: Channel) -> Result<(), BundleRefusal> {
    held.offer(found, channel, NOW, WAIT).map(|_| ())
}

#[test]
fn only_a_newer_document_follows_and_a_refused_one_changes_nothing() {
    let (old, new) = (TestCa::new("acme.example"), TestCa::new("acme.example"));
    let rule = |sequence: Option<u64>, cas: &[&TestCa], channel| {
        let mut held = HeldBundle::first(bundle(&[&old], 7), Channel::Endpoint);
        let before = held.clone();
        let result = offer(&mut held, &bundle(cas, sequence), channel);
        if result.is_err() {
            assert_eq!(held, before);
        }
        result.map_err(|e| e.rule())
    };
    let both: &[&TestCa] = &[&old, &new];
    let far = 7 + SEQUENCE_JUMP_MAX;
    use Channel::{Endpoint, Operator, Stream};
    for (what, sequence, cas, channel, expected) in [
        ("older", Some(6), both, Endpoint, Err("stale")),
        ("older, the same content", Some(6), &[&old][..], Endpoint, Err("stale")),
        ("older, by a person", Some(6), both, Operator, Ok(())),
        ("the same", Some(7), &[&old], Endpoint, Ok(())),
        ("a fork", Some(7), both, Endpoint, Err("fork")),
        ("a fork on a stream", Some(7), both, Stream, Err("fork")),
        ("newer", Some(8), both, Endpoint, Ok(())),
        ("without a sequence", None, both, Endpoint, Ok(())),
        ("far ahead", Some(far), both, Endpoint, Ok(())),
        ("too far ahead", Some(far + 1), both, Endpoint, Err("jump")),
        ("too far ahead, by a person", Some(far + 1), both, Operator, Ok(())),
        ("everything revoked", Some(8), &[], Endpoint, Ok(())),
        ("everything revoked, by a person", Some(8), &[], Operator, Ok(())),
        ("everything revoked on a stream", Some(8), &[], Stream, Err("nothing-left")),
        ("everything replaced on a stream", Some(8), &[&new], Stream, Err("nothing-left")),
    ] {
        assert_eq!(rule(sequence, cas, channel), expected, "{what}");
    }
    let mut held = HeldBundle::first(bundle(&[&old], 7), Channel::Endpoint);
    let foreign = SpiffeBundle::of((*TestCa::new("globex.example").bundle()).clone());
    assert!(matches!(offer(&mut held, &foreign, Operator), Err(BundleRefusal::OtherDomain { .. })));
}

#[test]
fn a_document_without_a_sequence_does_not_lower_the_one_held() {
    let (old, new) = (TestCa::new("acme.example"), TestCa::new("acme.example"));
    let mut held = HeldBundle::first(bundle(&[&old], 7), Channel::Endpoint);
    offer(&mut held, &bundle(&[&new], None), Channel::Endpoint).unwrap();
    assert_eq!(held.sequence(), Some(7));
    assert_eq!(
        offer(&mut held, &bundle(&[&old], 6), Channel::Endpoint),
        Err(BundleRefusal::Stale { held: 7, found: 6 })
    );
}

#[test]
fn an_operators_bundle_stays_until_the_source_has_a_newer_one() {
    let (old, own, new) =
        (TestCa::new("acme.example"), TestCa::new("acme.example"), TestCa::new("acme.example"));
    let mut held = HeldBundle::first(bundle(&[&old], 7), Channel::Endpoint);
    offer(&mut held, &bundle(&[&own], None), Channel::Operator).unwrap();
    // The endpoint says what it said before: no fork, no news.
    offer(&mut held, &bundle(&[&old], 7), Channel::Endpoint).unwrap();
    assert_eq!((prints(held.in_force()), held.channel()), (own.bundle().fingerprints(), Channel::Operator));
    offer(&mut held, &bundle(&[&new], 8), Channel::Endpoint).unwrap();
    assert_eq!((prints(held.in_force()), held.channel()), (new.bundle().fingerprints(), Channel::Endpoint));
    // With a sequence a person may go back: the peer began anew.
    offer(&mut held, &bundle(&[&old], 1), Channel::Operator).unwrap();
    offer(&mut held, &bundle(&[&own], 2), Channel::Endpoint).unwrap();
    assert_eq!(prints(held.in_force()), own.bundle().fingerprints());
}

#[test]
fn what_a_stream_adds_waits_and_what_it_removes_goes_at_once() {
    let (a, b, c) = (TestCa::new("acme.example"), TestCa::new("acme.example"), TestCa::new("acme.example"));
    let print = |ca: &TestCa| ca.bundle().fingerprints();
    let mut held = HeldBundle::first(bundle(&[&a, &b], 1), Channel::File);
    let change = held.offer(&bundle(&[&b, &c], 2), Channel::Stream, NOW, WAIT).unwrap();
    assert_eq!((change.removed, change.waiting, change.added), (print(&a), print(&c), vec![]));
    assert_eq!((prints(held.in_force()), held.due()), (print(&b), Some(NOW + WAIT)));

    // Said again, or beside something else, it keeps its time; a restart begins the wait anew.
    held.offer(&bundle(&[&b, &c, &a], 3), Channel::Stream, NOW + WAIT / 2, WAIT).unwrap();
    assert_eq!(held.due(), Some(NOW + WAIT));
    let restarted = HeldBundle::from_bytes(&held.to_bytes(), NOW + WAIT / 2, WAIT).unwrap();
    assert_eq!((restarted.due(), restarted.waiting()), (Some(NOW + WAIT / 2 + WAIT), 2));

    assert!(held.ripen(NOW + WAIT - Duration::from_nanos(1)).is_empty());
    assert_eq!(held.ripen(NOW + WAIT), print(&c));
    assert_eq!(prints(held.in_force()), [print(&b), print(&c)].concat());
    // Taken back before its time, it never comes.
    held.offer(&bundle(&[&b, &c], 4), Channel::Stream, NOW + WAIT, WAIT).unwrap();
    assert!(held.ripen(NOW + WAIT * 10).is_empty());
    assert_eq!((held.due(), held.sequence()), (None, Some(4)));
}

#[test]
fn what_is_held_survives_a_restart_and_damage_is_an_error() {
    let ca = TestCa::new("acme.example");
    let hint = SpiffeBundle { refresh_hint: Some(Duration::from_secs(60)), ..bundle(&[&ca], 7) };
    for bundle in [hint, bundle(&[], 3), bundle(&[&ca], None), read(&golden("jwt-only.json")).unwrap()] {
        let held = HeldBundle::first(bundle, Channel::Endpoint);
        assert_eq!(HeldBundle::from_bytes(&held.to_bytes(), NOW, WAIT).unwrap(), held);
    }
    let kept = String::from_utf8(HeldBundle::first(bundle(&[&ca], 7), Channel::Endpoint).to_bytes()).unwrap();
    for (what, from, to) in [
        ("another version", r#""version":1"#, r#""version":2"#),
        ("another word", r#""says":"certificates""#, r#""says":"all""#),
        ("another channel", r#""channel":"endpoint""#, r#""channel":"rumour""#),
        ("a lost member", r#""seen""#, r#""saw""#),
    ] {
        assert!(kept.contains(from), "{what}: {kept}");
        let damaged = kept.replace(from, to);
        assert!(HeldBundle::from_bytes(damaged.as_bytes(), NOW, WAIT).is_err(), "{what}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let _ = read(&bytes);
        let _ = SpiffeBundle::from_map(&bytes);
        let mut document = golden("x509.json");
        let at = at.index(document.len());
        document[at] = byte;
        if let Ok(read) = SpiffeBundle::from_jwks(acme(), &document) {
            let written = read.to_jwks().unwrap();
            prop_assert_eq!(SpiffeBundle::from_jwks(acme(), written.as_bytes()).unwrap(), read);
        }
    }
}
