"""docs/bls.md: every snippet is written to the file that it names, served or run, and does what the text says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cantata import InferenceError, Server
from cantata.runtime.errors import StatusCode

GUIDE = Path(__file__).parents[2] / "docs" / "bls.md"
SNIPPETS = dict(
    re.findall(r"^```(?:python)?\n# (\S+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
)
TESTS = [
    (name, test)
    for name, code in SNIPPETS.items()
    if name.startswith("test_")
    for test in re.findall(r"^def (test_\w+)", code, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guide")
    for name, code in SNIPPETS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder / "models") as server:
        yield server


def test_every_block_of_code_is_tested() -> None:
    assert GUIDE.read_text().count("```") == 2 * len(SNIPPETS)


@pytest.mark.parametrize(("name", "test"), TESTS)
def test_its_tests_pass(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, test: str) -> None:
    monkeypatch.chdir(folder)
    spec = importlib.util.spec_from_file_location(Path(name).stem, folder / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run: Callable[[], None] = getattr(module, test)
    run()


def test_both_ways_of_writing_a_model_answer_alike(server: Server) -> None:
    rows = {"ROWS": np.random.default_rng(1).random((20, 4), np.float32)}
    expected = [int(np.argmax(rows["ROWS"].sum(axis=1)))]
    for model in ("best_triton", "best"):
        assert server.infer(model, rows)["BEST"].tolist() == expected


def test_the_careful_model_falls_back(server: Server) -> None:
    answer = server.infer("careful", {"ROW": [1, 2, 3, 4]})
    assert answer["SCORE"].tolist() == [10.0]
    assert answer["FROM"].tolist()[0].startswith(b"score, since large_score said ")


def test_a_stream_is_left_early(server: Server) -> None:
    assert server.infer("first_over", {"N": [1_000_000], "LIMIT": [3]})["I"].tolist() == [4]
    with pytest.raises(InferenceError, match="no number over 3") as raised:
        server.infer("first_over", {"N": [2], "LIMIT": [3]})
    assert raised.value.code is StatusCode.NOT_FOUND
