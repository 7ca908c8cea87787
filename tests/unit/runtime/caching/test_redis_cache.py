"""The cache in Redis: found again by another server, and no trouble where Redis is."""

from __future__ import annotations

import logging
import sys
from typing import Any

import fakeredis
import numpy as np
import pytest

from cantata.runtime.caching.redis_cache import RedisCache
from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.errors import InferenceError
from cantata.runtime.tensor import tensor_of_array

KEY = bytes(range(32))
ENTRY = CachedResponse("m", 3, {"OUT": tensor_of_array(np.array([1.5, 2.5], np.float32))}, {"k": 1})


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


def cache_of(server: fakeredis.FakeServer, clock: Clock | None = None, **settings: str) -> RedisCache:
    cache = RedisCache({"host": "unused", **settings}, clock or Clock())
    cache.start()
    cache._client = fakeredis.FakeRedis(server=server)
    return cache


def test_another_server_finds_what_one_has_kept(server: fakeredis.FakeServer) -> None:
    first, second = cache_of(server), cache_of(server)
    assert first.lookup(KEY) is None
    first.insert(KEY, "owner", ENTRY)
    found = second.lookup(KEY)
    assert found is not None
    assert found.outputs["OUT"].array.tolist() == [1.5, 2.5]
    assert (found.model_name, found.model_version, found.parameters) == ("m", 3, {"k": 1})
    first.close()
    second.close()


def test_entries_live_as_long_as_they_are_asked_to(server: fakeredis.FakeServer) -> None:
    client = fakeredis.FakeRedis(server=server)
    cache_of(server, ttl="60").insert(KEY, "owner", ENTRY)
    [name] = client.keys()
    assert client.ttl(name) == 60
    cache_of(server).insert(KEY, "owner", ENTRY)
    assert client.ttl(name) == -1


def test_an_entry_that_cannot_be_read_is_none(
    server: fakeredis.FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(server)
    cache.insert(KEY, "owner", ENTRY)
    client = fakeredis.FakeRedis(server=server)
    client.set(client.keys()[0], b"cantata1\n{}")
    assert cache.lookup(KEY) is None
    assert "an entry of the response cache is unusable" in caplog.text


def test_an_outage_is_noted_once_and_its_end(
    server: fakeredis.FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    cache = cache_of(server, clock)
    cache.insert(KEY, "owner", ENTRY)
    server.connected = False
    for _ in range(3):
        assert cache.lookup(KEY) is None
        clock.now_ns += 2_000_000_000
        cache.insert(KEY, "owner", ENTRY)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "requests are served without it" in caplog.text
    server.connected = True
    # Left alone for a while after the last failure.
    assert cache.lookup(KEY) is None
    clock.now_ns += 2_000_000_000
    assert cache.lookup(KEY) is not None
    assert caplog.records[-1].message == "the response cache can be used again"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InferenceError, match=r'needs the package redis.*pip install "cantata\[redis\]"'):
        RedisCache({"host": "h"}).start()


def connection(settings: dict[str, str]) -> Any:
    cache = RedisCache(settings)
    cache.start()
    assert cache._client is not None
    pool = cache._client.connection_pool
    kwargs = dict(pool.connection_kwargs)
    return {name: kwargs.get(name) for name in ("host", "port", "db", "username", "password")} | {
        "timeouts": (kwargs["socket_connect_timeout"], kwargs["socket_timeout"], pool.timeout),
        "pool": pool.max_connections,
    }


def test_the_settings_are_those_of_tritons_redis_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "host=h port=1 user=u password=p db=2 connect_timeout=100 socket_timeout=0 pool_size=3 wait_timeout=10"
    assert connection(dict(pair.split("=") for pair in settings.split())) == {
        "host": "h",
        "port": 1,
        "db": 2,
        "username": "u",
        "password": "p",
        "timeouts": (0.1, None, 0.01),
        "pool": 3,
    }
    monkeypatch.setenv("TRITONCACHE_REDIS_USERNAME", "from")
    monkeypatch.setenv("TRITONCACHE_REDIS_PASSWORD", "environment")
    found = connection({"host": "h"})
    assert (found["port"], found["username"], found["password"]) == (6379, "from", "environment")


def test_a_url_says_it_all() -> None:
    found = connection({"url": "redis://u:p@h:7/3"})
    assert [found[name] for name in ("host", "port", "db", "username", "password")] == ["h", 7, 3, "u", "p"]
    with pytest.raises(InferenceError, match="cannot be set up"):
        RedisCache({"url": "http://h"}).start()
