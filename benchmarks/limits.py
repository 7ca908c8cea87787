"""How much of a call is ours, and how much is the work itself?

An ONNX model called embedded, over gRPC and over HTTP, beside the bare `InferenceSession.run`; and an ensemble of
Python models called embedded beside the same functions called one after the other.

    python benchmarks/limits.py [--calls 3000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
from calls import caller, latencies_us
from models import ELEMENTS, MAX_BATCH_SIZE, write_chain, write_identities
from onnx import TensorProto, helper, numpy_helper
from servers import running

from cantata import Server

STEPS = 10
EMBEDDED_GOAL_US = 60
STEP_GOAL_US = 30


def write_onnx_model(directory: Path) -> Path:
    """One small layer: a matrix product and a rectifier. Returns the model's file."""
    generator = np.random.default_rng(0)
    weights = numpy_helper.from_array(generator.normal(size=(ELEMENTS, ELEMENTS)).astype(np.float32), "W")
    nodes = [
        helper.make_node("MatMul", ["INPUT", "W"], ["product"]),
        helper.make_node("Relu", ["product"], ["OUTPUT"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", ELEMENTS])
        for name in ("INPUT", "OUTPUT")
    ]
    graph = helper.make_graph(nodes, "layer", tensors[:1], tensors[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = directory / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(model, file)
    (directory / "config.pbtxt").write_text(
        f'name: "{directory.name}"\nbackend: "onnxruntime"\nmax_batch_size: {MAX_BATCH_SIZE}\n'
        "instance_group { kind: KIND_CPU count: 1 }\n"
    )
    return file


def typical_us(call: Callable[[], object], calls: int) -> float:
    return median(latencies_us(call, calls))


def print_row(name: str, figure_us: float, beside_us: float, goal: str = "") -> None:
    print(f"{name:44}{figure_us:10.1f}{figure_us - beside_us:+12.1f}  {goal}", flush=True)


def measure_onnx(folder: Path, calls: int) -> None:
    repository = folder / "onnx"
    file = write_onnx_model(repository / "layer")
    array = np.ones((1, ELEMENTS), np.float32)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    bare_us = typical_us(lambda: session.run(["OUTPUT"], {"INPUT": array}), calls)
    print_row("InferenceSession.run", bare_us, bare_us)
    with Server(repository) as server:
        embedded_us = typical_us(lambda: server.infer("layer", {"INPUT": array}), calls)
    print_row("Server.infer, embedded", embedded_us, bare_us, f"goal: at most +{EMBEDDED_GOAL_US}")
    with running("cantata", repository) as process:
        for protocol, url in (("grpc", process.grpc), ("http", process.http)):
            print_row(f"tritonclient.{protocol}", typical_us(caller(protocol, url, "layer"), calls), bare_us)


def measure_steps(folder: Path, calls: int) -> None:
    repository = folder / "chain"
    write_identities(repository, STEPS)
    write_chain(repository / "chain", [f"identity_{index}" for index in range(STEPS)])
    array = np.ones((1, ELEMENTS), np.float32)
    functions = [lambda value: value for _ in range(STEPS)]

    def call_directly() -> None:
        value = array
        for function in functions:
            value = function(value)

    direct_us = typical_us(call_directly, calls)
    print_row(f"{STEPS} functions, called directly", direct_us, direct_us)
    with Server(repository) as server:
        chain_us = typical_us(lambda: server.infer("chain", {"INPUT": array}), calls)
    print_row(f"Server.infer, an ensemble of {STEPS} steps", chain_us, direct_us)
    step_us = (chain_us - direct_us) / STEPS
    print_row("  which is for each step", step_us, 0, f"goal: at most +{STEP_GOAL_US}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=3_000, help="of each kind (default: 3000)")
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'median of ' + str(calls) + ' calls, microseconds':44}{'':>10}{'difference':>12}")
        measure_onnx(Path(folder), calls)
        measure_steps(Path(folder), calls)


if __name__ == "__main__":
    main()
