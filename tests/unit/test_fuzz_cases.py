"""The fuzzer's cases follow from their seeds, and a campaign reports what its cases find."""

from __future__ import annotations

from random import Random

from tests.fuzz.campaign import Campaign
from tests.fuzz.mutation import Mutator


class Scripted:
    """Cases that find what they are told to."""

    def __init__(self, findings: dict[int, str]) -> None:
        self.drawn: list[float] = []
        self._findings = findings

    def run_case(self, random: Random) -> str:
        self.drawn.append(random.random())
        return self._findings.get(len(self.drawn) - 1, "")

    def restore(self) -> None: ...

    def close(self) -> None: ...


def test_the_same_seed_makes_the_same_inputs() -> None:
    made = [[Mutator(Random(seed)).data(b"abcdefgh" * 9) for seed in range(50)] for _ in range(2)]
    documents = [
        [Mutator(Random(seed)).document({"a": [1, {"b": 2}]}) for seed in range(50)] for _ in range(2)
    ]
    assert made[0] == made[1]
    assert repr(documents[0]) == repr(documents[1])


def test_a_case_can_be_run_again_by_its_number() -> None:
    whole, rest = Scripted({}), Scripted({})
    Campaign("pbtxt", whole, None, 1).run(0.05)
    Campaign("pbtxt", rest, None, 1).run(0.05, first=1)
    assert rest.drawn[0] == whole.drawn[1]


def test_what_a_case_finds_is_reported_with_its_number() -> None:
    result = Campaign("pbtxt", Scripted({1: "broken"}), None, 1).run(0.05, first=10)
    assert result.findings == ["11: broken"]
    assert result.cases > 1
