"""Responses that are read once: in order, none lost, and not kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.bls.response_iterator import ResponseFeed
from cantata.runtime.request import Cancellation
from cantata.runtime.response import InferenceResponse


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=12))
def test_a_stream_that_is_read_once_keeps_little(bursts: list[int]) -> None:
    feed = ResponseFeed(Cancellation(), lambda: None)
    feed.keeps = False
    sent = read = 0
    for burst in bursts:
        for _ in range(burst):
            feed.send(InferenceResponse("model", 1, str(sent), {}), False)
            sent += 1
        while read < sent:
            response = feed.wait_for(read)
            assert response is not None
            assert response.id == str(read)
            read += 1
        assert len(feed._responses) <= 129
    feed.send(None, True)
    assert feed.wait_for(read) is None
