"""The messages, from the repository's own proto files, compiled when the program starts.

Nothing generated is kept, and classes are found by their full names. Fields from 1000 on are cut
out before compiling: a peer that isn't Hamlet doesn't know them.
"""

import os
import pathlib
import tempfile

import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FIRST_EXTENSION = 1000


def _compile(root):
    """The repository's discovery and type definitions as one descriptor set, with imports."""
    files = sorted(str(p.relative_to(root)) for p in root.glob("federation/**/*.proto"))
    well_known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "set")
        arguments = ["protoc", f"-I{root}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={out}"]
        if protoc.main(arguments + files) != 0:
            raise SystemExit("the proto files can't be compiled")
        return descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out).read_bytes())


def _as_published(file):
    """Takes out what only two Hamlet agents know."""
    for message in file.message_type:
        kept = [f for f in message.field if f.number < FIRST_EXTENSION]
        del message.field[:]
        message.field.extend(kept)
    kept = [d for d in file.dependency if not d.startswith("hamlet/")]
    del file.dependency[:]
    file.dependency.extend(kept)
    return file


class Wire:
    """Message classes by full name."""

    def __init__(self, root=PROTO):
        self._pool = descriptor_pool.DescriptorPool()
        for file in _compile(root).file:
            if not file.package.startswith("hamlet."):
                self._pool.Add(_as_published(file))

    def message(self, name):
        """The class of a message; a KeyError if the proto files don't have it."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))

    def discovery(self, version, name):
        """A class of the discovery service in one version."""
        return self.message(f"federation.resourcediscovery.{version}.{name}")

    def service(self, version):
        """The FederatedService of one version."""
        return self.message(f"federation.types.{version}.FederatedService")


def method(version):
    """Path of the stream."""
    return f"/federation.resourcediscovery.{version}.DiscoveryService/EstablishStream"


def resource_url(version):
    """Type URL of the resource, which is also the stream's resource_url."""
    return f"type.googleapis.com/federation.types.{version}.FederatedService"
