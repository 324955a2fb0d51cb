"""A peer that isn't Hamlet: v1alpha2 and v1alpha1 on grpcio, with the habits of the Go
implementations. Commands come on standard input, events go to standard output as one JSON object
a line; it ends when its input does. See README.md.
"""

import argparse
import os
import sys
import threading
import time

# Its log is for its developers; events tell what happened.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc  # noqa: E402
from google.protobuf import json_format

import v1alpha1
import v1alpha2
from catalogue import Catalogue, event
from wire import Wire, method

VERSIONS = {"v1alpha1": v1alpha1, "v1alpha2": v1alpha2}
COMMANDS = "create NAME, update NAME, repeat NAME, delete NAME, count, dial, quit"


class Tally:
    """Prints, or only counts, what came."""

    def __init__(self, options):
        self._print = not options.count_only
        self._answers = options.answers
        self._lock = threading.Lock()
        self._of = {}
        self._first = self._last = None

    def add(self, operation, key, service, answer):
        """A change."""
        with self._lock:
            self._of[operation] = self._of.get(operation, 0) + 1
            self._last = time.monotonic()
            self._first = self._first or self._last
        if self._print:
            shown = None if service is None else json_format.MessageToDict(service, preserving_proto_field_name=True)
            event(operation, key=key, service=shown, answer=answer)

    def answered(self, nonce, status, resource_url):
        """The other side's answer."""
        acknowledged = status is not None and status.code == 0
        with self._lock:
            word = "acked" if acknowledged else "nacked"
            self._of[word] = self._of.get(word, 0) + 1
        if self._answers or not acknowledged:
            event(
                "answer", nonce=nonce, has_status=status is not None, resource_url=resource_url,
                code=status.code if status else 0, message=status.message if status else "",
            )

    def report(self):
        """The counts so far; the rate is over the time between the first change and the last."""
        with self._lock:
            seconds = self._last - self._first if self._first else 0.0
            total = sum(n for word, n in self._of.items() if not word.endswith("acked"))
            event("count", **self._of, seconds=seconds, per_second=total / seconds if seconds else 0.0)


def options():
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("role", choices=["owner", "consumer", "both"])
    p.add_argument("--version", choices=sorted(VERSIONS), default="v1alpha2")
    side = p.add_mutually_exclusive_group(required=True)
    side.add_argument("--listen", help="accept: HOST:PORT, port 0 for any")
    side.add_argument("--dial", help="dial: HOST:PORT")
    p.add_argument("--server-name", default="", help="name that the server's certificate must have")
    p.add_argument("--cert", required=True, help="our certificate chain, PEM")
    p.add_argument("--key", required=True, help="its private key, PEM")
    p.add_argument("--ca", required=True, help="roots that the peer is verified against, PEM")
    p.add_argument("--context", default="", help="v1alpha2: what both sides repeat in every message")
    p.add_argument("--services", type=int, default=0, help="services from the start: svc-00000 and on")
    p.add_argument("--bytes", type=int, default=0, help="encoded size of a service; smaller ones are padded")
    p.add_argument("--domain", default="foreign.example", help="the services' domain")
    p.add_argument("--san", default="spiffe://foreign.example/gateway", help="the services' identity")
    p.add_argument("--address", default="127.0.0.1", help="the services' endpoint: address")
    p.add_argument("--port", type=int, default=7444, help="the services' endpoint: port")
    p.add_argument("--protocol", default="TCP", help="the services' protocols, separated by commas")
    p.add_argument("--service-port", type=int, default=80, help="v1alpha2: PORT of the instances")
    p.add_argument("--nack", default="", help="v1alpha1: refuse services whose id contains this")
    p.add_argument("--answers", action="store_true", help="print every answer; NACKs always are")
    p.add_argument("--count-only", action="store_true", help="don't print services, only counts at the end")
    o = p.parse_args()
    if o.version == "v1alpha1" and (o.role == "both" or (o.role == "owner") != bool(o.listen)):
        p.error("in v1alpha1 the owner listens and the consumer dials")
    return o


# HTTP/2 windows of 64 KiB that don't grow, as small as the Go implementation's are at first: who
# doesn't read soon keeps the other side from writing.
SMALL_WINDOWS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]
# As a server it tolerates pings every 40 s, as a client it pings every 20 s, with or without a
# stream. (This library's servers tolerate one in five minutes by default.)
TOLERATED_PINGS = [
    ("grpc.http2.min_ping_interval_without_data_ms", 40_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
PINGS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def read(path):
    """A file's bytes."""
    with open(path, "rb") as f:
        return f.read()


def accept(o, peer):
    """A server, which goes on by itself for as long as the caller keeps it."""
    handlers = {"EstablishStream": peer.handler()}
    name = method(o.version).split("/")[1]
    # A thread a stream, which lives as long as it does.
    generic = grpc.method_handlers_generic_handler(name, handlers)
    server = grpc.server(_threads(), handlers=[generic], options=SMALL_WINDOWS + TOLERATED_PINGS)
    roots = read(o.ca)
    credentials = grpc.ssl_server_credentials([(read(o.key), read(o.cert))], roots, require_client_auth=True)
    host = o.listen.rsplit(":", 1)[0]
    port = server.add_secure_port(o.listen, credentials)
    server.start()
    event("listening", address=f"{host}:{port}")
    return server


def _threads():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max_workers=64)


def dial(o, peer):
    """One stream in the background."""
    credentials = grpc.ssl_channel_credentials(read(o.ca), read(o.key), read(o.cert))
    settings = SMALL_WINDOWS + PINGS + ([("grpc.ssl_target_name_override", o.server_name)] if o.server_name else [])
    channel = grpc.secure_channel(o.dial, credentials, settings)

    def run():
        event("dialling", address=o.dial)
        peer.dial(channel)
        channel.close()

    threading.Thread(target=run, daemon=True).start()


def command(o, words, catalogue, peer, tally):
    """Carries out one line of standard input."""
    match words:
        case ["create" | "update", name]:
            catalogue.put(name)
        case ["repeat", name]:
            catalogue.repeat(name)
        case ["delete", name]:
            catalogue.remove(name)
        case ["count"]:
            tally.report()
        case ["dial"] if o.dial:
            dial(o, peer)
        case _:
            raise ValueError(f"known: {COMMANDS}")


def main():
    """Until the input ends."""
    o = options()
    wire, tally = Wire(), Tally(o)
    catalogue = Catalogue(wire, o.version, o)
    peer = VERSIONS[o.version].Peer(wire, o, catalogue, tally)
    server = accept(o, peer) if o.listen else dial(o, peer)  # noqa: F841, a server ends unless it is kept
    for line in sys.stdin:
        words = line.split()
        if words == ["quit"]:
            break
        try:
            command(o, words, catalogue, peer, tally)
        except (KeyError, ValueError) as e:
            event("error", command=line.strip(), message=repr(e))
    tally.report()
    # Streams are left as a process that ends leaves them: by closing the connection.
    os._exit(0)


main()
