"""Which certificates a port is served with, and the TLS context that they make.

Owns the reading of the files and what is said of those that will not do. Knows no protocol behind TLS.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """File names of PEM. With `is_mutual`, clients must show a certificate that `root_cert` vouches for."""

    server_cert: str
    server_key: str
    root_cert: str = ""
    is_mutual: bool = False

    def context(self, protocol: str) -> ssl.SSLContext:
        """The context of a server of `protocol`; raises OSError, saying what will not do."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.server_cert, self.server_key)
            if self.root_cert:
                context.load_verify_locations(self.root_cert)
        except (OSError, ValueError) as error:
            names = ", ".join(name for name in (self.server_cert, self.server_key, self.root_cert) if name)
            raise OSError(f"{protocol} cannot use TLS with {names or 'no certificate'}: {error}") from error
        if self.is_mutual:
            context.verify_mode = ssl.CERT_REQUIRED
        return context
