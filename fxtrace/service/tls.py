"""TLS of a server: certificates from files, read again when these change."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import grpc

from fxtrace.errors import OptionInvalid
from fxtrace.service.settings import Settings
from fxtrace.service.watched import state
from fxtrace.tls import read_authorities, read_pair

_log = logging.getLogger("fxtrace.service")


class Certificates:
    """A server's certificate and key, and the authorities of its callers' certificates.

    A connection is made with what the files hold then. Where they do not fit together, as while they are being
    replaced, the last that did are kept.

    Args:
        certificate: PEM; the server's, and those between it and its authority's.
        key: PEM; its private key, not encrypted.
        client_ca: PEM; authorities. With it, callers must show a certificate of one of them.

    Raises:
        OptionInvalid: a file cannot be read, or they do not fit together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._files = [path for path in (certificate, key, client_ca) if path is not None]
        self._lock = threading.Lock()
        self._seen = state(*self._files)
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of a gRPC server."""
        changed: Any = self._changed  # gRPC's types do not foresee that it may give None
        return grpc.dynamic_ssl_server_credentials(self._first, changed, self._client_ca is not None)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, where it is not what they held before; called by gRPC for each connection."""
        with self._lock:
            seen = state(*self._files)
            if seen == self._seen:
                return None
            try:
                configuration = self._read()
            except OptionInvalid as error:
                self._seen = seen
                _log.error("certificates stay as they were: %(problem)s", {"problem": error.message})
                return None
            if seen != state(*self._files):
                return None  # changed while it was read: the next connection is early enough
            self._seen = seen
        _log.warning("certificates were read anew")
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = read_pair(("tls_certificate", self._certificate), ("tls_key", self._key))
        authorities = None if self._client_ca is None else read_authorities("tls_client_ca", self._client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


def certificates(settings: Settings) -> Certificates | None:
    """The certificates that the settings name; None where they name none.

    Raises:
        OptionInvalid: one is named without the other, or as `Certificates`.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        missing = "tls_certificate" if certificate is None else "tls_key"
        raise OptionInvalid(
            f"{missing}: expected one, too: TLS needs the server's certificate and its private key", field=missing
        )
    return Certificates(certificate, key, client_ca)
