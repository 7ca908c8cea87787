"""pb_utils.ModelConfig: a configuration as `auto_complete_config` sees and completes it.

Owns the rules by which a model may add to its configuration (reference, section 7.2). It holds Triton's JSON form;
reading that back into a typed configuration is the backend's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_INPUT_KEYS: Final = ("name", "data_type", "dims", "optional")
_OUTPUT_KEYS: Final = ("name", "data_type", "dims")
_SCHEDULERS: Final = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


class ModelConfig:
    """The configuration in `config`, as JSON text or as its dictionary. Misuse and contradiction raise ValueError."""

    __slots__ = ("_config",)

    def __init__(self, model_config: str | dict[str, Any]) -> None:
        self._config: dict[str, Any] = (
            json.loads(model_config) if isinstance(model_config, str) else model_config
        )

    def as_dict(self) -> dict[str, Any]:
        """The configuration so far; not a copy."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raise or keep `max_batch_size`; a configuration may not allow more than the model does."""
        configured = self._config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for "
                f"model '{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Use the dynamic batcher, unless the configuration names a scheduler."""
        if not any(self._config.get(scheduler) is not None for scheduler in _SCHEDULERS):
            self._config["dynamic_batching"] = {}

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Say whether the model is decoupled, where the configuration does not."""
        if any(key != "decoupled" for key in transaction_policy_dict):
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains "
                "property other than 'decoupled'."
            )
        if "decoupled" not in transaction_policy_dict:
            return
        decoupled = transaction_policy_dict["decoupled"]
        policy = self._config.get("model_transaction_policy")
        if policy is None:
            policy = self._config["model_transaction_policy"] = {}
        elif policy.get("decoupled", decoupled) != decoupled:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', which is "
                f"already set to '{policy['decoupled']}'."
            )
        policy["decoupled"] = decoupled

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Add an input, or complete and check the one of that name."""
        self._add("input", input, _INPUT_KEYS)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Add an output, or complete and check the one of that name."""
        self._add("output", output, _OUTPUT_KEYS)

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, kind: str, tensor: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        self._check_keys(kind, tensor, keys)
        tensors: list[dict[str, Any]] = self._config.setdefault(kind, [])
        for configured in tensors:
            if configured.get("name") == tensor["name"]:
                self._complete(kind, configured, tensor)
                return
        tensors.append({key: _plain(tensor[key]) for key in keys if key in tensor})

    def _check_keys(self, kind: str, tensor: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        place = f"{kind} '{tensor.get('name', '')}' in auto-complete-config function for model '{self._name}'"
        if any(key not in keys for key in tensor):
            listed = ", ".join(f"'{key}'" for key in keys[:-1])
            raise ValueError(f"{place} contains property other than {listed} and '{keys[-1]}'.")
        for key in ("name", "data_type", "dims"):
            if key not in tensor:
                raise ValueError(f"{place} is missing '{key}' property.")

    def _complete(self, kind: str, configured: dict[str, Any], tensor: Mapping[str, Any]) -> None:
        name, data_type, dims = tensor["name"], tensor["data_type"], _plain(tensor["dims"])
        known_type = configured.get("data_type", "TYPE_INVALID")
        if known_type in ("TYPE_INVALID", ""):
            configured["data_type"] = data_type
        elif known_type != data_type:
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {known_type} for {kind} "
                f"'{name}', model provides {data_type}"
            )
        known_dims = configured.get("dims")
        if not known_dims:
            configured["dims"] = dims
        elif list(known_dims) != dims:
            raise ValueError(
                f"model '{self._name}', tensor '{name}': the model expects dims {dims} but the model configuration "
                f"specifies dims {list(known_dims)}"
            )
        if "optional" in tensor:
            configured["optional"] = tensor["optional"]


def _plain(value: Any) -> Any:
    """Lists for tuples and arrays: the configuration is JSON."""
    if isinstance(value, str | bool):
        return value
    return [int(size) for size in value]


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The properties of the input called `name`, or None."""
    return _by_name(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The properties of the output called `name`, or None."""
    return _by_name(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the model may answer a request any number of times."""
    policy = model_config.get("model_transaction_policy") or {}
    return bool(policy.get("decoupled", False))


def _by_name(tensors: Any, name: str) -> dict[str, Any] | None:
    for tensor in tensors:
        if tensor["name"] == name:
            found: dict[str, Any] = tensor
            return found
    return None
