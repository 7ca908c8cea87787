"""Models are loaded after those that they depend on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.repository.load_order import load_order


def test_what_is_needed_comes_first() -> None:
    needed = {"top": {"middle", "leaf"}, "middle": {"leaf", "elsewhere"}, "leaf": set[str]()}
    assert load_order(needed) == ["leaf", "middle", "top"]


def test_circles_come_last_and_nothing_is_lost() -> None:
    assert load_order({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["d", "a", "b", "c"]


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=60)
    )
)
def test_every_model_of_an_acyclic_graph_follows_its_needs(edges: list[tuple[int, int]]) -> None:
    needed: dict[str, set[str]] = {str(number): set() for edge in edges for number in edge}
    for one, other in edges:
        if one != other:
            needed[str(max(one, other))].add(str(min(one, other)))
    order = load_order(needed)
    assert sorted(order) == sorted(needed)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[name] > place[below] for name in needed for below in needed[name])
