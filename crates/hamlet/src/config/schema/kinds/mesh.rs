//! The table of `Mesh`: this agent. A table only.
//!
//! Invariant: docs are complete sentences, because they are the reference.

use super::field;
use crate::config::scalar::*;
use crate::config::schema::Need::{Default, Optional, Required};
use crate::config::schema::Shape::{self, Bool, Choice, Integer, List, Text, TextOr};
use crate::config::schema::{Kind, Object};

static PEM_PAIR: Object = Object {
    fields: &[
        field(
            "cert",
            Text(&PATH),
            Required,
            "The certificate as PEM; of a chain the leaf first.",
            "identity/agent.pem",
        ),
        field(
            "key",
            Text(&PATH),
            Required,
            "The private key as PEM, readable by the owner of the process only.",
            "identity/agent.key",
        ),
    ],
};

static AUTHORITY: Object = Object {
    fields: &[
        field(
            "folder",
            Text(&PATH),
            Default("identity"),
            "The authority's folder, as `hamlet init` makes it. `ca.pem` in it is the bundle to give to peers.",
            "identity",
        ),
        field(
            "hosts",
            List { item: &Text(&FQDN), min: 0, max: 64 },
            Optional,
            "DNS names in our certificates, for peers that check host names.",
            "[gw.acme.example]",
        ),
        field(
            "leafLife",
            Text(&POSITIVE),
            Default("24h"),
            "How long our certificates live, at least `3s`. They are renewed before two thirds of it are over.",
            "24h",
        ),
        field(
            "issuingLife",
            Text(&POSITIVE),
            Default("30d"),
            "How long the intermediate lives that signs them; at least three times `leafLife`.",
            "30d",
        ),
        field(
            "rootLife",
            Text(&POSITIVE),
            Default("3650d"),
            "How long a root lives; at least three times `issuingLife`. The next one is staged when two thirds are over.",
            "3650d",
        ),
        field(
            "overlap",
            Text(&DURATION),
            Default("7d"),
            "How long peers have to learn of a new root before anything comes from it; at most a sixth of `rootLife`.",
            "7d",
        ),
    ],
};

static SVID: Object = Object {
    fields: &[
        field(
            "spiffeId",
            Text(&SPIFFE_ID),
            Optional,
            "Its exact id, in our trust domain.",
            "spiffe://acme.example/hamlet/agent",
        ),
        field(
            "hint",
            Text(&HINT),
            Optional,
            "The `hint` of its registration entry, instead of the id.",
            "hamlet-agent",
        ),
    ],
};

static WORKLOAD_API: Object = Object {
    fields: &[
        field(
            "socket",
            Text(&WORKLOAD_SOCKET),
            Required,
            "Where the Workload API is. No environment variable is read in its place.",
            "unix:///run/spire/sockets/agent.sock",
        ),
        field(
            "agent",
            Shape::Object(&SVID),
            Optional,
            "Which of the identities that it gives is the agent's. Without it: `spiffe://TRUST_DOMAIN/hamlet/agent`.",
            "{spiffeId: \"spiffe://acme.example/hamlet/agent\"}",
        ),
        field(
            "gateway",
            Shape::Object(&SVID),
            Optional,
            "Which of them is the gateways'. Without it: `spiffe://TRUST_DOMAIN/hamlet/gateway`. It may be the agent's, \
             though then a gateway could speak for the mesh, and peers are warned of it.",
            "{spiffeId: \"spiffe://acme.example/hamlet/gateway\"}",
        ),
    ],
};

static IDENTITY: Object = Object {
    fields: &[
        field(
            "authority",
            Shape::Object(&AUTHORITY),
            Optional,
            "Our own authority (made by `hamlet init`): it issues and renews our certificates, and one for each \
             service name at the ingress. Instead of `agent`, `gateway` and `ca`.",
            "{folder: identity, hosts: [gw.acme.example]}",
        ),
        field(
            "workloadApi",
            Shape::Object(&WORKLOAD_API),
            Optional,
            "The SPIFFE Workload API of a SPIRE agent, or another one: it gives our certificates, the CA certificates of \
             our own trust domain, and those of peers with `trust.workloadApi`. All of it is followed live. Instead of \
             everything else here.",
            "{socket: \"unix:///run/spire/sockets/agent.sock\"}",
        ),
        field(
            "agent",
            Shape::Object(&PEM_PAIR),
            Optional,
            "What this agent proves to other agents. Needed without `authority` and `workloadApi`.",
            "{cert: identity/agent.pem, key: identity/agent.key}",
        ),
        field(
            "gateway",
            Shape::Object(&PEM_PAIR),
            Optional,
            "What our gateways prove to other gateways. Needed without `authority` and `workloadApi`.",
            "{cert: identity/gateway.pem, key: identity/gateway.key}",
        ),
        field(
            "ca",
            Shape::Object(&PEM_PAIR),
            Optional,
            "A CA of ours, beside `agent` and `gateway`. With it the ingress mints a certificate for each service name; \
             without it the gateway's certificate must name them.",
            "{cert: identity/ca.pem, key: identity/ca.key}",
        ),
        field(
            "bundle",
            Text(&PATH),
            Optional,
            "The CA certificates of our own trust domain, for `hamlet bundle show` and `bundleEndpoint`: PEM, a SPIFFE \
             bundle (JWKS) or a bundle map. Without it: the certificate of `ca`. An authority and a Workload API need none.",
            "identity/roots.pem",
        ),
    ],
};

static BUNDLE_ENDPOINT: Object = Object {
    fields: &[
        field("listen", Text(&LISTEN), Required, "Where it listens. The path is `/`.", "0.0.0.0:8443"),
        field(
            "profile",
            Choice(&[
                ("https_web", "proves a host name with `cert` and `key`"),
                ("https_spiffe", "proves our agent's id"),
            ]),
            Default("https_spiffe"),
            "How it proves itself to whoever asks.",
            "https_web",
        ),
        field(
            "cert",
            Text(&PATH),
            Optional,
            "With `https_web`: the web certificate as PEM, leaf first. Watched.",
            "identity/web.pem",
        ),
        field(
            "key",
            Text(&PATH),
            Optional,
            "With `https_web`: its private key as PEM, readable by the owner of the process only.",
            "identity/web.key",
        ),
        field(
            "refreshHint",
            Text(&POSITIVE),
            Default("5m"),
            "How often followers are told to look (`spiffe_refresh_hint`); whole seconds.",
            "5m",
        ),
    ],
};

static LISTEN_OBJECT: Object = Object {
    fields: &[
        field(
            "agent",
            Text(&LISTEN),
            Default("0.0.0.0:7443"),
            "Other agents connect here (mTLS).",
            "0.0.0.0:7443",
        ),
        field(
            "ingress",
            Text(&LISTEN),
            Default("0.0.0.0:7444"),
            "Other meshes' gateways connect here (mTLS). Publish where that is in `advertise`.",
            "0.0.0.0:7444",
        ),
        field(
            "egressHttp",
            Text(&LISTEN),
            Default("127.0.0.1:7480"),
            "Local workloads reach every imported HTTP service here, by Host name. Clear text: keep it on loopback.",
            "127.0.0.1:7480",
        ),
        field(
            "dns",
            Text(&LISTEN),
            Default("127.0.0.1:7453"),
            "Answers for imported names (UDP and TCP).",
            "off",
        ),
        field(
            "admin",
            Text(&LISTEN),
            Default("127.0.0.1:7490"),
            "Health and metrics over HTTP, nothing else. The admin API is on `socket`.",
            "127.0.0.1:7490",
        ),
    ],
};

static ADVERTISED_INGRESS: Object = Object {
    fields: &[
        field("address", Text(&ADVERTISED), Required, "Where peers reach our ingress.", "203.0.113.10:7444"),
        field(
            "labels",
            List { item: &Text(&TEXT), min: 0, max: 64 },
            Optional,
            "Labels of this ingress point, offered with it.",
            "[eu-west]",
        ),
    ],
};

static ADVERTISE: Object = Object {
    fields: &[field(
        "ingress",
        List { item: &TextOr(&ADVERTISED, &ADVERTISED_INGRESS), min: 1, max: 256 },
        Optional,
        "Where peers reach our ingress: `IP:PORT`, or a mapping with labels. Needed as soon as there is a Publication.",
        "[\"203.0.113.10:7444\"]",
    )],
};

static EGRESS: Object = Object {
    fields: &[
        field(
            "pool",
            Text(&POOL),
            Default("127.64.0.0/16"),
            "Every imported service gets an address of its own from here. Agents on one machine need pools of their own.",
            "127.64.0.0/16",
        ),
        field(
            "listeners",
            Integer(0, 65_536),
            Default("4096"),
            "Most egress listeners. Services above it are reachable through `listen.egressHttp` only, and the state says so.",
            "4096",
        ),
        field(
            "connectTimeout",
            Text(&POSITIVE),
            Default("3s"),
            "How long one endpoint may take to accept, before the next one is tried.",
            "3s",
        ),
        field(
            "idleTimeout",
            Text(&POSITIVE),
            Default("1h"),
            "A connection without a byte in either direction is closed after this time.",
            "1h",
        ),
        field(
            "drain",
            Text(&DURATION),
            Default("30s"),
            "How long live connections go on after their route was withdrawn. Removing a peer closes at once.",
            "30s",
        ),
    ],
};

static ZONE: Object = Object {
    fields: &[
        field("suffix", Text(&SUFFIX), Required, "Names under it are ours to answer.", "globex.example"),
        field(
            "exclusive",
            Bool,
            Default("false"),
            "Whether nobody else answers for this suffix. If so, unknown names get NXDOMAIN, else REFUSED, so that \
             forwarding a partner's public domain to us doesn't hide it.",
            "true",
        ),
    ],
};

static DNS: Object = Object {
    fields: &[
        field("ttl", Text(&TTL), Default("5s"), "Time to live of the answers.", "5s"),
        field(
            "zones",
            List { item: &Shape::Object(&ZONE), min: 0, max: 1024 },
            Optional,
            "Suffixes with a rule of their own. Imported names are answered without being listed here.",
            "[{suffix: globex.example, exclusive: true}]",
        ),
    ],
};

static LIMITS: Object = Object {
    fields: &[
        field("peers", Integer(1, 10_000), Default("256"), "Most peers.", "256"),
        field(
            "servicesPerPeer",
            Integer(1, 1_000_000),
            Default("20000"),
            "Most services that one peer may offer; the rest is refused. A Peer can have its own in `quotas`.",
            "20000",
        ),
        field(
            "bytesPerPeer",
            Text(&BYTES),
            Default("64MiB"),
            "Most bytes of offers kept of one peer.",
            "64MiB",
        ),
        field(
            "messageBytes",
            Text(&MESSAGE_BYTES),
            Default("64KiB"),
            "Largest offer that we admit and that we send.",
            "64KiB",
        ),
        field(
            "connectionsPerPeer",
            Integer(1, 1_024),
            Default("4"),
            "Most connections that one peer may have open to `listen.agent`; it needs one, and a second while it renews.",
            "4",
        ),
        field(
            "streamsPerMinute",
            Integer(1, 10_000),
            Default("16"),
            "Most streams that one connection may open in a minute, before it is closed.",
            "16",
        ),
        field(
            "controlFrames",
            Integer(64, 65_536),
            Default("1024"),
            "How many HTTP/2 frames of a kind that carries nothing (PING, SETTINGS, RST_STREAM and the like) a peer \
             may send at once beyond what we gave cause for, before its connection is closed.",
            "1024",
        ),
        field(
            "silentPerPrefix",
            Integer(1, 1_024),
            Default("256"),
            "Most sockets from one /24 (IPv4) or /56 (IPv6) without a whole ClientHello; one more closes the oldest. \
             Behind a load balancer that hides addresses: 1024, the most of all together. At `listen.ingress` a \
             change needs a restart.",
            "256",
        ),
        field(
            "streamLife",
            Text(&POSITIVE),
            Default("24h"),
            "How long a stream to another Hamlet agent lives before the side that dialled renews it; a new one is up \
             before the old one ends. No stream outlives its certificates.",
            "24h",
        ),
    ],
};

static LOG: Object = Object {
    fields: &[
        field(
            "level",
            Choice(&[
                ("error", "what a person must act on"),
                ("warn", "and what may become one"),
                ("info", "and what a person reads in the morning"),
                ("debug", "and one peer's story"),
                ("trace", "everything"),
            ]),
            Default("info"),
            "How much is logged.",
            "info",
        ),
        field(
            "format",
            Choice(&[("text", "a line for people"), ("json", "an object a line, for machines")]),
            Default("text"),
            "How it looks.",
            "json",
        ),
    ],
};

static BRAKE: Object = Object {
    fields: &[
        field(
            "percent",
            Integer(1, 100),
            Default("30"),
            "Share of the hour's peak that may go within the hour, in percent; more is held back. 100 switches the brake off.",
            "30",
        ),
        field(
            "floor",
            Integer(0, 1_000_000),
            Default("10"),
            "So many services may always go, unless none is left.",
            "10",
        ),
        field(
            "wait",
            Text(&DURATION),
            Default("5m"),
            "How long they are held back, unless they come back or `hamlet reload --confirm-withdrawals` lets them go.",
            "5m",
        ),
    ],
};

/// This agent.
pub static MESH: Kind = Kind {
    name: "Mesh",
    summary: "This agent: its name, identity, listeners and limits. Exactly one.",
    doc: "Changing `trustDomain`, `identity` paths, `listen`, `bundleEndpoint`, `data`, `socket` or `egress.pool` needs a restart; \
          the rest is taken over by a reload.",
    name_format: &NAME,
    name_doc: "The name of this mesh.",
    spec: Object {
        fields: &[
            field(
                "trustDomain",
                Text(&TRUST_DOMAIN),
                Required,
                "Our SPIFFE trust domain. No peer may have the same.",
                "acme.example",
            ),
            field(
                "identity",
                Shape::Object(&IDENTITY),
                Required,
                "Where our certificates come from: our own `authority`, a SPIFFE Workload API, or files that are watched and \
                 taken over without a restart.",
                "{authority: {folder: identity}}",
            ),
            field(
                "listen",
                Shape::Object(&LISTEN_OBJECT),
                Optional,
                "Where we listen. Each can be `off`.",
                "{dns: off}",
            ),
            field(
                "advertise",
                Shape::Object(&ADVERTISE),
                Optional,
                "What peers are told about reaching us.",
                "{ingress: [\"203.0.113.10:7444\"]}",
            ),
            field(
                "bundleEndpoint",
                Shape::Object(&BUNDLE_ENDPOINT),
                Optional,
                "Publishes our own SPIFFE bundle over HTTPS, to anybody: it holds CA certificates and no secrets. Without \
                 it nothing is published.",
                "{listen: \"0.0.0.0:8443\"}",
            ),
            field(
                "bundleWait",
                Text(&POSITIVE),
                Default("5m"),
                "How long a CA that a peer's agent announces on a stream waits before it is used, or the bundle's \
                 `spiffe_refresh_hint` if that is longer. CAs that a peer takes away are out at once.",
                "5m",
            ),
            field(
                "data",
                Text(&PATH),
                Default("data"),
                "The folder of the store. One agent each; it is locked.",
                "/var/lib/hamlet",
            ),
            field(
                "socket",
                Text(&PATH),
                Optional,
                "The admin API's unix socket; its file permissions are the access control. Without it: `admin.sock` in `data`.",
                "run/admin.sock",
            ),
            field(
                "egress",
                Shape::Object(&EGRESS),
                Optional,
                "The way out to other meshes.",
                "{pool: 127.65.0.0/16}",
            ),
            field("dns", Shape::Object(&DNS), Optional, "The answers for imported names.", "{ttl: 5s}"),
            field(
                "brake",
                Shape::Object(&BRAKE),
                Optional,
                "The brake on withdrawals of our own services: when many of them, or all of two or more, are gone from \
                 the files at once, they are served on for a while. Additions and changes are never held back.",
                "{percent: 30, wait: 5m}",
            ),
            field("limits", Shape::Object(&LIMITS), Optional, "Nothing is unbounded.", "{peers: 16}"),
            field("log", Shape::Object(&LOG), Optional, "What is logged.", "{level: debug}"),
        ],
    },
    example: "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata:
  name: acme
spec:
  trustDomain: acme.example
  identity:
    authority: {folder: identity, hosts: [gw.acme.example]}
  advertise:
    ingress: [\"203.0.113.10:7444\"]
",
};
