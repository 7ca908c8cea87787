"""gRPC servers over fake models, and the raw calls that tests make to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.server import GrpcServer
from cantata.runtime.server import Server
from tests.support.fake_server import FakeServer

INFER_SERVICE = "/inference.GRPCInferenceService/"


@contextmanager
def grpc_server(server: FakeServer, **options: Any) -> Iterator[GrpcServer]:
    """A started gRPC server over `server` on a free port of this machine."""
    front_end = GrpcServer(
        cast(Server, server), GrpcOptions(**{"address": "127.0.0.1", "port": 0, **options})
    )
    front_end.start()
    try:
        yield front_end
    finally:
        front_end.close(grace_s=5)
        server.close()


@contextmanager
def stock_client(front_end: GrpcServer, **arguments: Any) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client, connected to `front_end`."""
    client = triton.InferenceServerClient(f"127.0.0.1:{front_end.port}", **arguments)
    try:
        yield client
    finally:
        client.close()


def infer_input(name: str, array: npt.NDArray[Any], datatype: str) -> triton.InferInput:
    """An input that holds `array`."""
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


FOUR = np.arange(4, dtype=np.float32)


def four() -> list[triton.InferInput]:
    """The input of `identity_model`s."""
    return [infer_input("IN", FOUR, "FP32")]
