"""What a model's own process needs: little, so that it starts fast and any interpreter can run it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import cantata.bls.worker.child, cantata.bls.worker.launch
unwanted = ("cantata.grammars.model_config", "cantata.dag", "pydantic", "lark", "networkx", "google.protobuf",
    "grpc", "starlette", "uvloop", "onnxruntime", "torch")
print(*sorted(name for name in sys.modules if name.startswith(unwanted)))
"""


def test_numpy_is_all_that_a_models_process_imports() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
