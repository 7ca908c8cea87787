"""The clock, as two functions that tests replace by arguments: nothing that decides reads it itself."""

from __future__ import annotations

import time

# Nanoseconds that only ever go forward: durations, deadlines.
monotonic_ns = time.monotonic_ns
# Nanoseconds since the epoch: what is shown to people, never subtracted.
wall_ns = time.time_ns
