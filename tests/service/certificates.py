"""For tests: authorities and certificates, made anew each time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


def write_pair(folder: Path, certificate: trustme.LeafCert, name: str = "server") -> tuple[Path, Path]:
    """The files of a certificate and of its key."""
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    files[1].write_bytes(certificate.private_key_pem.bytes())
    return files


def write_authority(folder: Path, authority: trustme.CA, name: str = "ca") -> Path:
    """The file of an authority's certificate."""
    file = folder / f"{name}.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


def expired(authority: trustme.CA, *names: str) -> trustme.LeafCert:
    """A certificate that was valid until yesterday."""
    now = datetime.now(UTC)
    return authority.issue_cert(*names, not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
