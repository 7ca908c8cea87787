"""Starts models' processes, hears what they say on stderr, and notices how they end.

One thread does it for all of them. It also starts them: the system ends a process together with the thread that
started it (that is how a process ends with a server that was killed), so that thread must live as long as they do.
Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Final

_LAST_LINES: Final = 20
_CHUNK_BYTES: Final = 1 << 16
_CHUNKS_AT_A_TIME: Final = 16
_MOST_LINE_BYTES: Final = 1000


class WatchedProcess:
    """A process that was started. Any thread may call.

    `ended` is set once the process has ended and been waited for; `return_code` is valid then (negative: a signal).
    """

    def __init__(self, popen: subprocess.Popen[bytes], on_end: Callable[[], None]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.on_end = on_end
        self.ended = threading.Event()
        # Guards the use of `pid_file` against its being closed.
        self._lock = threading.Lock()
        self.pid_file = os.pidfd_open(popen.pid)
        assert popen.stderr is not None
        self.stderr: IO[bytes] = popen.stderr
        os.set_blocking(self.stderr.fileno(), False)
        self._lines: deque[bytes] = deque(maxlen=_LAST_LINES)
        self._unfinished = b""

    @property
    def return_code(self) -> int:
        return self._popen.returncode or 0

    def kill(self) -> None:
        """End the process at once, unless it has ended."""
        with self._lock:
            if self.pid_file != -1:
                signal.pidfd_send_signal(self.pid_file, signal.SIGKILL)

    def last_lines(self) -> str:
        """What the process said last on stderr."""
        lines = [*self._lines, self._unfinished] if self._unfinished else [*self._lines]
        return b"\n".join(lines).decode(errors="replace")

    def read_stderr(self) -> bool:
        """Take some of what there is to read and pass it on to our own stderr; False at the end."""
        for _ in range(_CHUNKS_AT_A_TIME):
            try:
                chunk = os.read(self.stderr.fileno(), _CHUNK_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not chunk:
                return False
            self._keep(chunk)
            _pass_on(chunk)
        return True

    def wait(self) -> None:
        """Take the return code of a process that has ended, and release what belonged to it."""
        # What the process has started is in its group, and ends with it. The number cannot be another's yet.
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self.read_stderr()
        self.stderr.close()
        with self._lock:
            os.close(self.pid_file)
            self.pid_file = -1
        self.ended.set()

    def _keep(self, chunk: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + chunk)[-_CHUNK_BYTES:].split(b"\n")
        self._lines.extend(line[:_MOST_LINE_BYTES] for line in lines)
        self._unfinished = self._unfinished[-_MOST_LINE_BYTES:]


class ProcessWatch:
    """The thread that starts and watches processes; it is started by the first `spawn`.

    `_lock` guards `_thread`, `_to_spawn` and `_is_closed`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._to_spawn: deque[tuple[Callable[[], WatchedProcess], Future[WatchedProcess]]] = deque()
        self._is_closed = False
        self._wake_file = -1
        # Only the thread's own.
        self._by_file: dict[int, WatchedProcess] = {}

    def spawn(
        self,
        command: Sequence[str],
        files: Sequence[int],
        environment: Mapping[str, str],
        on_end: Callable[[], None],
    ) -> WatchedProcess:
        """Start a process with those file descriptors; raises OSError. `on_end` is called when it has ended.

        It is called on the watching thread, and must be quick.
        """

        def start() -> WatchedProcess:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=files,
                env=environment,
                start_new_session=True,
            )
            return WatchedProcess(popen, on_end)

        started: Future[WatchedProcess] = Future()
        with self._lock:
            if self._is_closed:
                raise OSError("no process is started any more")
            if self._thread is None:
                self._wake_file = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._serve, name="cantata-processes", daemon=True)
                self._thread.start()
            self._to_spawn.append((start, started))
            os.eventfd_write(self._wake_file, 1)
        return started.result()

    def close(self) -> None:
        """End the thread; every process should have ended, and those that have not are killed."""
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                os.eventfd_write(self._wake_file, 1)
        if thread is not None:
            thread.join()
            os.close(self._wake_file)

    def _serve(self) -> None:
        with select.epoll() as poll:
            poll.register(self._wake_file, select.EPOLLIN)
            while True:
                for file, _ in poll.poll():
                    if file == self._wake_file:
                        os.eventfd_read(file)
                        self._spawn_waiting(poll)
                    elif (process := self._by_file.get(file)) is not None:
                        self._look_at(poll, process, file)
                with self._lock:
                    is_closed = self._is_closed and not self._to_spawn
                if is_closed:
                    for process in set(self._by_file.values()):
                        process.kill()
                    if not self._by_file:
                        return

    def _spawn_waiting(self, poll: select.epoll) -> None:
        while True:
            with self._lock:
                if not self._to_spawn:
                    return
                start, started = self._to_spawn.popleft()
            try:
                process = start()
            except Exception as error:
                started.set_exception(error)
                continue
            for file in (process.pid_file, process.stderr.fileno()):
                self._by_file[file] = process
                poll.register(file, select.EPOLLIN)
            started.set_result(process)

    def _look_at(self, poll: select.epoll, process: WatchedProcess, file: int) -> None:
        if file == process.pid_file:
            stderr = process.stderr.fileno()
            if self._by_file.pop(stderr, None) is not None:
                poll.unregister(stderr)
            self._forget(poll, file)
            process.wait()
            process.on_end()
        elif not process.read_stderr():
            self._forget(poll, file)

    def _forget(self, poll: select.epoll, file: int) -> None:
        del self._by_file[file]
        poll.unregister(file)


def _pass_on(chunk: bytes) -> None:
    try:
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        # Our own stderr is closed: there is nobody to hear it.
        return
