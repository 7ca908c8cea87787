"""`--cache-config` as settings, and the cache that they ask for.

Owns the names of the caches there are and of their options. A cache's module is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cantata.grammars.problems import suggest
from cantata.runtime.caching.response_cache import ResponseCache

CacheConfig = Mapping[str, Mapping[str, str]]

_OPTIONS: Final = {
    "local": ("size",),
    "redis": (
        "url",
        "host",
        "port",
        "user",
        "password",
        "db",
        "connect_timeout",
        "socket_timeout",
        "pool_size",
        "wait_timeout",
        "ttl",
    ),
}
_NUMBERS: Final = frozenset(
    {"size", "port", "db", "connect_timeout", "socket_timeout", "pool_size", "wait_timeout", "ttl"}
)


def parse_cache_config(values: Sequence[str]) -> dict[str, dict[str, str]]:
    """Values of the form `<name>,<setting>=<value>`, the last of each setting; raises ValueError for another form."""
    config: dict[str, dict[str, str]] = {}
    for value in values:
        name, comma, assignment = value.partition(",")
        setting, equals, setting_value = assignment.partition("=")
        if not name or not comma:
            raise ValueError(
                f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {value}"
            )
        if not setting or not equals:
            raise ValueError(f"--cache-config option format is '<cache name>,<setting>=<value>'. Got {value}")
        config.setdefault(name, {})[setting] = setting_value
    return config


def check_cache_config(config: CacheConfig) -> None:
    """Raise ValueError where `config` is not that of one cache there is."""
    if len(config) > 1:
        raise ValueError(
            "found multiple cache configurations, but only a single cache is currently supported"
        )
    for name, settings in config.items():
        options = _OPTIONS.get(name)
        if options is None:
            raise ValueError(f"unknown cache '{name}'{_hint(name, _OPTIONS)}")
        for setting, value in settings.items():
            if setting not in options:
                raise ValueError(f"cache '{name}' has no setting '{setting}'{_hint(setting, options)}")
            if setting in _NUMBERS and not value.isdecimal():
                raise ValueError(f"cache '{name}' expects a number of '{setting}', got '{value}'")
        if name == "local" and not int(settings.get("size", 0)):
            raise ValueError("cache 'local' needs a 'size', in bytes: local,size=<bytes>")
        if name == "redis" and not settings.keys() & {"url", "host"}:
            raise ValueError("cache 'redis' needs a 'host' (and a 'port'), or a 'url': redis,host=<name>")


def create_cache(config: CacheConfig) -> ResponseCache | None:
    """The cache that `config` asks for, not started; None without any. Raises ValueError as `check_cache_config`."""
    check_cache_config(config)
    for name, settings in config.items():
        if name == "local":
            from cantata.runtime.caching.local_cache import LocalCache

            return LocalCache(int(settings["size"]))
        from cantata.runtime.caching.redis_cache import RedisCache

        return RedisCache(settings)
    return None


def _hint(name: str, known: Collection[str]) -> str:
    hint = suggest(name, known)
    return f" ({hint})" if hint else f": there are {', '.join(known)}"
