"""v1alpha2 as the unmerged Go implementation speaks it (protocol text, section 4).

Both roles on one stream. Its habits: the accepting side compares the context in the dialler's
first message and ends the stream with OK and no word if it differs; both sides send a request
first; nonces of 22 characters; answers without resource_url, with an empty status; only unknown
operations are refused; it doesn't wait for answers; an upsert whose bytes don't change isn't sent;
all that was imported goes when the stream ends; an answer without status and an upsert without
resource crash it. It sends and receives in one loop: while a send waits for the other side,
nothing is received.
"""

import base64
import os
import queue
import threading
import uuid

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet

import wire as w
from catalogue import event

VERSION = "v1alpha2"
UPSERT, DELETE = 1, 2
UNIMPLEMENTED = 12
CRASHED = 70


def nonce():
    """22 characters."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


def crash(reason):
    """The reference is gone after this."""
    event("crash", reason=reason)
    os._exit(CRASHED)


def extensions(message):
    """Tells of fields that this version doesn't have; the original ignores them."""
    for part in ("request", "response"):
        if not message.HasField(part):
            continue
        said = getattr(message, part)
        initial = part == "request" and not said.response_nonce
        for field in UnknownFieldSet(said):
            event("extension", part=part, field=field.field_number, initial=initial)


class Outgoing:
    """Messages to gRPC, which asks for the next when it has written the one before."""

    def __init__(self):
        self._next = queue.Queue(maxsize=1)
        self._closed = threading.Event()

    def send(self, message):
        """Waits until there is room; False when the stream is over."""
        while not self._closed.is_set():
            try:
                self._next.put(message, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def close(self):
        """Ends the iterator and every waiting send."""
        self._closed.set()

    def __iter__(self):
        while not self._closed.is_set():
            try:
                yield self._next.get(timeout=0.1)
            except queue.Empty:
                continue


class Stream:
    """One stream, from either side."""

    def __init__(self, peer, outgoing):
        self._peer = peer
        self._outgoing = outgoing
        # Both directions meet here, one step at a time: the one loop.
        self._steps = queue.Queue(maxsize=1)
        self._changes = queue.Queue()
        self._over = threading.Event()
        self._imported = {}
        self._sent = {}

    def _step(self, kind, value):
        while not self._over.is_set():
            try:
                self._steps.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def _read(self, incoming):
        error = ""
        try:
            for message in incoming:
                self._step("in", message)
        except Exception as e:  # grpc raises its own and plain ones
            error = str(getattr(e, "details", lambda: e)() or e)
        # Ends that carry no status are reported as what they are.
        code = getattr(incoming, "code", None)
        status = code().name if code and code() else ""
        self._step("end", (status, error))

    def _feed(self):
        while not self._over.is_set():
            try:
                self._step("out", self._changes.get(timeout=0.1))
            except queue.Empty:
                continue

    def _changed(self, operation, service):
        copy = type(service)()
        copy.CopyFrom(service)
        self._changes.put((operation, copy))

    def run(self, incoming, send_first):
        """Until the stream ends. `send_first`: our request goes out before anything is read."""
        peer, workers = self._peer, []
        if send_first:
            self._outgoing.send(peer.request())
        workers.append(threading.Thread(target=self._read, args=(incoming,), daemon=True))
        if peer.publishes:
            count = peer.catalogue.subscribe(self._changed)
            event("publishing", services=count)
            workers.append(threading.Thread(target=self._feed, daemon=True))
        for worker in workers:
            worker.start()
        try:
            self._loop()
        finally:
            self._over.set()
            self._outgoing.close()
            if peer.publishes:
                peer.catalogue.unsubscribe(self._changed)
            event("dropped", services=len(self._imported))

    def _loop(self):
        while True:
            kind, value = self._steps.get()
            if kind == "end":
                event("ended", status=value[0], error=value[1])
                return
            if kind == "in":
                extensions(value)
            if kind == "out":
                self._publish(*value)
            elif value.HasField("response"):
                self._receive(value.response)
            if kind == "in" and value.HasField("request"):
                self._answered(value.request)

    def _publish(self, operation, service):
        """Sends without waiting for the answer."""
        peer, key = self._peer, service.fqdn
        value = service.SerializeToString(deterministic=True)
        if operation == "delete":
            self._sent.pop(key, None)
        elif self._sent.get(key) == value:
            event("suppressed", key=key)
            return
        else:
            self._sent[key] = value
        message = peer.new_message()
        r = message.response
        r.nonce, r.resource_url, r.resource_id, r.context = nonce(), peer.url, key, peer.context
        r.resource.type_url, r.resource.value = peer.url, value
        r.operation = DELETE if operation == "delete" else UPSERT
        self._outgoing.send(message)

    def _answered(self, request):
        if not request.response_nonce:
            event("request", resource_url=request.resource_url)
            return
        if not request.HasField("status"):
            crash("an answer without status")
        self._peer.answered(request)

    def _receive(self, response):
        peer, key = self._peer, response.resource_id
        message = peer.new_message()
        r = message.request
        r.response_nonce, r.context = response.nonce, peer.context
        r.status.SetInParent()
        if response.operation == UPSERT:
            if not response.HasField("resource"):
                crash("an upsert without resource")
            service = peer.new_service()
            service.ParseFromString(response.resource.value)
            self._imported[key] = service
            peer.took("upsert", key, service)
        elif response.operation == DELETE:
            self._imported.pop(key, None)
            peer.took("delete", key, None)
        else:
            r.status.code, r.status.message = UNIMPLEMENTED, "unknown operation"
            event("unknown-operation", operation=response.operation)
        self._outgoing.send(message)


class Peer:
    """One side, which dials or accepts."""

    def __init__(self, wire, options, catalogue, tally):
        self.catalogue = catalogue
        self.publishes = options.role != "consumer"
        self.context = options.context
        self.url = w.resource_url(VERSION)
        self.new_message = wire.discovery(VERSION, "BidirectionalStream")
        self.new_service = wire.service(VERSION)
        self._tally = tally
        self._options = options

    def request(self):
        """What each side sends first."""
        message = self.new_message()
        message.request.resource_url, message.request.context = self.url, self.context
        return message

    def took(self, operation, key, service):
        """A change of the other side's."""
        self._tally.add(operation, key, service, "ack")

    def answered(self, request):
        """The other side's answer."""
        self._tally.answered(request.response_nonce, request.status, request.resource_url)

    def handler(self):
        """For a server."""
        return grpc.stream_stream_rpc_method_handler(
            self._accept, self.new_message.FromString, self.new_message.SerializeToString
        )

    def _accept(self, incoming, _context):
        first = next(incoming, None)
        if first is None or first.request.context != self.context:
            event("refused", reason="context")
            return
        extensions(first)
        event("subscribed", resource_url=first.request.resource_url)
        outgoing = Outgoing()
        stream = Stream(self, outgoing)
        worker = threading.Thread(target=stream.run, args=(incoming, True), daemon=True)
        worker.start()
        yield from outgoing
        worker.join()

    def dial(self, channel):
        """One stream, until it ends."""
        outgoing = Outgoing()
        call = channel.stream_stream(
            w.method(VERSION), self.new_message.SerializeToString, self.new_message.FromString
        )(iter(outgoing))
        Stream(self, outgoing).run(call, True)
        call.cancel()
