"""TLS with real certificates, as clients see it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from fxtrace.client import Client
from fxtrace.errors import OptionInvalid, ServerUnavailable, TlsFailed
from fxtrace.service.server import serving
from fxtrace.service.settings import Settings
from fxtrace.tls import Tls
from tests.conftest import Served
from tests.service.certificates import expired, write_authority, write_pair

HERE = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(tmp_path: Path, authority: trustme.CA) -> Path:
    return write_authority(tmp_path, authority)


@contextmanager
def encrypted(
    served: Served, folder: Path, certificate: trustme.LeafCert, host: str = "127.0.0.1", **more: Any
) -> Iterator[str]:
    files = write_pair(folder, certificate)
    settings = Settings(tls_certificate=files[0], tls_key=files[1], **more)
    with serving(served.engine, f"{host}:0", settings=settings) as address:
        yield address


def refused(address: str, tls: Tls | bool, *, token: str = "") -> str:
    with pytest.raises(TlsFailed) as e:
        Client(address, tls=tls, token=token).close()
    return e.value.message


def test_calls_are_encrypted(served: Served, tmp_path: Path, authority: trustme.CA, ca: Path) -> None:
    with encrypted(served, tmp_path, authority.issue_cert(*HERE)) as address:
        with Client(address, tls=Tls(ca)) as client:
            assert client.get_trace(served.reference.id) == served.reference
        assert "unable to get local issuer certificate" in refused(address, tls=True)
        with pytest.raises(ServerUnavailable, match="say tls if the server encrypts"):
            Client(address, connect_timeout=0.3)


def test_a_server_that_does_not_encrypt_is_told_apart(served: Served, ca: Path) -> None:
    assert "does not encrypt" in refused(served.address, Tls(ca))


def test_certificates_that_are_not_the_server_s_are_refused(
    served: Served, tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, ca: Path
) -> None:
    for certificate, problem in (
        (expired(authority, *HERE), "certificate has expired"),
        (authority.issue_cert("example.org"), "Hostname Verification Check failed"),
        (stranger.issue_cert(*HERE), "unable to get local issuer certificate"),
    ):
        with encrypted(served, tmp_path, certificate) as address:
            assert f"the server's certificate is not accepted ({problem})" in refused(address, Tls(ca))


def test_clients_show_certificates_too(
    served: Served, tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, ca: Path
) -> None:
    with encrypted(served, tmp_path, authority.issue_cert(*HERE), tls_client_ca=ca) as address:
        good = write_pair(tmp_path, authority.issue_cert("someone"), "good")
        with Client(address, tls=Tls(ca, *good)) as client:
            assert client.get_trace(served.reference.id) == served.reference
        assert "it may want a certificate of the client's" in refused(address, Tls(ca))
        for bad in (stranger.issue_cert("someone"), expired(authority, "someone")):
            assert "hung up" in refused(address, Tls(ca, *write_pair(tmp_path, bad, "bad")))


def test_new_certificates_count_without_a_restart(
    served: Served, tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, ca: Path
) -> None:
    with encrypted(served, tmp_path, authority.issue_cert(*HERE)) as address, Client(address, tls=Tls(ca)) as client:
        write_pair(tmp_path, stranger.issue_cert(*HERE))
        assert client.get_trace(served.reference.id) == served.reference  # on the connection that it has
        assert "unable to get local issuer certificate" in refused(address, Tls(ca))
        new = Tls(write_authority(tmp_path, stranger, "new"))
        with Client(address, tls=new) as other:
            assert other.get_trace(served.reference.id) == served.reference
        # The key of another certificate: the last that fit together stay.
        shutil.copy(write_pair(tmp_path, authority.issue_cert(*HERE), "odd")[1], tmp_path / "server.key")
        os.utime(tmp_path / "server.key", ns=(1, 1))
        Client(address, tls=new).close()


def test_beyond_this_machine_calls_are_encrypted_and_callers_known(
    served: Served, tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    certificate = authority.issue_cert(*HERE)
    with (
        pytest.raises(OptionInvalid, match=r"or known callers \(keys, or tls_client_ca\); got '0\.0\.0\.0'"),
        encrypted(served, tmp_path, certificate, "0.0.0.0"),
    ):
        pass
    with encrypted(served, tmp_path, certificate, "0.0.0.0", tls_client_ca=ca) as address:
        own = write_pair(tmp_path, authority.issue_cert("someone"), "own")
        Client(f"127.0.0.1:{address.rpartition(':')[2]}", tls=Tls(ca, *own)).close()


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_one_without_the_other_is_refused(served: Served, tmp_path: Path, authority: trustme.CA, missing: str) -> None:
    files = write_pair(tmp_path, authority.issue_cert(*HERE))
    settings = Settings.load(**{**dict(zip(("tls_certificate", "tls_key"), files, strict=True)), missing: None})
    with (
        pytest.raises(OptionInvalid, match=f"^{missing}: expected one"),
        serving(served.engine, settings=settings),
    ):
        pass


def test_files_that_are_none_are_refused(served: Served, tmp_path: Path, authority: trustme.CA, ca: Path) -> None:
    certificate, key = write_pair(tmp_path, authority.issue_cert(*HERE))
    text = tmp_path / "text"
    text.write_text("nothing")
    _, other_key = write_pair(tmp_path, authority.issue_cert(*HERE), "other")
    for bad, problem in (
        ({"tls_certificate": text}, "expected a certificate and its private key"),
        ({"tls_key": other_key}, "expected a certificate and its private key"),
        ({"tls_key": tmp_path / "none"}, "tls_key: cannot read .*No such file"),
        ({"tls_client_ca": text}, "tls_client_ca: expected certificates in PEM"),
    ):
        settings = Settings.load(**{"tls_certificate": certificate, "tls_key": key, **bad})
        with pytest.raises(OptionInvalid, match=problem), serving(served.engine, settings=settings):
            pass
    for tls, problem in (
        (Tls(text), "ca: expected certificates in PEM"),
        (Tls(ca, certificate), "key: expected one, too"),
        (Tls(ca, certificate, other_key), "certificate, key: expected a certificate and its private key"),
    ):
        with pytest.raises(OptionInvalid, match=problem):
            Client(served.address, tls=tls)
