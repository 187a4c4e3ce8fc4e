"""Where a server listens: on this machine, or beyond it for those who may know."""

from __future__ import annotations

import ipaddress
import re
import socket

from fxtrace.errors import OptionInvalid, Unmet
from fxtrace.service.settings import Settings

DEFAULT_ADDRESS = "127.0.0.1:50051"


def split_address(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        OptionInvalid: it is not of the form `host:port`.
    """
    match = re.fullmatch(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})", address)
    if match is None or int(match["port"]) > 65535:
        raise OptionInvalid(
            f"address: expected host:port, such as {DEFAULT_ADDRESS}; got '{address}'", field="address", address=address
        )
    return match["host"], int(match["port"])


def check_exposure(host: str, settings: Settings) -> None:
    """Returns if a server of these settings may listen on this host.

    Raises:
        OptionInvalid: others than this machine's users could listen in, or call unknown.
    """
    if settings.insecure or _is_loopback(host):
        return
    missing = []
    if settings.tls_certificate is None:
        missing.append("TLS (tls_certificate, tls_key)")
    if settings.keys is None and settings.tls_client_ca is None:
        missing.append("known callers (keys, or tls_client_ca)")
    if missing:
        raise OptionInvalid(
            f"address: expected a loopback address (127.0.0.1, [::1] or localhost), or {' and '.join(missing)}; got "
            f"'{host}'. To reach a loopback address from elsewhere, forward the port over SSH; to serve all the same, "
            "say --insecure",
            field="address",
            address=host,
        )


def check_free(host: str, port: int) -> None:
    """Returns if a port can be listened on; gRPC itself would only say that it cannot.

    Raises:
        Unmet: it cannot.
    """
    try:
        family, *_, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise Unmet(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}. Choose another port, or "
            "port 0 for a free one",
            address=f"{host}:{port}",
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
