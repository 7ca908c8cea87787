"""A scheduler whose answers are kept: equal requests are answered without running, and run once where several come.

Stands before a model's or an ensemble's own scheduler, and only where a cache is wanted. Owns the waiting for equal
requests and the figures of the cache; what is equal, and where answers are kept, is `cantata.runtime.caching`'s.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

from cantata.runtime.caching.request_key import RequestKey
from cantata.runtime.caching.response_cache import CachedResponse, kept_copy
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import InferenceError, StatusCode, unavailable
from cantata.runtime.observe.cache_statistics import CacheCounter
from cantata.runtime.observe.latencies import Latencies
from cantata.runtime.observe.snapshots import ModelStatistics
from cantata.runtime.observe.statistics import REASON_CANCELED, REASON_REJECTED
from cantata.runtime.request import EXPIRED, InferenceRequest
from cantata.runtime.response import InferenceResponse
from cantata.runtime.scheduling.batcher import NEVER
from cantata.runtime.scheduling.caching_rules import CachedScheduler, CachingParts, CachingRules
from cantata.runtime.scheduling.flight import Flight, Waiters
from cantata.runtime.scheduling.in_flight import STOPPED, HasInFlight, InFlight
from cantata.runtime.scheduling.nested_delivery import deliver

_log = logging.getLogger("cantata.cache")

# Bytes of a request's inputs; more of them take another thread most of a millisecond.
_MOST_DIGESTED_AT_ONCE = 1 << 20


class CachingScheduler(HasInFlight):
    """Answers from the cache, or has `inner` answer and keeps that.

    `_lock` guards `_flights`, the flights' `kept` and `waiters`, and the figures. It is never held while anything is
    looked up, run or sent. Invariant: a flight in `_flights` is the one that requests of its key wait for.
    """

    def __init__(
        self,
        inner: CachedScheduler,
        key: RequestKey,
        parts: CachingParts,
        rules: CachingRules,
        latencies: Latencies | None = None,
    ) -> None:
        self._inner = inner
        self._key = key
        self._cache = parts.cache
        self._is_remote = parts.cache.is_remote
        self._threads = parts.threads
        self._timer = parts.timer
        self._workers = parts.workers
        self._rules = rules
        self._lock = threading.Lock()
        self._flights: dict[bytes, Flight] = {}
        self._figures = CacheCounter(latencies)
        # Whatever is in the inner scheduler came from here, and is counted here for longer.
        self._in_flight = InFlight()
        self._is_stopped = False

    def enqueue(self, request: InferenceRequest) -> None:
        """Accept a validated request, on the caller's thread. Raises InferenceError when it is refused."""
        now_ns = request.queued_ns = monotonic_ns()
        if self._is_stopped:
            raise unavailable(f"{request.described_id()}{STOPPED}")
        order = self._rules.order
        if order is not None:
            # It has a place in the order from now on, which only an answer clears.
            request.sender = order.next_sender(request.sender)
        if self._takes_long(request) and self._accept_later(request, now_ns):
            return
        if order is None:
            self._accept(request, self._key.of(request), now_ns)
        else:
            self._accept_or_fail(request, now_ns)

    def _takes_long(self, request: InferenceRequest) -> bool:
        """Whether digesting a request would keep the caller's thread, which may serve others, for long."""
        return sum(tensor.array.nbytes for tensor in request.inputs.values()) > _MOST_DIGESTED_AT_ONCE

    def _accept_later(self, request: InferenceRequest, now_ns: int) -> bool:
        """Have another thread accept a request; False when those have too much to do."""
        if not self._in_flight.enter():
            return False

        def accept() -> None:
            self._accept_or_fail(request, now_ns)
            self._in_flight.leave()

        if self._threads.run(accept):
            return True
        self._in_flight.leave()
        return False

    def _accept_or_fail(self, request: InferenceRequest, now_ns: int) -> None:
        try:
            self._accept(request, self._key.of(request), now_ns)
        except InferenceError as error:
            request.fail(error)

    def _accept(self, request: InferenceRequest, key: bytes, now_ns: int) -> None:
        cached = None if self._is_remote else self._cache.lookup(key)
        if cached is not None:
            self._answer(request, cached, now_ns, now_ns)
            return
        if not self._in_flight.enter():
            raise unavailable(f"{request.described_id()}{STOPPED}")
        flight = Flight(self, key, request)
        waiters: Waiters | None = None
        with self._lock:
            current = self._flights.setdefault(key, flight)
            if current is not flight:
                cached = current.kept
                if cached is None and self._rules.may_wait(request, current.request):
                    if current.waiters is None:
                        current.waiters = Waiters(self._cancel)
                    waiters = current.waiters
                    waiters.requests[request] = None
                    request.queue = waiters
        if cached is not None:
            self._answer(request, cached, now_ns, now_ns)
            self._in_flight.leave()
        elif waiters is not None:
            self._watch(request, waiters, now_ns)
        elif current is flight:
            self._look_up(flight, now_ns)
        else:
            self._run_first(flight)

    def _watch(self, request: InferenceRequest, waiters: Waiters, now_ns: int) -> None:
        """Have a waiting request leave when it is cancelled, or has waited for too long."""
        request.cancellation.watch(request)
        expires_ns = self._rules.expires_at(request, now_ns)
        if expires_ns != NEVER:
            self._timer.call_at(expires_ns, partial(self._expire, waiters, request))

    def _look_up(self, flight: Flight, asked_ns: int) -> None:
        """Find what is kept for a flight that others can join from now on, or run it."""
        if self._is_remote:
            if not self._threads.run(partial(self._look_up_remotely, flight, asked_ns)):
                self._run_first(flight)
            return
        # Again: what was on its way a moment ago may be kept by now.
        cached = self._cache.lookup(flight.key)
        if cached is not None:
            self._found(flight, cached, asked_ns)
            return
        flight.lookup_ns = monotonic_ns() - asked_ns
        self._run_first(flight)

    def _look_up_remotely(self, flight: Flight, asked_ns: int) -> None:
        try:
            cached = self._cache.lookup(flight.key)
        except Exception:
            _log.exception("the response cache failed")
            cached = None
        if cached is not None:
            self._found(flight, cached, asked_ns)
            return
        flight.lookup_ns = monotonic_ns() - asked_ns
        self._go_on(flight)

    def _found(self, flight: Flight, cached: CachedResponse, asked_ns: int) -> None:
        """Answer a flight's request, and those that have joined it, from the cache."""
        self._answer(flight.request, cached, asked_ns, asked_ns)
        with self._lock:
            waiting = self._settle(flight, cached)
        self._answer_waiting(waiting, cached)
        self._in_flight.leave()

    def _run_first(self, flight: Flight) -> None:
        """Run a flight whose request its caller still waits to see accepted: raises InferenceError if it is refused."""
        try:
            self._run(flight)
        except InferenceError:
            self._lost(flight, was_refused=True)
            raise

    def _go_on(self, flight: Flight) -> None:
        """Run a flight whose request was accepted before."""
        try:
            self._run(flight)
        except InferenceError as error:
            flight.request.fail(error)
            self._lost(flight, was_refused=True)

    def _run(self, flight: Flight) -> None:
        request = flight.request
        flight.sender = request.sender
        request.sender = flight
        try:
            self._inner.enqueue(request)
        except InferenceError:
            request.sender = flight.sender
            raise

    def landed(self, flight: Flight, response: InferenceResponse | None) -> None:
        """Keep a leader's final answer, send it, and answer those who waited for it (FlightOwner)."""
        try:
            kept = self._keep(flight)
        except Exception:
            # There may be no memory for it.
            _log.exception("a response could not be kept")
            kept = None
        try:
            flight.sender.send(response, True)
        finally:
            if kept is None:
                self._lost(flight)
            else:
                self._won(flight, kept)

    def _keep(self, flight: Flight) -> CachedResponse | None:
        """A flight's answer as it is kept, and put into a cache in the process at once; None for one that is not."""
        answer = flight.answer
        if answer is None or answer.error is not None or flight.response_count != 1:
            return None
        start_ns = monotonic_ns()
        kept = kept_copy(answer)
        if not self._is_remote:
            self._cache.insert(flight.key, self, kept)
        with self._lock:
            self._figures.count_miss(lookup_ns=flight.lookup_ns, insert_ns=monotonic_ns() - start_ns)
        return kept

    def _won(self, flight: Flight, kept: CachedResponse) -> None:
        """A flight's request has been answered, and so can be those that waited."""
        with self._lock:
            # Requests that come before the other process has the answer are given it here.
            waiting = self._settle(flight, kept, stays=self._is_remote)
        if self._is_remote and not self._threads.run(partial(self._insert, flight, kept)):
            self._forget(flight)
        self._answer_waiting(waiting, kept)
        self._in_flight.leave()

    def _lost(self, flight: Flight, *, was_refused: bool = False) -> None:
        """A flight's request has failed: those that waited for it are run.

        If it never ran, or its client has gone, that says nothing of the others: the next leads them. If the model, or
        its queue, refuses it each is run by itself, as all would have been without a cache.
        """
        with self._lock:
            successor = None if was_refused else self._succeed(flight)
            waiting = [] if successor is not None else self._settle(flight, None)
        for request in waiting:
            request.cancellation.unwatch(request)
            self._go_on(Flight(self, flight.key, request))
        if successor is not None:
            successor.request.cancellation.unwatch(successor.request)
            self._go_on(successor)
        self._in_flight.leave()

    def _succeed(self, flight: Flight) -> Flight | None:
        """Put the first that waits in the place of a request that was not run; the caller holds the lock."""
        waiters = flight.waiters
        if waiters is None or not waiters.requests or not _was_not_run(flight):
            return None
        leader = next(iter(waiters.requests))
        del waiters.requests[leader]
        leader.queue = None
        successor = self._flights[flight.key] = Flight(self, flight.key, leader)
        successor.waiters = waiters
        return successor

    def _settle(
        self, flight: Flight, kept: CachedResponse | None, *, stays: bool = False
    ) -> list[InferenceRequest]:
        """End the waiting for a flight; returns those who waited. The caller holds the lock."""
        if stays:
            flight.kept = kept
        elif self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        waiters, flight.waiters = flight.waiters, None
        if waiters is None:
            return []
        waiting = list(waiters.requests)
        waiters.requests.clear()
        for request in waiting:
            request.queue = None
        return waiting

    def _answer_waiting(self, waiting: list[InferenceRequest], kept: CachedResponse) -> None:
        for request in waiting:
            request.cancellation.unwatch(request)
            self._answer(request, kept, request.queued_ns, monotonic_ns())
            self._in_flight.leave()

    def _insert(self, flight: Flight, kept: CachedResponse) -> None:
        start_ns = monotonic_ns()
        try:
            self._cache.insert(flight.key, self, kept)
        finally:
            with self._lock:
                self._figures.count_insertion(monotonic_ns() - start_ns)
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def _answer(
        self, request: InferenceRequest, cached: CachedResponse, asked_ns: int, found_ns: int
    ) -> None:
        """Answer from the cache a request that was looked up, or began to wait, at `asked_ns`."""
        end_ns = monotonic_ns()
        with self._lock:
            self._figures.count_hit(
                request_ns=end_ns - request.received_ns,
                queue_ns=found_ns - asked_ns,
                lookup_ns=end_ns - found_ns,
            )
        deliver(request, cached.response(request.id), self._workers)

    def _cancel(self, waiters: Waiters, request: InferenceRequest) -> None:
        if request.cancellation.has_expired:
            self._expire(waiters, request)
        else:
            self._leave(waiters, request, InferenceError(StatusCode.CANCELLED, ""), REASON_CANCELED)

    def _expire(self, waiters: Waiters, request: InferenceRequest) -> None:
        self._leave(waiters, request, unavailable(EXPIRED), REASON_REJECTED)

    def _leave(self, waiters: Waiters, request: InferenceRequest, error: InferenceError, reason: str) -> None:
        """Answer a request that waits no longer, if it still did; those that it waited with go on."""
        with self._lock:
            if request.queue is not waiters:
                return
            request.queue = None
            del waiters.requests[request]
            self._figures.count_failure(request_ns=monotonic_ns() - request.received_ns, reason=reason)
        request.cancellation.unwatch(request)
        request.fail(error)
        self._in_flight.leave()

    def stop(self) -> None:
        """Refuse new requests from now on; those accepted go on."""
        self._is_stopped = True
        super().stop()

    def close(self) -> None:
        """Stop, fail what is unanswered, close the inner scheduler, and let the kept responses go."""
        self.stop()
        self._inner.close()
        with self._lock:
            flights = list(self._flights.values())
            self._flights.clear()
        for flight in flights:
            for request in list(flight.waiters.requests if flight.waiters is not None else ()):
                error = unavailable(f"{request.described_id()}Server is stopping")
                assert flight.waiters is not None
                self._leave(flight.waiters, request, error, REASON_REJECTED)
        self._cache.forget(self)

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """The figures now."""
        inner = self._inner.statistics(name, version)
        with self._lock:
            return self._figures.added_to(inner)

    def failures(self) -> dict[str, int]:
        """How many requests failed, by reason."""
        inner = self._inner.failures()
        with self._lock:
            return self._figures.failures_with(inner)

    def pending(self) -> int:
        """How many requests wait for an instance; those that wait for another's answer do not."""
        return self._inner.pending()

    @property
    def unavailability(self) -> InferenceError | None:
        """Why nothing can be executed now, or None."""
        return self._inner.unavailability


def _was_not_run(flight: Flight) -> bool:
    request = flight.request
    return request.cancellation.is_cancelled or not request.started_ns
