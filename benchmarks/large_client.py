"""The client that `large_tensors.py` runs: tensors of 16 MB there and back, over one protocol or in shared memory.

Bare sockets and bytes: the client takes as little as it can of the machine that it shares with the server. Every
answer is read whole and the first of each client is compared. Prints one number: round trips a second.

    python benchmarks/large_client.py http|grpc|memory localhost:8000 CLIENTS SECONDS
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

SIZE = 16 << 20
MODEL = "large"
SERVICE = "/inference.GRPCInferenceService/"
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
PAYLOAD = np.random.default_rng(1).random(SIZE // 4, np.float32)

# One round trip; raises where the answer is not the tensor that was sent, if it is told to look.
Trip = Callable[[bool], None]


class HttpConnection:
    """One connection that reads answers into memory of its own."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._memory = bytearray(SIZE + (1 << 16))

    def post(self, path: str, parts: list[bytes | memoryview], headers: str = "") -> memoryview:
        """The answer's body, which holds until the next call."""
        length = sum(map(len, parts))
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n{headers}\r\n"
        for part in (head.encode(), *parts):
            self._socket.sendall(part)
        return self._read()

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> memoryview:
        view = memoryview(self._memory)
        filled = self._socket.recv_into(view)
        while (end := self._memory.find(b"\r\n\r\n", 0, filled)) < 0:
            filled += self._socket.recv_into(view[filled:])
        head = bytes(view[:end]).decode().lower()
        if not head.startswith("http/1.1 200 "):
            raise RuntimeError(f"HTTP: {head} {bytes(view[end:filled])[:300]!r}")
        start = end + 4
        total = start + int(head.split("\r\ncontent-length:")[1].split("\r\n")[0])
        while filled < total:
            filled += self._socket.recv_into(view[filled:total])
        return view[start:total]


def described(parameters: dict[str, object], outputs: list[dict[str, object]] | None = None) -> bytes:
    tensor = {"name": "INPUT", "shape": [SIZE // 4], "datatype": "FP32", "parameters": parameters}
    document: dict[str, object] = {"inputs": [tensor]}
    document["outputs"] = outputs or [{"name": "OUTPUT", "parameters": {"binary_data": True}}]
    return json.dumps(document).encode()


@contextmanager
def over_http(address: str) -> Iterator[Trip]:
    connection = HttpConnection(address)
    document = described({"binary_data_size": SIZE})
    headers = f"Inference-Header-Content-Length: {len(document)}\r\n"
    payload = PAYLOAD.view(np.uint8).data

    def trip(looks: bool) -> None:
        body = connection.post(f"/v2/models/{MODEL}/infer", [document, payload], headers)
        if looks and body[-SIZE:] != payload:
            raise RuntimeError("HTTP: another tensor came back")

    yield trip
    connection.close()


@contextmanager
def over_grpc(address: str) -> Iterator[Trip]:
    message = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[PAYLOAD.tobytes()])
    message.inputs.add(name="INPUT", datatype="FP32", shape=[SIZE // 4])
    data = message.SerializeToString()
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")

        def trip(looks: bool) -> None:
            answer = infer(data)
            if looks and not answer.endswith(PAYLOAD.tobytes()):
                raise RuntimeError("gRPC: another tensor came back")

        yield trip


@contextmanager
def in_memory(address: str) -> Iterator[Trip]:
    """Both tensors in one segment, the request over HTTP."""
    name = f"cantata_large_{os.getpid()}_{threading.get_ident()}"
    path = Path("/dev/shm", name)
    path.write_bytes(PAYLOAD.tobytes() + bytes(SIZE))
    held = np.memmap(path, np.float32)
    connection = HttpConnection(address)
    region = {"key": f"/{name}", "offset": 0, "byte_size": 2 * SIZE}
    register = f"/v2/systemsharedmemory/region/{name}"
    connection.post(f"{register}/register", [json.dumps(region).encode()])
    place = {"shared_memory_region": name, "shared_memory_byte_size": SIZE}
    output = {"name": "OUTPUT", "parameters": {**place, "shared_memory_offset": SIZE}}
    document = described(place, [output])

    def trip(looks: bool) -> None:
        connection.post(f"/v2/models/{MODEL}/infer", [document])
        if looks and not np.array_equal(held[SIZE // 4 :], PAYLOAD):
            raise RuntimeError("shared memory: another tensor came back")

    try:
        yield trip
        connection.post(f"{register}/unregister", [b"{}"])
    finally:
        path.unlink()
    connection.close()


WAYS = {"http": over_http, "grpc": over_grpc, "memory": in_memory}


def main(way: str, address: str, clients: int, seconds: float) -> None:
    rates: list[float] = []
    ready = threading.Barrier(clients)

    def run() -> None:
        with WAYS[way](address) as trip:
            trip(True)
            ready.wait()
            count, started = 0, time.perf_counter()
            while (took := time.perf_counter() - started) < seconds:
                trip(False)
                count += 1
            rates.append(count / took)

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(rates) < clients:
        sys.exit("a client has failed")
    print(sum(rates))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
