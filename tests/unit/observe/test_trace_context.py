"""The W3C trace context in headers and metadata."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.observe.trace_context import TraceContext, context_of_headers

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
PARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", PARENT)],
        [(b"Traceparent", PARENT.encode())],
        [("x", "y"), ("traceparent", f" {PARENT} "), ("content-type", "z")],
        # Not sampled by its sender: traced all the same.
        [("traceparent", f"00-{TRACE:032x}-{SPAN:016x}-00")],
        # A version to come, which may say more.
        [("traceparent", PARENT.replace("00-", "01-", 1) + "-more")],
    ],
)
def test_a_parent_is_found_among_headers(headers: list[tuple[str | bytes, str | bytes]]) -> None:
    assert context_of_headers(headers) == TraceContext(TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nothing",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",
        PARENT.replace("00-", "ff-", 1),
        f"00-{0:032x}-{SPAN:016x}-01",
        f"00-{TRACE:032x}-{0:016x}-01",
    ],
)
def test_what_is_no_parent_is_ignored(value: str) -> None:
    assert context_of_headers([("traceparent", value)]) is None


def test_two_parents_are_none() -> None:
    assert context_of_headers([("traceparent", PARENT), ("traceparent", PARENT)]) is None


def test_the_state_is_carried_along() -> None:
    headers = [("tracestate", "a=1"), ("traceparent", PARENT), ("tracestate", "b=2")]
    context = context_of_headers(headers)
    assert context == TraceContext(TRACE, SPAN, "a=1,b=2")
    assert json.loads(context.carrier()) == {"traceparent": PARENT, "tracestate": "a=1,b=2"}


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1))
def test_what_is_handed_on_is_understood(trace_id: int, span_id: int) -> None:
    context = TraceContext(trace_id, span_id)
    assert context_of_headers(json.loads(context.carrier()).items()) == context


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "other"]), st.text()), max_size=4))
def test_any_headers_are_taken(headers: list[tuple[str, str]]) -> None:
    context_of_headers(headers)
