"""Files of traces: JSON arrays that are complete after every write.

Owns the files' form and numbering. Knows no request and no setting.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import orjson

# One object of the array.
Event = dict[str, object]


class TraceFiles:
    """The files that one server writes traces to, each begun anew. Any thread may call. `_lock` guards all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How many traces went to each path, all its numbered files together.
        self._written: dict[str, int] = {}

    def write(self, path: str, per_file: int, events: list[Event]) -> None:
        """Add a trace to `path`; with `per_file` above 0, to the numbered file whose turn it is. Raises OSError."""
        with self._lock:
            count = self._written.get(path, 0)
            self._written[path] = count + 1
            if not per_file:
                _append(Path(path), events, is_new=count == 0)
            else:
                number, place = divmod(count, per_file)
                _append(Path(f"{path}.{number}"), events, is_new=place == 0)


def _append(path: Path, events: list[Event], *, is_new: bool) -> None:
    text = orjson.dumps(events)
    if is_new or not path.exists():
        path.write_bytes(text)
        return
    with path.open("r+b") as file:
        _append_to(file, text)


def _append_to(file: BinaryIO, array: bytes) -> None:
    """Make one array of a file's and another."""
    file.seek(-1, os.SEEK_END)
    file.write(b"," + array[1:])
