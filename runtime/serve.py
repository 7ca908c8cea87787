"""`cantata serve`: a server and its front-ends, from start to the signal that ends them.

Owns the order of starting and stopping, the signals, and what is printed for whoever started it.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError
from cantata.runtime.observe.logs import LogSettings, configure_logging
from cantata.runtime.options import ServerOptions
from cantata.runtime.server import Server

if TYPE_CHECKING:
    from cantata.runtime.frontends.grpc.options import GrpcOptions
    from cantata.runtime.frontends.grpc.server import GrpcServer
    from cantata.runtime.frontends.http.options import HttpOptions
    from cantata.runtime.frontends.http.server import HttpServer

_log = logging.getLogger("cantata.server")

# How long a thread keeps the interpreter while others wait for it. Python's own 5 ms are an age to a request.
_SWITCH_INTERVAL_S: Final = 0.0005
_STATUS_WIDTH: Final = 80
# Two signals nearer than this are one.
_SAME_SIGNAL_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything that the command line says. A front-end that is None is not served."""

    server: ServerOptions
    http: HttpOptions | None
    grpc: GrpcOptions | None
    log: LogSettings
    # What the command line asks for that has no effect.
    warnings: tuple[str, ...] = ()


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    configure_logging(options.log)
    for warning in options.warnings:
        _log.warning("%s", warning)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    stopping = _Stopping()
    server = Server(options.server)
    try:
        server.start()
    except InferenceError as error:
        print(model_table(server), flush=True)
        _log.error("%s", error)
        return 1
    frontends = _FrontEnds(server, options)
    try:
        frontends.start()
    except OSError as error:
        _log.error("%s", error)
        server.close()
        return 1
    # What is loaded stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    print(model_table(server), flush=True)
    frontends.announce()
    stopping.wait()
    server.stop_accepting()
    frontends.stop_accepting()
    _log.info("stopping: accepted requests are finished, new ones are refused")
    all_ended = server.close()
    frontends.close()
    _log.info("stopped")
    return 0 if all_ended else 1


def model_table(server: Server) -> str:
    """Models, versions and states, with the reason for each that failed."""
    rows = [("Model", "Version", "Status")]
    for entry in server.repository_index():
        status = entry.state if not entry.reason else f"{entry.state}: {entry.reason}"
        first, *others = status.splitlines() or [""]
        rows.append((entry.name, entry.version or "-", first))
        rows += [("", "", line) for line in others]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    # A long reason runs over the border: it stays one line to search and copy, and the other rows stay narrow.
    widths[2] = min(widths[2], _STATUS_WIDTH)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


class _Stopping:
    """Waits for the signal to stop.

    An impatient second Ctrl-C ends the process at once. Other repeated signals are ignored: a process group, a
    container or a wrapper often delivers the same signal twice.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._asked_ns = 0
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def wait(self) -> None:
        self._asked.wait()

    def _stop(self, number: int, _: FrameType | None) -> None:
        now_ns = monotonic_ns()
        if not self._asked.is_set():
            self._asked_ns = now_ns
            self._asked.set()
        elif number == signal.SIGINT and now_ns - self._asked_ns > _SAME_SIGNAL_NS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class _FrontEnds:
    """The front-ends that were asked for. Their libraries are imported only then."""

    def __init__(self, server: Server, options: ServeOptions) -> None:
        self._server = server
        self._options = options
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None

    def start(self) -> None:
        """Listen; raises OSError, naming the address, when that is not possible."""
        try:
            if self._options.grpc is not None:
                from cantata.runtime.frontends.grpc.server import GrpcServer

                self._grpc = GrpcServer(self._server, self._options.grpc)
                self._grpc.start()
            if self._options.http is not None:
                from cantata.runtime.frontends.http.server import HttpServer

                self._http = HttpServer(self._server, self._options.http)
                self._http.start()
        except OSError:
            self.close()
            raise

    def announce(self) -> None:
        """Log where each front-end listens."""
        if self._grpc is not None and self._options.grpc is not None:
            _log.info("gRPC: listening at %s:%d", self._options.grpc.address, self._grpc.port)
        if self._http is not None and self._options.http is not None:
            if self._http.port is not None:
                _log.info("HTTP: listening at %s:%d", self._options.http.address, self._http.port)
            if self._http.metrics_port is not None:
                address = self._options.http.metrics_address or self._options.http.address
                _log.info("metrics: listening at %s:%d", address, self._http.metrics_port)

    def stop_accepting(self) -> None:
        if self._grpc is not None:
            self._grpc.stop_accepting()
        if self._http is not None:
            self._http.stop_accepting()

    def close(self) -> None:
        if self._grpc is not None:
            self._grpc.close()
        if self._http is not None:
            self._http.close()
