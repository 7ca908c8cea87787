"""What the server answers to the questions of one model's process, and what it keeps for it.

Owns the list of questions. When the process has ended, the metrics that it held are given back here.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from cantata.bls.worker import messages
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError, internal_error

# Those that can take seconds: no thread that others wait for may answer them.
_SLOW: Final = frozenset({messages.IS_MODEL_READY, messages.LOAD_MODEL, messages.UNLOAD_MODEL})


class Questions:
    """Answers on any thread. The metrics that the process holds are touched by single operations only."""

    def __init__(self, services: ServerServices) -> None:
        self._services = services
        self._metrics: set[int] = set()

    @staticmethod
    def is_slow(name: str) -> bool:
        """Whether the answer can take seconds."""
        return name in _SLOW

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The answer; raises InferenceError."""
        services = self._services
        match name, arguments:
            case messages.IS_DECOUPLED, (str(model_name), int(version)):
                return services.is_decoupled(model_name, version)
            case messages.IS_MODEL_READY, (str(model_name), int(version)):
                return services.is_model_ready(model_name, version)
            case messages.LOAD_MODEL, (str(model_name), dict(parameters)):
                return services.load_model(model_name, parameters)
            case messages.UNLOAD_MODEL, (str(model_name), bool(with_dependents)):
                return services.unload_model(model_name, with_dependents)
            case messages.METRICS, (str(operation), *details):
                return self._use_metrics(operation, details)
            case _:
                raise internal_error(f"the process asked for '{name}'")

    def close(self) -> None:
        """The process has ended: nothing that it counted is shown any more."""
        while self._metrics:
            with contextlib.suppress(InferenceError, KeyError):
                self._services.custom_metrics.close(self._metrics.pop())

    def _use_metrics(self, operation: str, details: list[Any]) -> Any:
        metrics = self._services.custom_metrics
        match operation, details:
            case "open_family", [str(name), str(description), ("counter" | "gauge" | "histogram") as kind]:
                return self._kept(metrics.open_family(name, description, kind))
            case "open_metric", [int(family), dict(labels), [*bounds]]:
                return self._kept(metrics.open_metric(family, labels, bounds))
            case "change", [int(number), ("increment" | "set" | "observe") as change, float(amount)]:
                return metrics.change(number, change, amount)
            case "value", [int(number)]:
                return metrics.value(number)
            case "close", [int(number)]:
                self._metrics.discard(number)
                return metrics.close(number)
            case _:
                raise internal_error(f"the process wanted to '{operation}' a metric")

    def _kept(self, number: int) -> int:
        self._metrics.add(number)
        return number
