"""Where the time of ensembles' requests goes: phases that add up, whatever runs beside what."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.observe.phases import (
    OWN_STEP,
    UNKNOWN_PATH,
    EnsembleTimes,
    Phases,
    StepFigures,
    path_phases,
    phases_until,
)
from cantata.runtime.observe.statistics import ComputeTimes


@dataclass
class FakeSpan:
    step: int
    received_ns: int
    started_ns: int
    ended_ns: int
    times: ComputeTimes | None = None
    origin: FakeSpan | None = None
    batch_wait_ns: int = 0
    blocked_ns: int = 0
    is_counted: bool = False


def span(
    step: int,
    received_ns: int,
    ended_ns: int,
    *,
    started_ns: int,
    computed: tuple[int, int, int],
    origin: FakeSpan | None = None,
    batch_wait_ns: int = 0,
    blocked_ns: int = 0,
) -> FakeSpan:
    times = ComputeTimes(*computed)
    return FakeSpan(
        step, received_ns, started_ns, ended_ns, times, origin, batch_wait_ns, blocked_ns=blocked_ns
    )


def paths(times: EnsembleTimes) -> dict[int, Phases]:
    return {figures.step: figures.path for figures in times.figures()}


def wholes(times: EnsembleTimes) -> dict[int, Phases]:
    return {figures.step: figures.whole for figures in times.figures()}


def test_a_steps_time_is_split_into_all_that_it_went_through() -> None:
    one = span(0, 100, 200, started_ns=130, batch_wait_ns=20, computed=(5, 50, 7))
    assert phases_until(one, 200) == Phases(10, 20, 5, 50, 7, 8)


def test_a_stream_that_was_held_back_is_blocked_while_it_seemed_to_compute() -> None:
    one = span(0, 100, 200, started_ns=110, computed=(0, 90, 0), blocked_ns=60)
    assert phases_until(one, 200) == Phases(queue=10, compute=30, blocked=60)


def test_what_never_ran_has_waited() -> None:
    assert phases_until(FakeSpan(0, 100, 0, 150), 150) == Phases(queue=50)


def test_what_was_waited_for_of_a_stream_is_its_first_part() -> None:
    one = span(0, 100, 300, started_ns=110, computed=(10, 180, 0))
    assert phases_until(one, 150) == Phases(queue=10, input=10, compute=30)


def test_a_nested_ensemble_counts_as_its_own_path() -> None:
    one = span(0, 100, 200, started_ns=101, computed=(1, 500, 1))
    assert one.times is not None
    one.times.path = Phases(10, 20, 3, 40, 5, 6)
    assert phases_until(one, 200) == Phases(10, 20, 3, 40, 5, 22)


def test_a_nested_ensemble_whose_path_is_not_known_has_computed() -> None:
    one = span(0, 100, 200, started_ns=101, computed=(1, 500, 1))
    assert one.times is not None
    one.times.path = UNKNOWN_PATH
    assert phases_until(one, 200) == Phases(compute=100)


def test_a_chain_is_waited_for_all_along() -> None:
    times = EnsembleTimes("chain", {0: "a", 1: "b"})
    first = span(0, 110, 210, started_ns=120, computed=(10, 60, 10))
    second = span(1, 210, 310, started_ns=220, computed=(10, 60, 10), origin=first)
    times.count(100, 104, [first, second], second, 317)
    step = Phases(10, 0, 10, 60, 10, 10)
    own = Phases(queue=6, input=4, output=7)
    assert times.figures() == (
        StepFigures(OWN_STEP, "chain", 1, own, own),
        StepFigures(0, "a", 1, step, step),
        StepFigures(1, "b", 1, step, step),
    )
    assert path_phases(100, 104, second, 317) == Phases(26, 0, 24, 120, 27, 20)


def test_of_steps_side_by_side_the_one_that_ended_last_was_waited_for() -> None:
    times = EnsembleTimes("fork", {0: "a", 1: "quick", 2: "slow"})
    first = span(0, 100, 200, started_ns=110, computed=(0, 90, 0))
    quick = span(1, 200, 250, started_ns=200, computed=(0, 50, 0), origin=first)
    slow = span(2, 200, 500, started_ns=210, computed=(0, 290, 0), origin=first)
    times.count(100, 100, [first, quick, slow], slow, 500)
    assert paths(times)[1] == Phases()
    assert wholes(times)[1] == Phases(compute=50)
    assert paths(times)[2] == wholes(times)[2] == Phases(queue=10, compute=290)


def test_a_stream_is_waited_for_until_its_response_came() -> None:
    times = EnsembleTimes("stream", {0: "source", 1: "sink"})
    source = span(0, 100, 400, started_ns=100, computed=(0, 300, 0))
    sink = span(1, 250, 450, started_ns=260, computed=(0, 190, 0), origin=source)
    times.count(100, 100, [source, sink], sink, 450)
    assert paths(times)[0] == Phases(compute=150)
    assert wholes(times)[0] == Phases(compute=300)
    assert sum(map(sum, paths(times).values())) == 350


def test_steps_that_were_counted_early_are_counted_once() -> None:
    times = EnsembleTimes("stream", {0: "source", 1: "sink"})
    source = span(0, 100, 400, started_ns=100, computed=(0, 300, 0))
    sinks = [
        span(1, 100 + n, 200 + n, started_ns=100 + n, computed=(0, 100, 0), origin=source) for n in range(3)
    ]
    for sink in sinks:
        sink.is_counted = True
    times.count_early(sinks)
    times.count(100, 100, [source], sinks[-1], 202)
    figures = {each.step: each for each in times.figures()}
    assert (figures[0].count, figures[1].count) == (1, 3)
    assert figures[1].whole == Phases(compute=300)
    assert figures[1].path == Phases(compute=100)
    assert sum(map(sum, paths(times).values())) == 102


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[FakeSpan], FakeSpan, int]:
    """Spans that each began when one before them had ended, one that ended last, and when all was over."""
    spans: list[FakeSpan] = []
    for number in range(draw(st.integers(1, 8))):
        origin = draw(st.sampled_from([None, *spans]))
        received_ns = 100 if origin is None else origin.ended_ns
        wait, *parts, rest = draw(st.lists(st.integers(0, 1000), min_size=5, max_size=5))
        batch_wait = draw(st.integers(0, wait))
        blocked = draw(st.integers(0, 2000))
        started_ns = received_ns + wait
        times = draw(st.sampled_from([ComputeTimes(*parts), None]))
        ended_ns = started_ns + sum(parts) + rest
        spans.append(
            FakeSpan(number % 3, received_ns, started_ns, ended_ns, times, origin, batch_wait, blocked)
        )
    last = max(spans, key=lambda one: one.ended_ns)
    return spans, last, last.ended_ns + draw(st.integers(0, 50))


@given(runs())
def test_paths_add_up_to_the_time_of_requests_and_phases_to_that_of_steps(
    run: tuple[list[FakeSpan], FakeSpan, int],
) -> None:
    spans, last, end_ns = run
    times = EnsembleTimes("any", {0: "a", 1: "b", 2: "c"})
    times.count(60, 80, spans, last, end_ns)
    assert sum(path_phases(60, 80, last, end_ns)) == end_ns - 60
    assert sum(map(sum, paths(times).values())) == end_ns - 60
    for step in range(3):
        lasted = sum(one.ended_ns - one.received_ns for one in spans if one.step == step)
        assert sum(wholes(times)[step]) == lasted
        assert all(part >= 0 for part in wholes(times)[step])
