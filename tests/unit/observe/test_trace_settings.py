"""Trace settings: parsing, inheritance, sampling."""

from __future__ import annotations

import pytest

from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.observe.trace_settings import TraceChoice, TraceSettings, parse_changes

ALL = TraceSettings(("TIMESTAMPS",), rate=1, file="trace.json")


def test_every_nth_request_is_chosen_until_the_count_is_used_up() -> None:
    choice = TraceChoice(TraceSettings(("TIMESTAMPS",), rate=2, count=2, file="f"))
    chosen = [choice.choose("m") is not None for _ in range(6)]
    assert chosen == [False, True, False, True, False, False]
    assert (choice.settings().count, choice.is_any_active) == (0, False)


@pytest.mark.parametrize(
    "settings",
    [
        TraceSettings(("OFF",), rate=1, file="f"),
        TraceSettings(("TIMESTAMPS",), rate=0, file="f"),
        TraceSettings(("TIMESTAMPS",), rate=1, file=""),
        TraceSettings(("TIMESTAMPS",), rate=1, count=0, file="f"),
    ],
)
def test_nothing_is_traced_without_a_level_a_rate_a_count_and_a_file(settings: TraceSettings) -> None:
    choice = TraceChoice(settings)
    assert not choice.is_any_active
    assert choice.choose("m") is None


def test_a_model_inherits_what_it_does_not_set() -> None:
    choice = TraceChoice(ALL)
    choice.update("m", {"rate": 5})
    choice.update("", {"levels": ("TENSORS",), "rate": 7})
    assert choice.settings("m") == TraceSettings(("TENSORS",), rate=5, file="trace.json")
    assert choice.settings("other") == TraceSettings(("TENSORS",), rate=7, file="trace.json")


def test_clearing_goes_back_to_the_server_and_to_the_command_line() -> None:
    choice = TraceChoice(ALL)
    choice.update("m", {"rate": 5})
    choice.update("", {"rate": 7})
    choice.update("m", {"rate": None})
    assert choice.settings("m").rate == 7
    choice.update("", {"rate": None})
    assert (choice.settings("m"), choice.settings()) == (ALL, ALL)


def test_models_of_their_own_count_their_own_requests() -> None:
    choice = TraceChoice(TraceSettings(("TIMESTAMPS",), rate=2, file="f"))
    choice.update("m", {"rate": 2, "count": 1})
    assert [choice.choose(name) is not None for name in ("m", "a", "m", "b", "m")] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_changes_are_parsed_and_unknown_settings_ignored() -> None:
    assert parse_changes(
        {
            "trace_level": ["TENSORS", "NONSENSE", "TIMESTAMPS"],
            "trace_rate": ["3"],
            "trace_count": ["-1"],
            "log_frequency": [],
            "bogus": ["x"],
        }
    ) == {"levels": ("TIMESTAMPS", "TENSORS"), "rate": 3, "count": -1, "log_frequency": None}
    assert parse_changes({"trace_level": ["NONSENSE"]}) == {}
    assert parse_changes({"trace_level": []}) == {"levels": None}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"trace_file": ["f"]},
            StatusCode.UNSUPPORTED,
            "trace file location can not be updated through network protocol",
        ),
        (
            {"trace_level": ["OFF", "TIMESTAMPS"]},
            StatusCode.INVALID_ARG,
            "Expect only one trace level 'OFF' is specified",
        ),
        ({"trace_rate": ["x"]}, StatusCode.INVALID_ARG, "Unable to parse 'trace_rate', got: x"),
        ({"trace_rate": ["1", "2"]}, StatusCode.INVALID_ARG, "expect only 1 value for 'trace_rate'"),
        (
            {"trace_rate": ["99999999999999999999"]},
            StatusCode.INVALID_ARG,
            "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 99999999999999999999",
        ),
        (
            {"trace_count": ["-2"]},
            StatusCode.INVALID_ARG,
            "Unable to parse 'trace_count'. Expecting value >= -1, got:-2",
        ),
    ],
)
def test_what_cannot_be_set_is_refused(changes: dict[str, list[str]], code: StatusCode, message: str) -> None:
    with pytest.raises(InferenceError) as refused:
        parse_changes(changes)
    assert (refused.value.code, refused.value.message) == (code, message)
