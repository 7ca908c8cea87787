"""What the gRPC front-end can be told, and its form as C-core's channel arguments (reference, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cantata.runtime.frontends.api_keys import ApiKeys
from cantata.runtime.frontends.restricted_api import RestrictedApi

# The largest message either way; C-core counts in 32 bits.
MAX_MESSAGE_BYTES: Final = 2**31 - 1

# tritonserver's names of compression levels, and C-core's numbers.
COMPRESSION_LEVELS: Final[dict[str, int]] = {"none": 0, "low": 1, "medium": 2, "high": 3}


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """Named as tritonserver's flags without `grpc-`. Port 0 is any free one. Times are in milliseconds.

    With `use_ssl`, `server_cert` and `server_key` are file names of PEM; with `use_ssl_mutual` clients must show a
    certificate that `root_cert` vouches for. A connection age of 0 is no limit.
    """

    address: str = "0.0.0.0"
    port: int = 8001
    reuse_port: bool = False
    use_ssl: bool = False
    use_ssl_mutual: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    infer_response_compression_level: str = "none"
    keepalive_time: int = 7_200_000
    keepalive_timeout: int = 20_000
    keepalive_permit_without_calls: bool = False
    http2_max_pings_without_data: int = 2
    http2_min_recv_ping_interval_without_data: int = 300_000
    http2_max_ping_strikes: int = 2
    max_connection_age: int = 0
    max_connection_age_grace: int = 0
    # Metadata that matches becomes request parameters; empty forwards none.
    header_forward_pattern: str = ""
    restricted_protocols: tuple[RestrictedApi, ...] = ()
    api_keys: tuple[ApiKeys, ...] = ()
    # Sizes are in bytes; no connections, and an idle time of 0, are no limits.
    max_message_size: int = MAX_MESSAGE_BYTES
    max_decompressed_size: int = 64 << 20
    max_metadata_size: int = 16 << 10
    max_connections: int = 10_000
    max_connection_idle: int = 0
    handshake_timeout: int = 60_000

    @property
    def compresses(self) -> bool:
        """Whether inference responses are compressed for clients that can read it."""
        return self.infer_response_compression_level != "none"

    def endpoint(self) -> str:
        """The address and port to listen on; IPv6 addresses in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def channel_arguments(self) -> list[tuple[str, int | str]]:
        """The options as C-core takes them."""
        arguments: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message_size),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", int(self.reuse_port)),
            ("grpc.keepalive_time_ms", self.keepalive_time),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout),
            ("grpc.keepalive_permit_without_calls", int(self.keepalive_permit_without_calls)),
            ("grpc.http2.max_pings_without_data", self.http2_max_pings_without_data),
            ("grpc.http2.min_ping_interval_without_data_ms", self.http2_min_recv_ping_interval_without_data),
            ("grpc.http2.max_ping_strikes", self.http2_max_ping_strikes),
        ]
        # C-core would unpack a message whatever it becomes: `compressed_messages` does it, within bounds.
        arguments.append(("grpc.per_message_decompression", 0))
        # Up to the first of these all is well, beyond the second nothing is; between them it is left to chance.
        arguments.append(("grpc.max_metadata_size", self.max_metadata_size))
        arguments.append(("grpc.absolute_max_metadata_size", self.max_metadata_size))
        arguments.append(("grpc.server_handshake_timeout_ms", self.handshake_timeout))
        if self.max_connections:
            arguments.append(("grpc.max_allowed_incoming_connections", self.max_connections))
        if self.max_connection_idle:
            arguments.append(("grpc.max_connection_idle_ms", self.max_connection_idle))
        if self.compresses:
            level = COMPRESSION_LEVELS[self.infer_response_compression_level]
            arguments.append(("grpc.default_compression_level", level))
        if self.max_connection_age:
            arguments.append(("grpc.max_connection_age_ms", self.max_connection_age))
        if self.max_connection_age_grace:
            arguments.append(("grpc.max_connection_age_grace_ms", self.max_connection_age_grace))
        return arguments
