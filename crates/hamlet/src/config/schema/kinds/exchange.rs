//! The tables of `Publication` and `Import`: what is seen, what is accepted. A table only.
//!
//! Invariant: docs are complete sentences, because they are the reference.

use super::field;
use crate::config::scalar::*;
use crate::config::schema::Need::{Default, Optional, Required};
use crate::config::schema::Shape::{self, Bool, Integer, List, Map, Text};
use crate::config::schema::{Kind, Object};

static SELECTOR: Object = Object {
    fields: &[
        field(
            "names",
            List { item: &Text(&SERVICE_NAME), min: 1, max: 100_000 },
            Optional,
            "Services by name.",
            "[ledger]",
        ),
        field(
            "labels",
            Map { key: &LABEL_KEY, value: &Text(&TEXT), max: 64 },
            Optional,
            "Services that carry all of these labels, in addition to those in `names`.",
            "{team: payments}",
        ),
        field("all", Bool, Default("false"), "Every service of this mesh, present and future.", "true"),
    ],
};

/// What peers see of us.
pub static PUBLICATION: Kind = Kind {
    name: "Publication",
    summary: "Some services, visible to some peers. Nothing else is visible to anybody.",
    doc: "Publications add up: a peer sees a service if any of them gives it. At least one of `names`, `labels` and \
          `all` is needed.",
    name_format: &NAME,
    name_doc: "The publication's name, for people and the state.",
    spec: Object {
        fields: &[
            field("services", Shape::Object(&SELECTOR), Required, "Which services.", "{names: [ledger]}"),
            field(
                "peers",
                List { item: &Text(&NAME), min: 1, max: 10_000 },
                Required,
                "Names of Peers. There is no way to say \"all\": each is named.",
                "[globex]",
            ),
        ],
    },
    example: "\
apiVersion: hamlet.dev/v1
kind: Publication
metadata:
  name: payments-to-globex
spec:
  services:
    names: [ledger]
    labels: {team: payments}
  peers: [globex]
",
};

static NAMES: Object = Object {
    fields: &[
        field(
            "suffixes",
            List { item: &Text(&SUFFIX), min: 1, max: 256 },
            Required,
            "Every name of the peer's services, instance names too, must lie under one of these.",
            "[globex.example]",
        ),
        field(
            "allowBroad",
            Bool,
            Default("false"),
            "Allow suffixes of one label and public suffixes such as `co.uk`, under which others have names too.",
            "true",
        ),
    ],
};

static ENDPOINTS: Object = Object {
    fields: &[
        field(
            "ranges",
            List { item: &Text(&RANGE), min: 0, max: 256 },
            Optional,
            "The peer's ingress addresses must lie in one of these. Without any: every public address; private, \
             loopback and other special-purpose addresses are accepted only if listed here.",
            "[203.0.113.0/24]",
        ),
        field(
            "ports",
            List { item: &Text(&PORTS), min: 1, max: 256 },
            Default("443 8443 15443 7444"),
            "Ports that the peer's ingress may have.",
            "[443, 15443]",
        ),
    ],
};

/// What we accept.
pub static IMPORT: Kind = Kind {
    name: "Import",
    summary: "What we accept from one peer. Without an Import everything it offers is refused.",
    doc: "One Import for each peer. What it doesn't allow is refused towards the peer with the rule's name. Names in \
          reserved zones (`localhost`, `local`, `arpa`, ...) are refused whatever an Import says.",
    name_format: &NAME,
    name_doc: "The import's name, for people and the state.",
    spec: Object {
        fields: &[
            field("peer", Text(&NAME), Required, "The Peer that this is about.", "globex"),
            field(
                "names",
                Shape::Object(&NAMES),
                Required,
                "Which names it may give us.",
                "{suffixes: [globex.example]}",
            ),
            field(
                "sans",
                List { item: &Text(&SPIFFE_ID), min: 1, max: 32 },
                Optional,
                "The exact ids that its offers may name, all in its trust domain. Without it: the Peer's `gatewayIds`.",
                "[\"spiffe://globex.example/hamlet/gateway\"]",
            ),
            field(
                "endpoints",
                Shape::Object(&ENDPOINTS),
                Optional,
                "Where its services may be.",
                "{ranges: [203.0.113.0/24]}",
            ),
            field(
                "ports",
                Map { key: &IMPORT_PORT_KEY, value: &Integer(1, 65_535), max: 10_000 },
                Optional,
                "The port that our workloads use, by the owner's service name or `*`, where the owner names none.",
                "{\"*\": 8080}",
            ),
        ],
    },
    example: "\
apiVersion: hamlet.dev/v1
kind: Import
metadata:
  name: globex
spec:
  peer: globex
  names:
    suffixes: [globex.example]
  endpoints:
    ranges: [203.0.113.0/24]
",
};
