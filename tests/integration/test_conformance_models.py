"""What Triton's models and clients see of requests and answers, through the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.support.model_files import (
    IDENTITY,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_model,
)
from tests.support.served import Served, served

REPORT_REQUESTED = """
def execute(self, requests):
    return [
        pb_utils.InferenceResponse([
            pb_utils.Tensor("NAMES", np.array(sorted(request.requested_output_names()), dtype=object)),
            pb_utils.Tensor("OTHER", np.array(["x"], dtype=object)),
        ])
        for request in requests
    ]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("models")
    outputs = [tensor_text("NAMES", "STRING"), tensor_text("OTHER", "STRING")]
    write_model(repository, "requested", python_config([tensor_text("INPUT")], outputs), REPORT_REQUESTED)
    labelled = tensor_text("OUTPUT", dims="3", extra='label_filename: "labels.txt"')
    directory = write_model(
        repository, "classifier", python_config([tensor_text("INPUT", dims="3")], [labelled]), IDENTITY
    )
    (directory / "labels.txt").write_text("cat\ndog\nbird\n")
    inner = step_text("classifier", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    outer = step_text("classify", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    tensors = [tensor_text("INPUT", dims="3")], [tensor_text("OUTPUT", dims="3")]
    write_model(repository, "classify", ensemble_config(*tensors, [inner]))
    write_model(repository, "classify_nested", ensemble_config(*tensors, [outer]))
    with served(repository) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(running: Served, request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The stock client's module and a client of it."""
    return (triton_http, running.http) if request.param == "http" else (triton_grpc, running.grpc)


def vector(triton: Any, *values: float) -> list[Any]:
    tensor = triton.InferInput("INPUT", [len(values)], "FP32")
    tensor.set_data_from_numpy(np.array(values, dtype=np.float32))
    return [tensor]


@pytest.mark.parametrize(
    ("asked", "seen"),
    [([], [b"NAMES", b"OTHER"]), (["NAMES"], [b"NAMES"]), (["OTHER", "NAMES"], [b"NAMES", b"OTHER"])],
)
def test_a_model_is_told_all_its_outputs_where_the_client_names_none(
    client: tuple[Any, Any], asked: list[str], seen: list[bytes]
) -> None:
    triton, connection = client
    outputs = [triton.InferRequestedOutput(name) for name in asked] or None
    answer = connection.infer("requested", vector(triton, 1), outputs=outputs)
    assert answer.as_numpy("NAMES").tolist() == seen


@pytest.mark.parametrize("model", ["classifier", "classify", "classify_nested"])
def test_classes_of_an_ensemble_have_the_labels_of_the_model_they_come_from(
    client: tuple[Any, Any], model: str
) -> None:
    triton, connection = client
    outputs = [triton.InferRequestedOutput("OUTPUT", class_count=2)]
    answer = connection.infer(model, vector(triton, 1, 3, 2), outputs=outputs)
    assert answer.as_numpy("OUTPUT").tolist() == [b"3.000000:1:dog", b"2.000000:2:bird"]
