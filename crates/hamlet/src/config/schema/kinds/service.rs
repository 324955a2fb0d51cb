//! The table of `Service`: what runs here. A table only.
//!
//! Invariant: docs are complete sentences, because they are the reference.

use super::field;
use crate::config::scalar::*;
use crate::config::schema::Need::{Default, Optional, Required};
use crate::config::schema::Shape::{self, Choice, Integer, List, Text};
use crate::config::schema::{Kind, Object};

const PROTOCOLS: Shape = Choice(&[
    ("HTTP", "HTTP/1.1 in clear text"),
    ("HTTPS", "HTTP over the application's own TLS"),
    ("GRPC", "gRPC in clear text"),
    ("HTTP2", "HTTP/2 in clear text"),
    ("MONGO", "the MongoDB wire protocol"),
    ("TCP", "any bytes"),
    ("TLS", "the application's own TLS"),
    ("MTLS", "the application's own TLS with client certificates"),
]);

const CALLERS: Shape = Choice(&[
    ("none", "it isn't told"),
    ("proxy-v2", "PROXY protocol v2 in front of the bytes, the proven id in TLV 0xE0"),
    ("http-header", "request header x-hamlet-caller; HTTP, HTTP2 and GRPC only"),
]);

const BACKENDS_DOC: &str = "Where our ingress forwards to, on addresses that it reaches.";
const PORT_DOC: &str = "The port that consumers use. Without it: 80 for HTTP, HTTP2 and GRPC, 443 for HTTPS and TLS, \
                        27017 for MONGO.";

static INSTANCE: Object = Object {
    fields: &[
        field(
            "id",
            Text(&NAME),
            Optional,
            "The instance's id: its own name is `<id>.<fqdn>`. Without it: the protocol in lower case.",
            "grpc",
        ),
        field("protocol", PROTOCOLS, Required, "What it speaks.", "GRPC"),
        field("port", Integer(1, 65_535), Optional, PORT_DOC, "9090"),
        field(
            "backends",
            List { item: &Text(&BACKEND), min: 1, max: 256 },
            Required,
            BACKENDS_DOC,
            "[\"127.0.0.1:9090\"]",
        ),
        field(
            "caller",
            CALLERS,
            Default("none"),
            "How the backend is told which gateway calls.",
            "http-header",
        ),
    ],
};

/// A service declared by hand.
pub static SERVICE: Kind = Kind {
    name: "Service",
    summary: "A service that runs here, declared by hand. Visible to nobody without a Publication.",
    doc: "Either `instances`, or for a single instance `protocol`, `port`, `backends` and `caller` right in `spec`.",
    name_format: &SERVICE_NAME,
    name_doc: "The service's unique name; peers see it.",
    spec: Object {
        fields: &[
            field(
                "fqdn",
                Text(&FQDN),
                Required,
                "The name that consumers resolve. Letters, digits and `-` only, since it is used as a TLS server name.",
                "ledger.acme.example",
            ),
            field(
                "description",
                Text(&DESCRIPTION),
                Optional,
                "For people; peers see it.",
                "The general ledger",
            ),
            field(
                "tags",
                List { item: &Text(&TEXT), min: 0, max: 64 },
                Optional,
                "Free tags; peers see them.",
                "[finance]",
            ),
            field(
                "instances",
                List { item: &Shape::Object(&INSTANCE), min: 1, max: 256 },
                Optional,
                "The ways to speak to it; the first also answers to the bare fqdn.",
                "[{protocol: HTTP, backends: [\"127.0.0.1:8080\"]}]",
            ),
            field("protocol", PROTOCOLS, Optional, "What the single instance speaks.", "HTTP"),
            field("port", Integer(1, 65_535), Optional, PORT_DOC, "8080"),
            field(
                "backends",
                List { item: &Text(&BACKEND), min: 1, max: 256 },
                Optional,
                BACKENDS_DOC,
                "[\"127.0.0.1:8080\"]",
            ),
            field(
                "caller",
                CALLERS,
                Optional,
                "How the backend is told which gateway calls; `none` if not said.",
                "proxy-v2",
            ),
        ],
    },
    example: "\
apiVersion: hamlet.dev/v1
kind: Service
metadata:
  name: ledger
  labels: {team: payments}
spec:
  fqdn: ledger.acme.example
  protocol: HTTP
  port: 8080
  backends: [\"127.0.0.1:8080\"]
  caller: http-header
",
};
