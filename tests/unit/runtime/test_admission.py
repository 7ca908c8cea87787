"""Budgets of bytes: what fits, what is refused, and that everything is given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.grammars.model_config import ModelConfig, ModelParameter
from cantata.runtime.admission import Admission, ByteBudget, ByteLease
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.observe.snapshots import ByteFigures


def configured(value: str) -> ModelConfig:
    return ModelConfig(name="m", parameters={"MAX_QUEUE_BYTES": ModelParameter(string_value=value)})


def test_what_does_not_fit_is_unavailable_and_says_when_to_come_back() -> None:
    budget = ByteBudget(10, "the server")
    budget.take(8)
    with pytest.raises(InferenceError) as refused:
        budget.take(3)
    assert refused.value.code is StatusCode.UNAVAILABLE
    assert refused.value.retry_after_s == 1
    assert refused.value.message == (
        "Exceeds maximum queue bytes: the request takes 3 bytes, and 8 of the 10 of the server are in use"
    )
    assert refused.value.within("in ensemble 'e': ").retry_after_s == 1
    assert budget.figures == ByteFigures(8, 10, 1)
    budget.take(2)
    budget.give_back(8)
    assert budget.figures == ByteFigures(2, 10, 1)


def test_a_lease_is_given_back_once_to_each_budget_that_it_holds() -> None:
    server, model = ByteBudget(100, "server"), ByteBudget(50, "model")
    lease = ByteLease(40)
    assert lease.hold(server)
    assert lease.hold(model)
    assert not lease.hold(model)
    assert (server.figures.held, model.figures.held) == (40, 40)
    lease.let_go(model)
    assert (server.figures.held, model.figures.held) == (40, 0)
    lease.release()
    lease.release()
    assert (server.figures.held, model.figures.held) == (0, 0)


def test_a_lease_that_cannot_grow_in_one_budget_holds_nothing_of_any() -> None:
    server, model = ByteBudget(100, "server"), ByteBudget(50, "model")
    lease = ByteLease(40)
    lease.hold(server)
    lease.hold(model)
    with pytest.raises(InferenceError, match="takes 20 bytes, and 40 of the 50 of model"):
        lease.resize(60)
    assert (server.figures.held, model.figures.held) == (0, 0)
    lease.release()
    assert (server.figures.held, model.figures.held) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5)), max_size=12))
def test_however_leases_change_no_budget_is_passed_and_none_loses_anything(
    leases: list[tuple[int, list[int]]],
) -> None:
    budgets = (ByteBudget(100, "a"), ByteBudget(70, "b"))
    held: list[ByteLease] = []
    for size, changes in leases:
        lease = ByteLease(size)
        held.append(lease)
        try:
            for budget in budgets:
                lease.hold(budget)
            for change in changes:
                lease.resize(change)
        except InferenceError:
            lease.release()
        assert all(0 <= budget.figures.held <= budget.limit for budget in budgets)
    for lease in held:
        lease.release()
    assert [budget.figures.held for budget in budgets] == [0, 0]


def test_nothing_is_asked_for_where_nobody_has_a_budget() -> None:
    admission = Admission(0)
    assert admission.model_budget(ModelConfig(name="m")) is None
    assert (admission.server, admission.is_on) == (None, False)
    budget = admission.model_budget(configured("4096"))
    assert budget is not None
    assert (budget.limit, admission.is_on) == (4096, True)
    assert Admission(1).is_on


@pytest.mark.parametrize("value", ["", "0", "-1", "1e6", "10 MB", "٣"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(value: str) -> None:
    with pytest.raises(
        InferenceError, match="parameter MAX_QUEUE_BYTES: expected a positive number of bytes"
    ):
        Admission(0).model_budget(configured(value))
