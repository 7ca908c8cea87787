"""Which instances run when they share resources: what fits, in the order of executions times priority."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import (
    InstanceKind,
    ModelConfig,
    ModelInstanceGroup,
    ModelRateLimiter,
    RateLimiterResource,
)
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.execution.devices import place_by_group
from cantata.runtime.execution.limited_dispatch import instance_limit
from cantata.runtime.execution.rate_limiter import (
    EVERY_DEVICE,
    GLOBAL,
    InstanceLimit,
    RateLimiter,
    ResourceCount,
)

Limiter = RateLimiter[str]


@pytest.fixture
def limiters() -> Iterator[list[Limiter]]:
    made: list[Limiter] = []
    yield made
    for limiter in made:
        limiter.check_invariants()


def limiter_of(limiters: list[Limiter], *counts: ResourceCount, **limits: InstanceLimit) -> Limiter:
    limiter: Limiter = RateLimiter(counts)
    limiter.add(list(limits.items()))
    limiters.append(limiter)
    return limiter


def needs(count: int, priority: int = 1, device: int = 0) -> InstanceLimit:
    return InstanceLimit({("R", device): count}, priority)


def test_what_needs_nothing_runs_at_once(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=InstanceLimit({}))
    assert limiter.stage("a", "a1") == ["a1"]


def test_there_is_as_much_as_the_instance_that_needs_most(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=needs(2), b=needs(1), c=needs(1))
    assert limiter.stage("b", "b1") == ["b1"]
    assert limiter.stage("c", "c1") == ["c1"]
    assert limiter.stage("a", "a1") == []
    assert limiter.finish(needs(1)) == []
    assert limiter.finish(needs(1)) == ["a1"]


def test_what_is_said_on_the_command_line_counts(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, ResourceCount("R", 3), a=needs(1), b=needs(1), c=needs(1), d=needs(1))
    assert [limiter.stage(name, name) for name in "abcd"] == [["a"], ["b"], ["c"], []]


def test_a_count_for_one_device_is_not_for_the_others(limiters: list[Limiter]) -> None:
    limiter = limiter_of(
        limiters,
        ResourceCount("R", 1, 0),
        ResourceCount("R", 2, 1),
        a=needs(1, device=0),
        b=needs(1, device=0),
        c=needs(1, device=1),
        d=needs(1, device=1),
    )
    assert [limiter.stage(name, name) for name in "cdab"] == [["c"], ["d"], ["a"], []]


def test_a_global_resource_is_one_for_all(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=needs(1, device=GLOBAL), b=needs(1, device=GLOBAL))
    assert limiter.stage("a", "a") == ["a"]
    assert limiter.stage("b", "b") == []


def test_while_the_first_in_line_does_not_fit_nobody_else_runs(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, ResourceCount("R", 2), a=needs(1), b=needs(2), c=needs(1))
    assert limiter.stage("a", "a1") == ["a1"]
    assert limiter.stage("b", "b1") == []
    assert limiter.stage("c", "c1") == []
    assert limiter.finish(needs(1)) == ["b1"]
    assert limiter.finish(needs(2)) == ["c1"]


@pytest.mark.parametrize(("priority", "expected"), [(0, 50), (1, 50), (2, 33), (4, 20)])
def test_a_bigger_priority_means_fewer_chances(limiters: list[Limiter], priority: int, expected: int) -> None:
    limits = {"a": needs(1), "b": needs(1, max(priority, 1))}
    limiter = limiter_of(limiters, **limits)
    running = limiter.stage("a", "a") + limiter.stage("b", "b")
    counts = {"a": 0, "b": 0}
    for _ in range(100):
        (name,) = running
        counts[name] += 1
        # Whoever ran has more to do at once, while what it was given is still out.
        assert limiter.stage(name, name) == []
        running = limiter.finish(limits[name])
    assert abs(counts["b"] - expected) <= 1


def test_a_new_instance_does_not_make_up_for_the_time_before(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=needs(1))
    for _ in range(100):
        limiter.stage("a", "a")
        limiter.finish(needs(1))
    limiter.add([("b", needs(1))])
    limiter.stage("a", "a")
    limiter.stage("b", "b1")
    assert limiter.stage("a", "a2") == []
    assert limiter.finish(needs(1)) == ["b1"]
    limiter.stage("b", "b2")
    assert limiter.finish(needs(1)) in (["a2"], ["b2"])
    assert limiter.finish(needs(1)) in (["a2"], ["b2"])


def test_work_of_an_instance_that_is_gone_keeps_nobody_waiting(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=needs(1), b=needs(1), c=needs(1))
    limiter.stage("a", "a")
    limiter.stage("b", "b")
    limiter.stage("c", "c")
    assert limiter.remove(["b"]) == []
    assert limiter.finish(needs(1)) == ["c"]


def test_too_small_a_count_is_refused_at_load(limiters: list[Limiter]) -> None:
    with pytest.raises(InferenceError) as refused:
        limiter_of(limiters, ResourceCount("R", 3, EVERY_DEVICE), a=needs(1), b=needs(4))
    assert refused.value.code is StatusCode.INVALID_ARG
    assert refused.value.message == (
        'Resource count for "R" is limited to 3 which will prevent scheduling of one or more model instances, the '
        "minimum required count is 4"
    )


def test_once_resources_are_named_there_is_none_of_the_others(limiters: list[Limiter]) -> None:
    with pytest.raises(InferenceError, match=r'"R" is limited to 0 which .* count is 1'):
        limiter_of(limiters, ResourceCount("S", 3), a=needs(1))


def test_of_a_global_resource_there_is_the_largest_count_that_was_said(limiters: list[Limiter]) -> None:
    counts = (ResourceCount("R", 2, 0), ResourceCount("R", 1))
    limiter = limiter_of(limiters, *counts, a=needs(2, device=GLOBAL))
    assert limiter.stage("a", "a") == ["a"]


def test_a_resource_is_global_or_of_devices(limiters: list[Limiter]) -> None:
    limiter = limiter_of(limiters, a=needs(1, device=GLOBAL))
    with pytest.raises(InferenceError) as refused:
        limiter.add([("b", needs(1))])
    assert refused.value.message == (
        'Resource "R" is present as both global and device-specific resource in the model configuration.'
    )


def test_limits_are_those_of_the_instance_s_group() -> None:
    limiter = ModelRateLimiter(
        resources=(
            RateLimiterResource(name="R", count=4),
            RateLimiterResource(**{"name": "G", "global": True, "count": 2}),
        ),
        priority=3,
    )
    groups = (
        ModelInstanceGroup(name="limited", kind=InstanceKind.KIND_CPU, count=2, rate_limiter=limiter),
        ModelInstanceGroup(name="passive", kind=InstanceKind.KIND_CPU, count=5, passive=True),
        ModelInstanceGroup(name="free", kind=InstanceKind.KIND_CPU, count=1),
    )
    limit = InstanceLimit({("R", 0): 4, ("G", GLOBAL): 2}, 3)
    limits = [
        instance_limit(*place) for place in place_by_group(ModelConfig(name="m", instance_group=groups))
    ]
    assert limits == [limit, limit, InstanceLimit({})]


@given(
    counts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60),
)
def test_nothing_is_given_twice_and_nobody_is_forgotten(
    counts: list[tuple[int, int]], events: list[tuple[bool, int]]
) -> None:
    limits = [InstanceLimit({("R", 0): r, ("S", GLOBAL): s}) for r, s in counts]
    limiter: RateLimiter[int] = RateLimiter()
    limiter.add([(index, limit) for index, limit in enumerate(limits)])
    staged, running, started = 0, [], 0
    for is_stage, number in events:
        if is_stage:
            index = number % len(limits)
            new = limiter.stage(index, index)
            staged += 1
        elif running:
            new = limiter.finish(limits[running.pop(number % len(running))])
        else:
            continue
        running += new
        started += len(new)
        limiter.check_invariants()
    while running:
        new = limiter.finish(limits[running.pop()])
        running += new
        started += len(new)
    assert started == staged
