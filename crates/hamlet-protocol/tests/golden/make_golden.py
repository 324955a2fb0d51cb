"""Makes the golden wire bytes beside this file with Python's protobuf, from the project's .proto files.

The tests only read the .hex files; run this again when a message changes:

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install protobuf grpcio-tools
    /tmp/golden/bin/python make_golden.py

Each file is the deterministic serialization of one message (fields in number order, maps in key
order) in hex, 32 bytes a line. `wire_golden.rs` and `wire_golden_v1alpha1.rs` build the same
messages and compare both ways.
"""

import pathlib
import sys
import tempfile

import grpc_tools.protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parents[3] / "proto"
URL = "type.googleapis.com/federation.types.v1alpha2.FederatedService"


def compiled():
    out = tempfile.mkdtemp()
    files = [str(p.relative_to(PROTO)) for p in sorted(PROTO.rglob("*.proto"))]
    # google/rpc is ours and google/protobuf the library's: our packages stand in a folder of
    # their own on the search path, so only the generated modules of ours are loaded from it.
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    code = grpc_tools.protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={out}", *files])
    if code != 0:
        sys.exit("protoc failed")
    import google

    google.__path__.append(f"{out}/google")
    sys.path.insert(0, out)


compiled()
from federation.resourcediscovery.v1alpha1 import discovery_pb2 as d1  # noqa: E402
from federation.resourcediscovery.v1alpha2 import discovery_pb2 as d  # noqa: E402
from federation.types.v1alpha1 import federated_service_pb2 as t1  # noqa: E402
from federation.types.v1alpha2 import federated_service_pb2 as t  # noqa: E402
from google.rpc import status_pb2  # noqa: E402


def service():
    s = t.FederatedService(
        name="ledger",
        description="Bücher",
        tags=["prod", "b"],
        fqdn="ledger.bank.example",
        sans=["spiffe://bank.example/gateway", "spiffe://bank.example/gateway2"],
    )
    # Not in key order on purpose.
    s.labels["zone"] = "b"
    s.labels["app"] = "x"
    s.labels["Team"] = "ä"
    s.endpoints.add(address="192.0.2.7", port=7444, labels=["east"], description="one")
    s.endpoints.add(address="2001:db8::7", port=65535)
    i = s.instances.add(id="http", protocol="HTTP2", endpoint_selector=["east", "west"], description="web")
    i.metadata["SNI"] = "http.ledger.bank.example"
    i.metadata["PORT"] = "80"
    i.metadata["HOSTNAME"] = "ledger.bank.example"
    i.metadata["x-other"] = "kept"
    s.instances.add(id="tls", protocol="TLS")
    return s


def empty_label():
    s = t.FederatedService(name="ledger")
    s.labels["app"] = ""
    return s


def response(operation):
    r = d.StreamResponse(nonce="42", resource_url=URL, resource_id="ledger", operation=operation, context="a b")
    r.resource.type_url = URL
    r.resource.value = service().SerializeToString(deterministic=True)
    return d.BidirectionalStream(response=r)


def ack():
    return d.BidirectionalStream(
        request=d.StreamRequest(resource_url=URL, response_nonce="7", status=status_pb2.Status(), context="a b")
    )


def nack():
    info = status_pb2.ErrorInfo(reason="NAME_OUTSIDE_SUFFIXES", domain="hamlet.dev", metadata={"field": "fqdn"})
    status = status_pb2.Status(code=7, message="name-outside-suffixes: fqdn: rename it")
    detail = status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo")
    detail.value = info.SerializeToString(deterministic=True)
    return d.BidirectionalStream(request=d.StreamRequest(resource_url=URL, response_nonce="7", status=status))


def hello():
    r = d.StreamRequest(resource_url=URL, context="a b")
    h = r.control.hello
    h.version, h.agent, h.window_messages, h.max_message_bytes, h.answer_ms = 1, "hamlet/1", 1, 65536, 30000
    h.instance, h.log_id, h.revision = 0x0123456789ABCDEF, bytes(range(16)), 300
    h.held.round, h.held.digest_version, h.held.type_url = 1, 1, URL
    h.held.root, h.held.count = bytes(range(32)), 2
    return d.BidirectionalStream(request=r)


def control(fill):
    r = d.StreamRequest(context="a b")
    fill(r.control)
    return d.BidirectionalStream(request=r)


def bookmark(c):
    b = c.bookmark
    b.seq, b.round, b.version, b.root, b.count, b.log_id, b.revision = 3, 1, 300, bytes(32), 2, bytes(16), 300


def proof(c):
    p = c.proof
    p.seq, p.verdict, p.root, p.refused, p.withheld = 3, 3, bytes(32), 1, 200


def bundle(c):
    b = c.bundle
    b.trust_domain, b.sequence, b.previous_sha256 = "acme.example", 300, bytes(range(32))
    b.jwks = b'{"keys": [], "spiffe_sequence": 300}'


def bundle_ack(c, reason=""):
    a = c.bundle_ack
    a.trust_domain, a.sequence = "globex.example", 7
    if reason:
        a.error.reason, a.error.domain = reason, "hamlet.dev"
        a.error.metadata["message"] = "taken; what it adds is used in 300 s"


URL1 = "type.googleapis.com/federation.types.v1alpha1.FederatedService"


def v1_service():
    s = t1.FederatedService(
        name="ledger",
        description="Bücher",
        tags=["prod", "b"],
        fqdn="ledger.bank.example",
        id="http.ledger.bank.example",
        san="spiffe://bank.example/gateway",
        protocols=["HTTP2", "TLS"],
    )
    # Not in key order on purpose.
    s.labels["zone"] = "b"
    s.labels["app"] = "x"
    s.labels["Team"] = "ä"
    s.endpoints.add(address="192.0.2.7", port=7444)
    s.endpoints.add(address="2001:db8::7", port=65535)
    return s


def v1_response(operation, nonce="42"):
    r = d1.StreamResponse(nonce=nonce, resource_url=URL1, operation=operation)
    r.resource.type_url = URL1
    r.resource.value = v1_service().SerializeToString(deterministic=True)
    return r


def v1_answer(nonce, status):
    return d1.StreamRequest(resource_url=URL1, response_nonce=nonce, status=status)


def v1_refused():
    info = status_pb2.ErrorInfo(reason="SAN_MISSING", domain="hamlet.dev", metadata={"field": "san"})
    status = status_pb2.Status(code=7, message="san-missing: san: set it")
    detail = status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo")
    detail.value = info.SerializeToString(deterministic=True)
    return status


MESSAGES = {
    "subscription": d.BidirectionalStream(request=d.StreamRequest(resource_url=URL, context="a b")),
    "hello": hello(),
    "ack": ack(),
    "nack": nack(),
    "upsert": response(1),
    "delete": response(2),
    "begin": control(lambda c: c.begin.MergeFrom(type(c.begin)(round=1, mode=4))),
    "bookmark": control(bookmark),
    "proof": control(proof),
    "goodbye": control(lambda c: c.goodbye.MergeFrom(type(c.goodbye)(reason=2, retry_after_ms=1500))),
    "bundle": control(bundle),
    "bundle_ack": control(bundle_ack),
    "bundle_waiting": control(lambda c: bundle_ack(c, "BUNDLE_WAITING")),
    "service": service(),
    "empty_label": empty_label(),
    "v1_subscription": d1.StreamRequest(resource_url=URL1),
    "v1_ack": v1_answer("7", status_pb2.Status()),
    "v1_ack_of_empty_nonce": v1_answer("", status_pb2.Status()),
    "v1_nack": v1_answer("7", v1_refused()),
    # What the Go library's consumer says of everything it can't take.
    "v1_nack_of_go": v1_answer("7", status_pb2.Status(code=14, message="unable to handle the message")),
    "v1_create": v1_response(1),
    "v1_update": v1_response(2),
    "v1_delete": v1_response(3),
    "v1_create_without_nonce": v1_response(1, nonce=""),
    "v1_service": v1_service(),
}

for name, message in MESSAGES.items():
    text = message.SerializeToString(deterministic=True).hex()
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    (HERE / f"{name}.hex").write_text("\n".join(lines) + "\n")
