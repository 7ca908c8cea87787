"""What a configuration asks of ONNX Runtime, read into plain values: session options and execution providers.

Owns every option's name, range and default (reference, section 11). Does not import onnxruntime and cannot say
which providers are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cantata.grammars.model_config import Accelerator, ExecutionAccelerators, ModelConfig
from cantata.grammars.problems import suggest
from cantata.runtime.errors import InferenceError, invalid_argument

CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
CPU: Final = "CPUExecutionProvider"

# What to install for each provider that a plain onnxruntime lacks.
INSTALL_HINTS: Final = {
    CUDA: 'pip install "cantata[onnx-gpu]"',
    TENSORRT: 'pip install "cantata[onnx-gpu]" tensorrt',
    OPENVINO: "pip install onnxruntime-openvino",
}

# optimization.graph.level to the name of onnxruntime's GraphOptimizationLevel.
_GRAPH_LEVELS: Final = {
    -1: "ORT_ENABLE_BASIC",
    0: "ORT_ENABLE_ALL",
    1: "ORT_ENABLE_EXTENDED",
    2: "ORT_DISABLE_ALL",
}

_BOOLEANS: Final = {"0": False, "1": True, "false": False, "true": True}

# Parameters that become CUDA provider options, with the provider's words for the numbers that may stand for them.
_CUDA_PARAMETERS: Final[Mapping[str, Mapping[str, str]]] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "gpu_mem_limit": {},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {},
}

# TensorRT accelerator parameters whose provider option has another name; precision_mode is read by itself.
_TENSORRT_RENAMED: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_OPTIONS: Final = frozenset(
    f"trt_{name}"
    for name in (
        "max_partition_iterations",
        "min_subgraph_size",
        "dla_enable",
        "dla_core",
        "engine_cache_enable",
        "engine_cache_path",
        "engine_cache_prefix",
        "dump_subgraphs",
        "force_sequential_engine_build",
        "context_memory_sharing_enable",
        "layer_norm_fp32_fallback",
        "timing_cache_enable",
        "timing_cache_path",
        "force_timing_cache",
        "detailed_build_log",
        "build_heuristics_enable",
        "sparsity_enable",
        "builder_optimization_level",
        "auxiliary_streams",
        "tactic_sources",
        "extra_plugin_lib_paths",
        "profile_min_shapes",
        "profile_max_shapes",
        "profile_opt_shapes",
        "cuda_graph_enable",
        "dump_ep_context_model",
        "ep_context_file_path",
        "ep_context_embed_mode",
    )
)
_TENSORRT_PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "FP32": (),
    "FP16": ("trt_fp16_enable",),
    "BF16": ("trt_bf16_enable",),
    "INT8": ("trt_int8_enable",),
}


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How the sessions of one model are made, wherever they run. Thread counts of 0 are onnxruntime's choice."""

    graph_level: str = "ORT_ENABLE_ALL"
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    is_parallel: bool = False
    uses_memory_arena: bool = True
    uses_memory_pattern: bool = True
    # Session configuration entries, by onnxruntime's own names.
    entries: Mapping[str, str] = field(default_factory=dict)
    # Entries of every run.
    run_entries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider and its options, in onnxruntime's words."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


def read_session_settings(config: ModelConfig, backend_settings: Mapping[str, str]) -> SessionSettings:
    """What the configuration's `optimization` and `parameters` say of the session.

    The command line's `intra_op_thread_count` and `inter_op_thread_count` hold where a model says nothing. Raises
    InferenceError (INVALID_ARG) for values that are none.
    """
    read = _Parameters(config)
    graph = config.optimization.graph if config.optimization is not None else None
    level = graph.level if graph is not None else 0
    if level not in _GRAPH_LEVELS:
        raise read.error(
            "optimization.graph.level", str(level), "-1 (basic), 0 (all), 1 (extended) or 2 (none)"
        )
    mode = read.number("execution_mode", 0)
    if mode not in (0, 1):
        raise read.error("execution_mode", str(mode), "0 (sequential) or 1 (parallel)")
    # Threads that look for work inside a run but not after it: as quick as spinning, without burning the
    # processor that Python needs between runs.
    entries = {"session.force_spinning_stop": "1"}
    entries |= {name: value for name, value in read.values.items() if name.startswith("session.")}
    shrinkage = read.values.get("memory.enable_memory_arena_shrinkage")
    return SessionSettings(
        graph_level=_GRAPH_LEVELS[level],
        intra_op_threads=read.number(
            "intra_op_thread_count", read_number(backend_settings, "intra_op_thread_count", 0)
        ),
        inter_op_threads=read.number(
            "inter_op_thread_count", read_number(backend_settings, "inter_op_thread_count", 0)
        ),
        is_parallel=mode == 1,
        uses_memory_arena=read.flag("enable_mem_arena", default=True),
        uses_memory_pattern=read.flag("enable_mem_pattern", default=True),
        entries=entries,
        run_entries={} if not shrinkage else {"memory.enable_memory_arena_shrinkage": shrinkage},
    )


def read_number(settings: Mapping[str, str], name: str, default: int) -> int:
    """A number of `--backend-config=onnxruntime,<name>=<number>`; raises InferenceError for what is none."""
    text = settings.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise invalid_argument(f"backend config '{name}' must be a number, got '{text}'")
    return int(text)


def read_providers(config: ModelConfig, kind: str, device_id: int) -> tuple[Provider, ...]:
    """The execution providers of an instance of `kind` on `device_id`, the preferred one first.

    GPU accelerators, CUDA, CPU accelerators, CPU (reference, section 11). Raises InferenceError (INVALID_ARG) for
    an accelerator or an option that is unknown.
    """
    optimization = config.optimization
    accelerators = optimization.execution_accelerators if optimization is not None else None
    accelerators = accelerators or ExecutionAccelerators()
    providers: list[Provider] = []
    if kind == "GPU":
        providers += _gpu_providers(config, accelerators.gpu_execution_accelerator, device_id)
    for accelerator in accelerators.cpu_execution_accelerator:
        if accelerator.name != "openvino":
            raise _unknown_accelerator(config, accelerator.name, ("openvino",))
        providers.append(Provider(OPENVINO, dict(accelerator.parameters)))
    return (*providers, Provider(CPU))


def _gpu_providers(
    config: ModelConfig, accelerators: tuple[Accelerator, ...], device_id: int
) -> list[Provider]:
    device = {"device_id": str(device_id)}
    cuda_options = _cuda_options(config)
    providers: list[Provider] = []
    for accelerator in accelerators:
        match accelerator.name:
            case "tensorrt":
                providers.append(Provider(TENSORRT, device | _tensorrt_options(config, accelerator)))
            case "cuda":
                cuda_options |= accelerator.parameters
            case _:
                raise _unknown_accelerator(config, accelerator.name, ("tensorrt", "cuda"))
    return [*providers, Provider(CUDA, device | cuda_options)]


def _cuda_options(config: ModelConfig) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, words in _CUDA_PARAMETERS.items():
        parameter = config.parameters.get(name)
        if parameter is not None:
            options[name] = words.get(parameter.string_value, parameter.string_value)
    if config.optimization is not None and config.optimization.cuda is not None:
        options |= {"enable_cuda_graph": "1"} if config.optimization.cuda.graphs else {}
    return options


def _tensorrt_options(config: ModelConfig, accelerator: Accelerator) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in accelerator.parameters.items():
        if name == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                raise invalid_argument(
                    f"model '{config.name}': unsupported precision mode '{value}' is requested"
                )
            options |= dict.fromkeys(_TENSORRT_PRECISIONS[value], "1")
        elif name in _TENSORRT_RENAMED:
            options[_TENSORRT_RENAMED[name]] = value
        elif name in _TENSORRT_OPTIONS:
            options[name] = value
        else:
            hint = suggest(name, {"precision_mode", *_TENSORRT_RENAMED, *_TENSORRT_OPTIONS})
            raise invalid_argument(
                f"model '{config.name}': unknown parameter '{name}' is provided for TensorRT Execution Accelerator"
                + (f" ({hint})" if hint else "")
            )
    return options


def _unknown_accelerator(config: ModelConfig, name: str, known: tuple[str, ...]) -> InferenceError:
    return invalid_argument(
        f"model '{config.name}': unknown Execution Accelerator '{name}' is requested, known are: {', '.join(known)}"
    )


class _Parameters:
    """A model's `parameters`, read as numbers and flags."""

    def __init__(self, config: ModelConfig) -> None:
        self._model = config.name
        self.values = {name: parameter.string_value for name, parameter in config.parameters.items()}

    def number(self, name: str, default: int) -> int:
        text = self.values.get(name)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            value = -1
        if value < 0:
            raise self.error(name, text, "an integer of 0 or more")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.values.get(name)
        if text is None:
            return default
        if text.casefold() not in _BOOLEANS:
            raise self.error(name, text, "0, 1, true or false")
        return _BOOLEANS[text.casefold()]

    def error(self, name: str, value: str, expected: str) -> InferenceError:
        return invalid_argument(f"model '{self._model}': {name} must be {expected}, got '{value}'")
