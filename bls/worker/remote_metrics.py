"""The server's metrics as a model's process sees them. See MetricStore."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cantata.bls.worker import messages
from cantata.runtime.observe.custom_metrics import MetricChange, MetricKind


class RemoteMetrics:
    """Every method asks the server; `ask` is ChildServices.ask."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def open_family(self, name: str, description: str, kind: MetricKind) -> int:
        number: int = self._ask(messages.METRICS, "open_family", str(name), str(description), kind)
        return number

    def open_metric(self, family_number: int, labels: Mapping[str, str], bounds: Sequence[float]) -> int:
        plain = {str(name): str(text) for name, text in labels.items()}
        number: int = self._ask(messages.METRICS, "open_metric", family_number, plain, list(bounds))
        return number

    def change(self, number: int, change: MetricChange, amount: float) -> None:
        self._ask(messages.METRICS, "change", number, change, amount)

    def value(self, number: int) -> float:
        value: float = self._ask(messages.METRICS, "value", number)
        return value

    def close(self, number: int) -> None:
        self._ask(messages.METRICS, "close", number)
