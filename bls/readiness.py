"""A model's own `is_ready`: asked by one at a time, with a limit on how long it may take."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

from cantata.bls.async_loop import AsyncLoop
from cantata.bls.failures import failure_text
from cantata.runtime.errors import InferenceError, internal_error

_TIMEOUT_S: Final = 5.0


class ReadinessHook:
    """Calls the hook. Whoever asks while a call is under way gets the result of that call.

    `_lock` guards `_running`.
    """

    def __init__(self, hook: Callable[[], Any], model_name: str, loop: AsyncLoop | None) -> None:
        self._hook = hook
        self._model_name = model_name
        self._loop = loop
        self._lock = threading.Lock()
        self._running: Future[bool] | None = None

    def ask(self, timeout_s: float = _TIMEOUT_S) -> bool:
        """What the hook says; raises InferenceError when it fails, says something else, or takes too long."""
        with self._lock:
            running = self._running
            if running is None:
                running = self._running = Future()
                threading.Thread(
                    target=self._call, args=(running,), name="cantata-is-ready", daemon=True
                ).start()
        try:
            return running.result(timeout_s)
        except FutureTimeoutError:
            raise internal_error(
                f"model '{self._model_name}': is_ready() took longer than {timeout_s:g} s"
            ) from None

    def _call(self, result: Future[bool]) -> None:
        outcome: bool | InferenceError
        try:
            answer = self._hook()
            if inspect.iscoroutine(answer):
                answer = self._wait_for(answer)
            if isinstance(answer, bool):
                outcome = answer
            else:
                outcome = internal_error("is_ready() must return a boolean value")
        except BaseException as error:
            outcome = internal_error(f"model '{self._model_name}': is_ready() failed: {failure_text(error)}")
        with self._lock:
            self._running = None
        if isinstance(outcome, InferenceError):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)

    def _wait_for(self, answer: Any) -> Any:
        if self._loop is not None:
            return self._loop.submit(answer).result()
        loop = AsyncLoop(f"{self._model_name}-is-ready")
        loop.start()
        try:
            return loop.submit(answer).result()
        finally:
            loop.close()
