"""Who may call what."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal, TypeAlias

from fxtrace.errors import PermissionDenied, Unauthenticated
from fxtrace.ir.trace import Scope
from fxtrace.service.keys import Key, KeyFile

Need: TypeAlias = Scope | Literal["open"]

# Every RPC of every service. What is not here needs "write"; a test finds what was forgotten.
NEEDS: Mapping[str, Need] = {
    "/fxtrace.v1.TraceService/GetServer": "read",
    "/fxtrace.v1.TraceService/ListModels": "read",
    "/fxtrace.v1.TraceService/GetModel": "read",
    "/fxtrace.v1.TraceService/CreateTrace": "write",
    "/fxtrace.v1.TraceService/GetTrace": "read",
    "/fxtrace.v1.TraceService/ListTraces": "read",
    "/fxtrace.v1.TraceService/DeleteTrace": "write",
    "/fxtrace.v1.TraceService/GetGraph": "read",
    "/fxtrace.v1.TraceService/QueryNodes": "read",
    "/fxtrace.v1.TraceService/ListSnapshots": "read",
    "/fxtrace.v1.TraceService/ReadTensor": "read",
    "/fxtrace.v1.TraceService/BatchReadTensors": "read",
    "/fxtrace.v1.TraceService/RenderGraph": "read",
    "/fxtrace.v1.TraceService/DiffTraces": "read",
    "/fxtrace.v1.TraceService/RenderDiff": "read",
    "/fxtrace.v1.TraceService/Explain": "read",
    "/fxtrace.v1.TraceService/FindFormulas": "write",
    "/fxtrace.v1.TraceService/GetFormulas": "read",
    "/fxtrace.v1.TraceService/SweepShapes": "read",  # it runs models, as GetModel does, and keeps nothing
    "/grpc.health.v1.Health/Check": "open",
    "/grpc.health.v1.Health/List": "open",
    "/grpc.health.v1.Health/Watch": "open",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "read",
}

caller: ContextVar[Key | None] = ContextVar("caller", default=None)
"""Whose key the call came with; None where the server has no keys."""


class Gate:
    """Lets calls in by their keys.

    Args:
        keys: that callers may show.
    """

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys

    def admit(self, method: str, metadata: Mapping[str, str | bytes]) -> Key | None:
        """Whose key a call came with, where it may be made; None where the method is open.

        Args:
            method: as in NEEDS.
            metadata: the call's.

        Raises:
            Unauthenticated: it came with no key, or with none that is known.
            PermissionDenied: the key's scope does not allow it.
        """
        need = NEEDS.get(method, "write")
        if need == "open":
            return None
        kind, _, text = str(metadata.get("authorization", "")).partition(" ")
        if kind.lower() != "bearer":
            raise Unauthenticated(
                "this server wants a key: expected the metadata 'authorization: Bearer KEY', got none. Give it to the "
                "client as token=..., to the command line in FXTRACE_TOKEN; who runs the server makes one with "
                "`fxtrace keys new`"
            )
        key = self._keys.find(text.strip())
        if key is None:
            raise Unauthenticated("the key is none of this server's; it may have been revoked")
        if need == "write" and key.scope == "read":
            name = method.rpartition("/")[2]
            raise PermissionDenied(
                f"{name} needs a key of scope 'write'; this one's is 'read'", method=name, scope=key.scope, needed=need
            )
        return key
