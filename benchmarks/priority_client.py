"""The client that `scheduling.py` runs for overload: two classes of requests at a given rate, answered or not.

A quarter of the requests is urgent (priority 1). They are sent on time whatever becomes of those before. Prints how
many a second were answered, and the 99th percentile of the urgent ones' latency in microseconds.

    python benchmarks/priority_client.py localhost:8001 MODEL RATE SECONDS
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
from models import ELEMENTS
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"
URGENT_OF = 4


def request_of(model: str, priority: int) -> bytes:
    message = service_pb2.ModelInferRequest(
        model_name=model, raw_input_contents=[np.zeros(ELEMENTS, np.float32).tobytes()]
    )
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, ELEMENTS])
    message.parameters["priority"].uint64_param = priority
    data: bytes = message.SerializeToString()
    return data


class Tally:
    """What became of the requests; called on gRPC's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answered = 0
        self.urgent_us: list[float] = []
        self.open = 0

    def sent(self, is_urgent: bool) -> Callable[[grpc.Future], None]:
        """Count one more; returns what to call when it is over."""
        started = time.perf_counter()
        with self._lock:
            self.open += 1

        def over(call: grpc.Future) -> None:
            took_us = (time.perf_counter() - started) * 1e6
            with self._lock:
                self.open -= 1
                if call.code() is grpc.StatusCode.OK:
                    self.answered += 1
                    if is_urgent:
                        self.urgent_us.append(took_us)

        return over


def main(address: str, model: str, rate: float, seconds: float) -> None:
    messages = [request_of(model, 1)] + [request_of(model, 2)] * (URGENT_OF - 1)
    tally = Tally()
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(METHOD)
        infer(messages[0])
        started = time.perf_counter()
        for index in range(int(rate * seconds)):
            wait_s = started + index / rate - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            kind = index % URGENT_OF
            infer.future(messages[kind]).add_done_callback(tally.sent(kind == 0))
        answered, took_s = tally.answered, time.perf_counter() - started
        while tally.open:
            time.sleep(0.01)
    print(answered / took_s, np.percentile(tally.urgent_us, 99))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
