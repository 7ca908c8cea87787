"""The header that tells how full a model's key-value cache is."""

from __future__ import annotations

import pytest

from cantata.runtime.frontends.http.load_report import load_report
from cantata.runtime.observe.custom_metrics import CustomMetrics

FAMILY = "nv_trt_llm_kv_cache_block_metrics"


def metrics(**blocks: dict[str, float]) -> CustomMetrics:
    """The blocks of each model, by their kind."""
    made = CustomMetrics()
    family = made.open_family(FAMILY, "blocks", "gauge")
    for model, kinds in blocks.items():
        for kind, value in kinds.items():
            number = made.open_metric(family, {"kv_cache_block_type": kind, "model": model}, ())
            made.change(number, "set", value)
    return made


LLM = {"used": 30.0, "max": 120.0, "tokens_per": 64.0, "free": 90.0}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "TEXT named_metrics.kv_cache_utilization=0.25, named_metrics.max_token_capacity=7680"),
        ("json", 'JSON {"named_metrics":{"kv_cache_utilization":0.25,"max_token_capacity":7680}}'),
    ],
)
def test_the_report_has_the_form_that_was_asked_for(form: str, expected: str) -> None:
    assert load_report(form, metrics(llm=LLM), "llm") == {"endpoint-load-metrics": expected}


def test_an_ensembles_report_is_that_of_the_models_behind_it() -> None:
    both = metrics(llm=LLM, draft={"used": 90.0, "max": 120.0, "tokens_per": 1.0})
    assert "utilization=0.5, named_metrics.max_token_capacity=7800" in str(load_report("text", both, "pipe"))
    assert "utilization=0.75," in str(load_report("text", both, "draft"))


@pytest.mark.parametrize(
    ("form", "made"),
    [
        (None, metrics(llm=LLM)),
        ("xml", metrics(llm=LLM)),
        ("text", CustomMetrics()),
        ("text", metrics()),
        ("text", metrics(llm={"used": 1.0})),
    ],
    ids=["not asked", "no such form", "no such metric", "no series", "incomplete"],
)
def test_there_is_no_report_without_all_of_it(form: str | None, made: CustomMetrics) -> None:
    assert load_report(form, made, "llm") == {}


def test_a_cache_without_room_is_not_in_use() -> None:
    none = metrics(llm={"used": 0.0, "max": 0.0, "tokens_per": 64.0})
    assert "kv_cache_utilization=0," in str(load_report("text", none, "llm"))
