"""The models that tritonclient's own example programs ask for, written anew from what these programs expect of them.

Also a program: `python -m tests.support.client_models DIRECTORY` writes them, for tools that need models.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.model_files import python_config, tensor_text, write_model

_ADD_SUB = """
def execute(self, requests):
    return [self.answer(request) for request in requests]

def answer(self, request):
    one, other = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1")
    )
    if one.dtype != object:
        results = [one + other, one - other]
    else:
        one, other = one.astype(np.int64), other.astype(np.int64)
        results = [(one + other).astype(bytes).astype(object), (one - other).astype(bytes).astype(object)]
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(f"OUTPUT{index}", result) for index, result in enumerate(results)]
    )
"""

# Adds one to the first value of a sequence. With an id it adds that to the last; the one of text ids adds up.
_SEQUENCE = """
def initialize(self, args):
    self.adds_up = "string" in args["model_name"]
    self.totals = {}

def execute(self, requests):
    return [self.answer(request) for request in requests]

def answer(self, request):
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    value, start, end = tensors["INPUT"], tensors["START"].any(), tensors["END"].any()
    id = int(tensors["CORRID"].item()) if "CORRID" in tensors else 0
    if self.adds_up:
        value = self.totals[id] = value + (0 if start else self.totals[id])
    elif start:
        value = value + 1
    if end:
        value = value + id
        self.totals.pop(id, None)
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", value.astype(np.int32))])
"""

_IDENTITY = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())]
        )
        for request in requests
    ]
"""

_REPEAT = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.answer, args=[request]).start()

def answer(self, request):
    values, delays, wait = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN", "DELAY", "WAIT")
    )
    sender = request.get_response_sender()
    for index, (value, delay) in enumerate(zip(values, delays)):
        threading.Event().wait(float(delay) / 1000)
        outputs = [
            pb_utils.Tensor("OUT", np.array([value], np.int32)),
            pb_utils.Tensor("IDX", np.array([index], np.uint32)),
        ]
        sender.send(pb_utils.InferenceResponse(outputs))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_SQUARE = """
def execute(self, requests):
    for request in requests:
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        sender = request.get_response_sender()
        for _ in range(int(value.item())):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
"""
_ID = '  control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } }\n'


def write_client_models(repository: Path) -> None:
    """Write all of them into `repository`."""
    for name, datatype in (("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "STRING")):
        tensors = [
            tensor_text(tensor, datatype, "16") for tensor in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
        ]
        config = python_config(tensors[:2], tensors[2:], max_batch_size=8, extra="dynamic_batching {}")
        write_model(repository, name, config, _ADD_SUB)
    strings = [tensor_text(name, "STRING") for name in ("INPUT0", "OUTPUT0")]
    config = python_config(strings[:1], strings[1:], max_batch_size=8)
    write_model(repository, "simple_identity", config, _IDENTITY)
    _write_sequences(repository)
    inputs = [tensor_text("IN", "INT32"), tensor_text("DELAY", "UINT32"), tensor_text("WAIT", "UINT32", "1")]
    outputs = [tensor_text("OUT", "INT32", "1"), tensor_text("IDX", "UINT32", "1")]
    write_model(repository, "repeat_int32", python_config(inputs, outputs, decoupled=True), _REPEAT)
    square = python_config(
        [tensor_text("IN", "INT32", "1")], [tensor_text("OUT", "INT32", "1")], decoupled=True
    )
    write_model(repository, "square_int32", square, _SQUARE)


def _write_sequences(repository: Path) -> None:
    strategies = {
        "simple_sequence": f"direct {{ }} {_CONTROLS}",
        "simple_dyna_sequence": f"oldest {{ max_candidate_sequences: 1024 }} {_CONTROLS} {_ID % 'UINT64'}",
        "simple_string_dyna_sequence": f"oldest {{ max_candidate_sequences: 1024 }} {_CONTROLS} {_ID % 'STRING'}",
    }
    inputs, outputs = ([tensor_text(name, "INT32", "1")] for name in ("INPUT", "OUTPUT"))
    for name, strategy in strategies.items():
        batching = f"sequence_batching {{ max_sequence_idle_microseconds: 5000000 {strategy} }}"
        write_model(
            repository, name, python_config(inputs, outputs, max_batch_size=8, extra=batching), _SEQUENCE
        )


if __name__ == "__main__":
    write_client_models(Path(sys.argv[1]))
