"""The metrics of where time goes: histograms and summaries of latencies, and the steps of ensembles.

Owns their names, types and labels (docs/metrics.md). Owns no counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cantata.runtime.observe.latencies import CACHE_HIT, CACHE_MISS, FIRST_RESPONSE_HISTOGRAM
from cantata.runtime.observe.metrics_text import Labels, family, histogram_family, summary_family
from cantata.runtime.observe.phases import OWN_STEP, Phases, StepFigures
from cantata.runtime.observe.snapshots import ModelFigures

# Models with the labels that their metrics have.
Labelled = Sequence[tuple[Labels, ModelFigures]]

_SUMMARIES: Final = (
    (
        "request",
        "nv_inference_request_summary_us",
        "Duration of successful inference requests in microseconds",
    ),
    ("queue", "nv_inference_queue_summary_us", "Time that requests waited in the queue in microseconds"),
    ("compute_input", "nv_inference_compute_input_summary_us", "Time of preparing inputs in microseconds"),
    ("compute_infer", "nv_inference_compute_infer_summary_us", "Time of computing in microseconds"),
    ("compute_output", "nv_inference_compute_output_summary_us", "Time of handling outputs in microseconds"),
    (CACHE_HIT, "nv_cache_hit_summary_per_model", "Time of finding answers in the cache in microseconds"),
    (
        CACHE_MISS,
        "nv_cache_miss_summary_per_model",
        "Time of not finding answers in the cache, and of putting them there, in microseconds",
    ),
)

_STEP_DURATIONS: Final[tuple[tuple[str, str, Callable[[StepFigures], Phases]], ...]] = (
    (
        "cantata_ensemble_step_duration_us",
        "Cumulative time of the steps of successful ensemble requests in microseconds, by phase",
        lambda step: step.whole,
    ),
    (
        "cantata_ensemble_path_duration_us",
        "Cumulative time that successful ensemble requests waited for their steps in microseconds, by phase",
        lambda step: step.path,
    ),
)


def latency_lines(labelled: Labelled) -> Iterator[str]:
    """The histograms and summaries of the models that have them."""
    histograms = [
        (labels, figures.histogram) for labels, figures in labelled if figures.histogram is not None
    ]
    if histograms:
        help_text = "Time to the first response of a request in milliseconds"
        yield from histogram_family(FIRST_RESPONSE_HISTOGRAM, help_text, histograms)
    for key, name, help_text in _SUMMARIES:
        summaries = [
            (labels, figures.summaries[key]) for labels, figures in labelled if key in figures.summaries
        ]
        if summaries:
            yield from summary_family(name, help_text, summaries)


def step_lines(labelled: Labelled, *, has_durations: bool) -> Iterator[str]:
    """How often the steps of ensembles ran and, with `has_durations`, where their time went."""
    steps = [(_step_labels(labels, step), step) for labels, figures in labelled for step in figures.steps]
    if not steps:
        return
    help_text = "Number of runs of the steps of successful ensemble requests"
    counts = ((labels, step.count) for labels, step in steps)
    yield from family("cantata_ensemble_step_count", "counter", help_text, counts)
    if not has_durations:
        return
    for name, help_text, phases in _STEP_DURATIONS:
        samples = (
            ((*labels, ("phase", phase)), duration_ns // 1000)
            for labels, step in steps
            for phase, duration_ns in zip(Phases._fields, phases(step), strict=True)
        )
        yield from family(name, "counter", help_text, samples)


def _step_labels(labels: Labels, step: StepFigures) -> Labels:
    """The ensemble's own labels, in which its name is the ensemble's and `model` is the step's."""
    others = tuple(("ensemble" if name == "model" else name, value) for name, value in labels)
    place = "ensemble" if step.step == OWN_STEP else str(step.step)
    return (*others, ("step", place), ("model", step.model))
