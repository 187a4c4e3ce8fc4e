"""Who may call what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from fxtrace.client import Client
from fxtrace.errors import OptionInvalid, PermissionDenied, Unauthenticated
from fxtrace.ir.trace import ServerInfo, TraceRequest
from fxtrace.service.access import NEEDS
from fxtrace.service.keys import new_key, revoke_key
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from tests.conftest import Served

HOLDERS = ("none", "read", "write", "revoked", "wrong")


@dataclass(frozen=True)
class Locked:
    """A server with keys, and a key of each kind."""

    address: str
    file: Path
    keys: dict[str, str]


@pytest.fixture(scope="module")
def locked(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {"read": new_key(file, "reader", "read"), "write": new_key(file, "writer", "write")}
    revoked, _ = made["revoked"] = new_key(file, "who left", "write")
    keys = {"none": "", "wrong": made["write"][1][:-1] + "-"} | {name: key for name, (_, key) in made.items()}
    with serving(served.engine, settings=Settings(keys=file)) as address:
        with Client(address, token=keys["revoked"]) as client:
            assert client.get_server().scope == "write"
        revoke_key(file, revoked.id)  # while the server runs
        yield Locked(address, file, keys)


def outcome(address: str, method: str, key: str) -> str:
    """The code that an empty request ends with; OK where an answer comes."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with grpc.insecure_channel(address) as channel:
        any_channel: Any = channel
        call = any_channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
        try:
            next(call, None)
        except grpc.RpcError as error:
            return error.code().name
        finally:
            call.cancel()
    return "OK"


def test_every_rpc_of_every_service_is_in_the_table(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        methods = {
            f"/{service}/{method.name}"
            for service in database.get_services()
            for method in pool.FindServiceByName(service).methods
        }
    assert methods == set(NEEDS)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("method", NEEDS)
def test_the_table_holds(locked: Locked, method: str, holder: str) -> None:
    code = outcome(locked.address, method, locked.keys[holder])
    if NEEDS[method] == "open":
        assert code in ("OK", "UNIMPLEMENTED")
    elif holder in ("none", "revoked", "wrong"):
        assert code == "UNAUTHENTICATED"
    elif holder == "read" and NEEDS[method] == "write":
        assert code == "PERMISSION_DENIED"
    else:
        assert code in ("OK", "INVALID_ARGUMENT")  # it was let in; an empty request means nothing


def test_only_what_changes_the_store_needs_write() -> None:
    changing = {method.rpartition("/")[2] for method, need in NEEDS.items() if need == "write"}
    assert changing == {"CreateTrace", "DeleteTrace", "FindFormulas"}
    assert {method.split("/")[1] for method, need in NEEDS.items() if need == "open"} == {"grpc.health.v1.Health"}


@pytest.mark.parametrize("header", ["", "Basic dTpw", "Bearer", "bearer  ", "Bearer fxt_", "Bearer ~", "fxt_0"])
def test_other_headers_are_no_keys(locked: Locked, header: str) -> None:
    with grpc.insecure_channel(locked.address) as channel:
        call: Any = channel.unary_unary("/fxtrace.v1.TraceService/ListTraces")
        with pytest.raises(grpc.RpcError) as e:
            call(b"", metadata=(("authorization", header),))
    assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_client_raises_what_the_server_says(locked: Locked, served: Served) -> None:
    with Client(locked.address) as client:
        assert client.is_serving()
        with pytest.raises(Unauthenticated, match="this server wants a key") as none:
            client.get_server()
        assert none.value.request_id
    with Client(locked.address, token=locked.keys["read"]) as client:
        assert client.get_server() == ServerInfo("0.1.0", "read", locked.keys["read"].split("_")[1])
        assert client.get_trace(served.reference.id) == served.reference
        with pytest.raises(PermissionDenied, match="CreateTrace needs a key of scope 'write'; this") as no:
            client.create_trace(TraceRequest("reference"))
        assert no.value.metadata == {"method": "CreateTrace", "scope": "read", "needed": "write"}
        with pytest.raises(PermissionDenied, match="DeleteTrace needs"):
            client.delete_trace(served.reference.id)
    with Client(locked.address, token=locked.keys["write"]) as client:
        assert client.create_trace(TraceRequest("reference")) == served.reference
    with Client(served.address) as client:
        assert client.get_server() == ServerInfo("0.1.0", "write")


def test_a_stranger_s_request_is_not_looked_at(locked: Locked) -> None:
    nonsense = b"\xff" * (8 << 20)
    with grpc.insecure_channel(locked.address) as channel:
        call: Any = channel.unary_unary("/fxtrace.v1.TraceService/GetTrace")
        with pytest.raises(grpc.RpcError) as e:
            call(nonsense)
        assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as e:
            call(nonsense, metadata=(("authorization", f"Bearer {locked.keys['read']}"),))
        assert e.value.code() is not grpc.StatusCode.UNAUTHENTICATED


def test_the_file_has_no_key(locked: Locked) -> None:
    text = locked.file.read_text()
    assert not any(key.split("_", 2)[2] in text for key in locked.keys.values() if key)
    assert locked.file.stat().st_mode & 0o077 == 0
    kept = json.loads(text)
    assert len({key["salt"] for key in kept}) == len(kept) == 2


def test_keys_that_cannot_be_read_let_nobody_in(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with (
        pytest.raises(OptionInvalid, match="cannot read the keys in"),
        serving(served.engine, settings=Settings(keys=file)),
    ):
        pass
    _, key = new_key(file, "someone", "read")
    good = file.read_text()
    with serving(served.engine, settings=Settings(keys=file)) as address, Client(address, token=key) as client:
        client.get_server()
        for spoil in (lambda: file.write_text("[{}]"), lambda: file.write_text("x"), file.unlink):
            spoil()
            with pytest.raises(Unauthenticated, match="none of this server's"):
                client.get_server()
            file.write_text(good)
            client.get_server()
        _, later = new_key(file, "another", "write")
        with Client(address, token=later) as other:
            assert other.get_server().scope == "write"


@pytest.mark.parametrize(
    ("settings", "address", "missing"),
    [
        ({}, "0.0.0.0:0", r"TLS .* and known callers"),
        ({"keys": True}, "0.0.0.0:0", r"or TLS \(tls_certificate, tls_key\); got '0\.0\.0\.0'"),
        ({"keys": True}, "[::]:0", r"or TLS"),
        ({}, "example.org:80", r"known callers"),
    ],
)
def test_beyond_this_machine_needs_both(
    served: Served, tmp_path: Path, settings: dict[str, bool], address: str, missing: str
) -> None:
    new_key(tmp_path / "keys", "someone", "read")
    chosen = Settings(keys=tmp_path / "keys") if settings else Settings()
    with (
        pytest.raises(OptionInvalid, match=rf"^address: expected a loopback address .*{missing}.* --insecure"),
        serving(served.engine, address, settings=chosen),
    ):
        pass


def test_unless_told_so(served: Served) -> None:
    with serving(served.engine, "0.0.0.0:0", settings=Settings(insecure=True)) as address:
        Client(f"127.0.0.1:{address.rpartition(':')[2]}").close()


def test_a_key_is_not_sent_for_all_to_read() -> None:
    with pytest.raises(OptionInvalid, match=r"token: expected TLS to example\.org:80, which is not this machine"):
        Client("example.org:80", token="fxt_x")
    with pytest.raises(OptionInvalid, match="token: expected a key"):
        Client("127.0.0.1:1", token="a\nb")
