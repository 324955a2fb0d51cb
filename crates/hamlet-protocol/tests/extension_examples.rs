//! The byte examples of `docs/reference/protocol-extensions.md` are what the agent writes.
//! `HAMLET_BLESS=1` rewrites them; read the difference afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hamlet_core::digest::{DigestTree, Level, Scope, bucket_of, key_hash, leaf};
use hamlet_core::view::{Change, Offer};
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read};
use hamlet_protocol::dialect::{Outgoing, Secret};
use hamlet_protocol::session::our_hello;
use hamlet_protocol::wire::google::rpc::ErrorInfo;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

const LOG: [u8; 16] = [0xab; 16];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Lines of 32 bytes.
fn block(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes.chunks(32).map(hex).collect();
    format!("```text\n{}\n```\n", lines.join("\n"))
}

fn tree() -> DigestTree {
    let mut tree = DigestTree::new(TYPE_URL);
    for (key, value) in [("billing", [1]), ("cart", [2])] {
        tree.insert(key, leaf(TYPE_URL, key, &value));
    }
    tree
}

fn control(kind: ext::control::Kind) -> Outgoing {
    Outgoing::Control(ext::Control { kind: Some(kind) })
}

fn examples() -> BTreeMap<&'static str, Outgoing> {
    let mut tree = tree();
    let root = Bytes::copy_from_slice(&tree.root());
    let log_id = Bytes::copy_from_slice(&LOG);
    let nothing = ext::Held {
        round: 1,
        digest_version: 1,
        type_url: TYPE_URL.to_owned(),
        root: DigestTree::new(TYPE_URL).root().to_vec().into(),
        ..ext::Held::default()
    };
    let hello = our_hello("hamlet 0.1.0", 0x0102_0304_0506_0708, LOG, 7, 65_536, Some(nothing.clone()));
    let held = ext::Held {
        round: 2,
        root: root.clone(),
        count: 2,
        log_id: log_id.clone(),
        revision: 9,
        hashes: tree.cut_hashes(&Scope::whole(Level::One)).into(),
        ..nothing
    };
    // Node 27, where `billing` lies.
    let scope = [0, 0, 0, 8];
    let asks = ext::Begin {
        round: 2,
        mode: ext::begin::Mode::WantBuckets as i32,
        level: 1,
        scope: Bytes::copy_from_slice(&scope),
    };
    let among = Scope::from_bytes(Level::One, &scope).and_then(|scope| scope.children());
    let buckets = ext::Buckets {
        round: 2,
        level: 2,
        first: 0,
        hashes: tree.cut_hashes(&among.expect("level 1 has children")).into(),
        last: true,
    };
    let begin = ext::Begin {
        round: 2,
        mode: ext::begin::Mode::Scope as i32,
        level: 1,
        scope: Bytes::copy_from_slice(&scope),
    };
    let bookmark =
        ext::Bookmark { seq: 3, round: 2, version: 9, root: root.clone(), count: 2, log_id, revision: 9 };
    let verdict = ext::proof::Verdict::Equal as i32;
    let proof = ext::Proof { seq: 3, verdict, root, refused: 1, withheld: 0 };
    let beat = ext::Beat {
        seq: 4,
        echo_seq: 3,
        head: 9,
        unsent: 1,
        oldest_unsent_ms: 20,
        oldest_uncommitted_ms: 150,
    };
    let error = ErrorInfo {
        reason: "PORT_UNKNOWN".to_owned(),
        domain: "hamlet.dev".to_owned(),
        metadata: [("field".to_owned(), "instances[0]".to_owned())].into(),
    };
    let level = ext::applied::Level::Durable as i32;
    let change =
        ext::applied::Change { key: "cart".to_owned(), version: 9, level, age_ms: 12, error: Some(error) };
    let reason = ext::goodbye::Reason::Restarting as i32;
    let (trust_domain, jwks) = ("acme.example".to_owned(), br#"{"keys":[],"spiffe_sequence":7}"#);
    let (jwks, previous_sha256) = (Bytes::from_static(jwks), Bytes::new());
    let bundle = ext::Bundle { trust_domain: trust_domain.clone(), sequence: 7, jwks, previous_sha256 };
    let in_force = ext::BundleAck { trust_domain, sequence: 7, error: None };
    let error = ErrorInfo {
        reason: "BUNDLE_WAITING".to_owned(),
        domain: "hamlet.dev".to_owned(),
        ..ErrorInfo::default()
    };
    let waiting = ext::BundleAck { error: Some(error), ..in_force.clone() };
    let offer = Arc::new(Offer::new(TYPE_URL, "cart", Bytes::from_static(&[2])));
    let change_sent = Change { version: 9, offer, deleted: false, fresh: true };
    let hello = ext::Control { kind: Some(ext::control::Kind::Hello(hello)) };
    [
        ("initial request with hello", Outgoing::Subscribe { control: Some(hello) }),
        ("offer with its version", Outgoing::Offer { nonce: 1, change: change_sent, versioned: true }),
        ("acknowledgement", Outgoing::Answer { nonce: "1".to_owned(), answer: Ok(()) }),
        ("held, asking for a round", control(ext::control::Kind::Held(held))),
        ("begin, asking for the children of node 27 of level 1", control(ext::control::Kind::Begin(asks))),
        ("buckets, the children of node 27 of level 1", control(ext::control::Kind::Buckets(buckets))),
        ("begin over one node of level 1", control(ext::control::Kind::Begin(begin))),
        ("bookmark", control(ext::control::Kind::Bookmark(bookmark))),
        ("proof", control(ext::control::Kind::Proof(proof))),
        ("beat", control(ext::control::Kind::Beat(beat))),
        ("applied", control(ext::control::Kind::Applied(ext::Applied { changes: vec![change] }))),
        ("bundle", control(ext::control::Kind::Bundle(bundle))),
        ("bundle, announced and not used yet", control(ext::control::Kind::BundleAck(waiting))),
        ("bundle, in force", control(ext::control::Kind::BundleAck(in_force))),
        ("goodbye", control(ext::control::Kind::Goodbye(ext::Goodbye { reason, retry_after_ms: 0 }))),
    ]
    .into()
}

fn digest_table() -> String {
    let mut tree = tree();
    let mut out = "| | |\n|---|---|\n".to_owned();
    for (key, value) in [("billing", [1]), ("cart", [2])] {
        let kh = key_hash(key);
        let _ = writeln!(out, "| kh of `{key}` | `{}` |", hex(&kh));
        let _ = writeln!(out, "| its bucket | {} |", bucket_of(&kh));
        let _ = writeln!(out, "| its leaf | `{}` |", hex(&leaf(TYPE_URL, key, &value)));
    }
    let _ = writeln!(out, "| root of both | `{}` |", hex(&tree.root()));
    let _ = writeln!(out, "| root of nothing | `{}` |", hex(&DigestTree::new(TYPE_URL).root()));
    out
}

/// The page with its examples as they should be: each follows its mark up to the next empty line.
fn rendered(page: &str) -> String {
    let codec = V2Codec { resource_url: TYPE_URL, context: Secret::default(), message_bytes: 65_536 };
    let mut wanted: BTreeMap<String, String> = examples()
        .into_iter()
        .map(|(name, message)| {
            let mut bytes = vec![];
            codec.write(&message, &mut bytes);
            assert!(read(&bytes[..], 65_536).is_ok(), "{name} is read as well");
            (format!("<!-- example: {name} -->"), block(&bytes))
        })
        .collect();
    wanted.insert("<!-- digest -->".to_owned(), digest_table());
    let mut out = String::new();
    let mut skipping = false;
    for line in page.lines() {
        if skipping && !line.is_empty() && !line.starts_with("<!--") && !line.starts_with('#') {
            continue;
        }
        if skipping && !line.is_empty() {
            out.push('\n');
        }
        skipping = false;
        out.push_str(line);
        out.push('\n');
        if let Some(text) = wanted.remove(line) {
            out.push_str(&text);
            skipping = true;
        }
    }
    assert_eq!(wanted.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "an example without a place");
    out
}

#[test]
#[allow(clippy::disallowed_methods)] // a switch for people
fn every_example_of_the_page_is_what_is_written() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/protocol-extensions.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let wanted = rendered(&page);
    if std::env::var_os("HAMLET_BLESS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
        return;
    }
    assert!(page == wanted, "HAMLET_BLESS=1 rewrites the examples of protocol-extensions.md");
}
