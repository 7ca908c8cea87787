"""What a configuration asks of ONNX Runtime."""

from __future__ import annotations

import pytest

from cantata.grammars.model_config import (
    Accelerator,
    ExecutionAccelerators,
    ModelConfig,
    ModelOptimizationPolicy,
    ModelParameter,
    OptimizationCuda,
    OptimizationGraph,
)
from cantata.runtime.backends.onnx_options import (
    CPU,
    CUDA,
    OPENVINO,
    TENSORRT,
    Provider,
    SessionSettings,
    read_number,
    read_providers,
    read_session_settings,
)
from cantata.runtime.errors import InferenceError, StatusCode

STOP_SPINNING = {"session.force_spinning_stop": "1"}


def config_of(
    optimization: ModelOptimizationPolicy | None = None, parameters: dict[str, str] | None = None
) -> ModelConfig:
    values = {name: ModelParameter(string_value=value) for name, value in (parameters or {}).items()}
    return ModelConfig(name="m", optimization=optimization, parameters=values)


def accelerated(
    *, gpu: tuple[Accelerator, ...] = (), cpu: tuple[Accelerator, ...] = ()
) -> ModelOptimizationPolicy:
    return ModelOptimizationPolicy(
        execution_accelerators=ExecutionAccelerators(
            gpu_execution_accelerator=gpu, cpu_execution_accelerator=cpu
        )
    )


def test_nothing_said_means_onnxruntimes_defaults() -> None:
    assert read_session_settings(config_of(), {}) == SessionSettings(entries=STOP_SPINNING)


def test_every_parameter_is_read() -> None:
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
    }
    assert read_session_settings(config_of(parameters=parameters), {}) == SessionSettings(
        intra_op_threads=3,
        inter_op_threads=2,
        is_parallel=True,
        uses_memory_arena=False,
        uses_memory_pattern=False,
        entries={**STOP_SPINNING, "session.use_device_allocator_for_initializers": "1"},
        run_entries={"memory.enable_memory_arena_shrinkage": "cpu:0"},
    )


def test_the_command_lines_threads_hold_where_the_model_says_nothing() -> None:
    command_line = {"intra_op_thread_count": "5", "inter_op_thread_count": "6"}
    settings = read_session_settings(config_of(parameters={"intra_op_thread_count": "1"}), command_line)
    assert (settings.intra_op_threads, settings.inter_op_threads) == (1, 6)


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
)
def test_graph_levels(level: int, name: str) -> None:
    config = config_of(ModelOptimizationPolicy(graph=OptimizationGraph(level=level)))
    assert read_session_settings(config, {}).graph_level == name


@pytest.mark.parametrize(
    ("parameters", "level", "text"),
    [
        (
            {"execution_mode": "2"},
            0,
            "model 'm': execution_mode must be 0 (sequential) or 1 (parallel), got '2'",
        ),
        (
            {},
            7,
            "model 'm': optimization.graph.level must be -1 (basic), 0 (all), 1 (extended) or 2 (none), got '7'",
        ),
        (
            {"intra_op_thread_count": "four"},
            0,
            "model 'm': intra_op_thread_count must be an integer of 0 or more, got 'four'",
        ),
        (
            {"inter_op_thread_count": "-1"},
            0,
            "model 'm': inter_op_thread_count must be an integer of 0 or more, got '-1'",
        ),
        (
            {"enable_mem_arena": "maybe"},
            0,
            "model 'm': enable_mem_arena must be 0, 1, true or false, got 'maybe'",
        ),
    ],
)
def test_values_that_are_none_are_refused(parameters: dict[str, str], level: int, text: str) -> None:
    config = config_of(ModelOptimizationPolicy(graph=OptimizationGraph(level=level)), parameters)
    with pytest.raises(InferenceError) as caught:
        read_session_settings(config, {})
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, text)


def test_a_backend_setting_must_be_a_number() -> None:
    assert read_number({"default-max-batch-size": "16"}, "default-max-batch-size", 4) == 16
    with pytest.raises(
        InferenceError, match="backend config 'default-max-batch-size' must be a number, got 'x'"
    ):
        read_number({"default-max-batch-size": "x"}, "default-max-batch-size", 4)


def test_a_cpu_instance_runs_on_the_cpu_whatever_gpu_accelerators_there_are() -> None:
    config = config_of(accelerated(gpu=(Accelerator(name="tensorrt"),)))
    assert read_providers(config, "CPU", 0) == (Provider(CPU),)


def test_providers_come_in_order() -> None:
    optimization = accelerated(
        gpu=(
            Accelerator(
                name="tensorrt",
                parameters={
                    "precision_mode": "FP16",
                    "max_workspace_size_bytes": "1024",
                    "trt_engine_cache_enable": "1",
                },
            ),
            Accelerator(name="cuda", parameters={"use_tf32": "0"}),
        ),
        cpu=(Accelerator(name="openvino", parameters={"device_type": "CPU"}),),
    )
    assert read_providers(config_of(optimization), "GPU", 1) == (
        Provider(
            TENSORRT,
            {
                "device_id": "1",
                "trt_fp16_enable": "1",
                "trt_max_workspace_size": "1024",
                "trt_engine_cache_enable": "1",
            },
        ),
        Provider(CUDA, {"device_id": "1", "use_tf32": "0"}),
        Provider(OPENVINO, {"device_type": "CPU"}),
        Provider(CPU),
    )


def test_cuda_parameters_are_put_in_the_providers_words() -> None:
    parameters = {"cudnn_conv_algo_search": "1", "gpu_mem_limit": "4096", "arena_extend_strategy": "1"}
    config = config_of(ModelOptimizationPolicy(cuda=OptimizationCuda(graphs=True)), parameters)
    assert read_providers(config, "GPU", 0)[0] == Provider(
        CUDA,
        {
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": "4096",
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1",
        },
    )


@pytest.mark.parametrize(
    ("optimization", "text"),
    [
        (
            accelerated(gpu=(Accelerator(name="tensorrt", parameters={"precision_mode": "FP8"}),)),
            "model 'm': unsupported precision mode 'FP8' is requested",
        ),
        (
            accelerated(gpu=(Accelerator(name="tensorrt", parameters={"trt_dla_cores": "1"}),)),
            "model 'm': unknown parameter 'trt_dla_cores' is provided for TensorRT Execution Accelerator "
            "(did you mean 'trt_dla_core'?)",
        ),
        (
            accelerated(gpu=(Accelerator(name="rocm"),)),
            "model 'm': unknown Execution Accelerator 'rocm' is requested, known are: tensorrt, cuda",
        ),
        (
            accelerated(cpu=(Accelerator(name="cuda"),)),
            "model 'm': unknown Execution Accelerator 'cuda' is requested, known are: openvino",
        ),
    ],
)
def test_unknown_accelerators_and_options_are_refused(
    optimization: ModelOptimizationPolicy, text: str
) -> None:
    with pytest.raises(InferenceError) as caught:
        read_providers(config_of(optimization), "GPU", 0)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARG, text)
