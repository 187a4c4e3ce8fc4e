"""TLS of a client, and what both sides check of certificates in files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from fxtrace.errors import OptionInvalid


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client encrypts, and whom it trusts.

    Attributes:
        ca: PEM; the authorities whose certificates it trusts. By default those that gRPC brings along.
        certificate: PEM; the client's own and those between it and its authority's, for servers that want one.
        key: PEM; its private key, not encrypted.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel of gRPC.

        Raises:
            OptionInvalid: a file cannot be read, is no PEM, or certificate and key are not one pair.
        """
        authorities = None
        if self.ca is not None:
            authorities = read_authorities("ca", Path(self.ca))
        if self.certificate is None and self.key is None:
            return grpc.ssl_channel_credentials(authorities)
        if self.certificate is None or self.key is None:
            missing = "certificate" if self.certificate is None else "key"
            raise OptionInvalid(
                f"{missing}: expected one, too: a client that shows a certificate has its private key", field=missing
            )
        certificate, key = read_pair(("certificate", Path(self.certificate)), ("key", Path(self.key)))
        return grpc.ssl_channel_credentials(authorities, key, certificate)


def read_pair(certificate: tuple[str, Path], key: tuple[str, Path]) -> tuple[bytes, bytes]:
    """A certificate and its private key, each given as the option's name and the file.

    Raises:
        OptionInvalid: a file cannot be read, or they are not a pair.
    """
    texts = _read(*certificate), _read(*key)
    try:
        # Where a key is encrypted, the wrong password is an error; without one, OpenSSL would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate[1], key[1], password=lambda: "-")
    except (ssl.SSLError, OSError) as error:
        raise OptionInvalid(
            f"{certificate[0]}, {key[0]}: expected a certificate and its private key in PEM, not encrypted; "
            f"{certificate[1]} and {key[1]} are not that: {error.strerror or error}",
            field=certificate[0],
        ) from None
    return texts


def read_authorities(option: str, path: Path) -> bytes:
    """The certificates of authorities in a file.

    Raises:
        OptionInvalid: it cannot be read, or is no PEM.
    """
    text = _read(option, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise OptionInvalid(f"{option}: expected certificates in PEM in {path}; it holds none", field=option) from None
    return text


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionInvalid(f"{option}: cannot read {path}: {error.strerror}", field=option) from None
