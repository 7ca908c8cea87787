"""The generate endpoints: one document in, one document or a stream of server-sent events out (section 3.4).

Owns the way of responses from whichever thread has them to the coroutine that sends them, and how far a model may
run ahead of its reader.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, invalid_argument
from cantata.runtime.frontends.http.asgi import LEASE
from cantata.runtime.frontends.http.errors import checked_version, error_body, status_of
from cantata.runtime.frontends.http.generate_codec import decode_generate_request, encode_generate_response
from cantata.runtime.frontends.http.load_report import FORMAT_HEADER, load_report
from cantata.runtime.observe.trace import HTTP
from cantata.runtime.request import InferenceRequest
from cantata.runtime.response import InferenceResponse

if TYPE_CHECKING:
    from cantata.runtime.server import Server

# How many responses may wait for their reader before the model does.
MAX_UNREAD: Final = 256
_NOT_ONE_RESPONSE: Final = (
    "generate expects model to produce exactly 1 response, "
    "use generate stream for model that generates various number of responses"
)


class ResponseStream:
    """The sender of one request, and an iterator over its responses. Iterated on the loop it was made on, once.

    `_changed` guards `_unread_count` and `_is_released`.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._unread: asyncio.Queue[InferenceResponse | None] = asyncio.Queue()
        self._unread_count = 0
        self._is_released = False
        self._changed = threading.Condition()

    def send(self, response: InferenceResponse | None, final: bool) -> None:
        with self._changed:
            self._unread_count += 1
        if threading.get_ident() == self._loop_thread:
            self._add(response, final)
        else:
            # A loop that has ended took its clients with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._add, response, final)

    def wait_until_ready(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._unread_count < MAX_UNREAD or self._is_released)

    def release(self) -> None:
        """Never make the model wait again: nobody reads any more."""
        with self._changed:
            self._is_released = True
            self._changed.notify_all()

    def _add(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self._unread.put_nowait(response)
        if final:
            self._unread.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[InferenceResponse]:
        while (response := await self._unread.get()) is not None:
            with self._changed:
                self._unread_count -= 1
                self._changed.notify()
            yield response


class GenerateEndpoints:
    """`generate` and `generate_stream` of every model."""

    def __init__(self, server: Server, max_input_size: int) -> None:
        self._server = server
        self._max_input_size = max_input_size

    async def generate(self, request: Request) -> Response:
        async with self._responses(request) as stream:
            responses = [response async for response in stream]
        for response in responses:
            if response.error is not None:
                raise response.error
        if len(responses) != 1:
            raise invalid_argument(_NOT_ONE_RESPONSE)
        report = load_report(
            request.headers.get(FORMAT_HEADER), self._server.custom_metrics, request.path_params["model"]
        )
        return Response(
            encode_generate_response(responses[0]), headers={"content-type": "application/json", **report}
        )

    async def generate_stream(self, request: Request) -> Response:
        events = self._events(request)
        # The status can only tell of the first response: it is sent before the others are known.
        first = await anext(events, None)
        status = 200 if first is None else first[0]

        async def body() -> AsyncIterator[bytes]:
            if first is not None:
                yield first[1]
            async for _, event in events:
                yield event

        return StreamingResponse(
            body(), status_code=status, headers={"content-type": "text/event-stream; charset=utf-8"}
        )

    async def _events(self, request: Request) -> AsyncIterator[tuple[int, bytes]]:
        """Each response as an event, and the status that it would have alone."""
        async with self._responses(request) as stream:
            async for response in stream:
                status = 200
                try:
                    if response.error is not None:
                        raise response.error
                    document = encode_generate_response(response)
                except InferenceError as error:
                    status, document = status_of(error), error_body(error.message)
                yield status, b"data: %s\n\n" % document

    @asynccontextmanager
    async def _responses(self, request: Request) -> AsyncIterator[ResponseStream]:
        """Submit what `request` says; the inference is cancelled when the client goes or the block is left early."""
        inference, stream = await self._prepared(request)
        watcher = asyncio.ensure_future(_cancel_on_disconnect(request, inference, stream))
        try:
            with self._server.workers.collecting() as work:
                tracer = self._server.tracer
                if tracer.is_on or inference.parameters is not None:
                    tracer.begin(inference, HTTP, request.headers.raw)
                self._server.submit(inference)
                work.run()
            yield stream
        finally:
            watcher.cancel()
            if not inference.is_finished:
                inference.cancellation.cancel()
            stream.release()

    async def _prepared(self, request: Request) -> tuple[InferenceRequest, ResponseStream]:
        received_ns = monotonic_ns()
        if request.headers.get("content-encoding", "identity") != "identity":
            raise invalid_argument("Unsupported content-encoding, only 'identity' is supported.")
        name, version = request.path_params["model"], checked_version(request.path_params.get("version", -1))
        model = self._server.model(name, version)
        body = decode_generate_request(await request.body(), model.spec, self._max_input_size)
        stream = ResponseStream()
        inference = InferenceRequest(
            name,
            body.inputs,
            stream,
            received_ns,
            model_version=version,
            id=body.id,
            parameters=body.parameters or None,
        )
        inference.lease = request.scope["extensions"][LEASE]
        return inference, stream


async def _cancel_on_disconnect(
    request: Request, inference: InferenceRequest, stream: ResponseStream
) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    inference.cancellation.cancel()
    stream.release()
