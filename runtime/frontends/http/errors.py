"""How an error looks to an HTTP client: its status, its JSON body, and the errors that paths themselves can have."""

from __future__ import annotations

from typing import Final

import orjson

from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.frontends.status_codes import HTTP_STATUSES

JSON_HEADERS: Final = b"Content-Type: application/json\r\n"
_MAX_VERSION: Final = 2**63 - 1


def status_of(error: InferenceError) -> int:
    """The HTTP status of an error."""
    return HTTP_STATUSES[error.code]


def error_body(message: str) -> bytes:
    """The body of every answer that is an error."""
    try:
        return orjson.dumps({"error": message})
    except orjson.JSONEncodeError:
        # Half a surrogate pair, which a model's own text may hold.
        return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def checked_version(version: int) -> int:
    """The version in a path, if it can be one; raises InferenceError where it has too many digits."""
    if version > _MAX_VERSION:
        raise invalid_argument(
            f"failed to get model version from specified version string '{version}' (details: stol), "
            "version should be an integral value > 0"
        )
    return version


def json_size_error(size: int, limit: int) -> InferenceError:
    """What is said of too large a JSON document."""
    return invalid_argument(
        f"request JSON size of {size} bytes exceeds the maximum allowed input size of {limit} bytes. "
        "Use --http-max-input-size to increase the limit."
    )
