"""The client that `overload.py` runs: requests of one size at a given rate, whatever becomes of those before.

Each is answered, refused (503, UNAVAILABLE) or failed. With a rate of 0 as many as CLOSED are open at any time: that
finds the capacity. Prints, as JSON: answers a second, the share that was refused, the latencies' 99th percentile of
what was answered and of what was refused in milliseconds, and what failed otherwise.

    python benchmarks/overload_client.py http|grpc ADDRESS MODEL BYTES RATE SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

CLOSED = 8
METHOD = "/inference.GRPCInferenceService/ModelInfer"
# How long what is open at the end may still take.
GRACE_S = 10.0
ANSWERED, REFUSED = "answered", "refused"

# Sends one request; returns ANSWERED, REFUSED or what else has happened.
Send = Callable[[], Awaitable[str]]


class HttpSender:
    """Requests over connections that are kept."""

    def __init__(self, address: str, model: str, size: int) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "INPUT",
                        "shape": [1, size],
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": size},
                    }
                ]
            }
        ).encode()
        self._request = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: {len(head)}\r\n"
            f"Content-Length: {len(head) + size}\r\n\r\n"
        ).encode() + head
        self._body = bytes(size)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self) -> str:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(self._request)
        writer.write(self._body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        self._idle.append((reader, writer))
        status = head.split(b" ", 2)[1]
        if status == b"503":
            return REFUSED
        return ANSWERED if status == b"200" else body.decode()


class GrpcSender:
    """Requests over one channel."""

    def __init__(self, address: str, model: str, size: int) -> None:
        message = service_pb2.ModelInferRequest(
            model_name=model, raw_input_contents=[np.zeros(size, np.uint8).tobytes()]
        )
        message.inputs.add(name="INPUT", datatype="UINT8", shape=[1, size])
        self._request = message.SerializeToString()
        self._channel = grpc.aio.insecure_channel(
            address, [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
        )
        self._call = self._channel.unary_unary(METHOD)

    async def send(self) -> str:
        try:
            await self._call(self._request)
        except grpc.aio.AioRpcError as error:
            return REFUSED if error.code() is grpc.StatusCode.UNAVAILABLE else str(error.details())
        return ANSWERED


class Tally:
    """What became of the requests."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latencies_ms: dict[str, list[float]] = {ANSWERED: [], REFUSED: []}

    async def one(self, send: Send) -> None:
        started = time.perf_counter()
        try:
            outcome = await send()
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        self.counts[outcome] += 1
        if outcome in self.latencies_ms:
            self.latencies_ms[outcome].append((time.perf_counter() - started) * 1e3)


async def closed(tally: Tally, send: Send, seconds: float) -> None:
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            await tally.one(send)

    await asyncio.gather(*(client() for _ in range(CLOSED)))


async def at_rate(tally: Tally, send: Send, rate: float, seconds: float) -> None:
    started = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for index in range(int(rate * seconds)):
        delay = started + index / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(tally.one(send))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        _, open_still = await asyncio.wait(tasks, timeout=GRACE_S)
        tally.counts["not answered in time"] += len(open_still)
        for task in open_still:
            task.cancel()


async def run(protocol: str, address: str, model: str, size: int, rate: float, seconds: float) -> None:
    sender = (HttpSender if protocol == "http" else GrpcSender)(address, model, size)
    tally = Tally()
    started = time.perf_counter()
    if rate:
        await at_rate(tally, sender.send, rate, seconds)
    else:
        await closed(tally, sender.send, seconds)
    passed = time.perf_counter() - started
    others = {
        what: count for what, count in tally.counts.items() if what not in (ANSWERED, REFUSED) and count
    }
    figures = {
        "answered_per_s": tally.counts[ANSWERED] / passed,
        "sent_per_s": tally.counts.total() / passed,
        "refused": tally.counts[REFUSED],
        "failed": others,
    }
    for outcome, latencies in tally.latencies_ms.items():
        figures[f"{outcome}_p99_ms"] = float(np.percentile(latencies, 99)) if latencies else 0.0
    print(json.dumps(figures))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(
        run(
            arguments[0],
            arguments[1],
            arguments[2],
            int(arguments[3]),
            float(arguments[4]),
            float(arguments[5]),
        )
    )
