"""Headers of a request that become its parameters: `--http-header-forward-pattern`, `--grpc-header-forward-pattern`.

Owns which do, and which names may not. Knows no protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cantata.runtime.errors import invalid_argument
from cantata.runtime.response import ParameterValue

_RESERVED: Final = frozenset(
    {
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
        "binary_data_output",
    }
)


class HeaderForwarding:
    """The headers whose names a pattern is found in; it ignores case unless it begins with `(?-i)`."""

    def __init__(self, pattern: str) -> None:
        """Raises re.error for a pattern that is none."""
        if pattern.startswith("(?-i)"):
            self._pattern = re.compile(pattern.removeprefix("(?-i)"))
        else:
            self._pattern = re.compile(pattern, re.IGNORECASE)

    def added_to(
        self, parameters: dict[str, ParameterValue] | None, headers: Iterable[tuple[str, str]]
    ) -> dict[str, ParameterValue] | None:
        """`parameters` and those that `headers` make. Raises InferenceError for a name that is reserved."""
        forwarded: dict[str, ParameterValue] = {}
        for name, value in headers:
            if self._pattern.search(name):
                if name in _RESERVED or name.startswith("triton_"):
                    raise invalid_argument(
                        f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
                    )
                forwarded[name] = value
        return {**(parameters or {}), **forwarded} if forwarded else parameters


def header_forwarding(pattern: str) -> HeaderForwarding | None:
    """What `pattern` asks for: nothing where it is empty. Raises re.error."""
    return HeaderForwarding(pattern) if pattern else None
