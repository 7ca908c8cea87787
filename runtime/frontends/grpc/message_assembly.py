"""From the bytes of a call to its messages: each is prefixed with a flag and its length, however frames divide them.

A message that is long gets its memory at once, so that what the socket has can be read into its place. Knows neither
frames nor what is in a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple

import numpy as np

# Whether it is compressed, and its length.
PREFIX: Final = Struct(">BL")
PREFIX_SIZE: Final = PREFIX.size
# The last field of an inference request is its tensors' data: with the message's end aligned, so is a lone tensor
# whose size is a multiple of its element's.
_ALIGNMENT: Final = 64


class Message(NamedTuple):
    """One message as it came. `size` is the length that it was said to have; no `data` where that is too large."""

    is_compressed: bool
    data: bytes | memoryview
    is_too_large: bool = False


class MessageAssembly:
    """The messages of one call. Invariant: `_target` is None, or has room left and `_prefix` is empty."""

    __slots__ = ("_filled", "_is_compressed", "_is_wanted", "_max_size", "_prefix", "_target")

    def __init__(self, max_size: int, is_wanted: Callable[[int], bool]) -> None:
        """`is_wanted` is asked, with its length, before a message gets memory; after a no nothing is to be had."""
        self._max_size = max_size
        self._is_wanted = is_wanted
        # The beginning of a message whose prefix is not whole yet.
        self._prefix = b""
        self._target: memoryview | None = None
        self._filled = 0
        self._is_compressed = False

    @property
    def is_empty(self) -> bool:
        """Whether no message has begun that is not complete."""
        return self._target is None and not self._prefix

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. After one that is too large there is nothing to be had any more."""
        position, end = 0, len(data)
        while position < end:
            if self._target is None:
                taken = PREFIX_SIZE - len(self._prefix)
                self._prefix += data[position : position + taken]
                position += taken
                if len(self._prefix) < PREFIX_SIZE:
                    return
                flag, size = PREFIX.unpack(self._prefix)
                self._prefix = b""
                if size > self._max_size:
                    yield Message(False, b"", is_too_large=True)
                    return
                if size <= end - position:
                    yield Message(bool(flag), data[position : position + size])
                    position += size
                    continue
                if not self._is_wanted(size):
                    return
                self._begin(bool(flag), size)
            else:
                room = self.room()
                part = data[position : position + len(room)]
                room[: len(part)] = part
                position += len(part)
                message = self.filled(len(part))
                if message is not None:
                    yield message

    def room(self) -> memoryview:
        """What the message that has begun still needs, to be written to; empty where none has."""
        return _NOTHING if self._target is None else self._target[self._filled :]

    def filled(self, count: int) -> Message | None:
        """The first `count` bytes of `room` have been written; the message, if that was all of it."""
        assert self._target is not None
        self._filled += count
        if self._filled < len(self._target):
            return None
        data, self._target = self._target, None
        return Message(self._is_compressed, data)

    def _begin(self, is_compressed: bool, size: int) -> None:
        # Not zeroed: a length that lies costs no memory until the bytes come.
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -(memory.ctypes.data + size) % _ALIGNMENT
        self._target = memory.data[start : start + size]
        self._filled = 0
        self._is_compressed = is_compressed


_NOTHING: Final = memoryview(b"")
