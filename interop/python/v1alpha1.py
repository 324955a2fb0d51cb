"""v1alpha1 as the original Go library speaks it (protocol text, section 4).

The owner accepts, the consumer dials. Empty nonces; lock-step, where any next message counts as
the answer; at most 4,096 changes wait for one consumer, and a larger state can't be subscribed;
the consumer refuses with UNAVAILABLE whatever the cause, and acknowledges unknown operations.
"""

import queue
import threading

import grpc

import wire as w
from catalogue import event

VERSION = "v1alpha1"
OPERATIONS = {"create": 1, "update": 2, "delete": 3}
NAMES = {number: name for name, number in OPERATIONS.items()}
BUFFERED_CHANGES = 4096
UNAVAILABLE = 14
STOP = object()


class Overflow(Exception):
    """The consumer's queue is full."""


class Peer:
    """An owner that accepts, or a consumer that dials."""

    def __init__(self, wire, options, catalogue, tally):
        self._catalogue = catalogue
        self._url = w.resource_url(VERSION)
        self._request = wire.discovery(VERSION, "StreamRequest")
        self._response = wire.discovery(VERSION, "StreamResponse")
        self._service = wire.service(VERSION)
        self._tally = tally
        self._nack = options.nack

    def handler(self):
        """For a server."""
        return grpc.stream_stream_rpc_method_handler(
            self._accept, self._request.FromString, self._response.SerializeToString
        )

    def _accept(self, incoming, context):
        first = next(incoming, None)
        if first is None:
            return
        waiting = queue.Queue(maxsize=BUFFERED_CHANGES)
        context.add_callback(lambda: self._stop(waiting))

        def offer(operation, service):
            response = self._response(resource_url=self._url, operation=OPERATIONS[operation])
            response.resource.type_url = self._url
            response.resource.value = service.SerializeToString()
            try:
                waiting.put_nowait(response)
            except queue.Full:
                raise Overflow(f"Discarding object due to overflow in stream {self._url}") from None

        # An unknown resource is never heard of: the stream idles.
        known = first.resource_url == self._url
        try:
            count = self._catalogue.subscribe(offer) if known else 0
        except Overflow as e:
            event("refused", resource_url=first.resource_url, error=str(e))
            context.abort(grpc.StatusCode.UNKNOWN, str(e))
        event("subscribed", resource_url=first.resource_url, services=count)
        try:
            yield from self._serve(incoming, waiting)
        finally:
            if known:
                self._catalogue.unsubscribe(offer)
            event("unsubscribed", resource_url=first.resource_url)

    @staticmethod
    def _stop(waiting):
        """Wakes the stream's loop, whose queue may be full: what waits is for nobody."""
        while True:
            try:
                waiting.put_nowait(STOP)
                return
            except queue.Full:
                try:
                    waiting.get_nowait()
                except queue.Empty:
                    continue

    def _serve(self, incoming, waiting):
        while True:
            response = waiting.get()
            if response is STOP:
                return
            yield response
            answer = next(incoming, None)
            if answer is None:
                return
            status = answer.status if answer.HasField("status") else None
            self._tally.answered(answer.response_nonce, status, answer.resource_url)

    def dial(self, channel):
        """One stream, until it ends; never again by itself."""
        answers = queue.Queue()
        first = self._request(resource_url=self._url)
        answers.put(first)
        call = channel.stream_stream(
            w.method(VERSION), self._request.SerializeToString, self._response.FromString
        )(iter(answers.get, STOP))
        error = ""
        try:
            for response in call:
                answers.put(self._answer(response))
        except grpc.RpcError as e:
            error = e.details()
        answers.put(STOP)
        event("ended", status=call.code().name if call.code() else "", error=error or "")

    def _answer(self, response):
        request = self._request(resource_url=self._url, response_nonce=response.nonce)
        request.status.SetInParent()
        operation = NAMES.get(response.operation)
        if operation is None:
            event("unknown-operation", operation=response.operation)
            return request
        refused = ""
        service = self._service()
        if response.HasField("resource"):
            service.ParseFromString(response.resource.value)
            if self._nack and self._nack in service.id:
                refused = f"refused because its id contains {self._nack}"
        else:
            refused = "there is no resource"
        if refused:
            request.status.code, request.status.message = UNAVAILABLE, refused
        self._tally.add(operation, service.id, service, "nack" if refused else "ack")
        return request
