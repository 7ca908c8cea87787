"""Which callers show a key, and where keys come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cantata.runtime.frontends.api_keys import KEY_GROUPS, parse_api_keys

ENVIRONMENT = {"KEYS": "first\n\n# a comment\n  second  \n", "EMPTY": "# nothing\n"}


@pytest.mark.parametrize(
    ("headers", "is_admitted"),
    [
        ({}, False),
        ({"authorization": "Bearer first"}, True),
        ({"authorization": "bearer  second "}, True),
        ({"authorization": "first"}, False),
        ({"authorization": "Basic first"}, False),
        ({"authorization": "Bearer "}, False),
        ({"authorization": "Bearer fir"}, False),
        ({"authorization": "Bearer # a comment"}, False),
        ({"x-api-key": "second"}, True),
        ({"x-api-key": "wrong"}, False),
        ({"x-api-key": "\udcff"}, False),
        ({"authorization": "Basic x", "x-api-key": "first"}, True),
        ({"authorization": "Bearer wrong", "x-api-key": "first"}, False),
    ],
)
def test_a_caller_must_show_one_of_the_keys(headers: dict[str, str], is_admitted: bool) -> None:
    (keys,) = parse_api_keys(["inference:env=KEYS"], ENVIRONMENT)
    assert keys.admits(headers.get) is is_admitted


def test_groups_may_have_keys_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("third\n")
    first, second = parse_api_keys(
        ["inference,metrics:env=KEYS", f"metadata:file={tmp_path / 'keys'}"], ENVIRONMENT
    )
    assert (first.groups, second.groups) == ({"inference", "metrics"}, {"metadata"})
    assert second.admits({"x-api-key": "third"}.get)
    assert not second.admits({"x-api-key": "first"}.get)


def test_all_is_every_group() -> None:
    (keys,) = parse_api_keys(["all:env=KEYS"], ENVIRONMENT)
    assert keys.groups == frozenset(KEY_GROUPS)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["inference"], "expects <group>[,<group>...]:file=<path> or ...:env=<name>, got 'inference'"),
        (["inference:secret"], "expects <group>[,<group>...]:file=<path> or ...:env=<name>"),
        (["inference:key=value"], "expects <group>[,<group>...]:file=<path> or ...:env=<name>"),
        (["x:env=KEYS"], "knows no group 'x': there are health, "),
        (["health:env=KEYS", "all:env=KEYS"], "group 'health' can not be given keys twice"),
        (["health:env=NONE"], "finds no variable 'NONE' in the environment"),
        (["health:env=EMPTY"], "finds no key in 'env=EMPTY'"),
        (["health:file=/nonexistent"], "cannot read keys from '/nonexistent'"),
    ],
)
def test_what_names_no_keys_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_api_keys(texts, ENVIRONMENT)
    assert message in str(refused.value)
