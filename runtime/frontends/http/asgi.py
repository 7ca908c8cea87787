"""Serving one exchange with an ASGI application, such as Starlette's.

For everything that is not on the hot path. The body has arrived whole before the application is called; answers may
be whole or streamed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import ASGIApp

from cantata.runtime.frontends.http.connection import Exchange
from cantata.runtime.frontends.http.errors import JSON_HEADERS, error_body, json_size_error, status_of

_log = logging.getLogger("cantata.http")

# The extension that holds what the request's body holds of budgets of bytes.
LEASE: Final = "cantata.lease"

# What ASGI calls a message or a scope: the one place where its untyped dictionaries are met.
_Message = MutableMapping[str, Any]


async def serve_asgi(application: ASGIApp, exchange: Exchange, max_body_size: int) -> None:
    """Answer `exchange` with what `application` sends. An exception that escapes it is a bug: 500 and a log entry.

    A body over `max_body_size` has been dropped, and is refused here.
    """
    if exchange.refusal is not None:
        error = exchange.refusal
        headers = JSON_HEADERS + b"Retry-After: %d\r\n" % error.retry_after_s
        exchange.respond(status_of(error), headers, error_body(error.message))
        return
    if exchange.has_oversized_body:
        error = json_size_error(exchange.body_size, max_body_size)
        exchange.respond(status_of(error), JSON_HEADERS, error_body(error.message))
        return
    answer = _Answer(exchange)
    try:
        await application(_scope_of(exchange), answer.receive, answer.send)
    except Exception:
        _log.exception("HTTP %s %s failed", exchange.method.decode(), exchange.url.decode("latin-1"))
        if not answer.has_started:
            exchange.keep_alive = False
            exchange.respond(500, JSON_HEADERS, b'{"error":"Internal Server Error"}')
    if not answer.is_complete and answer.has_started:
        exchange.keep_alive = False
        exchange.finish()


def _scope_of(exchange: Exchange) -> _Message:
    path, _, query = exchange.url.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": exchange.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": exchange.headers,
        "client": None,
        "server": None,
        "extensions": {LEASE: exchange.lease},
    }


class _Answer:
    """The application's view of an exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body_was_received = False
        self._head = (500, b"")
        self._is_chunked = False
        self.has_started = False
        self.is_complete = False

    async def receive(self) -> _Message:
        """The whole body first; then, when the client has gone, that."""
        if not self._body_was_received:
            self._body_was_received = True
            return {"type": "http.request", "body": bytes(self._exchange.body), "more_body": False}
        if not self._exchange.is_disconnected:
            disconnected = asyncio.Event()
            self._exchange.on_disconnect = disconnected.set
            await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: _Message) -> None:
        """Take the head, then the body in one part or many."""
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        if self._is_chunked:
            await self._send_chunk(body, has_more)
        else:
            self._send_head()
            self._exchange.write(self._visible(body))
        if not has_more:
            self.is_complete = True
            self._exchange.finish()

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        lines = b"".join(b"%s: %s\r\n" % (name, value) for name, value in headers)
        if not any(name.lower() == b"content-length" for name, _ in headers):
            self._is_chunked = True
            lines += b"Transfer-Encoding: chunked\r\n"
        self._head = (status, lines)

    def _send_head(self) -> None:
        if not self.has_started:
            self.has_started = True
            self._exchange.write(self._exchange.head(*self._head))

    async def _send_chunk(self, body: bytes, has_more: bool) -> None:
        self._send_head()
        if body:
            self._exchange.write(self._visible(b"%x\r\n%s\r\n" % (len(body), body)))
        if not has_more:
            self._exchange.write(self._visible(b"0\r\n\r\n"))
        await self._exchange.wait_until_writable()

    def _visible(self, body: bytes) -> bytes:
        return b"" if self._exchange.method == b"HEAD" else body
