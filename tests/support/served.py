"""A server of a repository on disk, and the stock client of each protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from cantata.runtime.server import Server
from tests.support.wire_servers import wire_server


@dataclass(frozen=True)
class Served:
    """A server that runs, with a client of each protocol."""

    server: Server
    http: triton_http.InferenceServerClient
    grpc: triton_grpc.InferenceServerClient


@contextmanager
def served(repository: Path, **options: Any) -> Iterator[Served]:
    """Serve `repository` inside the block; `options` are ServerOptions'."""
    with wire_server(repository, **options) as ports:
        http = triton_http.InferenceServerClient(f"127.0.0.1:{ports.http}")
        grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
        try:
            yield Served(ports.server, http, grpc)
        finally:
            http.close()
            grpc.close()
