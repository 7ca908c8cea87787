"""--model-namespacing: models of one name in several repositories, as the reference server has them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pytest

from cantata.runtime.cli import main
from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.frontends.http.options import HttpOptions
from cantata.runtime.frontends.http.server import HttpServer
from cantata.runtime.observe.metrics import MetricsText
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.check import check_repositories
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.server import Server
from tests.integration.test_model_control import write_constant, write_over

AMBIGUOUS = (
    "There are 2 identifiers of model 'same' in global map, "
    "model namespace must be provided to resolve ambiguity."
)


@pytest.fixture
def repositories(tmp_path: Path) -> tuple[Path, Path]:
    """`same` in both, with an ensemble over it in each; `only` in the second, with an ensemble over it in the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_constant(first, 1, "same")
    write_constant(second, 2, "same")
    write_constant(second, 3, "only")
    write_over(first, "same", "over_first")
    write_over(second, "same", "over_second")
    write_over(first, "only", "over_only")
    return first, second


class Namespaced(EmbeddedServer):
    def __init__(self, repositories: tuple[Path, ...], **options: Any) -> None:
        super().__init__(list(repositories))
        settings = {"model_namespacing": True, **options}
        self.core = Server(ServerOptions(model_repository=repositories, **settings))

    def value(self, model: str) -> float:
        return float(self.infer(model, {"INPUT": np.zeros(1, np.float32)})["OUTPUT"][0])

    def index(self) -> list[tuple[str, str]]:
        return [(entry.name, entry.state) for entry in self.core.repository_index()]


@pytest.fixture
def server(repositories: tuple[Path, Path]) -> Iterator[Namespaced]:
    with Namespaced(repositories) as running:
        yield running


def explicit(repositories: tuple[Path, ...], *load: str) -> Namespaced:
    return Namespaced(repositories, model_control_mode=ModelControlMode.EXPLICIT, load_model=load)


def test_each_repository_is_a_namespace(server: Namespaced) -> None:
    assert server.index() == [
        ("only", "READY"),
        ("over_first", "READY"),
        ("over_only", "READY"),
        ("over_second", "READY"),
        ("same", "READY"),
        ("same", "READY"),
    ]
    assert server.core.is_ready()
    assert len(server.core.statistics()) == 6


def test_a_name_that_two_models_have_is_refused_and_one_that_one_has_is_served(server: Namespaced) -> None:
    for ask in (server.value, server.core.model):
        with pytest.raises(InferenceError) as refused:
            ask("same")
        assert (refused.value.code, refused.value.message) == (StatusCode.INVALID_ARG, AMBIGUOUS)
    assert (server.value("only"), server.is_ready("only"), server.is_ready("same")) == (3.0, True, False)
    with pytest.raises(InferenceError, match="Request for unknown model: 'nobody' is not found"):
        server.value("nobody")


def test_a_step_means_its_ensembles_own_model_and_else_the_only_one(
    server: Namespaced, repositories: tuple[Path, Path]
) -> None:
    assert [server.value(name) for name in ("over_first", "over_second", "over_only")] == [1.0, 2.0, 3.0]
    for name, namespace in (("over_first", repositories[0]), ("over_only", repositories[1])):
        config = orjson.loads(server.core.model(name).config_json)
        (step,) = config["ensemble_scheduling"]["step"]
        assert step["model_namespace"] == str(namespace)


def test_a_model_may_be_asked_for_by_its_repository_and_name(
    server: Namespaced, repositories: tuple[Path, Path]
) -> None:
    assert [server.value(f"{repository}/same") for repository in repositories] == [1.0, 2.0]
    http = HttpServer(server.core, HttpOptions(address="127.0.0.1", port=0))
    http.start()
    try:
        url = f"http://127.0.0.1:{http.port}/v2/models/{quote(f'{repositories[1]}/same', safe='')}/infer"
        tensor = {"name": "INPUT", "shape": [1], "datatype": "FP32", "data": [0.0]}
        with urllib.request.urlopen(url, json.dumps({"inputs": [tensor]}).encode(), timeout=20) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [2.0]
    finally:
        http.close()


def test_metrics_tell_the_namespace(server: Namespaced, repositories: tuple[Path, Path]) -> None:
    server.value("over_first")
    text = MetricsText(server.core.model_figures, None).render().decode()
    series = 'nv_inference_request_success{{model="same",namespace="{}",version="1"}} {}'
    assert series.format(repositories[0], 1) in text
    assert series.format(repositories[1], 0) in text


def test_a_step_that_could_mean_two_models_fails_to_load(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_constant(tmp_path / name, 1, "same")
    write_over(tmp_path / "third", "same", "over")
    paths = tuple(tmp_path / name for name in ("first", "second", "third"))
    with Namespaced(paths, exit_on_error=False) as server:
        (failure,) = server.core.failures()
        assert failure.name == "over"
        assert AMBIGUOUS in failure.reason


def test_loading_and_unloading_by_a_name_means_all_models_of_it(repositories: tuple[Path, Path]) -> None:
    with explicit(repositories) as server:
        assert {state for _, state in server.index()} == {""}
        server.core.load_model("same")
        assert [entry for entry in server.index() if entry[1]] == [("same", "READY"), ("same", "READY")]
        server.core.unload_model("same")
        with pytest.raises(InferenceError) as refused:
            server.value("same")
        assert refused.value.code is StatusCode.NOT_FOUND
        assert refused.value.message == "Identifier of model 'same' is not found in global map"


def test_an_ensemble_takes_only_the_model_that_it_means_along(repositories: tuple[Path, Path]) -> None:
    with explicit(repositories, "over_first", "over_only") as server:
        assert (server.value("over_first"), server.value("over_only")) == (1.0, 3.0)
        # The other one is not loaded, so the name means this.
        assert server.value("same") == 1.0
        write_constant(repositories[0], 10, "same")
        server.core.load_model("same")
        assert server.value("over_first") == 10.0
        with pytest.raises(InferenceError, match="There are 2 identifiers"):
            server.value("same")


def test_ensembles_follow_a_model_that_comes_into_their_namespace(repositories: tuple[Path, Path]) -> None:
    with Namespaced(repositories, model_control_mode=ModelControlMode.POLL) as server:
        assert server.value("over_only") == 3.0
        write_constant(repositories[0], 4, "only")
        server.core._repository.poll()
        assert server.value("over_only") == 4.0


def test_ensembles_in_a_circle_are_refused_in_a_namespace_too(tmp_path: Path) -> None:
    write_over(tmp_path, "b", "a")
    write_over(tmp_path, "a", "b")
    with Namespaced((tmp_path,), exit_on_error=False) as server:
        reasons = {failure.reason for failure in server.core.failures()}
        assert len(server.core.failures()) == 2
        assert all("circular" in reason for reason in reasons), reasons


def test_without_namespaces_a_name_in_two_repositories_serves_from_none(
    repositories: tuple[Path, Path],
) -> None:
    with Namespaced(repositories, model_namespacing=False, exit_on_error=False) as server:
        entries = {entry.name: entry for entry in server.core.repository_index()}
        assert (entries["same"].version, entries["same"].state, entries["same"].reason) == (
            "",
            "UNAVAILABLE",
            "model appears in two or more repositories",
        )
        assert entries["only"].state == "READY"


def test_a_check_offline_knows_namespaces(repositories: tuple[Path, Path], tmp_path: Path) -> None:
    assert check_repositories(repositories, namespacing=True).problems == []
    without = [str(problem) for problem in check_repositories(repositories).problems]
    assert any("model appears in two or more repositories" in problem for problem in without)
    # In a third repository the name means neither of the two.
    third = tmp_path / "third"
    write_over(third, "same", "over_either")
    (problem,) = check_repositories((*repositories, third), namespacing=True).problems
    assert AMBIGUOUS in str(problem)
    assert problem.model == f"{third}/over_either"


def test_a_circle_within_a_namespace_is_found_offline(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_over(first, "two", "one")
    write_over(first, "one", "two")
    write_constant(second, 2, "one")
    found = {problem.model for problem in check_repositories((first, second), namespacing=True).problems}
    assert found == {f"{first}/one", f"{first}/two"}


def test_the_command_checks_namespaces(
    repositories: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = list(map(str, repositories))
    assert main(["check", *paths]) == 1
    assert main(["check", *paths, "--model-namespacing=true"]) == 0
    assert "no problems" in capsys.readouterr().out.splitlines()[-1]
