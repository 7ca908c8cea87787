"""Groups of endpoints that answer only to callers with a key: `--api-keys`, over both protocols and for the metrics.

Owns where keys come from, the forms in which callers show them, and the comparing. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final

from cantata.runtime.frontends.restricted_api import CATEGORIES

# The groups: those of the restricted APIs, and the metrics port.
METRICS: Final = "metrics"
KEY_GROUPS: Final = (*CATEGORIES, METRICS)
REFUSAL: Final = (
    "This API needs a key: send 'authorization: Bearer <key>' or 'x-api-key: <key>' as a header or metadata"
)

_BEARER: Final = "bearer "
_ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Requests of these `groups` must show one of the keys whose SHA-256 digests these are."""

    groups: frozenset[str]
    digests: tuple[bytes, ...]

    def admits(self, header: Callable[[str], str | None]) -> bool:
        """Whether a request shows one of the keys; `header` finds a header by its lower-case name.

        Takes as long for every wrong key: digests are compared, all of them, in constant time.
        """
        shown = header("authorization")
        if shown is not None and shown[: len(_BEARER)].lower() == _BEARER:
            key = shown[len(_BEARER) :].strip()
        else:
            key = header("x-api-key") or ""
        digest = sha256(key.encode(errors="replace")).digest()
        matches = [compare_digest(digest, known) for known in self.digests]
        return any(matches)


def parse_api_keys(texts: Sequence[str], environment: Mapping[str, str]) -> tuple[ApiKeys, ...]:
    """The keys that `<group>[,<group>...]:file=<path>` and `...:env=<name>` name.

    Raises ValueError with what is wrong; the keys themselves are in no message.
    """
    parsed: list[ApiKeys] = []
    seen: set[str] = set()
    for text in texts:
        names, colon, source = text.partition(":")
        kind, equals, place = source.partition("=")
        if not colon or not equals or not place or kind not in ("file", "env"):
            raise ValueError(f"expects <group>[,<group>...]:file=<path> or ...:env=<name>, got '{text}'")
        groups = KEY_GROUPS if names == _ALL else tuple(names.split(","))
        for name in groups:
            if name not in KEY_GROUPS:
                raise ValueError(f"knows no group '{name}': there are {', '.join(KEY_GROUPS)} and {_ALL}")
            if name in seen:
                raise ValueError(f"group '{name}' can not be given keys twice")
            seen.add(name)
        parsed.append(ApiKeys(frozenset(groups), _digests(_text(kind, place, environment), source)))
    return tuple(parsed)


def _text(kind: str, place: str, environment: Mapping[str, str]) -> str:
    if kind == "env":
        if place not in environment:
            raise ValueError(f"finds no variable '{place}' in the environment")
        return environment[place]
    try:
        return Path(place).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read keys from '{place}': {error}") from None


def _digests(text: str, source: str) -> tuple[bytes, ...]:
    """One key a line; empty lines and those that begin with '#' are none."""
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"finds no key in '{source}'")
    return tuple(sha256(key.encode()).digest() for key in keys)
