//! The table of `Peer`: another mesh's agent. A table only.
//!
//! Invariant: docs are complete sentences, because they are the reference.

use super::field;
use crate::config::scalar::*;
use crate::config::schema::Need::{Default, Optional, Required};
use crate::config::schema::Shape::{self, Bool, Choice, Integer, List, Text};
use crate::config::schema::{Kind, Object};

static ENDPOINT: Object = Object {
    fields: &[
        field(
            "url",
            Text(&ENDPOINT_URL),
            Required,
            "Where the peer's SPIFFE bundle is.",
            "https://bundle.globex.example:8443/",
        ),
        field(
            "profile",
            Choice(&[
                ("https_web", "it proves the URL's host name by a web authority"),
                ("https_spiffe", "it proves `endpointSpiffeId` by the bundle of that id's trust domain"),
            ]),
            Required,
            "How the endpoint proves itself. Never inferred, and one never stands in for the other.",
            "https_spiffe",
        ),
        field(
            "endpointSpiffeId",
            Text(&SPIFFE_ID),
            Optional,
            "With `https_spiffe`: the exact id of the endpoint, in the trust domain of this peer or of another one.",
            "spiffe://globex.example/hamlet/agent",
        ),
        field(
            "caFile",
            Text(&PATH),
            Optional,
            "With `https_web`: the authorities that may prove the host, as PEM, instead of the system's.",
            "peers/globex-web-ca.pem",
        ),
        field(
            "refresh",
            Text(&POSITIVE),
            Optional,
            "How often to ask. Without it: what the bundle says (`spiffe_refresh_hint`), at least every day and at most \
             once a minute, and 5m where it says nothing.",
            "5m",
        ),
    ],
};

static TRUST: Object = Object {
    fields: &[
        field(
            "bundle",
            Text(&PATH),
            Optional,
            "The peer's CA certificates: PEM, a SPIFFE bundle (JWKS), or a bundle map. They prove ids of its trust \
             domain only, and are never pooled with others. With `endpoint`: the first bundle; when its content \
             changes, the succession begins anew with it.",
            "peers/globex-ca.pem",
        ),
        field(
            "endpoint",
            Shape::Object(&ENDPOINT),
            Optional,
            "The peer's bundle endpoint, which is followed: what it says replaces the first bundle. With \
             `https_spiffe` in the peer's own trust domain `bundle` is needed as well.",
            "{url: \"https://bundle.globex.example:8443/\", profile: https_web}",
        ),
        field(
            "follow",
            Choice(&[(
                "stream",
                "what the peer's agent says of its own trust domain, over a stream that the old and the new bundle prove",
            )]),
            Optional,
            "Where what follows the first bundle comes from: the peer's agent. It needs `bundle` and `agentIds`, and \
             not `endpoint`. CAs that it takes away are out at once, new ones are used after `bundleWait` of the Mesh.",
            "stream",
        ),
        field(
            "workloadApi",
            Bool,
            Default("false"),
            "Whether the bundle is the one that the Mesh's `identity.workloadApi` gives for the peer's trust domain: \
             SPIRE does so where our registration entries have `federatesWith`. Followed live; without one the peer isn't \
             trusted. Instead of `bundle`, `endpoint` and `follow`.",
            "true",
        ),
    ],
};

static IDENTITY: Object = Object {
    fields: &[
        field(
            "dns",
            List { item: &Text(&FQDN), min: 1, max: 32 },
            Optional,
            "Exact DNS names: one of them must be among the subject alternative names of its agent's certificate. No wildcard matches, and no common name.",
            "[agent.east.example]",
        ),
        field(
            "fingerprint",
            List { item: &Text(&FINGERPRINT), min: 1, max: 32 },
            Optional,
            "SHA-256 of its agent's exact certificates. One that stands in `trust.bundle` itself needs no CA, unless `trust.endpoint` is followed: list the next one before it is renewed.",
            "[\"sha256:3f0b4d2c9a1e5c7786f2b1d0e4a39c58617f0e2d3b4c5a69788796a5b4c3d2e1\"]",
        ),
    ],
};

static CRL: Object = Object {
    fields: &[
        field(
            "file",
            Text(&PATH),
            Optional,
            "The revocation lists of its CAs, one in DER or any number in PEM, one a CA. The whole chain is checked; the file is read again when it changes, and what it revokes is cut off. Required unless `trust.workloadApi` is set: the lists that a Workload API gives count without a file.",
            "peers/globex.crl",
        ),
        field(
            "stale",
            Choice(&[
                ("refuse", "nobody is believed on an outdated list"),
                ("accept", "what it revokes stays revoked, everybody else is believed"),
            ]),
            Default("refuse"),
            "What a list means whose next update is overdue, in the file or from the Workload API.",
            "accept",
        ),
        field(
            "unlisted",
            Choice(&[
                ("refuse", "certificates of a CA without a list are refused"),
                ("accept", "certificates of a CA without a list are believed"),
            ]),
            Default("refuse"),
            "What it means that a CA in the chain has no list in the file.",
            "accept",
        ),
    ],
};

static CONTEXT: Object = Object {
    fields: &[field(
        "file",
        Text(&PATH),
        Required,
        "A file with the secret that the peer asks for in the protocol's `context`. Never logged.",
        "peers/globex.token",
    )],
};

static GUARD: Object = Object {
    fields: &[
        field(
            "percent",
            Integer(1, 100),
            Default("30"),
            "Share of the hour's peak that may go within the hour, in percent; more is held back. 100 switches the guard off.",
            "30",
        ),
        field("floor", Integer(0, 1_000_000), Default("10"), "So many services may always go.", "10"),
        field(
            "wait",
            Text(&DURATION),
            Default("10m"),
            "How long they are held back, unless confirmed before.",
            "10m",
        ),
    ],
};

static QUOTAS: Object = Object {
    fields: &[
        field(
            "services",
            Integer(1, 1_000_000),
            Optional,
            "Most services of this peer, instead of the Mesh's `limits.servicesPerPeer`.",
            "500",
        ),
        field(
            "bytes",
            Text(&BYTES),
            Optional,
            "Most bytes of this peer's offers, instead of the Mesh's `limits.bytesPerPeer`.",
            "8MiB",
        ),
    ],
};

/// Another mesh's agent.
pub static PEER: Kind = Kind {
    name: "Peer",
    summary: "Another mesh's agent: where it is, who it is exactly, and how patient we are with it.",
    doc: "A Peer alone exchanges nothing: a Publication says what it sees of us, an Import what we accept from it.",
    name_format: &NAME,
    name_doc: "The peer's name here; used by publications and imports, in logs and in metrics.",
    spec: Object {
        fields: &[
            field(
                "address",
                Text(&PEER_ADDRESS),
                Optional,
                "Where its agent listens. Without it we never dial, and only accept its connections.",
                "agent.globex.example:7443",
            ),
            field(
                "trustDomain",
                Text(&TRUST_DOMAIN),
                Required,
                "Its SPIFFE trust domain; each belongs to one peer only.",
                "globex.example",
            ),
            field(
                "trust",
                Shape::Object(&TRUST),
                Required,
                "What proves its ids: a bundle in a file, or one that is followed at an endpoint, or both; or that of our Workload API.",
                "{bundle: peers/globex-ca.pem}",
            ),
            field(
                "agentIds",
                List { item: &Text(&SPIFFE_ID), min: 1, max: 32 },
                Optional,
                "The exact ids of its agents; another workload of its trust domain is not its agent. Required, unless `identity` says otherwise.",
                "[\"spiffe://globex.example/hamlet/agent\"]",
            ),
            field(
                "gatewayIds",
                List { item: &Text(&SPIFFE_ID), min: 1, max: 32 },
                Optional,
                "The exact ids of its gateways. Required, unless there is an `identity`; without them no call goes to it or comes from it.",
                "[\"spiffe://globex.example/hamlet/gateway\"]",
            ),
            field(
                "identity",
                Shape::Object(&IDENTITY),
                Optional,
                "What its agent proves instead of `agentIds`, for a peer without SPIFFE ids: DNS names or fingerprints, never both. Such a peer is no Hamlet agent; its `trustDomain` is the one of its gateways, and a name of its own if it has none.",
                "{dns: [agent.east.example]}",
            ),
            field(
                "crl",
                Shape::Object(&CRL),
                Optional,
                "What its CAs have revoked.",
                "{file: peers/globex.crl}",
            ),
            field(
                "publish",
                Bool,
                Default("true"),
                "Whether we publish to it at all. Publications decide what.",
                "false",
            ),
            field(
                "import",
                Bool,
                Default("true"),
                "Whether we import from it at all. Its Import decides what.",
                "false",
            ),
            field(
                "context",
                Shape::Object(&CONTEXT),
                Optional,
                "A shared secret for peers that ask for one. Between Hamlets the certificates suffice.",
                "{file: peers/globex.token}",
            ),
            field(
                "holdTime",
                Text(&HOLD_TIME),
                Default("1h"),
                "How long its services stay in force after it is lost, counted while we run and try to reach it.",
                "forever",
            ),
            field(
                "refusedHold",
                Text(&DURATION),
                Default("24h"),
                "How long the last good version of a service stays in force after its new one was refused.",
                "24h",
            ),
            field(
                "resync",
                Text(&RESYNC),
                Default("1h"),
                "How often a peer that is no Hamlet agent, and so can't prove what it offers, is asked for its whole state again. With `never` only when something was left out and a second state has to confirm it.",
                "6h",
            ),
            field(
                "guard",
                Shape::Object(&GUARD),
                Optional,
                "The brake on mass withdrawals.",
                "{percent: 30, floor: 10, wait: 10m}",
            ),
            field(
                "version",
                Choice(&[
                    ("auto", "v1alpha2, and v1alpha1 only if the peer answers that it doesn't know it"),
                    ("v1alpha1", "the first published version only"),
                    ("v1alpha2", "the second published version only"),
                ]),
                Default("auto"),
                "Which version of the protocol is spoken with the peer, both ways. In v1alpha1 the importing side dials, and there is no `context` and no extension.",
                "v1alpha1",
            ),
            field(
                "window",
                Integer(1, 100),
                Default("1"),
                "How many unanswered changes it may have on v1alpha2 if it is no Hamlet agent. More than 1 only for an implementation that takes them; Hamlet agents agree on a window themselves.",
                "1",
            ),
            field(
                "extensions",
                Choice(&[
                    ("auto", "use Hamlet's extensions if the peer has them"),
                    ("required", "refuse a peer without them"),
                ]),
                Default("auto"),
                "Whether the peer must speak Hamlet's extensions of the protocol.",
                "required",
            ),
            field(
                "paused",
                Bool,
                Default("false"),
                "Keep the peer and what we know of it, but don't talk to it.",
                "true",
            ),
            field("quotas", Shape::Object(&QUOTAS), Optional, "Limits for this peer.", "{services: 500}"),
        ],
    },
    example: "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata:
  name: globex
spec:
  address: agent.globex.example:7443
  trustDomain: globex.example
  trust:
    bundle: peers/globex-ca.pem
  agentIds: [\"spiffe://globex.example/hamlet/agent\"]
  gatewayIds: [\"spiffe://globex.example/hamlet/gateway\"]
",
};
