"""A client's connection: the channel, what goes with each call, and what its errors mean."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypeVar

import grpc
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from fxtrace.errors import Busy, DeadlineExceeded, FxtraceError, OptionInvalid, ServerUnavailable, TlsFailed
from fxtrace.status import from_status
from fxtrace.tls import Tls

Q = TypeVar("Q")
R = TypeVar("R")

MAX_REPLY_BYTES = 64 << 20  # the largest page of a graph is some 10 MiB

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),  # the server says what is too much
    # A server that is gone without a word is found out while a call waits for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_NO_SERVER = {
    grpc.StatusCode.UNAVAILABLE: "is gone",
    grpc.StatusCode.UNIMPLEMENTED: "is none of fxtrace's, or of another version",
}
_CANCELLED_HERE = ("Locally cancelled", "Channel closed")  # in gRPC's words
_SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse, its status SERVING; its package is only a server's
_LOOPBACK = ("127.", "localhost:", "[::1]:")
_HANDSHAKE = ("ls handshake failed", "Verification Check failed")  # in gRPC's words
_HUNG_UP = ("Socket closed", "Connection reset")  # a server whose own side of the handshake fails says no more


class Connection:
    """A channel to a server, and how calls are made on it; arguments and errors are those of `Client`."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None,
        connect_timeout: float,
        wait_for_start: bool = True,
        tls: Tls | bool,
        token: str,
        insecure: bool,
    ) -> None:
        self.address = address
        self._timeout = timeout
        here = address.startswith(_LOOPBACK)
        if token and not (tls or here or insecure):
            raise OptionInvalid(
                f"token: expected TLS to {address}, which is not this machine: the key would be sent for all to read. "
                "Give tls=True, or insecure=True to send it all the same",
                field="token",
            )
        if not (token.isascii() and token.isprintable()):
            raise OptionInvalid("token: expected a key as `fxtrace keys new` prints it; got other signs", field="token")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        # A proxy for the world outside cannot reach this machine's own addresses.
        options = (*_OPTIONS, *((("grpc.enable_http_proxy", 0),) if here else ()))
        if tls:
            credentials = (Tls() if tls is True else tls).credentials()
            self.channel = grpc.secure_channel(address, credentials, options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        try:
            self._wait_until_answered(connect_timeout, bool(tls), wait_for_start)
        except BaseException:
            self.channel.close()
            raise

    def _wait_until_answered(self, seconds: float, tls: bool, wait_for_start: bool) -> None:
        health = self._health()
        try:
            if tls or not wait_for_start:
                try:
                    health(b"", timeout=seconds)  # what is wrong with certificates gets no better by waiting
                    return
                except grpc.RpcError as error:
                    if tls and (problem := _handshake_problem(error)):
                        raise TlsFailed(
                            f"no encrypted connection to {self.address}: {problem}", address=self.address
                        ) from None
                    if not wait_for_start and error.code() is grpc.StatusCode.UNAVAILABLE:
                        raise self._no_answer("", tls) from None
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
            # A call is answered as soon as it can be; gRPC's own wait for a channel looks only every 0.2 s.
            health(b"", timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return  # some answer; whether it is a server of ours will show
            raise self._no_answer(f" within {seconds:g} s", tls) from None

    def _no_answer(self, within: str, tls: bool) -> ServerUnavailable:
        return ServerUnavailable(
            f"no fxtrace server answers at {self.address}{within}; check the address"
            + ("" if tls else ", say tls if the server encrypts")
            + ", or start a server with `fxtrace serve`",
            address=self.address,
        )

    def _health(self) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
        return self.channel.unary_unary("/grpc.health.v1.Health/Check")

    def is_serving(self) -> bool:
        """Whether the server says that it is healthy."""
        return self.call(self._health(), b"") == _SERVING

    def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        self.channel.close()

    def call(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """The reply to a request."""
        request_id = _new_id()
        with self._errors(request_id):
            return method(request, timeout=self._timeout, metadata=self._with(request_id))

    @contextmanager
    def stream(self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q) -> Iterator[Iterator[R]]:
        """The replies to a request; the call is cancelled when the block is left before their end."""
        call, errors = self.begin(method, request)
        with errors():
            try:
                yield iter(call)
            finally:
                call.cancel()

    def begin(
        self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q
    ) -> tuple[grpc._CallIterator[R], Callable[[], AbstractContextManager[None]]]:
        """A call whose replies are to be read within the context that comes with it."""
        request_id = _new_id()
        call = method(request, timeout=self._timeout, metadata=self._with(request_id))
        return call, partial(self._errors, request_id)

    def _with(self, request_id: str) -> tuple[tuple[str, str], ...]:
        return (("x-request-id", request_id), *self._metadata)

    @contextmanager
    def _errors(self, request_id: str) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raised = self._error(error)
            raised.request_id = raised.request_id or request_id
            raise raised from None

    def _error(self, error: grpc.RpcError) -> FxtraceError:
        status = rpc_status.from_call(error)
        if status is not None:
            return from_status(status)
        # Not from TraceService, but from gRPC on one side or the other.
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and self._timeout is not None:
            return DeadlineExceeded(
                f"no whole answer from {self.address} within {self._timeout:g} s; give the client a longer timeout",
                address=self.address,
                timeout=self._timeout,
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith("Concurrent RPC limit"):
            message = f"the server at {self.address} has as many calls as it takes; try again in a moment"
            return Busy.until(message, 1, address=self.address)
        if code is grpc.StatusCode.CANCELLED and not details.startswith(_CANCELLED_HERE):
            return ServerUnavailable(
                f"the server at {self.address} gave up the call, as one does that stops; ask again when it is back",
                address=self.address,
            )
        if what := _NO_SERVER.get(code, ""):
            return ServerUnavailable(f"the server at {self.address} {what}: {details}", address=self.address)
        return from_status(Status(code=code.value[0], message=f"{self.address}: {details}"))


def _handshake_problem(error: grpc.RpcError) -> str:
    """What is wrong with certificates; empty where the error is another."""
    details = error.details() or ""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return ""
    if "WRONG_VERSION_NUMBER" in details:
        return "the server does not encrypt; leave TLS out, or ask who runs it"
    if any(words in details for words in _HANDSHAKE):
        problem = details.removesuffix(": OK").rpartition(": ")[2].rstrip(".")
        return (
            f"the server's certificate is not accepted ({problem}); name the authority that issued it (ca), and the "
            "server as its certificate does"
        )
    if any(words in details for words in _HUNG_UP):
        return (
            "the server hung up on it: it may want a certificate of the client's (certificate, key) of an authority "
            "that it trusts, or does not encrypt"
        )
    return ""


def _new_id() -> str:
    return secrets.token_hex(8)
