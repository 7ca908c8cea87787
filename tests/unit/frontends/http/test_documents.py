"""The documents about models: their keys in Triton's order."""

from __future__ import annotations

import json

from cantata.runtime.frontends.http.documents import index_document, statistics_document
from cantata.runtime.observe.snapshots import (
    InferBatchStatistics,
    InferResponseStatistics,
    InferStatistics,
    ModelStatistics,
    StatisticDuration,
)
from cantata.runtime.repository.registry import ModelIndexEntry


def durations(first: int, count: int) -> list[StatisticDuration]:
    return [StatisticDuration(first + index, 10 * (first + index)) for index in range(count)]


def test_statistics_have_their_keys_in_order() -> None:
    statistics = ModelStatistics(
        name="m",
        version="2",
        last_inference=5,
        inference_count=6,
        execution_count=7,
        inference_stats=InferStatistics(*durations(1, 8)),
        batch_stats=(InferBatchStatistics(4, *durations(20, 3)),),
        response_stats={"0": InferResponseStatistics(*durations(10, 6))},
    )

    def pair(count: int) -> dict[str, int]:
        return {"count": count, "ns": 10 * count}

    parts = ("compute_input", "compute_infer", "compute_output")
    kinds = ("success", "fail", "queue", *parts, "cache_hit", "cache_miss")
    responses = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    expected = {
        "model_stats": [
            {
                "name": "m",
                "version": "2",
                "last_inference": 5,
                "inference_count": 6,
                "execution_count": 7,
                "inference_stats": {kind: pair(1 + index) for index, kind in enumerate(kinds)},
                "response_stats": {"0": {kind: pair(10 + index) for index, kind in enumerate(responses)}},
                "batch_stats": [
                    {"batch_size": 4, **{part: pair(20 + index) for index, part in enumerate(parts)}}
                ],
                "memory_usage": [],
            }
        ]
    }
    assert json.dumps(statistics_document([statistics])) == json.dumps(expected)


def test_the_index_leaves_out_what_it_does_not_know() -> None:
    assert index_document(ModelIndexEntry("m", "", "", "")) == {"name": "m"}
    assert index_document(ModelIndexEntry("m", "1", "READY", "")) == {
        "name": "m",
        "version": "1",
        "state": "READY",
    }
    assert index_document(ModelIndexEntry("m", "", "UNAVAILABLE", "why"))["reason"] == "why"
