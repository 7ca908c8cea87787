"""The client that `python_models.py` runs: counts responses of decoupled models, or large tensors there and back.

Bare gRPC and bytes, so that the client takes as little as it can of the machine that it shares with the server. Prints
one number: responses a second.

    python benchmarks/stream_client.py localhost:8001 MODEL STREAMS RESPONSES SECONDS
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

SERVICE = "/inference.GRPCInferenceService/"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
LARGE_ELEMENTS = (16 << 20) // 4


def request_of(model: str, array: np.ndarray, datatype: str, *, final: bool = False) -> bytes:
    """A request as bytes; `final` asks for an empty last response where the model ends without one."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="INPUT", datatype=datatype, shape=array.shape
    )
    message = service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[array.tobytes()]
    )
    if final:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    data: bytes = message.SerializeToString()
    return data


def stream(address: str, model: str, responses: int, seconds: float) -> tuple[int, float]:
    """How many responses came over one stream, one request after the other, and how long that took."""
    message = request_of(model, np.array([responses], np.int32), "INT32")
    due: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def requests() -> Iterator[bytes]:
        while (request := due.get()) is not None:
            yield request

    count = 0
    started = time.perf_counter()
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        due.put(message)
        for _ in channel.stream_stream(SERVICE + "ModelStreamInfer")(requests()):
            count += 1
            if count % responses == 0:
                due.put(message if time.perf_counter() - started < seconds else None)
    return count, time.perf_counter() - started


def large(address: str, model: str, seconds: float) -> tuple[int, float]:
    """How many large tensors went there and came back, one after the other, and how long that took."""
    message = request_of(model, np.zeros(LARGE_ELEMENTS, np.float32), "FP32")
    count = 0
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        infer(message)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            infer(message)
            count += 1
    return count, time.perf_counter() - started


def main(address: str, model: str, streams: int, responses: int, seconds: float) -> None:
    rates: list[float] = []

    def run() -> None:
        count, took = (
            stream(address, model, responses, seconds) if responses else large(address, model, seconds)
        )
        rates.append(count / took)

    threads = [threading.Thread(target=run) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(rates) < streams:
        sys.exit("a stream has failed")
    print(sum(rates))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
