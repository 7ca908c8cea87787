"""The gRPC server: which calls there are, and what answers each.

Built by the command line over a running `Server`. The work is in the modules that it puts together.
"""

from __future__ import annotations

from functools import partial

from cantata.runtime.frontends.grpc import health, reflection, service
from cantata.runtime.frontends.grpc.call_loop import CallLoop, Route
from cantata.runtime.frontends.grpc.health import HealthService
from cantata.runtime.frontends.grpc.infer_stream import InferStream
from cantata.runtime.frontends.grpc.inference import InferenceService
from cantata.runtime.frontends.grpc.memory_service import MemoryService
from cantata.runtime.frontends.grpc.options import GrpcOptions
from cantata.runtime.frontends.grpc.reflection import ReflectionStream
from cantata.runtime.frontends.grpc.restriction import keyed, restricted
from cantata.runtime.frontends.grpc.service import ServerService
from cantata.runtime.frontends.grpc.settings_service import SettingsService
from cantata.runtime.frontends.grpc.unary import Handler, InferCall, UnaryCall
from cantata.runtime.server import Server


class GrpcServer:
    """A gRPC front-end of `server`. `start` and `close` are called once each."""

    def __init__(self, server: Server, options: GrpcOptions) -> None:
        self._options = options
        self._loop = CallLoop(server.workers, options)
        self._inference = InferenceService(server, self._loop, options)
        self._health = HealthService(server, self._loop)
        self._service = ServerService(server)
        self._settings = SettingsService(server)
        self._memory = MemoryService(server.shared_memory)

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._loop.port

    def start(self) -> None:
        """Listen, and serve from a thread of its own. Raises OSError when that is not possible."""
        self._loop.start(self._routes(), self._on_stop)

    def stop_accepting(self) -> None:
        """Refuse new inference requests from now on; those in flight go on, and so do health checks."""
        self._inference.is_stopping = True

    def close(self, grace_s: float = 1.0) -> None:
        """Stop listening, let calls in flight finish for `grace_s` seconds, cancel the rest, end the thread."""
        self.stop_accepting()
        self._loop.close(grace_s)

    def _on_stop(self) -> None:
        self._inference.stop_streams()
        self._health.stop()

    def _routes(self) -> dict[bytes, Route]:
        routes: dict[str, Route] = {}
        quick = self._service.quick_handlers() | self._memory.handlers() | self._settings.handlers()
        for name, handler in quick.items():
            routes[service.PREFIX + name] = self._unary(handler)
        for name, handler in self._service.slow_handlers().items():
            routes[service.PREFIX + name] = self._unary(handler, is_quick=False)
        routes[service.PREFIX + "ModelInfer"] = partial(InferCall, self._inference)
        routes[service.PREFIX + "ModelStreamInfer"] = lambda call: InferStream(self._inference, call).reader
        routes[health.PREFIX + "Check"] = self._unary(self._health.check, is_quick=False)
        routes[health.PREFIX + "Watch"] = self._health.watch
        for path in reflection.PATHS:
            routes[path] = lambda call: ReflectionStream(self._loop, call).reader
        guarded = restricted(routes, self._options.restricted_protocols)
        guarded = keyed(guarded, self._options.api_keys)
        return {path.encode(): route for path, route in guarded.items()}

    def _unary(self, handler: Handler, *, is_quick: bool = True) -> Route:
        return partial(UnaryCall, self._loop, handler, is_quick)
