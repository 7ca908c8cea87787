"""Load reports (ORCA) for whoever balances load over servers: how full a model's key-value cache is, as a header.

Owns the header's two forms, and which metrics of models it is made of (reference, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from cantata.runtime.observe.custom_metrics import CustomMetrics

FORMAT_HEADER: Final = "endpoint-load-metrics-format"
REPORT_HEADER: Final = "endpoint-load-metrics"

# What language models for Triton count: blocks by the label that says which.
_BLOCKS: Final = "nv_trt_llm_kv_cache_block_metrics"
_KIND: Final = "kv_cache_block_type"


def load_report(form: str | None, metrics: CustomMetrics, model_name: str) -> dict[str, str]:
    """The header that a response gets, if its request asked for one and there is anything to tell."""
    if form not in ("text", "json"):
        return {}
    report = _kv_cache_report(metrics.values(_BLOCKS), model_name)
    if report is None:
        return {}
    if form == "json":
        return {REPORT_HEADER: "JSON " + orjson.dumps({"named_metrics": report}).decode()}
    texts = (f"named_metrics.{name}={value:g}" for name, value in report.items())
    return {REPORT_HEADER: "TEXT " + ", ".join(texts)}


def _kv_cache_report(
    series: Sequence[tuple[dict[str, str], float]], model_name: str
) -> dict[str, float] | None:
    """The used part, 0 to 1, and how many tokens there is room for: of that model or, behind it, of all."""
    own = [(labels, value) for labels, value in series if labels.get("model") == model_name]
    used = total = capacity = 0.0
    for blocks in _by_model(own or series).values():
        if not {"used", "max", "tokens_per"} <= blocks.keys():
            return None
        used += blocks["used"]
        total += blocks["max"]
        capacity += blocks["max"] * blocks["tokens_per"]
    if not series:
        return None
    return {"kv_cache_utilization": used / total if total else 0.0, "max_token_capacity": int(capacity)}


def _by_model(series: Sequence[tuple[dict[str, str], float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for labels, value in series:
        if _KIND in labels:
            found.setdefault(labels.get("model", ""), {})[labels[_KIND]] = value
    return found
