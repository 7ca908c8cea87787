"""What a server can be told about its metrics, and the `--metrics-config` texts that say part of it.

Owns their names and defaults (reference, sections 8 and 9). Knows no metric's value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# Quantiles, each with the share of observations by which it may miss.
Quantiles = tuple[tuple[float, float], ...]
DEFAULT_QUANTILES: Final[Quantiles] = ((0.5, 0.05), (0.9, 0.01), (0.95, 0.001), (0.99, 0.001), (0.999, 0.001))
_SETTINGS: Final = ("counter_latencies", "histogram_latencies", "summary_latencies", "summary_quantiles")


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """In which forms latencies are told: sums, histograms, summaries with these quantiles."""

    counters: bool = True
    histograms: bool = False
    summaries: bool = False
    quantiles: Quantiles = DEFAULT_QUANTILES


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """What the metrics port tells. The figures of the machine are measured once in `interval_ms` at most."""

    has_latency_counters: bool = True
    allow_cpu: bool = True
    allow_gpu: bool = True
    interval_ms: int = 2000
    pinned_memory_pool_bytes: int = 256 << 20


def parse_latency_options(texts: Iterable[str]) -> tuple[LatencyOptions, tuple[str, ...]]:
    """What `--metrics-config` texts say, and a warning for each that means nothing.

    Raises ValueError for what cannot be understood.
    """
    values: dict[str, str] = {}
    warnings: list[str] = []
    for text in texts:
        setting, equals, value = text.partition("=")
        if not equals or not setting or "," in setting:
            raise ValueError(f"expects <setting>=<value>, got '{text}'")
        if setting in _SETTINGS:
            values[setting] = value
        else:
            warnings.append(f"--metrics-config {setting} has no effect: there is no such setting")
    return (
        LatencyOptions(
            _truth(values, "counter_latencies", True),
            _truth(values, "histogram_latencies", False),
            _truth(values, "summary_latencies", False),
            _quantiles(values["summary_quantiles"]) if "summary_quantiles" in values else DEFAULT_QUANTILES,
        ),
        tuple(warnings),
    )


def _truth(values: dict[str, str], setting: str, default: bool) -> bool:
    if setting not in values:
        return default
    match values[setting].lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise ValueError(f"{setting} expects true or false, got '{values[setting]}'")


def _quantiles(text: str) -> Quantiles:
    pairs: list[tuple[float, float]] = []
    for pair in text.strip('"').split(","):
        quantile_text, colon, error_text = pair.partition(":")
        try:
            quantile, error = float(quantile_text), float(error_text)
        except ValueError:
            colon = ""
        if not colon:
            raise ValueError(f"summary_quantiles expects <quantile>:<error>, got '{pair}'")
        if not 0 <= quantile <= 1 or not 0 <= error <= 1:
            raise ValueError(f"summary_quantiles expects numbers from 0 to 1, got '{pair}'")
        pairs.append((quantile, error))
    return tuple(pairs)
