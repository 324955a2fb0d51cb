//! Serial numbers, versions, signatures, extensions, and DER itself.

use super::{Shown, World};
use crate::forge::{
    AUTHORITY_KEY, Authority, BASIC, CONSTRAINTS, ECDSA_SHA256, Ext, POLICY_CONSTRAINTS, UNKNOWN, URI,
    constraints, new_key, oid, pem, seq, tlv,
};

pub(crate) fn add(world: &mut World) {
    fields(world);
    extensions(world);
    signatures(world);
    encoding(world);
}

fn fields(world: &mut World) {
    for (what, bad, good) in [
        ("zero", vec![0x00], vec![0x01]),
        ("negative", vec![0x81], vec![0x00, 0x81]),
        ("21 octets long", [vec![0x01], vec![0; 20]].concat(), [vec![0x01], vec![0; 19]].concat()),
    ] {
        world.pair(
            format!("a serial number that is {what}"),
            "malformed",
            |f| f.serial = bad,
            |f| f.serial = good,
        );
    }
    world.leaf("no serial number", "malformed", |f| f.serial = vec![]);
    world.leaf("version 1", "path", |f| f.version = vec![]);
    world.leaf("version 2", "path", |f| f.version = vec![0xa0, 0x03, 0x02, 0x01, 0x01]);
    world.leaf("version 4", "path", |f| f.version = vec![0xa0, 0x03, 0x02, 0x01, 0x03]);
    world.leaf("no extensions", "uri-count", |f| f.extensions.clear());
    world.leaf("an issuer's unique id", "path", |f| f.unique_ids = tlv(0x81, &[0, 1]));
    world.leaf("a subject's unique id", "path", |f| f.unique_ids = tlv(0x82, &[0, 1]));
    world.leaf("bytes after the extensions", "malformed", |f| f.tail = vec![0x05, 0x00]);
    world.leaf("an unknown field after the extensions", "malformed", |f| f.tail = tlv(0xa4, &[0x05, 0x00]));
}

fn extensions(world: &mut World) {
    let strange = |critical| Ext::new(UNKNOWN, critical, vec![0x05, 0x00]);
    world.pair(
        "a critical extension of nobody",
        "path",
        |f| f.extensions.push(strange(true)),
        |f| f.extensions.push(strange(false)),
    );
    let policy = |critical| Ext::new(POLICY_CONSTRAINTS, critical, seq(&[&[0x80, 0x01, 0x00]]));
    world.pair(
        "critical policy constraints",
        "path",
        |f| f.extensions.push(policy(true)),
        |f| f.extensions.push(policy(false)),
    );
    let authority = || Ext::new(AUTHORITY_KEY, false, seq(&[&tlv(0x80, b"key")]));
    world.pair(
        "a critical authority key",
        "path",
        |f| f.extensions.push(Ext { critical: true, ..authority() }),
        |f| f.extensions.push(authority()),
    );
    world.leaf("name constraints that can't be read", "malformed", |f| {
        f.set(CONSTRAINTS, vec![0x30, 0x03, 0xa0])
    });
    world.leaf("name constraints twice", "malformed", |f| {
        f.set(CONSTRAINTS, constraints(&[(URI, b"acme.example")], &[]));
        f.double(CONSTRAINTS);
    });
    world.leaf("basic constraints that are critical and empty", "malformed", |f| f.set(BASIC, vec![]));
}

fn signatures(world: &mut World) {
    let algorithm = |bytes: &[u8]| seq(&[&oid(bytes)]);
    for (what, bytes) in [
        ("ECDSA with SHA-1", &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01][..]),
        ("ECDSA with SHA-224", &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01]),
        ("RSA with MD2", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x02]),
        ("RSA with MD5", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04]),
        ("RSA with SHA-1", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05]),
        ("DSA with SHA-1", &[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x03]),
        ("RSA with SHA-256 by a CA of another kind", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b]),
        ("Ed25519 by a CA of another kind", &[0x2b, 0x65, 0x70]),
        ("an algorithm of nobody", &[0x2b, 0x06, 0x01, 0x04]),
    ] {
        world.leaf(format!("signed as {what}"), "path", |f| {
            f.algorithms = [algorithm(bytes), algorithm(bytes)];
        });
    }
    let sha384 = algorithm(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03]);
    let other = sha384.clone();
    world.leaf("another algorithm inside", "path", |f| f.algorithms[0] = other);
    world.leaf("another algorithm outside", "path", |f| f.algorithms[1] = sha384);
    world.leaf("an algorithm with a parameter too many", "path", |f| {
        let with = seq(&[&oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]), &[0x05, 0x00]]);
        f.algorithms = [with.clone(), with];
    });
    world.leaf("a signature with one bit changed", "untrusted-issuer", |f| {
        f.signature = |mut s| {
            *s.last_mut().expect("bytes") ^= 1;
            s
        };
    });
    world.leaf("no signature", "untrusted-issuer", |f| f.signature = |s| s[..1].to_vec());
    world.leaf("a signature with unused bits", "path", |f| {
        f.signature = |mut s| {
            s[0] = 1;
            *s.last_mut().expect("bytes") &= 0xfe;
            s
        };
    });
    world.leaf("a signature cut short", "untrusted-issuer", |f| f.signature = |s| s[..s.len() - 1].to_vec());
    world.leaf("a signature with a byte too many", "untrusted-issuer", |f| {
        f.signature = |mut s| {
            s.push(0);
            s
        };
    });
    let transplanted = {
        let (one, two) = (world.root.chain(|_| {}), world.root.chain(|_| {}));
        // The body of one with the signature of the other: both end with the signature element.
        let cut = |der: &[u8]| {
            let marker =
                der.windows(ECDSA_SHA256.len()).rposition(|w| w == ECDSA_SHA256).expect("outer algorithm");
            marker + ECDSA_SHA256.len()
        };
        let body = &one[0][4..cut(&one[0])];
        seq(&[body, &two[0][cut(&two[0])..]])
    };
    let good = world.shown(|_| {});
    let bad = Shown::new(&world.root, vec![transplanted]);
    world.add("the signature of another certificate", "untrusted-issuer", bad, good);
    let stranger = Authority { key: new_key().into(), ..world.root.clone() };
    let (bad, good) = (Shown::new(&world.root, stranger.chain(|_| {})), world.shown(|_| {}));
    world.add("a stranger's key under our CA's name", "untrusted-issuer", bad, good);
    let key = std::sync::Arc::new(new_key());
    let myself = Authority { key: key.clone(), name: crate::forge::name("leaf"), ..world.root.clone() };
    let (bad, good) = (
        Shown::new(&world.root, myself.chain_of(&key, |_| {})),
        Shown::new(&world.root, world.root.chain_of(&key, |_| {})),
    );
    world.add("a leaf that signed itself", "untrusted-issuer", bad, good);
    let posing = Authority { key: key.clone(), ..world.root.clone() };
    let (bad, good) = (
        Shown::new(&world.root, posing.chain_of(&key, |f| f.subject.clone_from(&f.issuer))),
        Shown::new(&world.root, world.root.chain_of(&key, |f| f.subject.clone_from(&f.issuer))),
    );
    world.add("a leaf that signed itself under the CA's name", "untrusted-issuer", bad, good);
}

fn encoding(world: &mut World) {
    let der = world.root.chain(|_| {}).remove(0);
    let good = Shown::new(&world.root, vec![der.clone()]);
    let mut hostile: Vec<(String, &'static str, Vec<u8>)> = Vec::new();
    for part in 0..8 {
        let length = der.len() * part / 8;
        hostile.push((format!("cut after {part}/8"), "malformed", der[..length].to_vec()));
    }
    hostile.push(("without its last byte".into(), "malformed", der[..der.len() - 1].to_vec()));
    hostile.push(("with a byte after it".into(), "malformed", [der.clone(), vec![0]].concat()));
    hostile.push(("twice in one".into(), "malformed", [der.clone(), der.clone()].concat()));
    hostile.push(("as PEM".into(), "malformed", pem("CERTIFICATE", std::slice::from_ref(&der))));
    hostile
        .push(("of indefinite length".into(), "malformed", { [&[0x30, 0x80], &der[4..], &[0, 0]].concat() }));
    hostile.push(("with a longer form of its length".into(), "path", {
        [&[0x30, 0x83, 0x00], &der[2..]].concat()
    }));
    hostile.push(("in a set".into(), "malformed", [&[0x31], &der[1..]].concat()));
    hostile.push(("in one more sequence".into(), "malformed", seq(&[&der])));
    hostile.push(("of 64 KiB of nothing".into(), "malformed", vec![0; 65_536]));
    hostile.push(("nested a thousand times".into(), "malformed", [0x30, 0x80].repeat(1000)));
    hostile.push(("that claims 4 GiB".into(), "malformed", vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x30]));
    for (what, rule, bytes) in hostile {
        let bad = Shown::new(&world.root, vec![bytes]);
        world.add(format!("a certificate {what}"), rule, bad, good.clone());
    }
    let nobody = Shown::new(&world.root, vec![]);
    world.add("no certificate", "no-certificate", nobody, good);
}
