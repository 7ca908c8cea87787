"""The pytorch backend: models run on batches, where the configuration puts them.

Reads what a configuration asks of PyTorch, moves values between arrays and torch tensors, and runs programs.
What is in a model's file is torch_programs' business; which value is which tensor, torch_naming's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.backends.backend import (
    BackendSettings,
    InstancePlacement,
    ModelFiles,
    ServerServices,
)
from cantata.runtime.backends.torch_naming import ValuePath, match_inputs, match_outputs, pick
from cantata.runtime.backends.torch_programs import Program, UnreadableModelError, open_program
from cantata.runtime.datatypes import DataType
from cantata.runtime.errors import InferenceError, internal_error, invalid_argument, unavailable
from cantata.runtime.execution.batch_tensors import Array, divide_outputs, gather_inputs, wanted_outputs
from cantata.runtime.execution.execution import Execution
from cantata.runtime.ragged_spec import batch_input_datatypes
from cantata.runtime.sequence_tensors import added_inputs, state_outputs

_log = logging.getLogger("cantata.pytorch")

_FILENAMES: Final = ("model.pt", "model.pt2")
_BOOLEANS: Final = {"0": False, "1": True, "false": False, "true": True}

# Parameters that set something of the whole process; the first model that says it wins.
_GLOBAL_SWITCHES: Final = {
    "ENABLE_JIT_EXECUTOR": "_jit_set_profiling_executor",
    "ENABLE_JIT_PROFILING": "_jit_set_profiling_mode",
    "ENABLE_TENSOR_FUSER": "_jit_set_texpr_fuser_enabled",
}


def create_backend(settings: BackendSettings, services: ServerServices) -> TorchBackend:
    """The entry point that the catalogue calls."""
    _allow_read_only_arrays()
    return TorchBackend()


def _allow_read_only_arrays() -> None:
    # Arrays come as read-only views of what was received. torch warns of that, once in a process: here. Programs
    # that would write to them are given copies.
    read_only = np.zeros(1, np.uint8)
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(read_only)


class TorchBackend:
    """Loads PyTorch models. `_lock` guards `_settled`, the process-wide parameters that have been set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled: dict[str, str] = {}

    def default_instance_count(self, kind: str) -> int:
        return 1

    def default_kind(self) -> str:
        return "AUTO" if torch.cuda.is_available() else "CPU"

    def complete_config(self, files: ModelFiles, config: ModelConfig) -> ModelConfig:
        """A PyTorch model's file does not say what its tensors are: nothing is filled in."""
        return config

    def load(self, files: ModelFiles, config: ModelConfig) -> TorchModel:
        _check_config(config)
        options = TorchOptions(config)
        self._set_global(config)
        return TorchModel(files, config, options)

    def close(self) -> None:
        """Nothing outlives the models."""

    def _set_global(self, config: ModelConfig) -> None:
        with self._lock:
            for name in ("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT", *_GLOBAL_SWITCHES):
                parameter = config.parameters.get(name)
                if parameter is None:
                    continue
                settled = self._settled.get(name)
                if settled is None:
                    _set_process_wide(config, name, parameter.string_value)
                    self._settled[name] = parameter.string_value
                elif settled != parameter.string_value:
                    _log.warning(
                        "model '%s': %s is %s for the whole process already; %s is ignored",
                        config.name,
                        name,
                        settled,
                        parameter.string_value,
                    )


class TorchOptions:
    """What a model's `parameters` ask of its executions."""

    def __init__(self, config: ModelConfig) -> None:
        self.uses_inference_mode = _flag(config, "INFERENCE_MODE", default=True)
        self.optimizes_execution = not _flag(config, "DISABLE_OPTIMIZED_EXECUTION", default=False)
        self.uses_cudnn = not _flag(config, "DISABLE_CUDNN", default=False)
        self.shares_weights = _flag(config, "ENABLE_WEIGHT_SHARING", default=False)
        self.cleans_cache = _flag(config, "ENABLE_CACHE_CLEANING", default=False)

    @property
    def is_ordinary(self) -> bool:
        """Whether an execution needs nothing set but inference mode."""
        return self.uses_inference_mode and self.optimizes_execution and self.uses_cudnn

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The settings of one execution; they belong to the thread."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode() if self.uses_inference_mode else torch.no_grad())
            if not self.optimizes_execution:
                stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
            if not self.uses_cudnn:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield


class TorchModel:
    """A model version. With ENABLE_WEIGHT_SHARING its instances on one device share one copy of the weights.

    `_lock` guards `_programs`.
    """

    def __init__(self, files: ModelFiles, config: ModelConfig, options: TorchOptions) -> None:
        self._files = files
        self._config = config
        self._options = options
        self._lock = threading.Lock()
        self._programs: dict[torch.device | None, Program] = {}

    def create_instance(self, placement: InstancePlacement) -> TorchInstance:
        device = _device_of(self._config, placement)
        with self._lock:
            program = self._programs.get(device)
            if program is None:
                program = self._open(placement, device)
            if self._options.shares_weights:
                self._programs[device] = program
        return TorchInstance(self._config, program, device, self._options)

    def close(self) -> None:
        self._programs.clear()

    def _open(self, placement: InstancePlacement, device: torch.device | None) -> Program:
        path = _model_path(self._files, self._config, placement.name)
        try:
            return open_program(path, device)
        except UnreadableModelError as error:
            raise internal_error(
                f"unable to load model '{self._config.name}' from '{path}': {error}"
            ) from error
        except Exception as error:
            text = str(error).strip()
            raise internal_error(
                f"unable to load model '{self._config.name}' from '{path}': {text}"
            ) from error


class TorchInstance:
    """Runs batches. On the CPU arrays go in and out without a copy, unless the program writes to them."""

    def __init__(
        self, config: ModelConfig, program: Program, device: torch.device | None, options: TorchOptions
    ) -> None:
        self._name = config.name
        self._program = program
        self._options = options
        # None: values stay on the CPU, where they come from and go to.
        self._device = device if device is not None and device.type != "cpu" else None
        self._datatypes = {tensor.name: DataType(int(tensor.data_type)) for tensor in config.input}
        self._datatypes |= added_inputs(config) | batch_input_datatypes(config)
        self._output_datatypes = {tensor.name: DataType(int(tensor.data_type)) for tensor in config.output}
        self._output_datatypes |= state_outputs(config)
        self._batches = config.max_batch_size > 0
        names = list(self._datatypes)
        self._positions = (
            {} if program.takes_dictionary else match_inputs(config.name, names, program.arguments)
        )
        self._paths = match_outputs(list(self._output_datatypes))

    def execute(self, execution: Execution) -> bool:
        arrays = gather_inputs(execution)
        if self._options.is_ordinary:
            with torch.inference_mode():
                outputs = self._run(execution, arrays)
        else:
            with self._options.applied():
                outputs = self._run(execution, arrays)
        divide_outputs(execution, outputs)
        if self._options.cleans_cache and self._device is not None:
            torch.cuda.empty_cache()
        return True

    def close(self) -> None:
        """The weights go with the last instance that holds them."""

    def _run(self, execution: Execution, arrays: dict[str, Array]) -> dict[str, Array]:
        values = self._values(arrays)
        execution.inputs_ready()
        try:
            result = self._program.call(values)
            if self._device is not None:
                torch.cuda.synchronize(self._device)
        except Exception as error:
            raise internal_error(f"model '{self._name}': {str(error).strip()}") from error
        execution.outputs_ready()
        return {
            name: self._array(name, self._picked(result, name, self._paths[name]))
            for name in wanted_outputs(execution)
        }

    def _values(self, arrays: dict[str, Array]) -> list[Any]:
        program = self._program
        if program.takes_dictionary:
            return [{name: self._value(name, array) for name, array in arrays.items()}]
        values = program.defaults.copy()
        for name, array in arrays.items():
            values[self._positions[name]] = self._value(name, array)
        return values

    def _value(self, name: str, array: Array) -> Any:
        datatype = self._datatypes[name]
        if datatype is DataType.BYTES:
            return self._texts(name, array)
        if self._program.writes_in_place or not array.flags.c_contiguous:
            array = array.copy(order="C")
        value = torch.from_numpy(array)
        if datatype is DataType.BF16:
            value = value.view(torch.bfloat16)
        return value if self._device is None else value.to(self._device)

    def _texts(self, name: str, array: Array) -> list[str]:
        try:
            return [element.decode() for element in array.flat]
        except UnicodeDecodeError as error:
            raise invalid_argument(
                f"model '{self._name}', input '{name}': a PyTorch string must be UTF-8: {error}"
            ) from None

    def _picked(self, result: Any, name: str, path: ValuePath) -> Any:
        try:
            return pick(result, name, path)
        except (LookupError, TypeError):
            raise self._output_error(
                name, f"the model's result has nothing at its place: {_described(result)}"
            ) from None

    def _array(self, name: str, value: Any) -> Array:
        datatype = self._output_datatypes[name]
        if datatype is DataType.BYTES:
            return self._text_array(name, value)
        if not isinstance(value, torch.Tensor):
            raise self._output_error(name, f"expected a tensor, but the model gave {_described(value)}")
        value = value.detach()
        if (datatype is DataType.BF16) is not (value.dtype is torch.bfloat16):
            raise self._output_error(name, f"expected {datatype.name}, but the model gave {value.dtype}")
        if datatype is DataType.BF16:
            value = value.view(torch.uint16)
        if self._program.writes_in_place:
            value = value.clone()
        try:
            array: Array = value.cpu().numpy()
        except (RuntimeError, TypeError) as error:
            raise self._output_error(name, str(error)) from error
        return array

    def _text_array(self, name: str, value: Any) -> Array:
        if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
            raise self._output_error(
                name, f"expected a list of strings, but the model gave {_described(value)}"
            )
        array = np.empty(len(value), dtype=object)
        array[:] = [element.encode() for element in value]
        return array.reshape(-1, 1) if self._batches else array

    def _output_error(self, name: str, text: str) -> InferenceError:
        return internal_error(f"model '{self._name}', output '{name}': {text}")


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {list(value.shape)}"
    if isinstance(value, dict):
        return f"a dictionary with the keys {sorted(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _check_config(config: ModelConfig) -> None:
    if not config.input or not config.output:
        raise invalid_argument(
            f"unable to load model '{config.name}': the configuration of a PyTorch model must list its inputs and "
            "outputs; its file does not tell them"
        )
    for role, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            dims = tuple(tensor.dims if tensor.reshape is None else tensor.reshape.shape)
            is_list = dims in ((), (1,)) if config.max_batch_size > 0 else len(dims) == 1
            if tensor.data_type.name == "TYPE_STRING" and not is_list:
                raise invalid_argument(
                    f"model '{config.name}', {role} '{tensor.name}': PyTorch has strings only as a list, one for "
                    "each item of a batch, or with one dimension where the model does not batch"
                )


def _device_of(config: ModelConfig, placement: InstancePlacement) -> torch.device | None:
    if placement.kind == "MODEL":
        return None
    if placement.kind == "CPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise unavailable(
            f"unable to load model '{config.name}': instance '{placement.name}' is placed on GPU "
            f"{placement.device_id}, but the installed torch cannot use it: install a build of torch with CUDA"
        )
    return torch.device("cuda", placement.device_id)


def _model_path(files: ModelFiles, config: ModelConfig, instance: str) -> Path:
    directory = files.version_directory
    named = config.default_model_filename
    if not named:
        preferred = _FILENAMES[::-1] if config.platform == "torch_aoti" else _FILENAMES
        named = next((name for name in preferred if (directory / name).exists()), preferred[0])
    path = directory / named
    if not path.is_file():
        raise unavailable(f"unable to find '{path}' for model instance '{instance}'")
    return path


def _flag(config: ModelConfig, name: str, *, default: bool) -> bool:
    parameter = config.parameters.get(name)
    if parameter is None:
        return default
    flag = _BOOLEANS.get(parameter.string_value.casefold())
    if flag is None:
        raise invalid_argument(
            f"model '{config.name}': {name} must be 0, 1, true or false, got '{parameter.string_value}'"
        )
    return flag


def _set_process_wide(config: ModelConfig, name: str, value: str) -> None:
    if name in _GLOBAL_SWITCHES:
        getattr(torch._C, _GLOBAL_SWITCHES[name])(_flag(config, name, default=True))
        return
    if not value.isdecimal() or int(value) < 1:
        raise invalid_argument(f"model '{config.name}': {name} must be a number of threads, got '{value}'")
    if name == "INTRA_OP_THREAD_COUNT":
        torch.set_num_threads(int(value))
        return
    try:
        torch.set_num_interop_threads(int(value))
    except RuntimeError as error:
        # torch takes this number once, before its first parallel work.
        _log.warning("model '%s': INTER_OP_THREAD_COUNT is ignored: %s", config.name, str(error).strip())
