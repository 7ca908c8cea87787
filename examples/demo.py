"""One run from nothing to the text of a photograph: prepare the OCR example, serve it, ask it, stop.

Owns what is shown on the way. Pictures are sent and judged by the example's own client, over gRPC and over HTTP.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server_process import Server, serving

OCR = Path(__file__).resolve().parent / "ensembles" / "ocr"
PROTOCOLS = ("grpc", "http")


def main() -> int:
    started = time.monotonic()
    announce("preparing the models and pictures (downloads them the first time)")
    subprocess.run([sys.executable, OCR / "prepare.py"], check=True)
    announce("starting the server")
    with serving(OCR / "models") as server:
        print(server.table_file.read_text().rstrip())
        print(f"gRPC at {server.grpc}, HTTP at {server.http}, metrics at {server.metrics}")
        all_right = True
        for protocol in PROTOCOLS:
            announce(f"reading the pictures with the ensemble over {protocol}")
            all_right &= read_pictures(server, protocol)
        announce("where the time went, step by step")
        print_statistics(server)
        announce("stopping the server")
    verdict = "everything was read as it should be" if all_right else "something was misread: see above"
    announce(f"{verdict}; {time.monotonic() - started:.0f} s in all")
    return 0 if all_right else 1


def announce(text: str) -> None:
    print(f"\n== {text}", flush=True)


def read_pictures(server: Server, protocol: str) -> bool:
    command = [sys.executable, OCR / "client.py", "--protocol", protocol, "--url", server.url(protocol)]
    return subprocess.run(command).returncode == 0


def print_statistics(server: Server) -> None:
    """The mean over its requests for each step, in the order of the ensemble, and for the ensemble itself."""
    api: Any = importlib.import_module("tritonclient.grpc")
    with api.InferenceServerClient(server.grpc) as client:
        steps = client.get_model_config("ocr").config.ensemble_scheduling.step
        models = {model.name: model for model in client.get_inference_statistics().model_stats}
    columns = ("requests", "queue", "input", "infer", "output", "total")
    print(f"{'mean milliseconds':20}" + "".join(f"{column:>10}" for column in columns))
    for name in (*(step.model_name for step in steps), "ocr"):
        figures = models[name].inference_stats
        requests = figures.success.count
        spent = (figures.queue, figures.compute_input, figures.compute_infer, figures.compute_output)
        means = "".join(f"{part.ns / requests / 1e6:10.2f}" for part in (*spent, figures.success))
        print(f"{name:20}{requests:10}{means}")


if __name__ == "__main__":
    sys.exit(main())
