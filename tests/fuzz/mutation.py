"""What fuzzed inputs are made of: values that have broken servers before, and changes of bytes and documents.

Everything follows from the `Random` that is given: the same seed makes the same inputs. Knows no protocol.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

_INTEGERS: Final = (
    0,
    1,
    -1,
    2,
    4,
    16,
    127,
    255,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
)
_FLOATS: Final = (0.0, -0.0, 1.5, -1.0, 1e308, 1e-320, 3.4e39)
NAMES: Final = (
    *("echo", "text", "repeat", "chain", "spare", "nosuch", "IN", "OUT", "x", "id", "name", "1", "-1", "0"),
    *(
        "FP32",
        "BYTES",
        "BF16",
        "INT64",
        "BOOL",
        "TYPE_FP32",
        "true",
        "null",
        "ü",
        "a" * 300,
        "\x00",
        "\ud83d",
    ),
    *("../..", "/", "a/b", "%2e%2e", "shared_memory_region", "binary_data_size", "classification", "region"),
    *("sequence_id", "priority", "timeout", "binary_data_output", "triton_x", "parameters", "config"),
    *(
        "file:1/model.py",
        "file:../../../tmp/escaped",
        "unload_dependents",
        "trace_level",
        "log_verbose_level",
    ),
)


class Mutator:
    """Draws values, and changes bytes and documents."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def choice(self, options: Any) -> Any:
        return self.random.choice(options)

    def name(self) -> str:
        return self.random.choice(NAMES).encode("utf-8", "replace").decode()

    def integer(self) -> int:
        return self.random.choice(_INTEGERS) if self.happens(0.8) else self.random.randrange(-(2**66), 2**66)

    def value(self, depth: int = 0) -> Any:
        """Any JSON value."""
        kind = self.random.randrange(9 if depth < 3 else 6)
        if kind == 0:
            return self.integer()
        if kind == 1:
            return self.random.choice(_FLOATS)
        if kind in (2, 3):
            return self.name()
        if kind == 4:
            return self.random.choice((True, False))
        if kind == 5:
            return None
        count = self.random.randrange(4)
        if kind == 6:
            return {self.name(): self.value(depth + 1) for _ in range(count)}
        if kind == 7:
            return [self.value(depth + 1)] * count
        return [self.value(depth + 1) for _ in range(count)]

    def document(self, document: Any) -> Any:
        """`document` with one thing in it replaced, removed, added or moved."""
        if isinstance(document, dict) and document and self.happens(0.8):
            changed = dict(document)
            key = self.choice(list(changed))
            action = self.random.randrange(8)
            if action == 0:
                del changed[key]
            elif action == 1:
                changed[self.name()] = self.value()
            elif action == 2:
                changed[self.name()] = changed.pop(key)
            else:
                changed[key] = self.document(changed[key])
            return changed
        if isinstance(document, list) and document and self.happens(0.8):
            items = list(document)
            place = self.random.randrange(len(items))
            action = self.random.randrange(6)
            if action == 0:
                del items[place]
            elif action == 1:
                items.insert(place, items[self.random.randrange(len(items))])
            else:
                items[place] = self.document(items[place])
            return items
        return self.value()

    def noise(self, most: int = 64) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def data(self, data: bytes) -> bytes:
        """`data` with a few of its bytes changed, cut, repeated or moved."""
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 4, 16))):
            place = self.random.randrange(len(changed) + 1)
            length = self.random.choice((1, 1, 2, 4, 16, 64))
            action = self.random.randrange(7)
            if action == 0:
                del changed[place : place + length]
            elif action == 1:
                changed[place:place] = self.noise()
            elif action == 2:
                changed[place : place + length] = self.random.randbytes(length)
            elif action == 3:
                changed[place:place] = changed[place : place + length] * self.random.choice((1, 2, 50))
            elif action == 4 and place < len(changed):
                changed[place] ^= 1 << self.random.randrange(8)
            elif action == 5:
                del changed[place:]
            else:
                other = self.random.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + length]
        return bytes(changed)
