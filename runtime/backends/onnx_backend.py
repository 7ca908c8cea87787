"""The onnxruntime backend: sessions, and batches run in them.

The only module that imports onnxruntime. What a configuration may ask of a session is read in onnx_options; what a
graph says of its tensors is judged in onnx_signature.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime import InferenceSession as Session

from cantata.grammars.model_config import DataType as ConfigDataType
from cantata.grammars.model_config import ModelConfig, ModelInput, ModelOutput
from cantata.runtime.backends.backend import (
    BackendSettings,
    InstancePlacement,
    ModelFiles,
    ServerServices,
)
from cantata.runtime.backends.onnx_options import (
    CPU,
    INSTALL_HINTS,
    Provider,
    SessionSettings,
    read_number,
    read_providers,
    read_session_settings,
)
from cantata.runtime.backends.onnx_signature import (
    GraphSignature,
    GraphTensor,
    check_config,
    complete_config,
    needs_completion,
)
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import (
    InferenceError,
    internal_error,
    invalid_argument,
    unavailable,
)
from cantata.runtime.execution.batch_tensors import Array, divide_outputs, gather_inputs, wanted_outputs
from cantata.runtime.execution.execution import Execution
from cantata.runtime.sequence_tensors import added_inputs, state_outputs

_MODEL_FILENAME: Final = "model.onnx"
_DEFAULT_MAX_BATCH_SIZE: Final = 4
# TensorProto.BFLOAT16.
_BFLOAT16: Final = 16
# Every error comes as an exception, and is reported once.
_LOG_NOTHING_BUT_FATAL: Final = 4

_ORT_ERROR = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", re.DOTALL)


def create_backend(settings: BackendSettings, services: ServerServices) -> OnnxBackend:
    """The entry point that the catalogue calls."""
    return OnnxBackend(settings.values)


class OnnxBackend:
    """Completes configurations from ONNX graphs and loads them; the settings are `--backend-config=onnxruntime`."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._default_max_batch_size = read_number(
            settings, "default-max-batch-size", _DEFAULT_MAX_BATCH_SIZE
        )
        # One pool of threads for all sessions in place of one for each.
        self._uses_global_threads = settings.get("enable-global-threadpool", "0").casefold() in ("1", "true")
        if self._uses_global_threads:
            onnxruntime.set_global_thread_pool_sizes(
                int(settings.get("intra_op_thread_count", "0")),
                int(settings.get("inter_op_thread_count", "0")),
            )

    def default_instance_count(self, kind: str) -> int:
        return 2 if kind == "CPU" else 1

    def default_kind(self) -> str:
        # A build without CUDA serves from the CPU on any machine.
        return "AUTO" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "CPU"

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        if not needs_completion(config):
            return config
        options = onnxruntime.SessionOptions()
        # Only the graph's inputs and outputs are looked at: optimising it now would be thrown away.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = _LOG_NOTHING_BUT_FATAL
        _register_operations(options, files, config)
        path = _model_path(files, config, f"{config.name}_0")
        session = _open_session(config.name, path, options, (Provider(CPU),))
        return complete_config(config, _signature(session), self._default_max_batch_size)

    def load(self, files: ModelFiles, config: ModelConfig) -> OnnxModel:
        settings = read_session_settings(config, self._settings)
        return OnnxModel(files, config, settings, self._uses_global_threads)

    def close(self) -> None:
        """Nothing outlives the models."""


class OnnxModel:
    """A model version. Its instances on the CPU share one session, and so one copy of the weights.

    Sessions may be run by any number of threads at once. A GPU instance has a session of its own, so that its work
    has a stream of its own. `_lock` guards `_cpu_session`.
    """

    def __init__(
        self, files: ModelFiles, config: ModelConfig, settings: SessionSettings, uses_global_threads: bool
    ) -> None:
        self._files = files
        self._config = config
        self._settings = settings
        self._uses_global_threads = uses_global_threads
        self._lock = threading.Lock()
        self._cpu_session: Session | None = None

    def create_instance(self, placement: InstancePlacement) -> OnnxInstance:
        with self._lock:
            session = self._cpu_session if placement.kind != "GPU" else None
            if session is None:
                session = self._new_session(placement)
            if placement.kind != "GPU":
                self._cpu_session = session
        return OnnxInstance(self._config, session, self._settings.run_entries)

    def close(self) -> None:
        self._cpu_session = None

    def _new_session(self, placement: InstancePlacement) -> Session:
        files, config = self._files, self._config
        path = _model_path(files, config, placement.name)
        providers = read_providers(config, placement.kind, placement.device_id)
        options = _session_options(self._settings, self._uses_global_threads)
        _register_operations(options, files, config)
        session = _open_session(config.name, path, options, providers)
        check_config(config, _signature(session))
        return session


class OnnxInstance:
    """Runs batches in a session. Arrays go in and come out without a copy where they are on the CPU."""

    def __init__(self, config: ModelConfig, session: Session, run_entries: Mapping[str, str]) -> None:
        self._name = config.name
        self._session = session
        self._run_options = _run_options(run_entries)
        strings = ConfigDataType.TYPE_STRING
        self._text_inputs = {tensor.name for tensor in config.input if tensor.data_type is strings}
        self._text_outputs = {tensor.name for tensor in config.output if tensor.data_type is strings}
        added, states = added_inputs(config), state_outputs(config)
        self._text_inputs |= {name for name, datatype in added.items() if datatype is DataType.BYTES}
        self._text_outputs |= {name for name, datatype in states.items() if datatype is DataType.BYTES}
        tensors: tuple[ModelInput | ModelOutput, ...] = (*config.input, *config.output)
        # numpy has no such type, so these travel as onnxruntime's own values, around every array.
        self._bfloat16 = {tensor.name for tensor in tensors if tensor.data_type is ConfigDataType.TYPE_BF16}
        self._bfloat16 |= {
            name for name, datatype in (*added.items(), *states.items()) if datatype is DataType.BF16
        }
        self._scalar_inputs, self._scalar_outputs = _scalars(config, session)
        self._is_plain = not (self._text_inputs or self._bfloat16 or self._scalar_inputs)
        self._output_is_plain = not (self._text_outputs or self._bfloat16 or self._scalar_outputs)

    def execute(self, execution: Execution) -> bool:
        feeds = gather_inputs(execution)
        if not self._is_plain:
            self._adapt_inputs(feeds)
        names = wanted_outputs(execution)
        execution.inputs_ready()
        outputs = self._run(names, feeds)
        execution.outputs_ready()
        if not self._output_is_plain:
            self._adapt_outputs(outputs)
        divide_outputs(execution, outputs)
        return True

    def close(self) -> None:
        """The session goes with the last instance that holds it."""

    def _run(self, names: Sequence[str], feeds: dict[str, Array]) -> dict[str, Any]:
        try:
            if self._bfloat16:
                values = {name: self._value(name, array) for name, array in feeds.items()}
                results = self._session.run_with_ort_values(list(names), values, self._run_options)
                return {name: _array_of(value) for name, value in zip(names, results, strict=True)}
            return dict(zip(names, self._session.run(names, feeds, self._run_options), strict=True))
        except Exception as error:
            raise internal_error(f"model '{self._name}': {_ort_text(error)}") from error

    def _value(self, name: str, array: Array) -> onnxruntime.OrtValue:
        if name in self._bfloat16:
            contiguous = np.ascontiguousarray(array)
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, _BFLOAT16)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def _adapt_inputs(self, feeds: dict[str, Array]) -> None:
        for name in self._text_inputs & feeds.keys():
            feeds[name] = self._texts(name, feeds[name])
        for name in self._scalar_inputs & feeds.keys():
            feeds[name] = feeds[name].reshape(())

    def _adapt_outputs(self, outputs: dict[str, Any]) -> None:
        for name in self._text_outputs & outputs.keys():
            outputs[name] = _elementwise(str.encode, outputs[name])
        for name in self._scalar_outputs & outputs.keys():
            if not outputs[name].shape:
                outputs[name] = outputs[name].reshape(1)

    def _texts(self, name: str, array: Array) -> Array:
        try:
            return _elementwise(bytes.decode, array)
        except UnicodeDecodeError as error:
            raise invalid_argument(
                f"model '{self._name}', input '{name}': an ONNX string must be UTF-8: {error}"
            ) from None


def _elementwise(convert: Callable[[Any], object], array: Array) -> Array:
    converted = np.empty(array.shape, dtype=object)
    converted.reshape(-1)[:] = [convert(element) for element in array.flat]
    return converted


def _array_of(value: onnxruntime.OrtValue) -> Array:
    """A value's elements: a view for BF16, which onnxruntime cannot give as an array."""
    if value.element_type() != _BFLOAT16:
        array: Array = value.numpy()
        return array
    shape, count = value.shape(), value.tensor_size_in_bytes() // 2
    elements = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    # The array holds its buffer, and so the value whose memory it is.
    elements.owner = value
    return np.frombuffer(elements, dtype=np.uint16, count=count).reshape(shape)


def _scalars(config: ModelConfig, session: Session) -> tuple[set[str], set[str]]:
    """The inputs and outputs without dimensions that a configuration, which must give some, lists as [1]."""
    if config.max_batch_size > 0:
        return set(), set()
    shapeless = {
        tensor.name for tensor in (*session.get_inputs(), *session.get_outputs()) if not tensor.shape
    }
    inputs = {tensor.name for tensor in config.input if tuple(tensor.dims) == (1,) and tensor.reshape is None}
    outputs = {
        tensor.name for tensor in config.output if tuple(tensor.dims) == (1,) and tensor.reshape is None
    }
    return inputs & shapeless, outputs & shapeless


def _session_options(settings: SessionSettings, uses_global_threads: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, settings.graph_level)
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    options.use_per_session_threads = not uses_global_threads
    options.enable_cpu_mem_arena = settings.uses_memory_arena
    options.enable_mem_pattern = settings.uses_memory_pattern
    options.log_severity_level = _LOG_NOTHING_BUT_FATAL
    if settings.is_parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    for name, value in settings.entries.items():
        options.add_session_config_entry(name, value)
    return options


def _run_options(entries: Mapping[str, str]) -> onnxruntime.RunOptions | None:
    if not entries:
        return None
    options = onnxruntime.RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(name, value)
    return options


def _register_operations(options: onnxruntime.SessionOptions, files: ModelFiles, config: ModelConfig) -> None:
    operations = config.model_operations
    for library in operations.op_library_filename if operations is not None else ():
        beside = files.model_directory / library
        path = str(beside) if beside.exists() else library
        try:
            options.register_custom_ops_library(path)
        except Exception as error:
            raise _load_error(config.name, error) from error


def _open_session(
    model: str, path: Path, options: onnxruntime.SessionOptions, providers: Sequence[Provider]
) -> Session:
    _check_installed(model, providers)
    if any(provider.name != CPU for provider in providers) and hasattr(onnxruntime, "preload_dlls"):
        # Finds CUDA where pip put it.
        onnxruntime.preload_dlls()
    try:
        session = Session(
            str(path),
            options,
            providers=[provider.name for provider in providers],
            provider_options=[dict(provider.options) for provider in providers],
        )
    except Exception as error:
        raise _load_error(model, error) from error
    # onnxruntime goes on without a provider that it could not start; a model on the wrong device is a failure.
    absent = {provider.name for provider in providers} - set(session.get_providers())
    if absent:
        raise unavailable(
            f"unable to load model '{model}': onnxruntime could not start {', '.join(sorted(absent))}; its "
            "libraries or its device are missing"
        )
    return session


def _check_installed(model: str, providers: Sequence[Provider]) -> None:
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider.name not in available:
            raise unavailable(
                f"unable to load model '{model}': the installed onnxruntime has no {provider.name}: "
                + INSTALL_HINTS[provider.name]
            )


def _signature(session: Session) -> GraphSignature:
    return GraphSignature(
        inputs=tuple(map(_graph_tensor, session.get_inputs())),
        outputs=tuple(map(_graph_tensor, session.get_outputs())),
        defaulted=tuple(map(_graph_tensor, session.get_overridable_initializers())),
    )


def _graph_tensor(node: Any) -> GraphTensor:
    # Dimensions of any size are None or a name.
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return GraphTensor(node.name, node.type, shape)


def _model_path(files: ModelFiles, config: ModelConfig, instance: str) -> Path:
    path = files.version_directory / (config.default_model_filename or _MODEL_FILENAME)
    if path.is_dir():
        path /= _MODEL_FILENAME
    if not path.exists():
        raise unavailable(f"unable to find '{path}' for model instance '{instance}'")
    return path


def _load_error(model: str, error: Exception) -> InferenceError:
    return internal_error(f"unable to load model '{model}': {_ort_text(error)}")


def _ort_text(error: Exception) -> str:
    """`onnx runtime error 7: ...`, without onnxruntime's own decoration."""
    match = _ORT_ERROR.search(str(error))
    if match is None:
        return f"onnx runtime error: {error}"
    return f"onnx runtime error {match[1]}: {match[2].strip()}"
