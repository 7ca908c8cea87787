"""A real server of a repository on disk with both front-ends, and the stock clients of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server


@dataclass(frozen=True)
class Served:
    """A server that runs, with a client of each protocol."""

    server: Server
    http_port: int
    grpc_port: int
    http: triton_http.InferenceServerClient
    grpc: triton_grpc.InferenceServerClient


@contextmanager
def served(repository: Path, **options: Any) -> Iterator[Served]:
    """Serve `repository` on free ports of this machine; `options` are ServerOptions'."""
    server = Server(ServerOptions((repository,), **options))
    server.start()
    http = HttpServer(server, HttpOptions(address="127.0.0.1", port=0))
    grpc = GrpcServer(server, GrpcOptions(address="127.0.0.1", port=0))
    try:
        http.start()
        grpc.start()
        assert http.port is not None
        http_client = triton_http.InferenceServerClient(f"127.0.0.1:{http.port}")
        grpc_client = triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc.port}")
        try:
            yield Served(server, http.port, grpc.port, http_client, grpc_client)
        finally:
            http_client.close()
            grpc_client.close()
    finally:
        server.stop_accepting()
        server.close()
        grpc.close()
        http.close()
