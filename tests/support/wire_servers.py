"""A server with both protocols and its metrics on free ports, inside the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server


class Ports(NamedTuple):
    """Where it listens; `server` is what answers there."""

    http: int
    grpc: int
    metrics: int
    server: Server


@contextmanager
def wire_server(repository: Path, **options: Any) -> Iterator[Ports]:
    """Serve `repository` inside the block; `options` are ServerOptions'."""
    server = Server(ServerOptions(model_repository=(repository,), **options))
    server.start()
    http = HttpServer(server, HttpOptions(address="127.0.0.1", port=0, metrics_port=0))
    grpc = GrpcServer(server, GrpcOptions(address="127.0.0.1", port=0))
    try:
        http.start()
        grpc.start()
        assert http.port is not None
        assert http.metrics_port is not None
        yield Ports(http.port, grpc.port, http.metrics_port, server)
    finally:
        grpc.close()
        server.close()
        http.close()
