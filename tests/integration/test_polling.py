"""Polling: what has changed on disk, and nothing else, is loaded, reloaded and unloaded, however much it is at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.errors import InferenceError
from tests.integration.test_model_control import write_constant, write_over

INPUT = {"INPUT": np.zeros(1, np.float32)}
DUPLICATED = "model appears in two or more repositories"


class Polled(EmbeddedServer):
    """Polls when it is told to, and never by itself."""

    def __init__(self, *repositories: Path) -> None:
        super().__init__(
            list(repositories),
            model_control_mode="poll",
            repository_poll_secs=1e6,
            exit_on_error=False,
        )

    def poll(self) -> None:
        self.core._repository.poll()

    def value(self, model: str) -> float:
        return float(self.infer(model, INPUT)["OUTPUT"][0])

    def states(self) -> dict[str, tuple[str, str]]:
        return {entry.name: (entry.state, entry.reason) for entry in self.repository_index()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    for number in range(8):
        write_constant(path, number, f"constant_{number}")
        write_over(path, f"constant_{number}", f"over_{number}")
    return path


def test_many_edits_at_once_each_have_their_effect_and_nothing_else_is_touched(repository: Path) -> None:
    with Polled(repository) as server:
        before = {name: server.core.model(name) for name in server.states()}
        write_constant(repository, 1000, "constant_1")
        shutil.rmtree(repository / "constant_2")
        shutil.rmtree(repository / "over_3")
        write_constant(repository, 8000, "constant_8")
        write_over(repository, "constant_8", "over_4")
        write_over(repository, "constant_1", "over_9")
        server.poll()
        assert {name: server.value(f"over_{name}") for name in (0, 1, 4, 5, 9)} == {
            0: 0.0,
            1: 1000.0,
            4: 8000.0,
            5: 5.0,
            9: 1000.0,
        }
        for name in ("constant_2", "over_2", "over_3"):
            with pytest.raises(InferenceError):
                server.value(name)
        touched = {"constant_1", "over_1", "over_4"}
        assert all(
            (server.core.model(name) is version) is (name not in touched)
            for name, version in before.items()
            if name not in ("constant_2", "over_2", "over_3")
        )
        states = server.states()
        assert ("over_3" in states, "constant_2" in states) == (False, False)
        assert states["over_2"][0] in ("UNAVAILABLE", "UNLOADING")


def test_a_poll_without_a_change_loads_nothing(repository: Path) -> None:
    with Polled(repository) as server:
        before = {name: server.core.model(name) for name in server.states()}
        server.poll()
        assert all(server.core.model(name) is version for name, version in before.items())


def test_an_edit_that_is_wrong_leaves_the_old_model_serving_until_it_is_mended(repository: Path) -> None:
    with Polled(repository) as server:
        (repository / "constant_0" / "1" / "model.py").write_text("this is no Python")
        (repository / "over_1" / "config.pbtxt").write_text("platform: ")
        server.poll()
        assert (server.value("over_0"), server.value("over_1")) == (0.0, 1.0)
        write_constant(repository, 100, "constant_0")
        write_over(repository, "constant_5", "over_1")
        server.poll()
        assert (server.value("over_0"), server.value("over_1")) == (100.0, 5.0)


def test_an_ensemble_comes_back_with_the_model_that_it_needs(repository: Path) -> None:
    with Polled(repository) as server:
        (repository / "constant_0").rename(repository.parent / "aside")
        server.poll()
        with pytest.raises(InferenceError):
            server.value("over_0")
        (repository.parent / "aside").rename(repository / "constant_0")
        server.poll()
        assert server.value("over_0") == 0.0


def test_the_index_tells_what_is_on_disk_now(repository: Path) -> None:
    with Polled(repository) as server:
        write_constant(repository, 9, "constant_9")
        assert server.states()["constant_9"] == ("", "")
        server.poll()
        assert server.states()["constant_9"] == ("READY", "")


def test_a_name_that_comes_up_in_a_second_repository_is_unloaded_until_it_is_clear(
    repository: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Polled(repository, other) as server:
        write_constant(other, 99, "constant_0")
        server.poll()
        assert server.states()["constant_0"] == ("UNAVAILABLE", DUPLICATED)
        with pytest.raises(InferenceError):
            server.value("constant_0")
        shutil.rmtree(repository / "constant_0")
        server.poll()
        assert (server.value("constant_0"), server.states()["constant_0"]) == (99.0, ("READY", ""))
