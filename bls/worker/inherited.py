"""What a model's process inherits: its ends of the channels, the shared memory, and how it is started.

Owns the file descriptors until the process has them. Starts nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from cantata.bls.worker.arena import create_memory
from cantata.bls.worker.channel import open_pair


class SharedFiles:
    """The file descriptors that the process inherits, under the same numbers."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        with contextlib.ExitStack() as opened:
            self.inputs = create_memory(capacity)
            opened.callback(os.close, self.inputs)
            self.outputs = create_memory(capacity)
            opened.callback(os.close, self.outputs)
            self.own_direct, self.direct = open_pair()
            opened.callback(self.direct.close)
            self.own_events, self.events = open_pair()
            opened.callback(self.events.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close what only the process needs."""
        self._opened.close()

    def close_all(self) -> None:
        """Close the server's own ends, too: there will be no process."""
        self.close()
        self.own_direct.close()
        self.own_events.close()


class Command:
    """A process to start: its arguments, its variables, and the file that tells it what to do."""

    def __init__(self, arguments: Sequence[str], variables: dict[str, str], launch_file: int) -> None:
        self.arguments = arguments
        self.variables = variables
        self.launch_file = launch_file
