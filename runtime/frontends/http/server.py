"""The HTTP front-end: its sockets, its thread with an event loop, its start and its end.

One thread serves the HTTP port and the metrics port. What a path means is said in `routes` and `infer`; how bytes
become requests in `connection`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import uvloop
from starlette.types import ASGIApp

from cantata.runtime.admission import ByteLease
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.frontends.http.asgi import serve_asgi
from cantata.runtime.frontends.http.client_limits import ClientLimits
from cantata.runtime.frontends.http.connection import Connection, Connections, Exchange
from cantata.runtime.frontends.http.infer import InferRoute
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.restriction import Restrictions
from cantata.runtime.frontends.http.routes import create_application, create_metrics_application
from cantata.runtime.frontends.listening import BACKLOG, bound_socket
from cantata.runtime.observe.machine_metrics import MachineFigures
from cantata.runtime.observe.metrics import MetricsText

if TYPE_CHECKING:
    from cantata.runtime.server import Server

# How often connections are looked at for clients that are too slow.
_LOOK_INTERVAL_S: Final = 1.0
_INFER_PATH: Final = re.compile(rb"/v2/models/([^/]+)(?:/versions/([0-9]+))?/infer")
_GENERATE_PATH: Final = re.compile(rb"/v2/models/([^/]+)(?:/versions/([0-9]+))?/generate(?:_stream)?")
# How many addresses of models are remembered with what they mean.
_MAX_KNOWN_URLS: Final = 1024
_MAX_METRICS_BODY: Final = 1 << 10


class HttpServer:
    """The HTTP and metrics ports of one server. `start` and `close` are called once each, from any thread."""

    def __init__(self, server: Server, options: HttpOptions) -> None:
        self._server = server
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ports: list[_Port] = []
        self._http_handler: _HttpHandler | None = None
        self._failure: Exception | None = None
        self.port: int | None = None
        self.metrics_port: int | None = None

    def start(self) -> None:
        """Bind the ports and serve.

        Raises OSError, naming the address, when a port cannot be had, and re.error for a header pattern that is none.
        """
        options = self._options
        sockets: list[socket.socket] = []
        try:
            if options.port is not None:
                sockets.append(bound_socket(options.address, options.port, options.reuse_port))
                self.port = sockets[-1].getsockname()[1]
            if options.metrics_port is not None:
                address = options.metrics_address or options.address
                sockets.append(bound_socket(address, options.metrics_port, options.reuse_port))
                self.metrics_port = sockets[-1].getsockname()[1]
        except OSError:
            for bound in sockets:
                bound.close()
            raise
        try:
            contexts = self._tls_contexts()
        except OSError:
            for bound in sockets:
                bound.close()
            raise
        is_serving = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(sockets, contexts, is_serving), name="cantata-http", daemon=True
        )
        self._thread.start()
        is_serving.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop_accepting(self) -> None:
        """Refuse new inference requests from now on; those in flight go on, and so do health checks."""
        if self._http_handler is not None:
            self._http_handler.stop_accepting()
        for port in self._ports:
            port.connections.is_draining = True

    def close(self, grace_s: float = 1.0) -> None:
        """Stop listening, let answers reach their clients for `grace_s` seconds, cut off the rest, end the thread.

        Closing twice does nothing.
        """
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        self.stop_accepting()
        asyncio.run_coroutine_threadsafe(self._end(grace_s), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    def _tls_contexts(self) -> list[ssl.SSLContext | None]:
        """The TLS context of each port, None for a plain one; raises OSError where a certificate will not do."""
        options = self._options
        context = None if options.tls is None else options.tls.context("HTTP")
        contexts = [] if options.port is None else [context]
        if options.metrics_port is not None:
            contexts.append(context if options.metrics_use_ssl else None)
        return contexts

    def _serve(
        self,
        sockets: list[socket.socket],
        contexts: list[ssl.SSLContext | None],
        is_serving: threading.Event,
    ) -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            self._listen(loop, sockets, contexts)
            self._loop = loop
            is_serving.set()
            loop.run_forever()
        except Exception as error:
            self._failure = error
        finally:
            for bound in sockets:
                bound.close()
            asyncio.set_event_loop(None)
            loop.close()
            if self._http_handler is not None:
                self._http_handler.close()
            is_serving.set()

    def _listen(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[socket.socket],
        contexts: list[ssl.SSLContext | None],
    ) -> None:
        for bound, context, handler in zip(sockets, contexts, self._handlers(loop), strict=True):
            port = _Port(handler, self._options.limits)
            loop.run_until_complete(port.listen(loop, bound, context))
            self._ports.append(port)

    def _handlers(self, loop: asyncio.AbstractEventLoop) -> list[_HttpHandler | _AsgiHandler]:
        handlers: list[_HttpHandler | _AsgiHandler] = []
        if self._options.port is not None:
            self._http_handler = _HttpHandler(self._server, self._options, loop)
            handlers.append(self._http_handler)
        if self._options.metrics_port is not None:
            metrics = MetricsText(
                self._server.model_figures,
                MachineFigures.opened(self._options.metrics),
                self._server.custom_metrics.lines,
                self._server.admission.server,
                self._server.cache_figures,
                has_latency_counters=self._options.metrics.has_latency_counters,
            )
            restrictions = Restrictions((), self._options.api_keys)
            application = create_metrics_application(metrics.render, restrictions)
            handlers.append(_AsgiHandler(application, loop, _MAX_METRICS_BODY))
        return handlers

    async def _end(self, grace_s: float) -> None:
        for port in self._ports:
            port.stop_listening()
        draining = [port.connections.drain() for port in self._ports]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*draining), grace_s)
        for port in self._ports:
            port.stop_looking()
            port.connections.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Port:
    """One listening socket, and the connections that it has accepted."""

    def __init__(self, handler: _HttpHandler | _AsgiHandler, limits: ClientLimits) -> None:
        self.connections = Connections(limits)
        self._handler = handler
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def listen(
        self, loop: asyncio.AbstractEventLoop, bound: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        timeout_ms = self.connections.limits.header_timeout
        self._listener = await loop.create_server(
            lambda: Connection(self._handler, self.connections),
            sock=bound,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=timeout_ms / 1000 if context is not None and timeout_ms else None,
        )
        self._look_after_connections(loop)

    def _look_after_connections(self, loop: asyncio.AbstractEventLoop) -> None:
        self.connections.end_overdue(monotonic_ns() // 1_000_000)
        self._timer = loop.call_later(_LOOK_INTERVAL_S, self._look_after_connections, loop)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def stop_looking(self) -> None:
        """No more connections are ended for being slow."""
        if self._timer is not None:
            self._timer.cancel()


class _AsgiHandler:
    """Serves every request of a port with an ASGI application."""

    def __init__(self, application: ASGIApp, loop: asyncio.AbstractEventLoop, max_body_size: int) -> None:
        self._application = application
        self._loop = loop
        self._max_body_size = max_body_size
        # Referred to, so that no task is collected before it ends.
        self._tasks: set[asyncio.Task[None]] = set()

    def body_limit(self, exchange: Exchange) -> int | None:
        return self._max_body_size

    def handle(self, exchange: Exchange) -> None:
        task = self._loop.create_task(serve_asgi(self._application, exchange, self._max_body_size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _HttpHandler:
    """Serves the HTTP port: infer requests go their own short way, all others through the application."""

    def __init__(self, server: Server, options: HttpOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._admission = server.admission
        self._infer = InferRoute(server, options, loop)
        self._restrictions = Restrictions(options.restricted_apis, options.api_keys)
        self._application = _AsgiHandler(create_application(server, options), loop, options.max_input_size)
        self._max_input_size = options.max_input_size
        # Infer addresses seen so far: the model's name and version, or None for an address of something else.
        self._known_urls: dict[bytes, tuple[str, int] | None] = {}

    def stop_accepting(self) -> None:
        self._infer.is_stopping = True

    def close(self) -> None:
        """The loop has ended."""
        self._infer.close()

    def body_limit(self, exchange: Exchange) -> int | None:
        """None for binary tensors behind a JSON header, which have no limit: they are as large as they must be."""
        if self._restrictions.are_any and self._is_refused(exchange):
            return 0
        limit: int | None = self._max_input_size
        header_length = exchange.header(b"inference-header-content-length")
        if header_length not in (None, b"0") and exchange.header(b"content-encoding") is None:
            limit = None
        if self._admission.is_on and exchange.method == b"POST":
            self._admit(exchange, limit)
            if exchange.refusal is not None:
                return 0
        return limit

    def handle(self, exchange: Exchange) -> None:
        target = self._target(exchange.url)
        if target is None or exchange.method != b"POST":
            self._application.handle(exchange)
        else:
            self._infer.accept(exchange, *target)

    def _is_refused(self, exchange: Exchange) -> bool:
        """Whether it is an inference request of somebody who may not ask: that does not fill the memory either."""
        return (
            self._target(exchange.url) is not None
            and self._restrictions.refusal("inference", exchange.header_text) is not None
        )

    def _admit(self, exchange: Exchange, limit: int | None) -> None:
        """Have an inference request take what its body will need, before any of it is kept."""
        length = int(exchange.header(b"content-length") or 0)
        if limit is not None and length > limit:
            # None of it will be kept.
            return
        target = self._target(exchange.url)
        if target is None:
            match = _GENERATE_PATH.fullmatch(exchange.url.partition(b"?")[0])
            target = None if match is None else _model_in(match)
        if target is None:
            return
        exchange.lease = ByteLease(length)
        try:
            self._server.hold(exchange.lease, *target)
        except InferenceError as error:
            exchange.refuse(error)

    def _target(self, url: bytes) -> tuple[str, int] | None:
        """The model and the version whose infer address it is, None for another address."""
        target = self._known_urls.get(url)
        if target is None and url not in self._known_urls:
            target = self._resolve(url)
        return target

    def _resolve(self, url: bytes) -> tuple[str, int] | None:
        match = _INFER_PATH.fullmatch(url.partition(b"?")[0])
        target = None if match is None else _model_in(match)
        if len(self._known_urls) >= _MAX_KNOWN_URLS:
            self._known_urls.clear()
        self._known_urls[url] = target
        return target


def _model_in(match: re.Match[bytes]) -> tuple[str, int]:
    return unquote(match[1].decode("latin-1")), int(match[2] or -1)
