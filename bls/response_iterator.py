"""The responses of a called model that may give any number of them: `exec(decoupled=True)`.

Owns their order, the waiting for the next one, in a thread or on an event loop, and the slowing down of a model
that is far ahead of its reader.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from cantata.bls.abandoned import Reaper
from cantata.bls.responses import InferenceResponse, received_response
from cantata.runtime.execution.worker_pool import about_to_wait
from cantata.runtime.request import Cancellation
from cantata.runtime.response import InferenceResponse as RuntimeResponse

# How many responses a model may be ahead of its reader.
_MOST_UNREAD: Final = 128


class ResponseFeed:
    """The sender's side: takes responses from the called model's threads.

    `_changed` guards all attributes. The responses are kept, since an iterator may be read again, unless `keeps` is
    turned off: then they are gone soon after they were read.
    """

    def __init__(self, cancellation: Cancellation, on_final: Callable[[], None]) -> None:
        self.cancellation = cancellation
        self._on_final = on_final
        self._changed = threading.Condition()
        self._responses: list[RuntimeResponse] = []
        self._is_finished = False
        self._furthest_read = 0
        self.keeps = True
        # How many responses at the start are no longer in `_responses`.
        self._dropped = 0
        self._async_reader: Callable[[], None] | None = None
        # Who reads, for noticing that nobody does any more.
        self.reader: weakref.ref[ResponseIterator] | None = None

    def send(self, response: RuntimeResponse | None, final: bool) -> None:
        with self._changed:
            if response is not None:
                self._responses.append(response)
            self._is_finished = final
            self._changed.notify_all()
            wake, self._async_reader = self._async_reader, None
        if wake is not None:
            wake()
        if final:
            self._on_final()

    def wait_until_ready(self) -> None:
        if self._count() - self._furthest_read < _MOST_UNREAD:
            return
        self.cancellation.add_listener(self, self._wake_writer)
        with self._changed:
            self._changed.wait_for(
                lambda: self._count() - self._furthest_read < _MOST_UNREAD or self.cancellation.is_cancelled
            )
        self.cancellation.remove_listener(self)

    def wait_for(self, index: int) -> RuntimeResponse | None:
        """The response at `index`; None when there are only so many."""
        if self._count() <= index and not self._is_finished:
            about_to_wait()
        with self._changed:
            self._changed.wait_for(lambda: self._count() > index or self._is_finished)
            return self._read(index)

    async def wait_for_async(self, index: int) -> RuntimeResponse | None:
        """`wait_for` on the running event loop. One reader at a time."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._count() > index or self._is_finished:
                    return self._read(index)
                arrived = asyncio.Event()
                self._async_reader = lambda: _set_from_any_thread(loop, arrived)  # noqa: B023 - called before the next round
            about_to_wait()
            await arrived.wait()

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def _count(self) -> int:
        """How many responses have come."""
        return self._dropped + len(self._responses)

    def _read(self, index: int) -> RuntimeResponse | None:
        if index >= self._count():
            return None
        if index >= self._furthest_read:
            self._furthest_read = index + 1
            self._changed.notify_all()
        response = self._responses[index - self._dropped]
        if not self.keeps and index - self._dropped >= _MOST_UNREAD:
            del self._responses[: index + 1 - self._dropped]
            self._dropped = index + 1
        return response

    def _wake_writer(self) -> None:
        with self._changed:
            self._changed.notify_all()


class ResponseIterator:
    """The responses in order, `for` and `async for`. Once finished it can be read again from the start.

    Dropping it before its end cancels the call.
    """

    __slots__ = ("__weakref__", "_abandonment", "_feed", "_index")

    def __init__(self, feed: ResponseFeed, reaper: Reaper) -> None:
        self._feed = feed
        self._index = 0
        cancel = feed.cancellation.cancel
        add = reaper.add
        # Lives as long as the iterator does: kept by the feed, which the called model's request keeps.
        feed.reader = weakref.ref(self, lambda _: add(cancel))

    def __iter__(self) -> Iterator[InferenceResponse]:
        if self._feed.is_finished:
            self._index = 0
        return self

    def __next__(self) -> InferenceResponse:
        response = self._feed.wait_for(self._index)
        if response is None:
            raise StopIteration
        self._index += 1
        return received_response(response)

    def __aiter__(self) -> AsyncIterator[InferenceResponse]:
        if self._feed.is_finished:
            self._index = 0
        return self

    async def __anext__(self) -> InferenceResponse:
        response = await self._feed.wait_for_async(self._index)
        if response is None:
            raise StopAsyncIteration
        self._index += 1
        return received_response(response)

    def read_once(self) -> None:
        """Keep no response that was read: it is not read again."""
        self._feed.keeps = False

    def cancel(self) -> None:
        """Tell the called model that its responses are not wanted any more."""
        self._feed.cancellation.cancel()


def _set_from_any_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        # The loop was closed while its reader waited: there is nobody to wake.
        return
