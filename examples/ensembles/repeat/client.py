"""Streams answers from the ensemble `countdown` over gRPC and compares them with expected.json.

Plain HTTP inference carries one answer a request. With `--protocol http` the client checks that the server says so.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

EXPECTED = Path(__file__).parent / "expected.json"
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
LONGEST_WAIT_S = 30


def make_inputs(api: ModuleType, case: dict[str, Any]) -> list[Any]:
    values = api.InferInput("VALUES", [len(case["VALUES"])], "INT32")
    values.set_data_from_numpy(np.array(case["VALUES"], np.int32))
    delay = api.InferInput("DELAY_MS", [1], "UINT32")
    delay.set_data_from_numpy(np.array([case["DELAY_MS"]], np.uint32))
    return [values, delay]


def stream(api: ModuleType, client: Any, case: dict[str, Any]) -> list[list[Any]]:
    """Every answer to one request. The last message is marked as final; it may carry an answer or be empty."""
    received: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: received.put((result, error)))
    client.async_stream_infer("countdown", make_inputs(api, case), enable_empty_final_response=True)
    answers: list[list[Any]] = []
    while True:
        result, error = received.get(timeout=LONGEST_WAIT_S)
        if error is not None:
            raise error
        message = result.get_response()
        if message.outputs:
            value, text = int(result.as_numpy("VALUE")[0]), result.as_numpy("TEXT")[0].decode()
            print(f"  {value:3}  {text}", flush=True)
            answers.append([value, text])
        if message.parameters["triton_final_response"].bool_param:
            client.stop_stream()
            return answers


def check_over_grpc(url: str, cases: list[dict[str, Any]]) -> bool:
    import tritonclient.grpc as api

    is_right = True
    with api.InferenceServerClient(url) as client:
        for case in cases:
            print(f"{case['VALUES']}, {case['DELAY_MS']} ms apart")
            is_right &= stream(api, client, case) == case["ANSWERS"]
    return is_right


def check_over_http(url: str, cases: list[dict[str, Any]]) -> bool:
    import tritonclient.http as api

    with api.InferenceServerClient(url) as client:
        try:
            client.infer("countdown", make_inputs(api, cases[0]))
        except InferenceServerException as error:
            print(f"refused: {error.message()}")
            return "decoupled" in error.message()
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    arguments = parser.parse_args()
    check = check_over_grpc if arguments.protocol == "grpc" else check_over_http
    is_right = check(arguments.url or DEFAULT_URLS[arguments.protocol], json.loads(EXPECTED.read_text()))
    print("as expected" if is_right else "not as expected")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
