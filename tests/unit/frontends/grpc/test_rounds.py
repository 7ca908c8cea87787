"""When the gRPC thread runs models: after what has arrived was read, and not for ever later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from cantata.runtime.frontends.grpc.rounds import Rounds


class Loop:
    """Turns when the test says so."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()
        self.run_count = 0
        self.rounds = Rounds(self._soon.append, self._run)

    def _run(self) -> None:
        self.run_count += 1

    def turn(self) -> int:
        """Do what was put off until now; how often models have run by then."""
        for _ in range(len(self._soon)):
            self._soon.popleft()()
        return self.run_count

    def read(self, requests: int, *, is_only_client: bool = False) -> int:
        """A connection brings so many requests; how often models have run by then."""
        self.rounds.begin_read()
        for _ in range(requests):
            self.rounds.request_came()
        self.rounds.end_read(is_only_client=is_only_client)
        return self.run_count

    @property
    def is_idle(self) -> bool:
        return not self._soon


def test_the_only_request_of_the_only_client_runs_at_once() -> None:
    loop = Loop()
    assert loop.read(1, is_only_client=True) == 1
    assert loop.is_idle


def test_what_comes_in_the_next_turn_joins() -> None:
    loop = Loop()
    assert loop.read(7, is_only_client=True) == 0
    assert loop.turn() == 0
    assert loop.read(5, is_only_client=True) == 0
    assert loop.turn() == 0
    assert loop.turn() == 1
    assert loop.is_idle


def test_models_wait_for_four_turns_at_most() -> None:
    loop = Loop()
    ran = []
    for _ in range(5):
        loop.read(3)
        ran.append(loop.turn())
    assert ran == [0, 0, 0, 1, 1]


def test_a_read_without_requests_runs_nothing() -> None:
    loop = Loop()
    assert loop.read(0, is_only_client=True) == 0
    assert loop.is_idle


def test_what_another_thread_has_answered_is_written_in_the_next_turn() -> None:
    loop = Loop()
    loop.rounds.need()
    loop.rounds.need()
    assert loop.turn() == 1
    assert loop.is_idle


def test_an_acknowledgement_beside_a_request_delays_it_no_longer() -> None:
    loop = Loop()
    loop.rounds.begin_read()
    loop.rounds.need()
    loop.rounds.request_came()
    loop.rounds.end_read(is_only_client=True)
    assert loop.run_count == 1


@given(st.lists(st.tuples(st.sampled_from(["read", "need", "turn"]), st.integers(0, 3), st.booleans())))
def test_whatever_comes_is_run_within_a_few_turns(events: list[tuple[str, int, bool]]) -> None:
    loop = Loop()
    is_due = False
    for kind, requests, is_only_client in events:
        before = loop.run_count
        if kind == "read":
            loop.read(requests, is_only_client=is_only_client)
            is_due |= requests > 0
        elif kind == "need":
            loop.rounds.need()
            is_due = True
        else:
            loop.turn()
        if loop.run_count > before:
            is_due = False
    before = loop.run_count
    for _ in range(6):
        loop.turn()
    assert loop.is_idle
    assert not is_due or loop.run_count > before
