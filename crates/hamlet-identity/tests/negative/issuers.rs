//! What stands above the leaf: intermediates, and the CAs of the bundle.

use std::sync::Arc;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::{PeerTrust, TrustBundle};
use rcgen::{KeyPair, PKCS_ECDSA_P521_SHA512, PublicKeyData};

use super::{Shown, World};
use crate::forge::{
    Authority, BASIC, CERT_SIGN, CLIENT_AUTH, CONSTRAINTS, CRL_SIGN, DAY, DIGITAL_SIGNATURE, DIRECTORY, DNS,
    EKU, EMAIL, Ext, Forge, HOUR, IP, KEY_USAGE, MAIL, MINUTE, SAN, SERVER_AUTH, UNKNOWN, URI, basic,
    constraints, eku, key_usage, name, new_key, pem, san, seq, tlv, validity,
};

type Edit = fn(&mut Forge);

pub(crate) fn add(world: &mut World) {
    intermediates(world);
    depth(world);
    crossed(world);
    constrained_intermediates(world);
    roots(world);
    constrained_roots(world);
}

fn constrain(f: &mut Forge, permitted: &[(u8, &[u8])], excluded: &[(u8, &[u8])]) {
    f.extensions.push(Ext::new(CONSTRAINTS, true, constraints(permitted, excluded)));
}

/// One intermediate that isn't right.
fn intermediates(world: &mut World) {
    let cases: [(&str, &'static str, Edit, Edit); 17] = [
        ("without basic constraints", "path", |f| f.remove(BASIC), |_| {}),
        (
            "that is no CA",
            "path",
            |f| f.set(BASIC, basic(false, None)),
            |f| f.set(BASIC, basic(true, Some(0))),
        ),
        (
            "with a leaf's extensions",
            "path",
            |f| {
                f.set(BASIC, basic(false, None));
                f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE));
            },
            |_| {},
        ),
        (
            "that may not sign certificates",
            "issuer",
            |f| f.set(KEY_USAGE, key_usage(CRL_SIGN)),
            |f| {
                f.set(KEY_USAGE, key_usage(CERT_SIGN));
            },
        ),
        (
            "that may only sign data",
            "issuer",
            |f| f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE)),
            |f| {
                f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE | CERT_SIGN));
            },
        ),
        ("with two key usages", "path", |f| f.double(KEY_USAGE), |f| f.remove(KEY_USAGE)),
        (
            "that has expired",
            "expired",
            |f| f.validity = validity(-DAY, -MINUTE),
            |f| {
                f.validity = validity(-DAY, HOUR);
            },
        ),
        (
            "that isn't valid yet",
            "not-yet-valid",
            |f| f.validity = validity(10 * MINUTE, DAY),
            |f| {
                f.validity = validity(4 * MINUTE, DAY);
            },
        ),
        ("with serial number zero", "issuer", |f| f.serial = vec![0], |f| f.serial = vec![1]),
        ("with a long serial number", "issuer", |f| f.serial = vec![1; 21], |f| f.serial = vec![1; 20]),
        ("of version 1", "path", |f| f.version = vec![], |_| {}),
        (
            "with a critical extension of nobody",
            "path",
            |f| {
                f.extensions.push(Ext::new(UNKNOWN, true, vec![5, 0]));
            },
            |f| f.extensions.push(Ext::new(UNKNOWN, false, vec![5, 0])),
        ),
        (
            "for mail only",
            "path",
            |f| f.set(EKU, eku(&[EMAIL])),
            |f| {
                f.set(EKU, eku(&[SERVER_AUTH, CLIENT_AUTH]));
            },
        ),
        (
            "with the id of another trust domain",
            "issuer",
            |f| f.uris(&["spiffe://globex.example"]),
            |f| {
                f.uris(&["spiffe://acme.example"]);
            },
        ),
        ("with the id of a workload", "issuer", |f| f.uris(&["spiffe://acme.example/agent"]), |_| {}),
        (
            "that is signed as ECDSA with SHA-1",
            "path",
            |f| {
                let sha1 = seq(&[&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]]);
                f.algorithms = [sha1.clone(), sha1];
            },
            |_| {},
        ),
        (
            "whose signature is spoilt",
            "untrusted-issuer",
            |f| {
                f.signature = |mut s| {
                    *s.last_mut().expect("bytes") ^= 1;
                    s
                }
            },
            |_| {},
        ),
    ];
    for (what, rule, bad, good) in cases {
        let shown = |edit: Edit| {
            let between = world.root.intermediate("between", edit);
            Shown::new(&world.root, between.chain(|_| {}))
        };
        let (bad, good) = (shown(bad), shown(good));
        world.add(format!("an intermediate {what}"), rule, bad, good);
    }
    let p521 = Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap());
    let weak =
        world.root.intermediate_of(p521.clone(), "between", |f| f.spki = p521.subject_public_key_info());
    let sha512 = seq(&[&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04]]);
    let bad = Shown::new(&world.root, weak.chain(|f| f.algorithms = [sha512.clone(), sha512]));
    let good = Shown::new(&world.root, world.root.intermediate("between", |_| {}).chain(|_| {}));
    world.add("an intermediate with a P-521 key", "issuer", bad, good);
}

/// How many there are.
fn depth(world: &mut World) {
    let under = |root: &Authority, count: usize, first: Edit| {
        let mut last = root.intermediate("level 1", first);
        for level in 2..=count {
            last = last.intermediate(&format!("level {level}"), |_| {});
        }
        last
    };
    let shown = |root: &Authority, issuer: &Authority| Shown::new(root, issuer.chain(|_| {}));
    let root = world.root.clone();
    let (three, four) = (under(&root, 3, |_| {}), under(&root, 4, |_| {}));
    world.add("five certificates", "chain-too-long", shown(&root, &four), shown(&root, &three));
    for count in [6, 100, 1000] {
        let mut bad = shown(&root, &three);
        let filler = root.der.clone();
        bad.chain.resize(count, filler);
        world.add(format!("{count} certificates"), "chain-too-long", bad, shown(&root, &three));
    }
    let one = under(&root, 1, |f| f.set(BASIC, basic(true, Some(0))));
    let two = under(&root, 2, |f| f.set(BASIC, basic(true, Some(0))));
    world.add("an intermediate below path length 0", "path", shown(&root, &two), shown(&root, &one));
    let two = under(&root, 2, |f| f.set(BASIC, basic(true, Some(1))));
    let three = under(&root, 3, |f| f.set(BASIC, basic(true, Some(1))));
    world.add("two intermediates below path length 1", "path", shown(&root, &three), shown(&root, &two));
    let short = Authority::root("short root", |f| f.set(BASIC, basic(true, Some(0))));
    let one = under(&short, 1, |_| {});
    world.add(
        "an intermediate below a root of path length 0",
        "path",
        shown(&short, &one),
        shown(&short, &short),
    );
    let short = Authority::root("short root", |f| f.set(BASIC, basic(true, Some(1))));
    let (one, two) = (under(&short, 1, |_| {}), under(&short, 2, |_| {}));
    world.add(
        "two intermediates below a root of path length 1",
        "path",
        shown(&short, &two),
        shown(&short, &one),
    );
    let one = under(&root, 1, |_| {});
    let mut alone = shown(&root, &one);
    alone.chain.truncate(1);
    world.add("a leaf without its intermediate", "untrusted-issuer", alone, shown(&root, &one));
    let two = under(&root, 2, |_| {});
    let mut gap = shown(&root, &two);
    gap.chain.remove(1);
    world.add("a chain with a gap", "untrusted-issuer", gap, shown(&root, &two));
    let mut spoilt = shown(&root, &one);
    spoilt.chain[1] = vec![0x30, 0x03, 1, 2, 3];
    world.add("garbage in place of the intermediate", "path", spoilt, shown(&root, &one));
}

/// CAs that sign for others.
fn crossed(world: &mut World) {
    let root = world.root.clone();
    let globex = Authority::root("globex root", |_| {});
    let believed = |ca: &Authority| {
        let domain = TrustDomain::parse("globex.example").unwrap();
        let bundle =
            TrustBundle::from_pem(domain.clone(), &pem("CERTIFICATE", std::slice::from_ref(&ca.der)))
                .unwrap();
        let (agent, gateway) = (domain.id("agent").unwrap(), domain.id("gateway").unwrap());
        let peer = PeerName::parse("globex").unwrap();
        PeerTrust::new(peer, Arc::new(bundle), vec![agent], vec![gateway])
    };
    let beside = |chain: Vec<Vec<u8>>| Shown { beside: Some(believed(&globex)), ..Shown::new(&root, chain) };
    let good = || beside(root.chain(|_| {}));
    let mut add = |what: &str, rules: [&'static str; 2], chain: Vec<Vec<u8>>| {
        world.add_both(what, rules, beside(chain), good());
    };
    let one = |rule| [rule, rule];
    add("acme's id from another peer's CA", one("untrusted-issuer"), globex.chain(|_| {}));
    add(
        "acme's id from another peer's CA, its root presented as well",
        one("untrusted-issuer"),
        [globex.chain(|_| {}), vec![globex.der.clone()]].concat(),
    );
    add(
        "another peer's id from acme's CA",
        ["untrusted-issuer", "other-trust-domain"],
        root.chain(|f| f.uris(&["spiffe://globex.example/agent"])),
    );
    let subordinate = globex.intermediate("acme root", |_| {});
    add(
        "acme's id from a CA that another peer's CA named like acme's",
        one("untrusted-issuer"),
        subordinate.chain(|_| {}),
    );
    let same_key =
        globex.intermediate_of(new_key().into(), "globex for acme", |f| f.uris(&["spiffe://acme.example"]));
    add(
        "acme's id from a CA that another peer's CA says is acme's",
        one("untrusted-issuer"),
        same_key.chain(|_| {}),
    );
    // Globex' root, cross-signed by acme's CA: it says itself whose it is.
    let marked =
        root.intermediate_of(globex.key.clone(), "globex root", |f| f.uris(&["spiffe://globex.example"]));
    add("another domain's CA, cross-signed by acme's", one("issuer"), marked.chain(|_| {}));

    let other_subject = Authority { name: name("another name"), ..root.clone() };
    add("our CA's key under another name", one("untrusted-issuer"), other_subject.chain(|_| {}));
    let key = Arc::new(new_key());
    let leaf = Authority {
        key: key.clone(),
        name: name("leaf"),
        der: Vec::new(),
        above: root.chain_of(&key, |_| {}),
    };
    add("a leaf that issued a leaf", one("path"), leaf.chain(|_| {}));
    let (key_a, key_b) = (Arc::new(new_key()), Arc::new(new_key()));
    let a = Authority { key: key_a.clone(), name: name("a"), der: Vec::new(), above: Vec::new() };
    let b = Authority { key: key_b.clone(), name: name("b"), der: Vec::new(), above: Vec::new() };
    let (a_by_b, b_by_a) = (b.intermediate_of(key_a, "a", |_| {}), a.intermediate_of(key_b, "b", |_| {}));
    let looped = [a.chain(|_| {}), a_by_b.above, b_by_a.above].concat();
    add("two CAs that vouch for each other", one("untrusted-issuer"), looped);
}

fn constrained_intermediates(world: &mut World) {
    let agent_dns = |f: &mut Forge| {
        f.set(SAN, san(&[(URI, b"spiffe://acme.example/agent"), (DNS, b"agent.acme.example")]));
    };
    let agent_ip =
        |f: &mut Forge| f.set(SAN, san(&[(URI, b"spiffe://acme.example/agent"), (IP, &[10, 0, 0, 1])]));
    let agent_mail =
        |f: &mut Forge| f.set(SAN, san(&[(URI, b"spiffe://acme.example/agent"), (MAIL, b"a@acme.example")]));
    let directory = name("x");
    type Spoil<'a> = &'a dyn Fn(&mut Forge);
    let cases: [(&str, &'static str, Spoil<'_>, Spoil<'_>, Spoil<'_>); 9] = [
        (
            "permits this URI host (a bundle honours that)",
            "constrained-issuer",
            &|f| constrain(f, &[(URI, b"acme.example")], &[]),
            &|f| constrain(f, &[(DNS, b"acme.example")], &[]),
            &|_| {},
        ),
        (
            "permits another URI host",
            "constrained-issuer",
            &|f| constrain(f, &[(URI, b"globex.example")], &[]),
            &|_| {},
            &|_| {},
        ),
        (
            "excludes this URI host",
            "constrained-issuer",
            &|f| constrain(f, &[], &[(URI, b"acme.example")]),
            &|f| constrain(f, &[], &[(DNS, b"evil.example")]),
            &|_| {},
        ),
        (
            "permits other DNS names",
            "name-constraints",
            &|f| constrain(f, &[(DNS, b"globex.example")], &[]),
            &|f| constrain(f, &[(DNS, b"acme.example")], &[]),
            &agent_dns,
        ),
        (
            "excludes these DNS names",
            "name-constraints",
            &|f| constrain(f, &[], &[(DNS, b"acme.example")]),
            &|f| constrain(f, &[], &[(DNS, b"evil.example")]),
            &agent_dns,
        ),
        (
            "permits other addresses",
            "name-constraints",
            &|f| constrain(f, &[(IP, &[192, 168, 0, 0, 255, 255, 0, 0])], &[]),
            &|f| constrain(f, &[(IP, &[10, 0, 0, 0, 255, 0, 0, 0])], &[]),
            &agent_ip,
        ),
        (
            "excludes these addresses",
            "name-constraints",
            &|f| constrain(f, &[], &[(IP, &[10, 0, 0, 0, 255, 0, 0, 0])]),
            &|f| constrain(f, &[], &[(IP, &[192, 168, 0, 0, 255, 255, 0, 0])]),
            &agent_ip,
        ),
        (
            "constrains mail addresses",
            "name-constraints",
            &|f| constrain(f, &[(MAIL, b"globex.example")], &[]),
            &|_| {},
            &agent_mail,
        ),
        (
            "constrains directory names",
            "name-constraints",
            &|f| constrain(f, &[(DIRECTORY, &directory)], &[]),
            &|_| {},
            &|_| {},
        ),
    ];
    for (what, rule, bad, good, leaf) in cases {
        let shown = |edit: &dyn Fn(&mut Forge)| {
            let between = world.root.intermediate("between", |f| edit(f));
            Shown::new(&world.root, between.chain(|f| leaf(f)))
        };
        let (bad, good) = (shown(bad), shown(good));
        world.add(format!("an intermediate that {what}"), rule, bad, good);
    }
}

/// CAs that a bundle can't have, or that are no use.
fn roots(world: &mut World) {
    let cases: [(&str, &'static str, Edit, Edit); 13] = [
        (
            "that has expired",
            "bundle-expired",
            |f| f.validity = validity(-DAY, -MINUTE),
            |f| {
                f.validity = validity(-DAY, HOUR);
            },
        ),
        (
            "that isn't valid yet",
            "bundle-expired",
            |f| f.validity = validity(10 * MINUTE, DAY),
            |f| {
                f.validity = validity(4 * MINUTE, DAY);
            },
        ),
        ("that is no CA", "bundle", |f| f.set(BASIC, basic(false, None)), |_| {}),
        ("without basic constraints", "bundle", |f| f.remove(BASIC), |_| {}),
        ("with basic constraints twice", "bundle", |f| f.double(BASIC), |_| {}),
        (
            "that may not sign certificates",
            "bundle",
            |f| f.set(KEY_USAGE, key_usage(CRL_SIGN)),
            |f| {
                f.set(KEY_USAGE, key_usage(CERT_SIGN));
            },
        ),
        ("with two key usages", "bundle", |f| f.double(KEY_USAGE), |f| f.remove(KEY_USAGE)),
        (
            "with a critical extension of nobody",
            "bundle",
            |f| {
                f.extensions.push(Ext::new(UNKNOWN, true, vec![5, 0]));
            },
            |f| f.extensions.push(Ext::new(UNKNOWN, false, vec![5, 0])),
        ),
        (
            "of another trust domain",
            "bundle",
            |f| f.uris(&["spiffe://globex.example"]),
            |f| {
                f.uris(&["spiffe://acme.example"]);
            },
        ),
        (
            "with a P-224 key",
            "bundle",
            |f| {
                let algorithm =
                    seq(&[&[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1], &[6, 5, 0x2b, 0x81, 4, 0, 0x21]]);
                f.spki = seq(&[&algorithm, &crate::forge::bits(&[4; 57])]);
            },
            |_| {},
        ),
        (
            "with bytes after its names",
            "bundle",
            |f| {
                f.set(SAN, [san(&[(URI, b"spiffe://acme.example")]), vec![5, 0]].concat());
            },
            |f| f.set(SAN, san(&[(URI, b"spiffe://acme.example")])),
        ),
        ("with bytes after its extensions", "bundle", |f| f.tail = vec![5, 0], |_| {}),
        (
            "of version 1 that says nothing",
            "bundle",
            |f| {
                f.version = vec![];
                f.extensions.clear();
            },
            |_| {},
        ),
    ];
    for (what, rule, bad, good) in cases {
        let shown = |edit: Edit| {
            let root = Authority::root("acme root", edit);
            Shown::new(&root, root.chain(|_| {}))
        };
        world.add(format!("a root {what}"), rule, shown(bad), shown(good));
    }
    let root = Authority::root("acme root", |_| {});
    let with = |more: Vec<u8>| {
        let mut shown = Shown::new(&root, root.chain(|_| {}));
        shown.roots.push(more);
        shown
    };
    let next = Authority::root("acme root 2", |_| {});
    world.add(
        "a bundle with a leaf in it",
        "bundle",
        with(root.chain(|_| {}).remove(0)),
        with(next.der.clone()),
    );
    world.add("a bundle with garbage in it", "bundle", with(vec![0x30, 1, 2]), with(next.der.clone()));
    let mut many = with(next.der.clone());
    many.roots = (0..17).map(|n| Authority::root(&format!("root {n}"), |_| {}).der).collect();
    world.add("a bundle of 17 CAs", "bundle", many, with(next.der));
}

/// A CA of the bundle that may name some hosts only.
fn constrained_roots(world: &mut World) {
    type Names<'a> = &'a [(u8, &'a [u8])];
    type Both<'a> = (Names<'a>, Names<'a>);
    let cases: [(&str, &'static str, Both<'_>, Both<'_>); 12] = [
        (
            "permits another host",
            "name-constraints",
            (&[(URI, b"globex.example")], &[]),
            (&[(URI, b"acme.example")], &[]),
        ),
        (
            "permits hosts below only",
            "name-constraints",
            (&[(URI, b".acme.example")], &[]),
            (&[(URI, b".example")], &[]),
        ),
        (
            "permits a longer name",
            "name-constraints",
            (&[(URI, b"xacme.example")], &[]),
            (&[(URI, b"ACME.example")], &[]),
        ),
        (
            "permits the parent itself only",
            "name-constraints",
            (&[(URI, b"example")], &[]),
            (&[(URI, b".example")], &[]),
        ),
        (
            "permits two others",
            "name-constraints",
            (&[(URI, b"a.example"), (URI, b".b.example")], &[]),
            (&[(URI, b"a.example"), (URI, b"acme.example")], &[]),
        ),
        (
            "excludes this host",
            "name-constraints",
            (&[], &[(URI, b"acme.example")]),
            (&[], &[(URI, b".acme.example")]),
        ),
        (
            "excludes all below the parent",
            "name-constraints",
            (&[], &[(URI, b".example")]),
            (&[], &[(URI, b"example")]),
        ),
        (
            "permits and excludes this host",
            "name-constraints",
            (&[(URI, b"acme.example")], &[(URI, b"acme.example")]),
            (&[(URI, b"acme.example")], &[(URI, b"web.acme.example")]),
        ),
        ("permits an address", "bundle", (&[(URI, b"10.0.0.1")], &[]), (&[(URI, b"acme.example")], &[])),
        ("permits an empty host", "bundle", (&[(URI, b"")], &[]), (&[(URI, b".example")], &[])),
        (
            "permits a whole URI",
            "bundle",
            (&[(URI, b"spiffe://acme.example")], &[]),
            (&[(URI, b"acme.example")], &[]),
        ),
        ("permits a wildcard", "bundle", (&[(URI, b"*.example")], &[]), (&[(URI, b".example")], &[])),
    ];
    let root =
        |names: (Names<'_>, Names<'_>)| Authority::root("acme root", |f| constrain(f, names.0, names.1));
    for (what, rule, bad, good) in cases {
        let shown = |names| {
            let root = root(names);
            Shown::new(&root, root.chain(|_| {}))
        };
        world.add(format!("a root that {what}"), rule, shown(bad), shown(good));
    }
    // The constraint reaches over an intermediate, and to the intermediate's own name.
    let shown = |names| {
        let root = root(names);
        Shown::new(&root, root.intermediate("between", |f| f.uris(&["spiffe://acme.example"])).chain(|_| {}))
    };
    let (bad, good) = (shown((&[(URI, b"globex.example")], &[])), shown((&[(URI, b"acme.example")], &[])));
    world.add("a constrained root above an intermediate", "name-constraints", bad, good);
    let directory = name("x");
    let raw = |content: Vec<u8>| {
        let root = Authority::root("acme root", |f| f.extensions.push(Ext::new(CONSTRAINTS, true, content)));
        Shown::new(&root, root.chain(|_| {}))
    };
    let good = || raw(constraints(&[(URI, b"acme.example"), (DNS, b"acme.example")], &[]));
    world.add(
        "a root that constrains directory names",
        "bundle",
        raw(constraints(&[(DIRECTORY, &directory)], &[])),
        good(),
    );
    let bounded = tlv(0xa0, &seq(&[&tlv(URI, b"acme.example"), &[0x80, 1, 0]]));
    world.add("a root with a minimum in its constraints", "bundle", raw(seq(&[&bounded])), good());
    world.add("a root with empty constraints", "bundle", raw(seq(&[])), good());
}
