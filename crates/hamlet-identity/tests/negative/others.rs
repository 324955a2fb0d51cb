//! Peers without SPIFFE ids, and what a peer has revoked.

use std::sync::Arc;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::{ForeignIdentity, Lenience, PeerTrust, RevocationPolicy, TrustBundle};
use sha2::{Digest, Sha256};

use super::{Shown, World, fqdns};
use crate::forge::{
    Authority, BASIC, CERT_SIGN, CRL_SIGN, DAY, DIGITAL_SIGNATURE, DNS, EKU, EMAIL, Ext, Forge, HOUR, IP,
    KEY_ENCIPHERMENT, KEY_USAGE, MAIL, MINUTE, SAN, UNKNOWN, URI, basic, eku, key_usage, name, new_key, pem,
    san, serial_of, validity,
};

type Edit = fn(&mut Forge);

const HOST: &[u8] = b"agent.acme.example";

pub(crate) fn add(world: &mut World) {
    names(world);
    peers_of_names(world);
    fingerprints(world);
    revoked(world);
}

/// What a leaf of a foreign implementation looks like: no URI, often no key usage.
fn foreign(f: &mut Forge) {
    f.remove(KEY_USAGE);
    f.set(SAN, san(&[(DNS, HOST)]));
}

fn by_name(root: &Authority, chain: Vec<Vec<u8>>) -> Shown {
    Shown { foreign: Some(ForeignIdentity::Dns(fqdns(&["agent.acme.example"]))), ..Shown::new(root, chain) }
}

/// Exact DNS names.
fn names(world: &mut World) {
    let root = world.root.clone();
    let shown = |names: &[(u8, &[u8])]| {
        let content = san(names);
        by_name(
            &root,
            root.chain(|f| {
                foreign(f);
                f.set(SAN, content);
            }),
        )
    };
    let good = || shown(&[(DNS, b"other.example"), (DNS, b"AGENT.acme.example"), (MAIL, b"a@b.example")]);
    for (what, names) in [
        ("a wildcard", &[(DNS, &b"*.acme.example"[..])][..]),
        ("a wildcard of one letter", &[(DNS, b"agen*.acme.example")]),
        ("the parent", &[(DNS, b"acme.example")]),
        ("a name below", &[(DNS, b"x.agent.acme.example")]),
        ("a name that ends so", &[(DNS, b"xagent.acme.example")]),
        ("a dot at its end", &[(DNS, b"agent.acme.example.")]),
        ("a dot before it", &[(DNS, b".agent.acme.example")]),
        ("a NUL and more", &[(DNS, b"agent.acme.example\0.evil.example")]),
        ("a NUL at its end", &[(DNS, b"agent.acme.example\0")]),
        ("a space at its end", &[(DNS, b"agent.acme.example ")]),
        ("a port", &[(DNS, b"agent.acme.example:7443")]),
        ("a letter of another script", &[(DNS, "\u{430}gent.acme.example".as_bytes())]),
        ("the name as mail address", &[(MAIL, HOST)]),
        ("an address", &[(IP, &[127, 0, 0, 1])]),
        ("an empty name", &[(DNS, b"")]),
        ("two others", &[(DNS, b"a.example"), (DNS, b"b.example")]),
    ] {
        world.add_both(format!("a peer by name: {what}"), ["uri-count", "not-named"], shown(names), good());
    }
    let spoilt = |edit: fn(&mut Forge)| {
        by_name(
            &root,
            root.chain(|f| {
                foreign(f);
                edit(f);
            }),
        )
    };
    let both = |rule| [rule, rule];
    let cases: [(&str, [&'static str; 2], Edit, Edit); 9] = [
        (
            "the common name only",
            ["uri-count", "not-named"],
            |f| {
                f.remove(SAN);
                f.subject = name("agent.acme.example");
            },
            |f| f.subject = name("agent.acme.example"),
        ),
        ("a CA", both("leaf-is-ca"), |f| f.set(BASIC, basic(true, None)), |f| f.remove(BASIC)),
        (
            "a key that signs nothing",
            both("key-usage"),
            |f| f.set(KEY_USAGE, key_usage(KEY_ENCIPHERMENT)),
            |f| {
                f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT));
            },
        ),
        (
            "a key that signs certificates",
            both("key-usage"),
            |f| {
                f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE | CERT_SIGN));
            },
            |f| f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE)),
        ),
        (
            "a purpose that isn't TLS",
            both("extended-key-usage"),
            |f| f.set(EKU, eku(&[EMAIL])),
            |f| f.remove(EKU),
        ),
        (
            "expired",
            both("expired"),
            |f| f.validity = validity(-DAY, -MINUTE),
            |f| f.validity = validity(-DAY, HOUR),
        ),
        ("not yet valid", both("not-yet-valid"), |f| f.validity = validity(HOUR, DAY), |_| {}),
        ("a serial number of zero", both("malformed"), |f| f.serial = vec![0], |_| {}),
        (
            "a critical extension of nobody",
            both("path"),
            |f| {
                f.extensions.push(Ext::new(UNKNOWN, true, vec![5, 0]));
            },
            |f| f.extensions.push(Ext::new(UNKNOWN, false, vec![5, 0])),
        ),
    ];
    for (what, rules, bad, good) in cases {
        world.add_both(format!("a peer by name: {what}"), rules, spoilt(bad), spoilt(good));
    }
    let stranger = Authority::root("acme root", |_| {});
    let good = by_name(&root, root.chain(foreign));
    world.add(
        "a peer by name: another CA",
        "untrusted-issuer",
        by_name(&root, stranger.chain(foreign)),
        good.clone(),
    );
    let two_uris = by_name(
        &root,
        root.chain(|f| {
            foreign(f);
            f.set(SAN, san(&[(DNS, HOST), (URI, b"spiffe://a.example/x"), (URI, b"spiffe://b.example/x")]));
        }),
    );
    world.add_both("a peer by name: two URIs beside it", ["key-usage", "uri-count"], two_uris, good);
}

/// A name that belongs to another peer.
fn peers_of_names(world: &mut World) {
    let root = world.root.clone();
    let globex = {
        let domain = TrustDomain::parse("globex.example").unwrap();
        let bundle =
            TrustBundle::from_pem(domain, &pem("CERTIFICATE", std::slice::from_ref(&root.der))).unwrap();
        let mut trust = PeerTrust::new(PeerName::parse("globex").unwrap(), Arc::new(bundle), vec![], vec![]);
        trust.foreign = Some(ForeignIdentity::Dns(fqdns(&["agent.globex.example"])));
        trust
    };
    let shown = |names: &[(u8, &[u8])]| {
        let content = san(names);
        let chain = root.chain(|f| {
            foreign(f);
            f.set(SAN, content);
        });
        Shown { beside: Some(globex.clone()), ..by_name(&root, chain) }
    };
    let other = (DNS, &b"agent.globex.example"[..]);
    let good = || shown(&[(DNS, HOST), (DNS, b"www.globex.example")]);
    world.add_both("the name of another peer", ["somebody else", "not-named"], shown(&[other]), good());
    world.add_both(
        "a URI of another peer's domain beside the name",
        ["not-named", "not-named"],
        shown(&[(DNS, HOST), (URI, b"spiffe://globex.example/agent")]),
        good(),
    );
}

fn fingerprints(world: &mut World) {
    let root = world.root.clone();
    let key = new_key();
    let mine = root.chain_of(&key, foreign);
    let listed =
        |chain: &[Vec<u8>]| Some(ForeignIdentity::Fingerprints(vec![Sha256::digest(&chain[0]).into()]));
    let good = Shown { foreign: listed(&mine), ..Shown::new(&root, mine.clone()) };
    let with = |chain: Vec<Vec<u8>>| Shown { chain, ..good.clone() };
    let unknown = ["uri-count", "not-named"];
    world.add_both(
        "another certificate of the same key",
        unknown,
        with(root.chain_of(&key, foreign)),
        good.clone(),
    );
    world.add_both("another certificate of the same names", unknown, with(root.chain(foreign)), good.clone());
    let behind = [root.chain(foreign), mine.clone()].concat();
    world.add_both("the right certificate behind another", unknown, with(behind), good.clone());
    let stranger = Authority::root("acme root", |_| {});
    let foreign_chain = stranger.chain(foreign);
    let bad = Shown { foreign: listed(&foreign_chain), ..Shown::new(&root, foreign_chain) };
    world.add("a listed certificate of another CA", "untrusted-issuer", bad, good);
    pinned(world);
}

/// Certificates that stand in the bundle themselves.
fn pinned(world: &mut World) {
    let myself = |edit: fn(&mut Forge)| {
        let key = Arc::new(new_key());
        let me = Authority { key: key.clone(), name: name("leaf"), der: Vec::new(), above: Vec::new() };
        me.chain_of(&key, |f| {
            foreign(f);
            edit(f);
        })
    };
    let shown = |chain: Vec<Vec<u8>>| Shown {
        roots: vec![chain[0].clone()],
        foreign: Some(ForeignIdentity::Fingerprints(vec![Sha256::digest(&chain[0]).into()])),
        ..Shown::new(&world.root, chain)
    };
    let good = || shown(myself(|_| {}));
    let cases: [(&str, &'static str, Edit); 7] = [
        ("has expired", "expired", |f| f.validity = validity(-DAY, -MINUTE)),
        ("isn't valid yet", "not-yet-valid", |f| f.validity = validity(HOUR, DAY)),
        ("is a CA", "leaf-is-ca", |f| f.set(BASIC, basic(true, None))),
        ("is for mail", "extended-key-usage", |f| f.set(EKU, eku(&[EMAIL]))),
        ("may not sign", "key-usage", |f| f.set(KEY_USAGE, key_usage(KEY_ENCIPHERMENT))),
        ("has a critical extension of nobody", "bundle", |f| {
            f.extensions.push(Ext::new(UNKNOWN, true, vec![5, 0]));
        }),
        ("has serial number zero", "malformed", |f| f.serial = vec![0]),
    ];
    let mut all = Vec::new();
    for (what, rule, edit) in cases {
        all.push((format!("a pinned certificate that {what}"), [rule, rule], shown(myself(edit)), good()));
    }
    let unlisted = Shown { foreign: Some(ForeignIdentity::Fingerprints(vec![[7; 32]])), ..good() };
    all.push(("a leaf in the bundle that isn't listed".into(), ["bundle", "bundle"], unlisted, good()));
    let issued = {
        let key = Arc::new(new_key());
        let me = Authority { key: key.clone(), name: name("leaf"), der: Vec::new(), above: Vec::new() };
        let pinned = me.chain_of(&key, foreign);
        let child = Authority { above: pinned.clone(), ..me }.chain(foreign);
        let fingerprints = [&child[0], &pinned[0]].map(|der| Sha256::digest(der).into()).to_vec();
        Shown { chain: child, foreign: Some(ForeignIdentity::Fingerprints(fingerprints)), ..shown(pinned) }
    };
    all.push((
        "a listed certificate issued by a pinned one".into(),
        ["bundle-expired", "bundle-expired"],
        issued,
        good(),
    ));
    for (what, rules, bad, good) in all {
        world.add_both(what, rules, bad, good);
    }
}

fn revoked(world: &mut World) {
    let strict = RevocationPolicy::default();
    let open = RevocationPolicy { stale: Lenience::Accept, unlisted: Lenience::Accept };
    let root = world.root.clone();
    let between = root.intermediate("between", |_| {});
    let (chain, other) = (root.chain(|_| {}), root.chain(|_| {}));
    let list = |ca: &Authority, until: i64, ders: &[&Vec<u8>]| {
        ca.crl(&ca.key, until, &ders.iter().map(|der| serial_of(der)).collect::<Vec<_>>())
    };
    let under = |crls: &[Vec<u8>], policy| Shown {
        crl: Some((pem("X509 CRL", crls), policy)),
        ..Shown::new(&root, chain.clone())
    };
    let clean = || under(&[list(&root, DAY, &[&other[0]])], strict);
    let mut add = |what: &str, rule, bad, good| world.add(what, rule, bad, good);
    add("a revoked leaf", "revoked", under(&[list(&root, DAY, &[&chain[0]])], strict), clean());
    add(
        "a leaf revoked among many",
        "revoked",
        under(&[list(&root, DAY, &[&other[0], &chain[0]])], strict),
        clean(),
    );
    add(
        "a leaf revoked by an outdated list that is allowed",
        "revoked",
        under(&[list(&root, -HOUR, &[&chain[0]])], open),
        under(&[list(&root, -HOUR, &[])], open),
    );
    add("an outdated list", "revocation-unknown", under(&[list(&root, -HOUR, &[])], strict), clean());
    add(
        "a list of another CA only",
        "revocation-unknown",
        under(&[list(&between, DAY, &[])], strict),
        under(&[list(&between, DAY, &[])], open),
    );
    let forged = root.crl(&new_key(), DAY, &[]);
    add("a list that the CA didn't sign", "revocation-unknown", under(&[forged], strict), clean());

    let deep = between.chain(|_| {});
    let both = |of_root: &[&Vec<u8>], of_between: &[&Vec<u8>]| Shown {
        chain: deep.clone(),
        ..under(&[list(&root, DAY, of_root), list(&between, DAY, of_between)], strict)
    };
    add("a revoked intermediate", "revoked", both(&[&between.der], &[]), both(&[], &[]));
    add("a revoked leaf of an intermediate", "revoked", both(&[], &[&deep[0]]), both(&[], &[]));
    let half = Shown { chain: deep.clone(), ..under(&[list(&between, DAY, &[])], strict) };
    add("no list for the intermediate's CA", "revocation-unknown", half, both(&[], &[]));
    let mute = root.intermediate("mute", |f| f.set(KEY_USAGE, key_usage(CERT_SIGN)));
    let able = root.intermediate("able", |f| f.set(KEY_USAGE, key_usage(CERT_SIGN | CRL_SIGN)));
    let of = |ca: &Authority| Shown {
        chain: ca.chain(|_| {}),
        ..under(&[list(&root, DAY, &[]), list(ca, DAY, &[])], strict)
    };
    add("a list of a CA that may not sign lists", "revocation-unknown", of(&mute), of(&able));
    add(
        "two lists of one CA",
        "crl",
        under(&[list(&root, DAY, &[]), list(&root, DAY, &[&chain[0]])], strict),
        clean(),
    );
    add(
        "a list that is a certificate",
        "crl",
        Shown { crl: Some((root.der.clone(), strict)), ..clean() },
        clean(),
    );
    let mut cut = list(&root, DAY, &[&chain[0]]);
    cut.pop();
    add("a list cut short", "crl", Shown { crl: Some((cut, strict)), ..clean() }, clean());
    add("an empty file of lists", "crl", Shown { crl: Some((Vec::new(), strict)), ..clean() }, clean());
}
