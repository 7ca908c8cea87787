"""The onnxruntime backend, with real sessions of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from cantata.grammars.model_config import (
    Accelerator,
    BatchInput,
    BatchInputKind,
    BatchOutput,
    DataType,
    ExecutionAccelerators,
    ModelConfig,
    ModelInput,
    ModelOperations,
    ModelOptimizationPolicy,
    ModelOutput,
    ModelParameter,
)
from cantata.runtime.backends.backend import InstancePlacement, ModelFiles
from cantata.runtime.backends.onnx_backend import OnnxBackend, OnnxInstance
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.devices import available_gpus
from tests.support.batches import run_batch
from tests.support.onnx_models import FLOAT, add_sub_model, identity_model, onnx_model, write_model

ON_CPU = InstancePlacement("m_0", "CPU", 0)


def files_of(directory: Path) -> ModelFiles:
    return ModelFiles("m", 1, directory, directory / "1")


def complete(directory: Path, settings: dict[str, str] | None = None, **fields: Any) -> ModelConfig:
    config = ModelConfig(name="m", backend="onnxruntime", **fields)
    return OnnxBackend(settings or {}).complete_config(files_of(directory), config)


def instance_of(directory: Path, config: ModelConfig, placement: InstancePlacement = ON_CPU) -> OnnxInstance:
    return OnnxBackend({}).load(files_of(directory), config).create_instance(placement)


def identity(
    directory: Path, element_type: int, dims: tuple[int | None, ...] = (None, None), **fields: Any
) -> tuple[ModelConfig, OnnxInstance]:
    write_model(directory, identity_model(element_type, dims))
    config = complete(directory, **fields)
    return config, instance_of(directory, config)


def test_the_configuration_is_completed_from_the_graph(tmp_path: Path) -> None:
    write_model(tmp_path, add_sub_model(("batch", 4)))
    completed = complete(tmp_path)
    assert completed.max_batch_size == 4
    assert completed.dynamic_batching is not None
    assert completed.input == tuple(
        ModelInput(name=name, data_type=DataType.TYPE_FP32, dims=(4,)) for name in ("A", "B")
    )
    assert completed.output == tuple(
        ModelOutput(name=name, data_type=DataType.TYPE_FP32, dims=(4,)) for name in ("SUM", "DIFFERENCE")
    )


def test_the_default_batch_size_is_a_setting(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    assert complete(tmp_path, {"default-max-batch-size": "16"}).max_batch_size == 16
    assert complete(tmp_path, {"default-max-batch-size": "0"}).input[0].dims == (-1, 4)


def test_a_configuration_that_says_everything_is_not_held_against_the_file(tmp_path: Path) -> None:
    tensor = {"name": "T", "data_type": DataType.TYPE_FP32, "dims": (4,)}
    fields = {"input": (ModelInput(**tensor),), "output": (ModelOutput(**tensor),)}
    assert complete(tmp_path, **fields) == ModelConfig(name="m", backend="onnxruntime", **fields)


def test_a_batch_is_run_and_divided(tmp_path: Path) -> None:
    write_model(tmp_path, add_sub_model())
    config = complete(tmp_path)
    instance = instance_of(tmp_path, config)
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    first, second = run_batch(instance, config, {"A": a, "B": b}, {"A": a[:1] * 2, "B": b[:1]})
    np.testing.assert_array_equal(first["SUM"], a + b)
    np.testing.assert_array_equal(first["DIFFERENCE"], a - b)
    np.testing.assert_array_equal(second["SUM"], a[:1] * 2 + b[:1])


def test_only_the_outputs_asked_for_are_given(tmp_path: Path) -> None:
    write_model(tmp_path, add_sub_model())
    config = complete(tmp_path)
    ones = np.ones((1, 4), np.float32)
    [outputs] = run_batch(
        instance_of(tmp_path, config), config, {"A": ones, "B": ones}, outputs=("DIFFERENCE",)
    )
    assert list(outputs) == ["DIFFERENCE"]


NUMBERS = [
    (TensorProto.BOOL, np.bool_),
    (TensorProto.UINT8, np.uint8),
    (TensorProto.UINT16, np.uint16),
    (TensorProto.UINT32, np.uint32),
    (TensorProto.UINT64, np.uint64),
    (TensorProto.INT8, np.int8),
    (TensorProto.INT16, np.int16),
    (TensorProto.INT32, np.int32),
    (TensorProto.INT64, np.int64),
    (TensorProto.FLOAT16, np.float16),
    (TensorProto.FLOAT, np.float32),
    (TensorProto.DOUBLE, np.float64),
]


@pytest.mark.parametrize(("element_type", "dtype"), NUMBERS)
def test_every_number_goes_through(tmp_path: Path, element_type: int, dtype: type[np.generic]) -> None:
    config, instance = identity(tmp_path, element_type)
    array = np.arange(6).reshape(2, 3).astype(dtype)
    array.flags.writeable = False
    empty = np.empty((2, 0), dtype)
    for value in (array, array.T.copy().T, empty):
        [outputs] = run_batch(instance, config, {"IN": value})
        np.testing.assert_array_equal(outputs["OUT"], value)
        assert outputs["OUT"].dtype == dtype


def test_bfloat16_goes_through_as_its_bits(tmp_path: Path) -> None:
    config, instance = identity(tmp_path, TensorProto.BFLOAT16)
    bits = np.array([[0x3F80, 0x4000], [0xC040, 0]], np.uint16)
    one, other = run_batch(instance, config, {"IN": bits[:1]}, {"IN": bits[1:]})
    np.testing.assert_array_equal(np.concatenate([one["OUT"], other["OUT"]]), bits)
    [empty] = run_batch(instance, config, {"IN": bits[:, :0]})
    assert empty["OUT"].shape == (2, 0)


def test_strings_go_through_as_bytes(tmp_path: Path) -> None:
    config, instance = identity(tmp_path, TensorProto.STRING)
    words = np.array([["grüße".encode(), b""], [b"a\x00b", b"plain"]], dtype=object)
    [outputs] = run_batch(instance, config, {"IN": words})
    assert outputs["OUT"].tolist() == words.tolist()
    [empty] = run_batch(instance, config, {"IN": words[:, :0]})
    assert empty["OUT"].shape == (2, 0)


def test_a_string_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    config, instance = identity(tmp_path, TensorProto.STRING)
    with pytest.raises(InferenceError, match="model 'm', input 'IN': an ONNX string must be UTF-8") as caught:
        run_batch(instance, config, {"IN": np.array([[b"\xff"]], dtype=object)})
    assert caught.value.code is StatusCode.INVALID_ARG


def test_scalars_are_one_value_to_clients(tmp_path: Path) -> None:
    config, instance = identity(tmp_path, FLOAT, ())
    assert config.input[0].dims == (1,)
    [outputs] = run_batch(instance, config, {"IN": np.array([3], np.float32)})
    assert outputs["OUT"].tolist() == [3]


def test_one_value_an_item_is_batched(tmp_path: Path) -> None:
    config, instance = identity(tmp_path, FLOAT, (None,))
    one, other = run_batch(
        instance, config, {"IN": np.array([[1], [2]], np.float32)}, {"IN": np.array([[3]], np.float32)}
    )
    assert (one["OUT"].tolist(), other["OUT"].tolist()) == ([[1], [2]], [[3]])


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [1]))
    node = helper.make_node("OptionalHasElement", ["IN"], ["OUT"])
    write_model(
        tmp_path,
        onnx_model([node], [helper.make_value_info("IN", optional)], {"OUT": (TensorProto.BOOL, ())}),
    )
    config = complete(tmp_path)
    instance = instance_of(tmp_path, config)
    assert [
        run_batch(instance, config, given)[0]["OUT"].tolist() for given in ({}, {"IN": [np.float32(1)]})
    ] == [
        [False],
        [True],
    ]


def test_an_initializer_may_be_overridden_by_an_optional_input(tmp_path: Path) -> None:
    weight = helper.make_tensor("W", FLOAT, [1], [10.0])
    node = helper.make_node("Add", ["IN", "W"], ["OUT"])
    write_model(
        tmp_path,
        onnx_model([node], {"IN": (FLOAT, (1,)), "W": (FLOAT, (1,))}, {"OUT": (FLOAT, (1,))}, [weight]),
    )
    fp32 = DataType.TYPE_FP32
    inputs = (
        ModelInput(name="IN", data_type=fp32, dims=(1,)),
        ModelInput(name="W", data_type=fp32, dims=(1,), optional=True),
    )
    config = complete(tmp_path, input=inputs)
    instance = instance_of(tmp_path, config)
    one = np.ones(1, np.float32)
    assert run_batch(instance, config, {"IN": one})[0]["OUT"].tolist() == [11]
    assert run_batch(instance, config, {"IN": one, "W": one})[0]["OUT"].tolist() == [2]


def test_a_model_may_be_a_directory(tmp_path: Path) -> None:
    write_model(tmp_path / "1", identity_model(), version="model.onnx")  # type: ignore[arg-type]
    config = complete(tmp_path)
    [outputs] = run_batch(instance_of(tmp_path, config), config, {"IN": np.ones((1, 4), np.float32)})
    assert outputs["OUT"].tolist() == [[1, 1, 1, 1]]


def test_cpu_instances_share_one_session(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    model = OnnxBackend({}).load(files_of(tmp_path), complete(tmp_path))
    one, other = (model.create_instance(InstancePlacement(f"m_{index}", "CPU", 0)) for index in range(2))
    assert one._session is other._session


def test_options_reach_the_session(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    parameters = {
        "intra_op_thread_count": "1",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.disable_prepacking": "1",
    }
    config = complete(
        tmp_path, parameters={name: ModelParameter(string_value=value) for name, value in parameters.items()}
    )
    # Shrinking needs an arena, as onnxruntime itself says when it runs.
    with pytest.raises(InferenceError, match="model 'm': onnx runtime error"):
        run_batch(instance_of(tmp_path, config), config, {"IN": np.ones((1, 4), np.float32)})
    options = instance_of(tmp_path, config)._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.enable_cpu_mem_arena is False
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_corrupt_file_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, b"not a model at all")
    with pytest.raises(InferenceError) as caught:
        complete(tmp_path)
    assert caught.value.code is StatusCode.INTERNAL
    assert caught.value.message.startswith("unable to load model 'm': onnx runtime error 7: Load model from ")
    assert "Protobuf parsing failed" in caught.value.message


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    config = ModelConfig(name="m", default_model_filename="other.onnx")
    with pytest.raises(InferenceError) as caught:
        instance_of(tmp_path, config)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.message == f"unable to find '{tmp_path}/1/other.onnx' for model instance 'm_0'"


def test_a_configuration_that_disagrees_with_the_graph_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    tensor = ModelOutput(name="OUT", data_type=DataType.TYPE_INT32, dims=(4,))
    with pytest.raises(InferenceError, match="configuration expects datatype TYPE_INT32 for output 'OUT'"):
        instance_of(tmp_path, complete(tmp_path, output=(tensor,)))


def test_a_library_of_operations_that_is_missing_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    operations = ModelOperations(op_library_filename=("missing.so",))
    with pytest.raises(InferenceError, match=r"unable to load model 'm': onnx runtime error.*missing\.so"):
        complete(tmp_path, model_operations=operations)


def ragged_config(**fields: Any) -> ModelConfig:
    """OUT is RAGGED, each element with the end of its request's part beside it."""
    tensor = {"data_type": DataType.TYPE_FP32, "dims": (-1,)}
    scattered = BatchOutput(target_name=("OUT",), source_input=("RAGGED",))
    batch_input = BatchInput(
        kind=BatchInputKind.BATCH_ACCUMULATED_ELEMENT_COUNT,
        target_name=("ENDS",),
        data_type=DataType.TYPE_FP32,
        source_input=("RAGGED",),
    )
    return ModelConfig(
        **{
            "name": "m",
            "max_batch_size": 4,
            "input": (ModelInput(name="RAGGED", allow_ragged_batch=True, **tensor),),
            "output": (
                ModelOutput(name="OUT", **tensor),
                ModelOutput(name="LAST", **(tensor | {"dims": (1,)})),
            ),
            "batch_input": (batch_input,),
            "batch_output": (scattered,),
        }
        | fields
    )


def write_ragged_model(directory: Path, dims: tuple[str | None, ...] = (None,)) -> None:
    one = helper.make_tensor("ONE", TensorProto.FLOAT, [], [1.0])
    column = helper.make_tensor("COLUMN", TensorProto.INT64, [2], [-1, 1])
    nodes = [
        helper.make_node("Add", ["RAGGED", "ONE"], ["OUT"]),
        helper.make_node("Reshape", ["ENDS", "COLUMN"], ["LAST"]),
    ]
    content = onnx_model(
        nodes,
        {"RAGGED": (FLOAT, dims), "ENDS": (FLOAT, ("requests",))},
        {"OUT": (FLOAT, dims), "LAST": (FLOAT, ("requests", 1))},
        [one, column],
    )
    write_model(directory, content)


def test_a_ragged_batch_is_flat_for_the_model_and_divided_for_its_requests(tmp_path: Path) -> None:
    write_ragged_model(tmp_path)
    config = ragged_config()
    first, second = run_batch(
        instance_of(tmp_path, config),
        config,
        {"RAGGED": np.array([[1, 2, 3]], np.float32)},
        {"RAGGED": np.array([[4]], np.float32)},
    )
    assert (first["OUT"].tolist(), first["LAST"].tolist()) == ([[2, 3, 4]], [[3]])
    assert (second["OUT"].tolist(), second["LAST"].tolist()) == ([[5]], [[4]])


def test_a_ragged_input_must_be_flat_in_the_model(tmp_path: Path) -> None:
    write_ragged_model(tmp_path, ("items", None))
    with pytest.raises(
        InferenceError, match=r"shape \[-1\] for ragged input 'RAGGED', model provides \[-1,-1\]"
    ):
        instance_of(tmp_path, ragged_config())


def test_a_batch_input_must_be_one_of_the_model_s(tmp_path: Path) -> None:
    write_ragged_model(tmp_path)
    lost = BatchInput(target_name=("END",), data_type=DataType.TYPE_FP32, source_input=("RAGGED",))
    config = ragged_config(batch_input=(*ragged_config().batch_input, lost))
    with pytest.raises(InferenceError, match=r"batch input 'END', but model does not provide .*'ENDS'"):
        instance_of(tmp_path, config)


def test_a_model_that_fails_says_which_and_why(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["IN", "SHAPE"], ["OUT"])
    shape = helper.make_tensor("SHAPE", TensorProto.INT64, [2], [7, 7])
    write_model(
        tmp_path, onnx_model([node], {"IN": (FLOAT, (None, 4))}, {"OUT": (FLOAT, (None, None))}, [shape])
    )
    config = complete(tmp_path)
    with pytest.raises(InferenceError, match=r"model 'm': onnx runtime error 1: .*Reshape") as caught:
        run_batch(instance_of(tmp_path, config), config, {"IN": np.ones((1, 4), np.float32)})
    assert caught.value.code is StatusCode.INTERNAL


def test_a_provider_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    accelerators = ExecutionAccelerators(cpu_execution_accelerator=(Accelerator(name="openvino"),))
    config = complete(tmp_path, optimization=ModelOptimizationPolicy(execution_accelerators=accelerators))
    with pytest.raises(InferenceError) as caught:
        instance_of(tmp_path, config)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.message == (
        "unable to load model 'm': the installed onnxruntime has no OpenVINOExecutionProvider: "
        "pip install onnxruntime-openvino"
    )


@pytest.mark.skipif(bool(available_gpus()), reason="this machine has a GPU")
def test_a_gpu_instance_without_cuda_says_what_to_install(tmp_path: Path) -> None:
    write_model(tmp_path, identity_model())
    with pytest.raises(
        InferenceError, match='has no CUDAExecutionProvider: pip install "cantata\\[onnx-gpu\\]"'
    ):
        instance_of(tmp_path, complete(tmp_path), InstancePlacement("m_0_gpu0", "GPU", 0))


@pytest.mark.gpu
@pytest.mark.skipif(not available_gpus(), reason="this machine has no GPU")
def test_a_model_runs_on_the_gpu(tmp_path: Path) -> None:
    write_model(tmp_path, add_sub_model())
    config = complete(tmp_path)
    instance = instance_of(tmp_path, config, InstancePlacement("m_0_gpu0", "GPU", 0))
    ones = np.ones((1, 4), np.float32)
    [outputs] = run_batch(instance, config, {"A": ones, "B": ones})
    assert outputs["SUM"].tolist() == [[2, 2, 2, 2]]


def test_cpu_is_preferred_by_a_build_without_cuda() -> None:
    backend = OnnxBackend({})
    assert backend.default_kind() in ("CPU", "AUTO")
    assert (backend.default_instance_count("CPU"), backend.default_instance_count("GPU")) == (2, 1)
