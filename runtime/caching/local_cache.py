"""Responses kept in the server's own memory: what was used last stays, within a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict

from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.observe.snapshots import CacheFigures


class LocalCache:
    """A cache of all models of one server (ResponseCache). `_lock` guards all attributes.

    Invariants, for `check_invariants`: `_used` is the sum of the entries' sizes and at most `byte_size`; `_keys` says
    of every entry whose it is, and of nothing else.
    """

    is_remote = False

    def __init__(self, byte_size: int) -> None:
        self._byte_size = byte_size
        self._lock = threading.Lock()
        # From the least to the most recently used.
        self._entries: OrderedDict[bytes, tuple[object, CachedResponse]] = OrderedDict()
        self._keys: defaultdict[object, set[bytes]] = defaultdict(set)
        self._used = 0
        self._evictions = 0

    def start(self) -> None:
        """Nothing has to be made first."""

    def lookup(self, key: bytes) -> CachedResponse | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def insert(self, key: bytes, owner: object, response: CachedResponse) -> None:
        size = response.byte_size
        if size > self._byte_size:
            # It would drive out everything else, and still not fit.
            return
        with self._lock:
            if key in self._entries:
                self._remove(key)
            while self._used + size > self._byte_size:
                self._remove(next(iter(self._entries)))
                self._evictions += 1
            self._entries[key] = owner, response
            self._keys[owner].add(key)
            self._used += size

    def forget(self, owner: object) -> None:
        with self._lock:
            for key in tuple(self._keys.get(owner, ())):
                self._remove(key)

    def figures(self) -> CacheFigures:
        with self._lock:
            utilization = self._used / self._byte_size if self._byte_size else 0.0
            return CacheFigures(len(self._entries), self._evictions, utilization)

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self._keys.clear()
            self._used = 0

    def check_invariants(self) -> None:
        """Raise AssertionError when the state is not what the class promises; for tests."""
        assert self._used == sum(response.byte_size for _, response in self._entries.values())
        assert self._used <= self._byte_size
        assert all(self._keys.values())
        owned = [(owner, key) for owner, keys in self._keys.items() for key in keys]
        assert len(owned) == len(self._entries)
        assert all(self._entries[key][0] is owner for owner, key in owned)

    def _remove(self, key: bytes) -> None:
        """Drop an entry; the caller holds the lock."""
        owner, response = self._entries.pop(key)
        self._used -= response.byte_size
        keys = self._keys[owner]
        keys.discard(key)
        if not keys:
            del self._keys[owner]
