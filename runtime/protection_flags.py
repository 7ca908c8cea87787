"""The flags of ours that protect a server: TLS for HTTP, limits on clients, keys. `flags.py` adds them to its own.

Where tritonserver has a flag for the same thing, it is not here but among the others. Times are in milliseconds.
"""

from __future__ import annotations

from typing import Final

# Name, kind of value (as in FlagKind), default, meaning, group, and whether it may be given again.
ProtectionRow = tuple[str, str, str, str, str, bool]

PROTECTION_ROWS: Final[tuple[ProtectionRow, ...]] = (
    ("http-use-ssl", "boolean", "false", "use TLS", "HTTP", False),
    (
        "http-use-ssl-mutual",
        "boolean",
        "false",
        "use TLS, and require the client's certificate",
        "HTTP",
        False,
    ),
    ("http-server-cert", "text", "", "file of the server's certificate, PEM", "HTTP", False),
    ("http-server-key", "text", "", "file of the server's private key, PEM", "HTTP", False),
    (
        "http-root-cert",
        "text",
        "",
        "file of the certificates that clients are checked against, PEM",
        "HTTP",
        False,
    ),
    (
        "http-max-request-size",
        "integer",
        "2147483647",
        "the most bytes of a request's body, tensors included",
        "HTTP",
        False,
    ),
    ("http-max-header-size", "integer", "65536", "the most bytes of a request's head", "HTTP", False),
    ("http-max-header-count", "integer", "256", "the most headers of a request", "HTTP", False),
    ("http-max-connections", "integer", "10000", "the most open connections; 0 for no limit", "HTTP", False),
    (
        "http-header-timeout",
        "integer",
        "60000",
        "milliseconds that a request's head, or a TLS handshake, may take; 0 for no limit",
        "HTTP",
        False,
    ),
    (
        "http-body-timeout",
        "integer",
        "60000",
        "milliseconds in which 4096 more bytes of a body must come; 0 for no limit",
        "HTTP",
        False,
    ),
    (
        "http-write-timeout",
        "integer",
        "60000",
        "milliseconds in which a client must take 4096 more bytes of its answer; 0 for no limit",
        "HTTP",
        False,
    ),
    (
        "http-keepalive-timeout",
        "integer",
        "600000",
        "milliseconds that a connection may be idle between requests; 0 for no limit",
        "HTTP",
        False,
    ),
    ("grpc-max-message-size", "integer", "2147483647", "the most bytes of a request", "gRPC", False),
    (
        "grpc-max-decompressed-size",
        "integer",
        "67108864",
        "the most bytes that a compressed request may unpack to",
        "gRPC",
        False,
    ),
    ("grpc-max-metadata-size", "integer", "16384", "the most bytes of a call's metadata", "gRPC", False),
    ("grpc-max-connections", "integer", "10000", "the most open connections; 0 for no limit", "gRPC", False),
    (
        "grpc-max-connection-idle",
        "integer",
        "0",
        "milliseconds that a connection may be without a call; 0 for no limit",
        "gRPC",
        False,
    ),
    (
        "grpc-handshake-timeout",
        "integer",
        "60000",
        "milliseconds that a new connection may take to become one of gRPC",
        "gRPC",
        False,
    ),
    (
        "grpc-write-timeout",
        "integer",
        "300000",
        "milliseconds in which a client must take something of its answers; 0 for no limit",
        "gRPC",
        False,
    ),
    (
        "metrics-use-ssl",
        "boolean",
        "false",
        "use TLS for metrics too, with the certificates of HTTP",
        "Metrics",
        False,
    ),
    (
        "api-keys",
        "text",
        "",
        "<group>[,<group>...]:file=<path> or ...:env=<name>: these groups of endpoints, on both protocols, answer "
        "only to callers with one of the keys there; may be given again",
        "Server",
        True,
    ),
)
