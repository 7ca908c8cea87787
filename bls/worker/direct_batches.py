"""The plain batches of one process: one at a time over its direct channel, each from its beginning to its end.

Owns the channel while a batch runs, and who waits for its end: the thread that began it or, where that serves others,
an event loop or a worker. Knows nothing of how a process starts or ends.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final, Protocol

from cantata.bls.worker import messages
from cantata.bls.worker.batches import Batches, BrokenMessageError
from cantata.bls.worker.channel import Channel, ChannelClosedError, Message
from cantata.bls.worker.exchange import Exchange
from cantata.bls.worker.process_requests import ProcessRequests
from cantata.bls.worker.time_limit import TimeLimit
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.execution.containment import run_contained
from cantata.runtime.execution.execution import Execution
from cantata.runtime.execution.worker_pool import WorkerPool, about_to_wait

# How long a thread that serves others waits for the end of a batch, in milliseconds: where it has no FileWatch, or
# where nothing else is on the way to a process.
_PATIENCE_MS: Final = 1
# Where the last batch took longer, it does not wait at all.
_INSTANT_NS: Final = 1_000_000
# A batch that comes so soon after the one before is likely to be followed as soon: by a client that sends its next
# request when the last is answered.
_SOON_NS: Final = 1_000_000
# Stands for one that could not be read.
_NO_MESSAGE: Final[Message] = (-1,)


class ProcessLife(Protocol):
    """The life of the process whose batches they are."""

    @property
    def end_error(self) -> InferenceError | None:
        """Why the process is no more; None while it lives."""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and what was left to it is being failed."""

    def wait_until_gone(self) -> InferenceError:
        """Wait for the end of a process that has ended, or is about to; what requests are told of it."""

    def break_off(self) -> None:
        """End a process that no longer talks, or not what is understood."""


class DirectBatches:
    """`_lock` is held by whoever uses the channel, for as long as a batch runs."""

    def __init__(
        self,
        life: ProcessLife,
        channel: Channel,
        batches: Batches,
        requests: ProcessRequests,
        exchange: Exchange,
        workers: WorkerPool,
        limit: TimeLimit | None,
        busy: set[DirectBatches],
    ) -> None:
        """`busy` are those of all processes that have a batch; it is touched by single operations only."""
        self._life = life
        self._channel = channel
        self._batches = batches
        self._requests = requests
        self._exchange = exchange
        self._workers = workers
        self._limit = limit
        self._busy = busy
        self._lock = threading.Lock()
        # Whether the last batch was over in an instant, and when that was.
        self._is_quick = False
        self._ended_ns = 0

    def execute(self, execution: Execution) -> bool:
        """See BackendInstance. On a thread that serves others, only a batch that ends in an instant is waited for."""
        self._lock.acquire()
        keys: list[int] = []
        try:
            keys = self._begin(execution)
            # Where other processes have batches, or other requests wait, the processors have better things to do than
            # to stay awake for this one.
            is_alone = self._is_quick and len(self._busy) == 1 and len(execution.requests) == 1
            is_soon = execution.start_ns - self._ended_ns < _SOON_NS
            self._channel.tell(execution.watch)
            message = self._sent(self._batches.message(keys, execution, stays_awake=is_alone and is_soon))
            sent_ns = monotonic_ns()
            if execution.may_be_left:
                message = message or self._said_at_once(execution, stays_awake=is_alone)
                if not _is_end(message) and self._is_left(execution, keys, message):
                    return False
        except BaseException:
            if keys:
                self._batches.forget(keys)
                self._end(keys)
            self._lock.release()
            raise
        if not _is_end(message):
            about_to_wait()
        try:
            self.wait_for_end(execution, keys, message)
        finally:
            execution.waited_ns = (execution.resumed_ns or monotonic_ns()) - sent_ns
        return True

    def wait_for_end(self, execution: Execution, keys: list[int], message: Message | None) -> None:
        """Wait for the end of a batch that has begun, and do what its model asks for meanwhile.

        `message` is what the process has said already. Raises InferenceError when the process ends before the batch.
        Gives the channel back.
        """
        life = self._life
        try:
            try:
                while message is None or message[0] != messages.DONE:
                    if message is not None:
                        self._answer(message)
                    message = self._channel.receive()
                execution.resumed_ns = self._ended_ns = now_ns = monotonic_ns()
                self._is_quick = now_ns - execution.start_ns < _INSTANT_NS
                self._settle(execution, keys, message)
            except ChannelClosedError:
                error = life.wait_until_gone()
                self._batches.forget(keys)
                raise error from None
            except BaseException:
                self._batches.forget(keys)
                raise
            finally:
                self._end(keys)
            if life.is_gone:
                # The batch ended just before the process did, which left these requests to it.
                self._exchange.end(life.wait_until_gone())
        finally:
            self._lock.release()

    def next_message(self) -> Message:
        """What the process says; `_NO_MESSAGE` where it can say no more.

        Whoever waits on then asks nothing of the process, and sees it end.
        """
        try:
            return self._channel.receive()
        except ChannelClosedError:
            return _NO_MESSAGE

    def hand_over_rest(self, rest: RestOfBatch, message: Message | None) -> bool:
        """Have a worker go on with a batch; False where there is none, and no thread for one can be started."""
        self._channel.tell(None)
        rest.message, rest.is_quick = message, False
        try:
            self._workers.hand_over(rest)
        except RuntimeError:
            return False
        return True

    def send_when_idle(self, message: Message, timeout_s: float) -> bool:
        """Send what is no batch; False where one runs for longer than `timeout_s`."""
        if not self._lock.acquire(timeout=timeout_s):
            return False
        with contextlib.suppress(ChannelClosedError):
            self._channel.send(message)
        self._lock.release()
        return True

    def close(self) -> None:
        """Close the channel, once nobody uses it any more."""
        with self._lock:
            self._channel.close()

    def _begin(self, execution: Execution) -> list[int]:
        """A batch keeps the process busy, until `_end`; the caller has the channel."""
        end_error = self._life.end_error
        if end_error is not None:
            raise unavailable(end_error.message)
        keys = self._batches.begin(execution)
        self._busy.add(self)
        if self._limit is not None:
            self._limit.begin(keys[0])
        return keys

    def _end(self, keys: list[int]) -> None:
        """A batch keeps the process busy no longer."""
        self._busy.discard(self)
        self._batches.end(keys)
        if self._limit is not None:
            self._limit.end(keys[0])

    def _sent(self, message: Message) -> Message | None:
        """Send; `_NO_MESSAGE` where the process hears no more.

        It is not raised: that a process has ended is noticed by whoever waits for its answer.
        """
        try:
            self._channel.send(message)
        except ChannelClosedError:
            return _NO_MESSAGE
        return None

    def _said_at_once(self, execution: Execution, *, stays_awake: bool) -> Message | None:
        """What the process says in an instant; None where it says nothing yet."""
        if not self._is_quick:
            return None
        milliseconds = _PATIENCE_MS if stays_awake or execution.watch is None else 0
        if self._channel.has_message_within(milliseconds, stays_awake=stays_awake):
            return self.next_message()
        return None

    def _is_left(self, execution: Execution, keys: list[int], message: Message | None) -> bool:
        """Have somebody else wait for the end of a batch, with the channel; False where there is nobody."""
        rest = RestOfBatch(self, execution, keys)
        execution.keeps_instance = True
        if message is None and execution.watch is not None:
            self._channel.leave(rest)
        else:
            execution.keeps_instance = self.hand_over_rest(rest, message)
        return execution.keeps_instance

    def _answer(self, message: Message) -> None:
        outcome = self._requests.answer_directly(message)
        if outcome is None:
            self._life.break_off()
            raise ChannelClosedError
        self._channel.send((messages.ANSWER, *outcome))

    def _settle(self, execution: Execution, keys: list[int], message: Message) -> None:
        """Take the end of a batch; what else it may be is a broken process."""
        try:
            self._batches.settle(execution, keys, message)
        except BrokenMessageError as error:
            self._life.break_off()
            raise ChannelClosedError from error


class RestOfBatch:
    """A batch that a thread which serves others has begun, and has left.

    To be run by that thread when the process has said something, or by a worker, which waits for the end.
    """

    __slots__ = ("_batches", "_execution", "_keys", "is_quick", "message")

    is_quick_alone = False
    may_wait = False

    def __init__(self, batches: DirectBatches, execution: Execution, keys: list[int]) -> None:
        self._batches = batches
        self._execution = execution
        self._keys = keys
        # Whether it is run by the thread that has begun it; what the process has said to it, otherwise.
        self.is_quick = True
        self.message: Message | None = None

    def run(self) -> None:
        batches = self._batches
        if self.is_quick:
            message = self.message = batches.next_message()
            if not _is_end(message) and batches.hand_over_rest(self, message):
                return
        run_contained(self._go_on, self._execution)
        self._execution.finish()

    def _go_on(self, execution: Execution) -> bool:
        self._batches.wait_for_end(execution, self._keys, self.message)
        return True


def _is_end(message: Message | None) -> bool:
    """Whether the process has said that the batch is over."""
    return message is not None and message[0] == messages.DONE
