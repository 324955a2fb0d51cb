"""What the peer offers, the events it prints, and who hears of a change."""

import json
import sys
import threading
import time

_STARTED = time.monotonic()
_OUTPUT = threading.Lock()


def event(kind, **fields):
    """Writes one line."""
    line = {"event": kind, "at_ms": int((time.monotonic() - _STARTED) * 1000), **fields}
    with _OUTPUT:
        print(json.dumps(line), flush=True)


class Catalogue:
    """Services by name; listeners are told of every change, under the lock, in order."""

    def __init__(self, wire, version, options):
        self._new = wire.service(version)
        self._version = version
        self._options = options
        self._lock = threading.Lock()
        self._services = {}
        self._versions = {}
        self._listeners = []
        for i in range(options.services):
            self._put(f"svc-{i:05}")

    def _make(self, name, version):
        o = self._options
        service = self._new(name=name, description=f"version {version:07}", fqdn=f"{name}.{o.domain}")
        service.endpoints.add(address=o.address, port=o.port)
        protocols = o.protocol.split(",")
        if self._version == "v1alpha1":
            service.id = service.fqdn
            service.san = o.san
            service.protocols.extend(protocols)
        else:
            service.sans.append(o.san)
            for protocol in protocols:
                metadata = {"SNI": service.fqdn, "PORT": str(o.service_port)}
                service.instances.add(id=protocol.lower(), protocol=protocol, metadata=metadata)
        missing = o.bytes - service.ByteSize()
        service.description += "." * max(missing, 0)
        return service

    def _put(self, name):
        existed = name in self._services
        self._versions[name] = self._versions.get(name, 0) + 1
        self._services[name] = self._make(name, self._versions[name])
        return existed, self._services[name]

    def put(self, name):
        """Makes the next version of a service."""
        with self._lock:
            existed, service = self._put(name)
            self._tell("update" if existed else "create", service)

    def repeat(self, name):
        """Publishes a service as it is, which changes nothing."""
        with self._lock:
            self._tell("update", self._services[name])

    def remove(self, name):
        """Takes a service out; a KeyError if it isn't there."""
        with self._lock:
            self._tell("delete", self._services.pop(name))

    def _tell(self, operation, service):
        for listener in self._listeners:
            listener(operation, service)
        event("published", operation=operation, name=service.name, listeners=len(self._listeners))

    def subscribe(self, listener):
        """Tells the full state as creates, then every change."""
        with self._lock:
            for name in sorted(self._services):
                listener("create", self._services[name])
            self._listeners.append(listener)
            return len(self._services)

    def unsubscribe(self, listener):
        """Ends it."""
        with self._lock:
            self._listeners.remove(listener)
