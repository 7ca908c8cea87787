"""Certificates made when they are needed: an authority, a server and a client that it vouches for, and a stranger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """Files of PEM. The server is `localhost` and 127.0.0.1; `stranger` is vouched for by somebody else."""

    root: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    stranger_cert: Path
    stranger_key: Path


def issue_certificates(folder: Path) -> Certificates:
    """Write all of them to `folder`."""
    authority, elsewhere = trustme.CA(), trustme.CA()
    root = folder / "root.pem"
    authority.cert_pem.write_to_path(str(root))
    server = _written(folder, "server", authority.issue_cert("localhost", "127.0.0.1"))
    client = _written(folder, "client", authority.issue_cert("client@example.org"))
    stranger = _written(folder, "stranger", elsewhere.issue_cert("client@example.org"))
    return Certificates(root, *server, *client, *stranger)


def _written(folder: Path, name: str, issued: trustme.LeafCert) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return certificate, key
