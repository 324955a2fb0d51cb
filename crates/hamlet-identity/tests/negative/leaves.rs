//! What a leaf may be used for, how long, and with which key.

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PublicKeyData};

use super::World;
use crate::forge::{
    BASIC, CERT_SIGN, CLIENT_AUTH, CODE_SIGNING, CRL_SIGN, DAY, DIGITAL_SIGNATURE, EKU, EMAIL, Ext, HOUR,
    KEY_AGREEMENT, KEY_ENCIPHERMENT, KEY_USAGE, MINUTE, NON_REPUDIATION, OCSP, SERVER_AUTH, TIME_STAMPING,
    basic, bits, eku, key_usage, oid, seq, tlv, utc, validity,
};

pub(crate) fn add(world: &mut World) {
    usages(world);
    purposes(world);
    times(world);
    keys(world);
}

fn usages(world: &mut World) {
    for (what, flags) in [
        ("key encipherment only", KEY_ENCIPHERMENT),
        ("key agreement only", KEY_AGREEMENT),
        ("non-repudiation only", NON_REPUDIATION),
        ("no use at all", 0),
        ("signing certificates", DIGITAL_SIGNATURE | CERT_SIGN),
        ("signing lists", DIGITAL_SIGNATURE | CRL_SIGN),
        ("all that a CA does", DIGITAL_SIGNATURE | CERT_SIGN | CRL_SIGN),
    ] {
        world.pair(
            format!("a key for {what}"),
            "key-usage",
            |f| f.set(KEY_USAGE, key_usage(flags)),
            |f| f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_AGREEMENT)),
        );
    }
    world.leaf("no key usage", "key-usage", |f| f.remove(KEY_USAGE));
    world.leaf("key usage twice", "malformed", |f| f.double(KEY_USAGE));
    world.leaf("two key usages that disagree", "malformed", |f| {
        f.extensions.push(Ext::new(KEY_USAGE, false, key_usage(CERT_SIGN)));
    });
    for (what, content) in [
        ("an integer", vec![0x02, 0x01, 0x80]),
        ("nothing", vec![]),
        ("a bit string cut short", vec![0x03, 0x03, 0x07, 0x80]),
    ] {
        world.leaf(format!("a key usage that is {what}"), "malformed", |f| f.set(KEY_USAGE, content));
    }
    world.leaf("a CA as leaf", "leaf-is-ca", |f| f.set(BASIC, basic(true, None)));
    world.leaf("a CA of path length zero as leaf", "leaf-is-ca", |f| f.set(BASIC, basic(true, Some(0))));
    world.leaf("a whole CA as leaf", "leaf-is-ca", |f| {
        f.set(BASIC, basic(true, None));
        f.set(KEY_USAGE, key_usage(DIGITAL_SIGNATURE | CERT_SIGN));
    });
    world.pair("basic constraints twice", "malformed", |f| f.double(BASIC), |f| f.remove(BASIC));
    world.leaf("basic constraints that disagree", "malformed", |f| {
        f.extensions.push(Ext::new(BASIC, false, basic(true, None)));
    });
    world.leaf("basic constraints that can't be read", "malformed", |f| f.set(BASIC, vec![0x01, 0x01, 0xff]));
}

fn purposes(world: &mut World) {
    const ANY: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
    for (what, content) in [
        ("mail", eku(&[EMAIL])),
        ("code", eku(&[CODE_SIGNING])),
        ("time stamps", eku(&[TIME_STAMPING])),
        ("revocation answers", eku(&[OCSP])),
        ("everything but TLS", eku(&[CODE_SIGNING, EMAIL, TIME_STAMPING, OCSP])),
        ("any purpose, which names none", seq(&[&oid(ANY)])),
        ("a purpose of nobody", seq(&[&oid(&[0x2b, 0x06, 0x01, 0x04, 0x01])])),
    ] {
        world.pair(
            format!("a certificate for {what}"),
            "extended-key-usage",
            |f| f.set(EKU, content),
            |f| f.set(EKU, eku(&[EMAIL, SERVER_AUTH, CLIENT_AUTH])),
        );
    }
    world.pair(
        "an empty list of purposes",
        "extended-key-usage",
        |f| f.set(EKU, eku(&[])),
        |f| f.remove(EKU),
    );
    world.leaf("the purposes twice", "malformed", |f| f.double(EKU));
    world.leaf("purposes that can't be read", "malformed", |f| f.set(EKU, vec![0x30, 0x02, 0x06, 0x05]));
}

fn times(world: &mut World) {
    let until = |from: i64, to: i64| validity(from, to);
    for (what, rule, bad, good) in [
        ("expired a minute ago", "expired", until(-HOUR, -MINUTE), until(-HOUR, HOUR)),
        ("expired a year ago", "expired", until(-500 * DAY, -365 * DAY), until(-500 * DAY, DAY)),
        ("valid in ten minutes", "not-yet-valid", until(10 * MINUTE, DAY), until(4 * MINUTE, DAY)),
        ("valid in a year", "not-yet-valid", until(365 * DAY, 400 * DAY), until(-DAY, 400 * DAY)),
        ("a validity that ends before it begins", "path", until(DAY, -DAY), until(-DAY, DAY)),
    ] {
        world.pair(what, rule, |f| f.validity = bad, |f| f.validity = good);
    }
    for (what, rule, bad) in [
        ("a thirteenth month", "malformed", &b"271301000000Z"[..]),
        ("a time without zone", "malformed", b"270101000000"),
        ("a time with a local zone", "path", b"270101000000+0100"),
        ("a time that is no text", "malformed", &[0xff; 13]),
        ("an empty time", "malformed", b""),
    ] {
        world.leaf(what, rule, |f| f.validity = seq(&[&utc(-HOUR), &tlv(0x17, bad)]));
    }
    world.leaf("a validity without end", "malformed", |f| f.validity = seq(&[&utc(-HOUR)]));
}

fn keys(world: &mut World) {
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
    const DSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01];
    let null: &[u8] = &[0x05, 0x00];
    let spki = |algorithm: &[u8], parameters: &[u8], key: &[u8]| {
        seq(&[&seq(&[&oid(algorithm), parameters]), &bits(key)])
    };
    let rsa = |bytes: usize| {
        let modulus = [vec![0x00], vec![0xc3; bytes]].concat();
        seq(&[&tlv(0x02, &modulus), &[0x02, 0x03, 0x01, 0x00, 0x01]])
    };
    let point = |bytes: usize| [vec![0x04], vec![0x11; 2 * bytes]].concat();
    let curve = |curve: &[u8], bytes: usize| spki(EC, &oid(curve), &point(bytes));
    let p521 = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap().subject_public_key_info();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap().subject_public_key_info();
    for (what, rule, bad, good) in [
        ("RSA of 512 bits", "key-type", spki(RSA, null, &rsa(64)), spki(RSA, null, &rsa(256))),
        ("RSA of 1024 bits", "key-type", spki(RSA, null, &rsa(128)), spki(RSA, null, &rsa(256))),
        ("RSA of 2040 bits", "key-type", spki(RSA, null, &rsa(255)), spki(RSA, null, &rsa(256))),
        ("RSA of 8200 bits", "key-type", spki(RSA, null, &rsa(1025)), spki(RSA, null, &rsa(1024))),
        ("RSA that can't be read", "key-type", spki(RSA, null, &[0x30, 0x05]), spki(RSA, null, &rsa(384))),
        ("RSA-PSS only", "key-type", spki(RSA_PSS, &[], &rsa(256)), spki(RSA, null, &rsa(512))),
        ("P-192", "key-type", curve(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x01], 24), p384.clone()),
        ("P-224", "key-type", curve(&[0x2b, 0x81, 0x04, 0x00, 0x21], 28), p384.clone()),
        ("P-521", "key-type", p521, p384.clone()),
        ("secp256k1", "key-type", curve(&[0x2b, 0x81, 0x04, 0x00, 0x0a], 32), p384.clone()),
        (
            "brainpoolP256r1",
            "key-type",
            curve(&[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07], 32),
            p384.clone(),
        ),
        (
            "a curve without a name",
            "key-type",
            spki(EC, &seq(&[&[0x02, 0x01, 0x01]]), &point(32)),
            p384.clone(),
        ),
        ("no curve", "key-type", spki(EC, &[], &point(32)), p384.clone()),
        ("DSA", "key-type", spki(DSA, null, &[0x02, 0x01, 0x07]), p384.clone()),
        (
            "X25519",
            "key-type",
            spki(&[0x2b, 0x65, 0x6e], &[], &[7; 32]),
            spki(&[0x2b, 0x65, 0x70], &[], &[7; 32]),
        ),
        (
            "Ed448",
            "key-type",
            spki(&[0x2b, 0x65, 0x71], &[], &[7; 57]),
            spki(&[0x2b, 0x65, 0x70], &[], &[7; 32]),
        ),
        ("an algorithm of nobody", "key-type", spki(&[0x2b, 0x06, 0x01], &[], &[7; 32]), p384),
    ] {
        world.pair(format!("a key of {what}"), rule, |f| f.spki = bad, |f| f.spki = good);
    }
}
