"""What makes two requests equal, as a digest: the same model in the same load, asked for the same with the same.

Owns the digest and nothing else. What does not change an answer (ids, priorities, timeouts, how it is to be encoded) is
no part of it.
"""

from __future__ import annotations

import hashlib
import mmap
from typing import Final

import numpy as np

from cantata.runtime.model_spec import ModelSpec
from cantata.runtime.observe.timeline import TIMELINE
from cantata.runtime.request import InferenceRequest
from cantata.runtime.tensor import Tensor

# Parameters that reach a request and say only how, or when, its answer is sent.
_OF_THE_ANSWER: Final = frozenset({"binary_data_output", "triton_enable_empty_final_response", TIMELINE})


class RequestKey:
    """Digests the requests of one loaded model version.

    SHA-256: with the processor's instructions for it nothing else in the standard library is as quick, and whoever
    wanted to have others' requests answered with what he chose could not find two inputs of one digest.
    """

    def __init__(self, spec: ModelSpec, load_identity: bytes, *, with_parameters: bool) -> None:
        """`load_identity` differs between loads; `with_parameters`: the model, or a step of it, may look at them."""
        name, version = spec.model_name.encode(), spec.model_version
        self._model_digest = hashlib.sha256(b"%d %s %d %s" % (len(name), name, version, load_identity))
        self._all_outputs = spec.output_names
        self._with_parameters = with_parameters

    def of(self, request: InferenceRequest) -> bytes:
        """The digest of a validated request. Inputs in memory that a client may write to are copied first."""
        digest = self._model_digest.copy()
        inputs = request.inputs
        for name in sorted(inputs) if len(inputs) > 1 else inputs:
            tensor = inputs[name]
            if _is_shared_with_client(tensor):
                # What is computed on must be what was looked at.
                tensor = inputs[name] = Tensor(tensor.datatype, tensor.array.copy())
            # The shape and the datatype say how much of what follows is this tensor's.
            digest.update(b"%a %d %a" % (name, tensor.datatype.value, tensor.array.shape))
            digest.update(tensor.raw_bytes())
        outputs = request.requested_outputs or self._all_outputs
        parameters = request.parameters
        if parameters and self._with_parameters:
            mattering = sorted(item for item in parameters.items() if item[0] not in _OF_THE_ANSWER)
            digest.update(b"%a %a" % (outputs, mattering))
        else:
            digest.update(b"%a []" % (outputs,))
        return digest.digest()


def _is_shared_with_client(tensor: Tensor) -> bool:
    base: object = tensor.array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)
