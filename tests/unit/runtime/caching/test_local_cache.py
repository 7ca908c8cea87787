"""The cache in memory: what was used last stays, and never more than its bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cantata.runtime.caching.local_cache import LocalCache
from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.tensor import Tensor, tensor_of_array


def entry(elements: int = 1000) -> CachedResponse:
    return CachedResponse("m", 1, {"OUT": tensor_of_array(np.zeros(elements, np.float32))}, None)


SIZE = entry().byte_size


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = LocalCache(3 * SIZE)
    for key in (b"a", b"b", b"c"):
        cache.insert(key, "m", entry())
    cache.lookup(b"a")
    cache.insert(b"d", "m", entry())
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.lookup(key) is not None] == [b"a", b"c", b"d"]
    assert (cache.figures().entries, cache.figures().evictions) == (3, 1)
    assert cache.figures().utilization == 1.0


def test_what_could_never_fit_drives_nothing_out() -> None:
    cache = LocalCache(2 * SIZE)
    cache.insert(b"a", "m", entry())
    cache.insert(b"b", "m", entry(100_000))
    assert cache.lookup(b"a") is not None
    assert cache.lookup(b"b") is None


def test_a_key_has_one_entry() -> None:
    cache = LocalCache(3 * SIZE)
    cache.insert(b"a", "m", entry())
    cache.insert(b"a", "m", latest := entry(10))
    assert cache.lookup(b"a") is latest
    assert cache.figures().entries == 1
    cache.check_invariants()


def test_what_is_forgotten_is_one_owners() -> None:
    cache = LocalCache(10 * SIZE)
    cache.insert(b"a", "first", entry())
    cache.insert(b"b", "second", entry())
    cache.forget("first")
    cache.forget("third")
    assert cache.lookup(b"a") is None
    assert cache.lookup(b"b") is not None
    cache.check_invariants()


def test_texts_are_counted_with_their_letters() -> None:
    texts = np.array([b"x" * 100_000, b""], dtype=object)
    cached = CachedResponse("m", 1, {"OUT": Tensor(tensor_of_array(texts).datatype, texts)}, None)
    assert cached.byte_size > 100_000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ilf"), st.integers(0, 6), st.integers(0, 3000), st.integers(0, 2)),
        max_size=60,
    )
)
def test_the_bytes_are_never_exceeded(operations: list[tuple[str, int, int, int]]) -> None:
    cache = LocalCache(3 * SIZE)
    for operation, key, elements, owner in operations:
        if operation == "i":
            cache.insert(b"%d" % key, key % 3, entry(elements))
        elif operation == "l":
            cache.lookup(b"%d" % key)
        else:
            cache.forget(owner)
        cache.check_invariants()
