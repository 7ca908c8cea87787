"""pb_utils.MetricFamily: metrics that a model counts itself, on the server's metrics port.

Owns the checks of the arguments and how long a metric lives: as long as its object, and no longer than its model. The
values are the server's.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

from cantata.bls.current_model import HostedModel, current_model
from cantata.bls.errors import TritonModelException
from cantata.runtime.backends.backend import MetricStore
from cantata.runtime.errors import InferenceError
from cantata.runtime.observe.custom_metrics import MetricChange
from cantata.runtime.observe.custom_metrics import MetricKind as KindName


class MetricKind(enum.IntEnum):
    """What can be done with the metrics of a family."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


_NAMES: Final[dict[MetricKind, KindName]] = {
    MetricKind.COUNTER: "counter",
    MetricKind.GAUGE: "gauge",
    MetricKind.HISTOGRAM: "histogram",
}


class MetricFamily:
    """A name under which metrics with different labels are shown. It must outlive them."""

    MetricKind: ClassVar = MetricKind
    COUNTER: ClassVar = MetricKind.COUNTER
    GAUGE: ClassVar = MetricKind.GAUGE
    HISTOGRAM: ClassVar = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: int) -> None:
        """A family of that name and kind that exists already is shared; one of another kind is an error."""
        model = _model_with_metrics()
        self._model = model
        self._kind = MetricKind(kind)
        self._number: int = _checked(
            partial(model.services.custom_metrics.open_family, name, description, _NAMES[self._kind])
        )
        _close_with(self, model, self._number)

    def Metric(self, labels: dict[str, str] | None = None, buckets: list[float] | None = None) -> Metric:
        """The metric of this family with `labels`; a histogram needs `buckets`, its upper bounds."""
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        labels = labels or {}
        if not all(isinstance(text, str) for pair in labels.items() for text in pair):
            raise TritonModelException("Failed to create metric. Labels must be strings.")
        if self._kind is MetricKind.HISTOGRAM:
            if buckets is None:
                raise TritonModelException("Failed to create metric. Missing required buckets.")
        elif buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        return Metric(self._model, self._number, labels, buckets or [])


class Metric:
    """One series of numbers; MetricFamily.Metric makes it. Any thread of the model may use it."""

    def __init__(self, model: HostedModel, family: int, labels: dict[str, str], buckets: list[float]) -> None:
        self._store: MetricStore = model.services.custom_metrics
        bounds = [float(bound) for bound in buckets]
        self._number: int = _checked(partial(self._store.open_metric, family, labels, bounds))
        _close_with(self, model, self._number)

    def increment(self, value: float) -> None:
        """Add to a counter (nothing negative) or a gauge."""
        self._change("increment", value)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._change("set", value)

    def observe(self, value: float) -> None:
        """Count a value in a histogram."""
        self._change("observe", value)

    def value(self) -> float:
        """The value now of a counter or gauge."""
        value: float = _checked(partial(self._store.value, self._number))
        return value

    def _change(self, change: MetricChange, amount: float) -> None:
        _checked(partial(self._store.change, self._number, change, float(amount)))


def _model_with_metrics() -> HostedModel:
    model = current_model()
    if model.is_completing:
        raise TritonModelException("Metrics cannot be used in auto_complete_config.")
    return model


def _close_with(owner: object, model: HostedModel, number: int) -> None:
    """Give the number back when its owner is gone, or the model is."""
    model.metric_numbers.add(number)

    def close() -> None:
        model.metric_numbers.discard(number)
        model.services.custom_metrics.close(number)

    # The garbage collector may come on any thread, under any lock.
    weakref.finalize(owner, model.reaper.add, close).atexit = False


def _checked(operation: Callable[[], Any]) -> Any:
    try:
        return operation()
    except InferenceError as error:
        raise TritonModelException(error.message) from None
