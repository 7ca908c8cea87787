"""Responses kept in Redis, where other servers, and this one after a restart, find them too.

Owns the connection, its options (those of Triton's Redis cache) and what happens while Redis cannot be reached: nothing
is found or kept then, and the log says so once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cantata.runtime.caching.entry_codec import decode_entry, encode_entry
from cantata.runtime.caching.response_cache import CachedResponse
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import unavailable
from cantata.runtime.observe.snapshots import CacheFigures

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger("cantata.cache")
_Result = TypeVar("_Result")

_PREFIX: Final = b"cantata:response:"
# How long Redis is left alone after it could not be reached.
_RETRY_NS: Final = 1_000_000_000
_DEFAULTS: Final = {
    "port": "6379",
    "db": "0",
    # Milliseconds. Triton's defaults wait for ever; here no request waits long for what only saves time.
    "connect_timeout": "500",
    "socket_timeout": "500",
    "wait_timeout": "100",
    "pool_size": "8",
    # Seconds; 0 leaves it to Redis how long entries live.
    "ttl": "0",
}


class RedisCache:
    """A cache of several servers (ResponseCache). `_lock` guards `_retry_ns`: 0 while Redis answers."""

    is_remote = True

    def __init__(self, settings: Mapping[str, str], clock: Callable[[], int] = monotonic_ns) -> None:
        self._settings = {**_DEFAULTS, **settings}
        self._clock = clock
        self._lock = threading.Lock()
        self._retry_ns = 0
        self._client: Redis | None = None

    def start(self) -> None:
        """Raises InferenceError where the package is missing; Redis itself need not be there yet."""
        try:
            import redis
        except ImportError as error:
            text = "the response cache 'redis' needs the package redis, which is not installed: "
            raise unavailable(text + 'pip install "cantata[redis]"') from error
        try:
            self._client = redis.Redis(connection_pool=_pool(self._settings))
        except ValueError as error:
            raise unavailable(f"the response cache 'redis' cannot be set up: {error}") from error

    def lookup(self, key: bytes) -> CachedResponse | None:
        entry = self._ask(lambda client: client.get(_PREFIX + key.hex().encode()))
        if not isinstance(entry, bytes):
            return None
        try:
            return decode_entry(entry)
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("an entry of the response cache is unusable and is ignored: %s", error)
            return None

    def insert(self, key: bytes, owner: object, response: CachedResponse) -> None:
        seconds = int(self._settings["ttl"]) or None
        self._ask(lambda client: client.set(_PREFIX + key.hex().encode(), encode_entry(response), ex=seconds))

    def forget(self, owner: object) -> None:
        """Entries of a load are never asked for again: Redis drops them in its own time."""

    def figures(self) -> CacheFigures:
        return CacheFigures()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _ask(self, question: Callable[[Redis], _Result]) -> _Result | None:
        """Ask Redis, unless it could not be reached a moment ago; None where there is no answer."""
        from redis.exceptions import RedisError

        client = self._client
        if client is None or self._clock() < self._retry_ns:
            return None
        try:
            result = question(client)
        except (RedisError, OSError) as error:
            self._lost(error)
            return None
        if self._retry_ns:
            self._found()
        return result

    def _lost(self, error: Exception) -> None:
        with self._lock:
            is_new = not self._retry_ns
            self._retry_ns = self._clock() + _RETRY_NS
        if is_new:
            _log.warning("the response cache cannot be used, and requests are served without it: %s", error)

    def _found(self) -> None:
        with self._lock:
            was_lost = self._retry_ns != 0
            self._retry_ns = 0
        if was_lost:
            _log.info("the response cache can be used again")


def _pool(settings: Mapping[str, str]) -> Any:
    """The connections; ValueError for a URL that is none."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    def seconds(name: str) -> float | None:
        return int(settings[name]) / 1000 or None

    options: dict[str, Any] = {
        "max_connections": max(1, int(settings["pool_size"])),
        "timeout": seconds("wait_timeout"),
        "socket_connect_timeout": seconds("connect_timeout"),
        "socket_timeout": seconds("socket_timeout"),
        # One try: whoever looks something up is waiting for it.
        "retry": Retry(NoBackoff(), 0),
        "username": settings.get("user") or os.environ.get("TRITONCACHE_REDIS_USERNAME"),
        "password": settings.get("password") or os.environ.get("TRITONCACHE_REDIS_PASSWORD"),
    }
    pool_class: Any = redis.BlockingConnectionPool
    if "url" in settings:
        named = {name: value for name, value in options.items() if value is not None}
        return pool_class.from_url(settings["url"], **named)
    return pool_class(host=settings["host"], port=int(settings["port"]), db=int(settings["db"]), **options)
