"""One fuzzing campaign: cases from a seed until time is up, and what was found.

The case of a number follows from the seed and the number alone, so any case can be run again by itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Protocol

from tests.fuzz.grpc_messages import GrpcMessages
from tests.fuzz.http_requests import HttpRequests
from tests.fuzz.memory_regions import MemoryRegions
from tests.fuzz.pbtxt_texts import PbtxtTexts
from tests.fuzz.target import FuzzedServer, Holdings, fuzzed_server

# How often the server is put back as it was, and looked at.
_ROUND: Final = 200
# The first rounds fill what is remembered: tables, thread pools, arenas.
_WARM_ROUNDS: Final = 2
_MOST_FINDINGS: Final = 20
# What is allowed on top of what was held once warm: threads come and go with the work, and allocators keep some.
_SPARE_DESCRIPTORS: Final = 8
_SPARE_THREADS: Final = 24
_SPARE_MEMORY_MB: Final = 64

TARGETS: Final = ("http", "grpc", "pbtxt", "memory")


class Cases(Protocol):
    """One kind of input."""

    def run_case(self, random: Random) -> str: ...
    def restore(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Result:
    """What a campaign has done and found; a finding begins with the number of its case."""

    cases: int = 0
    findings: list[str] = field(default_factory=list)
    held: list[Holdings] = field(default_factory=list)


class Campaign:
    """Runs cases of one kind, against `server` where they need one."""

    def __init__(self, target: str, cases: Cases, server: FuzzedServer | None, seed: int) -> None:
        self._target = target
        self._cases = cases
        self._server = server
        self._seed = seed
        self._result = Result()

    def run(self, seconds: float, first: int = 0, report: Callable[[str], None] | None = None) -> Result:
        """Run cases from number `first` on for `seconds`, or until too much was found."""
        result = self._result
        end = time.monotonic() + seconds
        next_report = time.monotonic() + 60
        while time.monotonic() < end and len(result.findings) < _MOST_FINDINGS:
            number = first + result.cases
            found = self._cases.run_case(Random(f"{self._target} {self._seed} {number}"))
            result.cases += 1
            if found:
                self._add(f"{number}: {found}")
            if result.cases % _ROUND == 0 and not self._end_round():
                break
            if report is not None and time.monotonic() > next_report:
                next_report += 60
                last = result.held[-1] if result.held else ""
                report(f"{self._target}: {result.cases} cases, {len(result.findings)} findings {last}")
        self._look_for_leaks()
        return result

    def _add(self, finding: str) -> None:
        if finding not in self._result.findings:
            self._result.findings.append(finding)

    def _end_round(self) -> bool:
        """Put the server back as it was and look at it; False when it is gone."""
        server, number = self._server, self._result.cases
        if server is None:
            return True
        try:
            self._cases.restore()
        except Exception as error:
            self._add(f"{number}: the server cannot be put back as it was: {error!r}")
        while server.problems:
            self._add(f"{number}: in the log: {server.problems.pop()}")
        reason = server.end_reason()
        if not reason and not server.is_answering():
            reason = "a new client is not answered"
        if reason:
            self._add(f"{number}: {reason}")
            return False
        if self._result.cases <= _WARM_ROUNDS * _ROUND or self._result.cases % (50 * _ROUND) == 0:
            self._result.held.append(server.holdings())
        return True

    def _look_for_leaks(self) -> None:
        server, held = self._server, self._result.held
        if server is None or server.end_reason() or not self._end_round():
            return
        self._cases.close()
        warm = held[min(_WARM_ROUNDS, len(held)) - 1] if held else server.holdings()
        allowed = Holdings(
            warm.descriptors + _SPARE_DESCRIPTORS,
            warm.threads + _SPARE_THREADS,
            warm.memory_mb + _SPARE_MEMORY_MB,
            0,
        )
        found = server.settled_holdings(allowed)
        held.append(found)
        for what in ("descriptors", "threads", "memory_mb", "mapped_segments"):
            if getattr(found, what) > getattr(allowed, what):
                self._add(f"leak: {what}: {getattr(warm, what)} once warm, {getattr(found, what)} at the end")


@contextmanager
def campaign(target: str, seed: int) -> Iterator[Campaign]:
    """A campaign of one of TARGETS, with the server that it needs running inside the block."""
    if target == "pbtxt":
        yield Campaign(target, PbtxtTexts(), None, seed)
        return
    segments = f"cantata_fuzz_{os.getpid()}_"
    with tempfile.TemporaryDirectory() as folder, fuzzed_server(Path(folder), segments) as server:
        made: dict[str, Callable[[], Cases]] = {
            "http": lambda: HttpRequests(server),
            "grpc": lambda: GrpcMessages(server),
            "memory": lambda: MemoryRegions(server, segments),
        }
        cases = made[target]()
        try:
            yield Campaign(target, cases, server, seed)
        finally:
            cases.close()


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
