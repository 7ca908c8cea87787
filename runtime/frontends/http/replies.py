"""The forms that endpoints answer in."""

from __future__ import annotations

from starlette.responses import Response


def json_reply(body: bytes) -> Response:
    """An answer that is a JSON document."""
    return Response(body, headers={"content-type": "application/json"})


def empty(status: int) -> Response:
    """An answer whose status says everything."""
    return Response(status_code=status, headers={"content-type": "text/plain"})
