"""Groups of endpoints that answer only to callers with a secret: `--http-restricted-api`, `--grpc-restricted-protocol`.

Owns the names of the groups and the comparing. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

# The groups, as the command line calls them (reference, section 3).
CATEGORIES: Final = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)


@dataclass(frozen=True, slots=True)
class RestrictedApi:
    """Requests of these `categories` must carry the header `key` with exactly `value`."""

    categories: frozenset[str]
    key: str
    value: str

    def admits(self, found: str | None) -> bool:
        """Whether a caller that sent `found` under the key is one of those who know."""
        return found is not None and compare_digest(found.encode(), self.value.encode())


def parse_restricted_apis(texts: Sequence[str]) -> tuple[RestrictedApi, ...]:
    """The groups that `<category>[,<category>...]:<key>=<value>` name; raises ValueError with what is wrong."""
    parsed: list[RestrictedApi] = []
    seen: set[str] = set()
    for text in texts:
        names, colon, pair = text.partition(":")
        key, equals, value = pair.partition("=")
        if not colon or not equals or not key:
            raise ValueError(f"expects <api>[,<api>...]:<key>=<value>, got '{text}'")
        for name in names.split(","):
            if name not in CATEGORIES:
                raise ValueError(f"knows no api '{name}': there are {', '.join(CATEGORIES)}")
            if name in seen:
                raise ValueError(f"api '{name}' can not be specified in multiple config groups")
            seen.add(name)
        parsed.append(RestrictedApi(frozenset(names.split(",")), key, value))
    return tuple(parsed)
