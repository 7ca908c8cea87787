"""The JSON documents about models and their statistics (reference, sections 3 and 9).

Owns keys and their order; the values come from the server's snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cantata.runtime.model_spec import TensorSpec
from cantata.runtime.observe.snapshots import (
    InferBatchStatistics,
    InferResponseStatistics,
    InferStatistics,
    ModelStatistics,
    StatisticDuration,
)
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.repository.registry import ModelIndexEntry

if TYPE_CHECKING:
    from cantata.runtime.server import ServerMetadata

_Document = dict[str, object]


def server_metadata_document(metadata: ServerMetadata) -> _Document:
    return {"name": metadata.name, "version": metadata.version, "extensions": metadata.extensions}


def model_metadata_document(model: ModelVersion, versions: Sequence[int]) -> _Document:
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": model.platform,
        "inputs": [_tensor_document(spec) for spec in model.spec.inputs.values()],
        "outputs": [_tensor_document(spec) for spec in model.spec.outputs.values()],
    }


def _tensor_document(spec: TensorSpec) -> _Document:
    return {"name": spec.name, "datatype": spec.datatype.name, "shape": spec.full_dims}


def index_document(entry: ModelIndexEntry) -> _Document:
    """Keys that have nothing to say are left out."""
    document: _Document = {"name": entry.name}
    if entry.version:
        document["version"] = entry.version
    if entry.state:
        document["state"] = entry.state
    if entry.reason:
        document["reason"] = entry.reason
    return document


def statistics_document(statistics: Sequence[ModelStatistics]) -> _Document:
    return {"model_stats": [_model_document(model) for model in statistics]}


def _model_document(model: ModelStatistics) -> _Document:
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": _infer_document(model.inference_stats),
        "response_stats": {index: _response_document(stats) for index, stats in model.response_stats.items()},
        "batch_stats": [_batch_document(stats) for stats in model.batch_stats],
        "memory_usage": [],
    }


def _infer_document(stats: InferStatistics) -> _Document:
    return {
        "success": _duration(stats.success),
        "fail": _duration(stats.fail),
        "queue": _duration(stats.queue),
        "compute_input": _duration(stats.compute_input),
        "compute_infer": _duration(stats.compute_infer),
        "compute_output": _duration(stats.compute_output),
        "cache_hit": _duration(stats.cache_hit),
        "cache_miss": _duration(stats.cache_miss),
    }


def _response_document(stats: InferResponseStatistics) -> _Document:
    return {
        "compute_infer": _duration(stats.compute_infer),
        "compute_output": _duration(stats.compute_output),
        "success": _duration(stats.success),
        "fail": _duration(stats.fail),
        "empty_response": _duration(stats.empty_response),
        "cancel": _duration(stats.cancel),
    }


def _batch_document(stats: InferBatchStatistics) -> _Document:
    return {
        "batch_size": stats.batch_size,
        "compute_input": _duration(stats.compute_input),
        "compute_infer": _duration(stats.compute_infer),
        "compute_output": _duration(stats.compute_output),
    }


def _duration(duration: StatisticDuration) -> _Document:
    return {"count": duration.count, "ns": duration.ns}
