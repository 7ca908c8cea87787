"""Does one request's stream of a million responses arrive whole, and does its model wait for a slow reader?

For a model on a thread of the server and for one in a process: the order of the responses, that none is lost or
doubled and exactly one is final, how far the model was ahead of a reader that stopped reading, and the memory of the
server and its processes from the first tenth on (goal: under 5% more).

    python benchmarks/stream_soak.py [--responses 1000000]
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from large_client import SERVICE
from servers import RunningServer, running
from tritonclient.grpc import service_pb2

LARGEST_GROWTH = 0.05
# A model that makes nothing for so long has stopped.
STOPS_S = 2.0
LONGEST_STOP_S = 60.0
# A stopped reader's model may be ahead by what the server, the process and the connection hold: 64 responses each, and
# a window of a fixed size.
MOST_AHEAD = 20_000
FIXED_WINDOW = [("grpc.http2.bdp_probe", 0)]

_COUNTS = '''
import os
import struct

import numpy as np

import triton_python_backend_utils as pb_utils

PROGRESS = {progress!r}


class TritonPythonModel:
    """Answers with 0, 1, ... and tells a file how far it is."""

    def execute(self, requests):
        file = os.open(PROGRESS, os.O_WRONLY | os.O_CREAT)
        for request in requests:
            sender = request.get_response_sender()
            for index in range(int(request.inputs()[0].as_numpy()[0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([index], np.int32))]))
                os.pwrite(file, struct.pack("<q", index + 1), 0)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        os.close(file)
'''
_CONFIG = """backend: "python"
input [ {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
model_transaction_policy {{ decoupled: true }}
parameters {{ key: "EXECUTION_ISOLATION" value: {{ string_value: "{isolation}" }} }}
"""


@dataclass
class Reading:
    """What one stream brought."""

    received: int = 0
    wrong: int = 0
    finals: int = 0
    ahead: int = 0
    crept: int = 0
    stopped_s: float = 0.0
    seconds: float = 0.0
    memory_mb: list[float] = field(default_factory=list)

    def problems(self, responses: int) -> list[str]:
        """What must not be, in words."""
        first, most = self.memory_mb[0], max(self.memory_mb)
        growth = most / first - 1
        checks = {
            f"{self.received} responses, not {responses}": self.received != responses,
            f"{self.wrong} responses out of order": self.wrong > 0,
            f"{self.finals} ends": self.finals != 1,
            f"the model was {self.ahead} responses ahead of a reader that had stopped": self.ahead
            > MOST_AHEAD,
            f"the model went on by {self.crept} responses while nobody read": self.crept > 0,
            f"memory grew from {first:.0f} to {most:.0f} MB": growth > LARGEST_GROWTH,
        }
        return [text for text, is_wrong in checks.items() if is_wrong]


def write_counter(repository: Path, isolation: str, progress: Path) -> None:
    (repository / isolation / "1").mkdir(parents=True)
    (repository / isolation / "1" / "model.py").write_text(_COUNTS.format(progress=str(progress)).lstrip())
    (repository / isolation / "config.pbtxt").write_text(_CONFIG.format(isolation=isolation))


def made(progress: Path) -> int:
    """How many responses the model has sent."""
    return int.from_bytes(progress.read_bytes(), "little")


def stop_reading(reading: Reading, progress: Path) -> None:
    """Read nothing until the model has stopped, too, and see how far it has come."""
    began = time.perf_counter()
    now = made(progress)
    while time.perf_counter() - began < LONGEST_STOP_S:
        before = now
        time.sleep(STOPS_S)
        now = made(progress)
        if now == before:
            break
    reading.crept = now - before
    reading.ahead = now - reading.received
    reading.stopped_s = time.perf_counter() - began


def request_for(model: str, responses: int) -> bytes:
    """A request for so many responses, and for an empty last one where the model ends without one."""
    content = np.array([responses], np.int32).tobytes()
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[content])
    message.inputs.add(name="INPUT", datatype="INT32", shape=[1])
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    data: bytes = message.SerializeToString()
    return data


def read(server: RunningServer, model: str, responses: int, progress: Path) -> Reading:
    """Read one stream to its end, with one long stop after the first tenth."""
    reading = Reading()
    message = request_for(model, responses)
    ends: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    ends.put(message)

    def requests() -> Iterator[bytes]:
        while (request := ends.get()) is not None:
            yield request

    parse = service_pb2.ModelStreamInferResponse.FromString
    began = time.perf_counter()
    with grpc.insecure_channel(server.grpc, FIXED_WINDOW) as channel:
        for data in channel.stream_stream(SERVICE + "ModelStreamInfer")(requests()):
            answer = parse(data).infer_response
            if answer.parameters["triton_final_response"].bool_param:
                reading.finals += 1
                ends.put(None)
            if not answer.raw_output_contents:
                continue
            reading.wrong += int.from_bytes(answer.raw_output_contents[0], "little") != reading.received
            reading.received += 1
            if reading.received % (responses // 10) == 0:
                reading.memory_mb.append(server.memory_mb())
            if reading.received == responses // 10:
                stop_reading(reading, progress)
    reading.seconds = time.perf_counter() - began - reading.stopped_s
    return reading


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--responses", type=int, default=1_000_000)
    responses = parser.parse_args().responses
    status = 0
    for isolation in ("thread", "process"):
        with tempfile.TemporaryDirectory() as folder:
            progress = Path(folder, "progress")
            repository = Path(folder, "models")
            write_counter(repository, isolation, progress)
            with running("cantata", repository) as server:
                reading = read(server, isolation, responses, progress)
        problems = reading.problems(responses)
        status |= bool(problems)
        memory = f"memory {reading.memory_mb[0]:.1f} MB, at most {max(reading.memory_mb):.1f} MB"
        print(
            f"{isolation}: {reading.received} responses in {reading.seconds:.0f} s, {reading.wrong} out of order, "
            f"{reading.finals} end, {reading.ahead} ahead of a stopped reader, {memory}"
        )
        for problem in problems:
            print(f"wrong: {problem}")
    return status


if __name__ == "__main__":
    sys.exit(main())
