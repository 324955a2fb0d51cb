//! What stands in the subject alternative name.

use super::World;
use crate::forge::{
    DIRECTORY, DNS, Ext, IP, ISSUER_ALT_NAME, MAIL, OTHER_NAME, REGISTERED_ID, SAN, URI, name, oid, san, seq,
    tlv,
};

const ID: &[u8] = b"spiffe://acme.example/agent";

pub(crate) fn add(world: &mut World) {
    syntax(world);
    others_ids(world);
    lengths(world);
    shape(world);
}

/// Not SPIFFE ids of workloads at all.
fn syntax(world: &mut World) {
    for uri in [
        "",
        "agent",
        "/agent",
        "//acme.example/agent",
        "acme.example/agent",
        "spiffe:",
        "spiffe:/",
        "spiffe://",
        "spiffe:///",
        "spiffe:///agent",
        "spiffe:/acme.example/agent",
        "spiffe:acme.example/agent",
        "spiffe//acme.example/agent",
        "spiffe://acme.example",
        "spiffe://acme.example/",
        "SPIFFE://acme.example/agent",
        "Spiffe://acme.example/agent",
        "spiffe ://acme.example/agent",
        "spiffes://acme.example/agent",
        "https://acme.example/agent",
        "ldap://acme.example/agent",
        "urn:acme.example:agent",
        "spiffe://ACME.example/agent",
        "spiffe://acme.Example/agent",
        "spiffe://acme.example:443/agent",
        "spiffe://acme.example:/agent",
        "spiffe://user@acme.example/agent",
        "spiffe://user:word@acme.example/agent",
        "spiffe://@acme.example/agent",
        "spiffe://[::1]/agent",
        "spiffe://acme%2eexample/agent",
        "spiffe://acme.example%00/agent",
        "spiffe://*.example/agent",
        "spiffe://acme.*/agent",
        "spiffe://acme,example/agent",
        "spiffe://acme.example\\agent",
        "spiffe://acme.example/agent/",
        "spiffe://acme.example//agent",
        "spiffe://acme.example/agent//",
        "spiffe://acme.example/./agent",
        "spiffe://acme.example/../agent",
        "spiffe://acme.example/x/../agent",
        "spiffe://acme.example/agent/.",
        "spiffe://acme.example/agent/..",
        "spiffe://acme.example/%61gent",
        "spiffe://acme.example/agent%2F",
        "spiffe://acme.example/agent%00",
        "spiffe://acme.example/agent?",
        "spiffe://acme.example/agent?x=y",
        "spiffe://acme.example/agent#",
        "spiffe://acme.example/agent#x",
        "spiffe://acme.example/agent;x",
        "spiffe://acme.example/agent:x",
        "spiffe://acme.example/agent@x",
        "spiffe://acme.example/*",
        "spiffe://acme.example/agent*",
        "spiffe://acme.example/agent ",
        " spiffe://acme.example/agent",
        "spiffe://acme.example/ agent",
        "spiffe://acme.example/agent\t",
        "spiffe://acme.example/agent\n",
        "spiffe://acme.example/agent\r\n",
        "spiffe://acme.example/agent\0",
        "spiffe://acme.example/agent\0/x",
        "spiffe://acme.example\0.evil.example/agent",
        "\0spiffe://acme.example/agent",
        "spiffe://acme.example/agent\u{7f}",
        "spiffe://acme.example/\u{430}gent",
        "spiffe://acm\u{435}.example/agent",
        "spiffe://acme\u{ff0e}example/agent",
        "spiffe://acme.example/\u{202e}tnega",
        "spiffe://acme.example/agent\u{200b}",
        "spiffe://acme.example/agent,spiffe://acme.example/gateway",
        "spiffe://acme.example/agent spiffe://acme.example/gateway",
    ] {
        world.leaf(format!("the id {uri:?}"), "not-spiffe", |f| f.uris(&[uri]));
    }
}

/// Ids, but not the agent's.
fn others_ids(world: &mut World) {
    for uri in [
        "spiffe://acme.example/Agent",
        "spiffe://acme.example/agent/x",
        "spiffe://acme.example/agen",
        "spiffe://acme.example/agent-2",
        "spiffe://acme.example/agent.",
        "spiffe://acme.example/x/agent",
        "spiffe://acme.example/gateway",
        "spiffe://acme.example/web",
        "spiffe://acme.example/spiffe.acme.example/agent",
    ] {
        world.leaf(format!("the workload {uri:?}"), "not-listed", |f| f.uris(&[uri]));
    }
    for uri in [
        "spiffe://globex.example/agent",
        "spiffe://sub.acme.example/agent",
        "spiffe://example/agent",
        "spiffe://xacme.example/agent",
        "spiffe://acme.example.evil.example/agent",
        "spiffe://acme.example./agent",
        "spiffe://acme-example/agent",
        "spiffe://127.0.0.1/agent",
    ] {
        let (bad, good) = (world.shown(|f| f.uris(&[uri])), world.shown(|_| {}));
        world.add_both(
            format!("the domain of {uri:?}"),
            ["unknown-trust-domain", "other-trust-domain"],
            bad,
            good,
        );
    }
}

fn lengths(world: &mut World) {
    const ID_BYTES: usize = 2048;
    let long = |length: usize| {
        let start = "spiffe://acme.example/";
        format!("{start}{}", "a".repeat(length - start.len()))
    };
    let (bad, mut good) =
        (world.shown(|f| f.uris(&[&long(ID_BYTES + 1)])), world.shown(|f| f.uris(&[&long(ID_BYTES)])));
    good.id = long(ID_BYTES);
    world.add("an id of 2049 bytes", "not-spiffe", bad, good);
    let domain = format!("spiffe://{}/agent", "a".repeat(256));
    world.leaf("a trust domain of 256 bytes", "not-spiffe", |f| f.uris(&[&domain]));
}

/// Which names there are, and how they are written.
fn shape(world: &mut World) {
    let id = "spiffe://acme.example/agent";
    for (what, rule, content) in [
        ("two ids", "uri-count", san(&[(URI, ID), (URI, b"spiffe://acme.example/gateway")])),
        ("the same id twice", "uri-count", san(&[(URI, ID), (URI, ID)])),
        ("three ids", "uri-count", san(&[(URI, ID), (URI, ID), (URI, ID)])),
        ("an id and a web address", "uri-count", san(&[(URI, ID), (URI, b"https://acme.example/")])),
        ("a web address and an id", "uri-count", san(&[(URI, b"https://acme.example/"), (URI, ID)])),
        ("an id and an empty URI", "uri-count", san(&[(URI, ID), (URI, b"")])),
        (
            "an id of ours and one of a stranger",
            "uri-count",
            san(&[(URI, ID), (URI, b"spiffe://evil.example/x")]),
        ),
        ("no name in the names", "uri-count", san(&[])),
        ("a DNS name only", "uri-count", san(&[(DNS, b"agent.acme.example")])),
        ("a wildcard only", "uri-count", san(&[(DNS, b"*.acme.example")])),
        ("an address only", "uri-count", san(&[(IP, &[127, 0, 0, 1])])),
        ("a mail address only", "uri-count", san(&[(MAIL, b"agent@acme.example")])),
        ("the id as a DNS name", "uri-count", san(&[(DNS, ID)])),
        ("the id as a mail address", "uri-count", san(&[(MAIL, ID)])),
        ("the id as a registered id", "uri-count", san(&[(REGISTERED_ID, &[0x2a, 0x03])])),
        ("the id in a directory name", "uri-count", san(&[(DIRECTORY, &name(id))])),
        (
            "the id in another name",
            "uri-count",
            san(&[(OTHER_NAME, &[oid(&[0x2a, 0x03]), tlv(0xa0, &tlv(0x0c, ID))].concat())]),
        ),
        ("the id in a constructed element", "malformed", san(&[(0xa6, ID)])),
        ("a name of a kind that isn't there", "malformed", san(&[(URI, ID), (0x8a, ID)])),
        ("an id and a URI that is no text", "malformed", san(&[(URI, ID), (URI, &[0xff, 0xfe])])),
        ("names in a set", "malformed", tlv(0x31, &tlv(URI, ID))),
        ("a bare URI instead of names", "malformed", tlv(URI, ID)),
        ("names that end too soon", "malformed", {
            let mut content = san(&[(URI, ID)]);
            content.pop();
            content
        }),
        ("bytes after the names", "malformed", [san(&[(URI, ID)]), vec![0x05, 0x00]].concat()),
        ("an empty names extension", "malformed", Vec::new()),
    ] {
        world.pair(
            what,
            rule,
            |f| f.set(SAN, content),
            |f| {
                f.set(
                    SAN,
                    san(&[(DNS, b"*.acme.example"), (URI, ID), (MAIL, b"a@b.example"), (IP, &[1, 2, 3, 4])]),
                )
            },
        );
    }
    world.pair(
        "the names twice",
        "malformed",
        |f| f.double(SAN),
        |f| {
            f.remove(SAN);
            f.extensions.insert(0, Ext::new(SAN, true, san(&[(URI, ID)])));
        },
    );
    world.leaf("no names, the id as common name", "uri-count", |f| {
        f.remove(SAN);
        f.subject = name(id);
    });
    world.leaf("the id among the issuer's names only", "uri-count", |f| {
        f.remove(SAN);
        f.extensions.push(Ext::new(ISSUER_ALT_NAME, false, san(&[(URI, ID)])));
    });
    world.leaf("the id in an attribute of the subject", "uri-count", |f| {
        f.remove(SAN);
        let value = seq(&[&oid(&[0x55, 0x04, 0x29]), &tlv(0x16, ID)]);
        f.subject = seq(&[&tlv(0x31, &value)]);
    });
}
