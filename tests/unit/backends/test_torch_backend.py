"""The pytorch backend, with real files of tiny models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cantata.grammars.model_config import (
    BatchInput,
    BatchInputKind,
    BatchOutput,
    DataType,
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelParameter,
)
from cantata.runtime.backends.backend import BackendSettings, InstancePlacement, ModelFiles
from cantata.runtime.backends.catalog import open_backend
from cantata.runtime.backends.torch_backend import TorchBackend, TorchInstance
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.devices import available_gpus
from tests.support import torch_models as models
from tests.support.batches import NO_SERVICES, run_batch

FP32, STRING = DataType.TYPE_FP32, DataType.TYPE_STRING
ON_CPU = InstancePlacement("m_0", "CPU", 0)
ONES = np.ones((1, 2), np.float32)


def config_of(
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("OUT",),
    data_type: DataType = FP32,
    dims: tuple[int, ...] = (-1,),
    parameters: dict[str, str] | None = None,
    **fields: Any,
) -> ModelConfig:
    tensors = {
        "input": tuple(ModelInput(name=name, data_type=data_type, dims=dims) for name in inputs),
        "output": tuple(ModelOutput(name=name, data_type=data_type, dims=dims) for name in outputs),
        "parameters": {
            name: ModelParameter(string_value=value) for name, value in (parameters or {}).items()
        },
    }
    return ModelConfig(
        **{"name": "m", "platform": "pytorch_libtorch", "max_batch_size": 8} | tensors | fields
    )


def files_of(directory: Path) -> ModelFiles:
    return ModelFiles("m", 1, directory, directory / "1")


def open_instance(
    directory: Path, config: ModelConfig, placement: InstancePlacement = ON_CPU
) -> TorchInstance:
    backend = open_backend("pytorch", BackendSettings(), NO_SERVICES)
    instance = backend.load(files_of(directory), config).create_instance(placement)
    assert isinstance(instance, TorchInstance)
    return instance


def script(module: torch.nn.Module, directory: Path) -> None:
    models.save_torchscript(module, directory / "1" / "model.pt")


def export(module: torch.nn.Module, directory: Path, *args: Any, **kwargs: Any) -> None:
    batch = torch.export.Dim("batch", max=8)
    shapes = torch.utils._pytree.tree_map(lambda _: {0: batch}, (args, kwargs))
    signature_shapes = {**dict(zip(_argument_names(module), shapes[0], strict=False)), **shapes[1]}
    models.save_exported(module, directory / "1" / "model.pt2", args, kwargs, signature_shapes)


def _argument_names(module: torch.nn.Module) -> list[str]:
    code = module.forward.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def export_add_sub(directory: Path) -> None:
    export(models.AddSub(), directory, torch.ones(2, 2), torch.ones(2, 2))


SAVED: list[Callable[[Path], None]] = [lambda directory: script(models.AddSub(), directory), export_add_sub]


@pytest.mark.parametrize("save", SAVED, ids=["TorchScript", "exported program"])
@pytest.mark.parametrize("inputs", [("b", "a"), ("X__1", "X__0")], ids=["by argument", "by number"])
def test_a_batch_is_run_and_divided(
    tmp_path: Path, save: Callable[[Path], None], inputs: tuple[str, str]
) -> None:
    save(tmp_path)
    config = config_of(inputs, ("DIFFERENCE__1", "SUM__0"))
    b, a = inputs
    one, other = run_batch(
        open_instance(tmp_path, config), config, {a: 3 * ONES, b: ONES}, {a: ONES, b: ONES}
    )
    assert {name: value.tolist() for name, value in one.items()} == {
        "DIFFERENCE__1": [[2, 2]],
        "SUM__0": [[4, 4]],
    }
    assert other["DIFFERENCE__1"].tolist() == [[0, 0]]


def test_only_the_outputs_asked_for_are_given(tmp_path: Path) -> None:
    script(models.AddSub(), tmp_path)
    config = config_of(("a", "b"), ("SUM", "DIFFERENCE"))
    [outputs] = run_batch(
        open_instance(tmp_path, config), config, {"a": ONES, "b": ONES}, outputs=("DIFFERENCE",)
    )
    assert list(outputs) == ["DIFFERENCE"]


def test_a_dictionary_takes_the_inputs_by_name(tmp_path: Path) -> None:
    script(models.Dictionary(), tmp_path)
    config = config_of(("B", "A"), ("SUM",))
    [outputs] = run_batch(open_instance(tmp_path, config), config, {"A": ONES, "B": 2 * ONES})
    assert outputs["SUM"].tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (
            ("ARGS[0][1]", "ARGS[0][0]", "KWARGS[named][y]", "KWARGS[named][x]"),
            ("RESULT[both][1]", "RESULT[sum]"),
        ),
    ],
)
def test_nested_values_are_found_by_their_paths(
    tmp_path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    pair, named = (torch.ones(2, 2), torch.ones(2, 2)), {"x": torch.ones(2, 2), "y": torch.ones(2, 2)}
    export(models.Nested(), tmp_path, pair, named=named)
    config = config_of(inputs, outputs, platform="torch_aoti")
    values = {name: (index + 1) * ONES for index, name in enumerate(inputs)}
    [result] = run_batch(open_instance(tmp_path, config), config, values)
    assert (result["RESULT[both][1]"].tolist(), result["RESULT[sum]"].tolist()) == ([[6, 6]], [[3, 3]])


def test_an_argument_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    script(models.AddDefault(), tmp_path)
    without = config_of(("a",))
    assert run_batch(open_instance(tmp_path, without), without, {"a": ONES})[0]["OUT"].tolist() == [
        [101, 101]
    ]
    optional = config_of(("a",)).model_copy(
        update={
            "input": (
                ModelInput(name="a", data_type=FP32, dims=(2,)),
                ModelInput(name="b", data_type=FP32, dims=(2,), optional=True),
            )
        }
    )
    instance = open_instance(tmp_path, optional)
    assert run_batch(instance, optional, {"a": ONES})[0]["OUT"].tolist() == [[101, 101]]
    assert run_batch(instance, optional, {"a": ONES, "b": ONES})[0]["OUT"].tolist() == [[2, 2]]


DTYPES = [
    (DataType.TYPE_BOOL, np.bool_),
    (DataType.TYPE_UINT8, np.uint8),
    (DataType.TYPE_INT8, np.int8),
    (DataType.TYPE_INT16, np.int16),
    (DataType.TYPE_INT32, np.int32),
    (DataType.TYPE_INT64, np.int64),
    (DataType.TYPE_FP16, np.float16),
    (DataType.TYPE_FP32, np.float32),
    (DataType.TYPE_FP64, np.float64),
    (DataType.TYPE_BF16, np.uint16),
]


@pytest.mark.parametrize(("data_type", "dtype"), DTYPES)
def test_every_number_goes_through(tmp_path: Path, data_type: DataType, dtype: type[np.generic]) -> None:
    script(models.Identity(), tmp_path)
    config = config_of(data_type=data_type)
    instance = open_instance(tmp_path, config)
    array = np.arange(6).reshape(2, 3).astype(dtype)
    array.flags.writeable = False
    for value in (array, array[:, ::2], array[:, :0]):
        [outputs] = run_batch(instance, config, {"x": value})
        np.testing.assert_array_equal(outputs["OUT"], value)
        assert outputs["OUT"].dtype == dtype


@pytest.mark.parametrize(("max_batch_size", "shape"), [(8, (2, 1)), (0, (2,))])
def test_strings_are_lists(tmp_path: Path, max_batch_size: int, shape: tuple[int, ...]) -> None:
    script(models.Shout(), tmp_path)
    dims = (1,) if max_batch_size else (-1,)
    config = config_of(data_type=STRING, dims=dims, max_batch_size=max_batch_size)
    words = np.array(["grüße".encode(), b"hi"], dtype=object).reshape(shape)
    [outputs] = run_batch(open_instance(tmp_path, config), config, {"x": words})
    assert outputs["OUT"].shape == shape
    assert outputs["OUT"].ravel().tolist() == ["grüße!".encode(), b"hi!"]


def test_a_string_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    script(models.Shout(), tmp_path)
    config = config_of(data_type=STRING, dims=(1,))
    with pytest.raises(
        InferenceError, match="model 'm', input 'x': a PyTorch string must be UTF-8"
    ) as caught:
        run_batch(open_instance(tmp_path, config), config, {"x": np.array([[b"\xff"]], dtype=object)})
    assert caught.value.code is StatusCode.INVALID_ARG


@pytest.mark.parametrize("save", [script, lambda module, path: export(module, path, torch.ones(2, 2))])
def test_a_model_that_writes_in_place_leaves_the_requests_alone(
    tmp_path: Path, save: Callable[[torch.nn.Module, Path], None]
) -> None:
    save(models.WritesToItsInput(), tmp_path)
    config = config_of()
    array = ONES.copy()
    [outputs] = run_batch(open_instance(tmp_path, config), config, {"x": array})
    assert outputs["OUT"].tolist() == [[2, 2]]
    assert array.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "parameters",
    [
        {"INFERENCE_MODE": "false"},
        {"DISABLE_OPTIMIZED_EXECUTION": "true", "DISABLE_CUDNN": "1"},
        {"ENABLE_CACHE_CLEANING": "true"},
        {"ENABLE_JIT_EXECUTOR": "true", "ENABLE_JIT_PROFILING": "true", "ENABLE_TENSOR_FUSER": "true"},
    ],
)
def test_parameters_are_accepted(tmp_path: Path, parameters: dict[str, str]) -> None:
    script(models.Identity(), tmp_path)
    config = config_of(parameters=parameters)
    assert run_batch(open_instance(tmp_path, config), config, {"x": ONES})[0]["OUT"].tolist() == [[1, 1]]


@pytest.mark.parametrize(("shared", "same"), [("true", True), ("false", False)])
def test_weights_are_shared_when_asked_for(tmp_path: Path, shared: str, same: bool) -> None:
    script(models.Identity(), tmp_path)
    config = config_of(parameters={"ENABLE_WEIGHT_SHARING": shared})
    model = TorchBackend().load(files_of(tmp_path), config)
    one, other = (model.create_instance(InstancePlacement(f"m_{index}", "CPU", 0)) for index in range(2))
    assert (one._program is other._program) is same


def test_the_first_model_decides_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    backend = TorchBackend()
    for count in ("1", "1", "2"):
        backend.load(files_of(tmp_path), config_of(parameters={"INTRA_OP_THREAD_COUNT": count}))
    assert counts == [1]
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.WARNING,
            "model 'm': INTRA_OP_THREAD_COUNT is 1 for the whole process already; 2 is ignored",
        )
    ]


def test_a_kind_of_model_runs_where_the_model_says(tmp_path: Path) -> None:
    script(models.Identity(), tmp_path)
    config = config_of()
    instance = open_instance(tmp_path, config, InstancePlacement("m_0", "MODEL", 0))
    assert run_batch(instance, config, {"x": ONES})[0]["OUT"].tolist() == [[1, 1]]


def test_nothing_is_completed(tmp_path: Path) -> None:
    config = ModelConfig(name="m", platform="pytorch_libtorch")
    assert TorchBackend().complete_config(files_of(tmp_path), config) is config


@pytest.mark.parametrize(
    ("config", "code", "text"),
    [
        (
            config_of(outputs=()),
            StatusCode.INVALID_ARG,
            "unable to load model 'm': the configuration of a PyTorch model must list its inputs and outputs; "
            "its file does not tell them",
        ),
        (
            config_of(data_type=STRING, dims=(4,)),
            StatusCode.INVALID_ARG,
            "model 'm', input 'x': PyTorch has strings only as a list, one for each item of a batch, or with one "
            "dimension where the model does not batch",
        ),
        (
            config_of(parameters={"INFERENCE_MODE": "yes"}),
            StatusCode.INVALID_ARG,
            "model 'm': INFERENCE_MODE must be 0, 1, true or false, got 'yes'",
        ),
        (
            config_of(parameters={"INTRA_OP_THREAD_COUNT": "none"}),
            StatusCode.INVALID_ARG,
            "model 'm': INTRA_OP_THREAD_COUNT must be a number of threads, got 'none'",
        ),
    ],
)
def test_a_configuration_that_cannot_be_served_is_a_load_error(
    tmp_path: Path, config: ModelConfig, code: StatusCode, text: str
) -> None:
    with pytest.raises(InferenceError) as caught:
        TorchBackend().load(files_of(tmp_path), config)
    assert (caught.value.code, caught.value.message) == (code, text)


def test_inputs_that_the_model_does_not_take_are_a_load_error(tmp_path: Path) -> None:
    script(models.AddSub(), tmp_path)
    with pytest.raises(
        InferenceError, match="model 'm': the model takes a, b, but the configuration has 1 inputs"
    ):
        open_instance(tmp_path, config_of(("a",)))


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(InferenceError) as caught:
        open_instance(tmp_path, config_of())
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.message == f"unable to find '{tmp_path}/1/model.pt' for model instance 'm_0'"


def test_a_corrupt_file_is_a_load_error(tmp_path: Path) -> None:
    script(models.Identity(), tmp_path)
    path = tmp_path / "1" / "model.pt"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InferenceError) as caught:
        open_instance(tmp_path, config_of())
    assert caught.value.code is StatusCode.INTERNAL
    assert caught.value.message == (
        f"unable to load model 'm' from '{path}': it is not a PyTorch file, or is damaged"
    )


def test_pickled_weights_are_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    torch.save({"weight": torch.ones(1)}, tmp_path / "1" / "model.pt")
    with pytest.raises(InferenceError, match="it is a pickled object, not a model that can be called"):
        open_instance(tmp_path, config_of())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"data_type": DataType.TYPE_INT64},
            "model 'm', output 'OUT': expected INT64, but the model gave FP32",
        ),
        ({"data_type": DataType.TYPE_BF16}, "output 'OUT': expected BF16, but the model gave torch.float32"),
        (
            {"data_type": STRING, "dims": (1,)},
            r"expected a list of strings, but the model gave a tensor of torch.float32 and shape \[1, 2\]",
        ),
        (
            {"outputs": ("A", "B", "C")},
            "output 'C': the model's result has nothing at its place: a tuple of 2",
        ),
    ],
)
def test_a_result_that_is_not_as_configured_says_how(
    tmp_path: Path, fields: dict[str, Any], text: str
) -> None:
    script(models.AddSub(), tmp_path)
    config = config_of(("a", "b"), **fields)
    config = config.model_copy(update={"input": config_of(("a", "b")).input})
    with pytest.raises(InferenceError, match=text) as caught:
        run_batch(open_instance(tmp_path, config), config, {"a": ONES, "b": ONES})
    assert caught.value.code is StatusCode.INTERNAL


def test_a_model_that_fails_says_which_and_why(tmp_path: Path) -> None:
    script(models.AddSub(), tmp_path)
    config = config_of(("a", "b"), ("SUM", "DIFFERENCE"))
    with pytest.raises(InferenceError, match=r"(?s)model 'm': .*size of tensor a") as caught:
        run_batch(open_instance(tmp_path, config), config, {"a": ONES, "b": np.ones((1, 3), np.float32)})
    assert caught.value.code is StatusCode.INTERNAL


@pytest.mark.slow
def test_a_compiled_package_is_run(tmp_path: Path) -> None:
    export_add_sub(tmp_path)
    path = tmp_path / "1" / "model.pt2"
    models.compile_exported(path)
    config = config_of(("INPUT__0", "INPUT__1"), ("OUTPUT__0", "OUTPUT__1"), platform="torch_aoti")
    instance = open_instance(tmp_path, config)
    [outputs] = run_batch(instance, config, {"INPUT__0": 3 * ONES, "INPUT__1": ONES})
    assert outputs["OUTPUT__1"].tolist() == [[2, 2]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch can use a GPU")
def test_a_gpu_instance_without_cuda_says_what_to_install(tmp_path: Path) -> None:
    script(models.Identity(), tmp_path)
    with pytest.raises(InferenceError, match="is placed on GPU 0, but the installed torch cannot use it"):
        open_instance(tmp_path, config_of(), InstancePlacement("m_0_gpu0", "GPU", 0))


@pytest.mark.gpu
@pytest.mark.skipif(not available_gpus(), reason="this machine has no GPU")
def test_a_model_runs_on_the_gpu(tmp_path: Path) -> None:
    script(models.Identity(), tmp_path)
    config = config_of()
    instance = open_instance(tmp_path, config, InstancePlacement("m_0_gpu0", "GPU", 0))
    assert run_batch(instance, config, {"x": ONES})[0]["OUT"].tolist() == [[1, 1]]


def test_a_ragged_batch_is_flat_and_has_its_batch_inputs(tmp_path: Path) -> None:
    script(models.AddDefault(), tmp_path)
    ragged = ModelInput(name="a", data_type=FP32, dims=(-1,), allow_ragged_batch=True)
    counts = BatchInput(
        kind=BatchInputKind.BATCH_ELEMENT_COUNT, target_name=("b",), data_type=FP32, source_input=("a",)
    )
    config = config_of(
        input=(ragged,),
        batch_input=(counts,),
        batch_output=(BatchOutput(target_name=("OUT",), source_input=("a",)),),
    )
    inputs = ({"a": np.array([[1]], np.float32)}, {"a": np.array([[3]], np.float32)})
    first, second = run_batch(open_instance(tmp_path, config), config, *inputs)
    # Each of the two requests has one element, which is added to it.
    assert (first["OUT"].tolist(), second["OUT"].tolist()) == ([[2]], [[4]])
