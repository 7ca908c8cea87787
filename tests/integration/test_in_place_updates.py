"""Loading a model again of which only instances or versions have changed: what serves already goes on as it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.errors import InferenceError
from cantata.runtime.execution.rate_limiter import RateLimitMode
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.repository.model_version import ModelVersion
from cantata.runtime.server import Server
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
# Says how often code was imported and instances were made and ended, in files beside it.
COUNTING = """
def initialize(self, args):
    self.args = args
    self._note("initialized")

def execute(self, requests):
    gate = os.environ.get("GATE_OF_TEST")
    if gate:
        os.read(int(gate), 1)
    version = np.array([float(self.args["model_version"])], np.float32)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", version)]) for _ in requests]

def finalize(self):
    self._note("finalized")

def _note(self, what):
    with open(os.path.join(os.environ["NOTES_OF_TEST"], what), "a") as notes:
        notes.write(f"{self.args['model_version']}:{self.args['model_instance_name']} ")
"""
# Says how many instances its configuration has.
TELLING = """
def initialize(self, args):
    import json
    count = json.loads(args["model_config"])["instance_group"][0]["count"]
    with open(os.path.join(os.environ["NOTES_OF_TEST"], "counts"), "a") as notes:
        notes.write(f"{args['model_instance_name']}:{count} ")

def execute(self, requests):
    return []
"""
HEAD = "import os\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\nclass TritonPythonModel:\n"


def class_of(body: str) -> str:
    return HEAD + "".join(f"    {line}\n" if line else "\n" for line in body.strip().splitlines())


CODE = class_of(COUNTING)
CONTROLS = """
control_input [
  { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
  { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] }
]
"""
THREADS = 'parameters { key: "EXECUTION_ISOLATION" value { string_value: "thread" } }'


class Site:
    """A repository with the model `counted`, and what its instances noted."""

    def __init__(self, path: Path) -> None:
        self.repository = path / "models"
        self.notes = path
        self.write()
        self.write_version(1)

    def write(self, instances: int = 1, policy: str = "latest { num_versions: 1 }", extra: str = "") -> None:
        group = f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]"
        config = python_config(
            [IN], [OUT], extra=f"{group}\nversion_policy {{ {policy} }}\n{THREADS}\n{extra}"
        )
        write_model(self.repository, "counted", config)

    def write_version(self, version: int, code: str = CODE) -> None:
        write_model(self.repository, "counted", None, version=version, code=code)

    def noted(self, what: str) -> list[str]:
        path = self.notes / what
        return sorted(path.read_text().split()) if path.exists() else []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("NOTES_OF_TEST", str(tmp_path))
    return Site(tmp_path)


def controlled(site: Site, **options: object) -> EmbeddedServer:
    server = EmbeddedServer(site.repository)
    mode = ModelControlMode.EXPLICIT
    server.core = Server(
        ServerOptions(
            model_repository=(site.repository,),
            model_control_mode=mode,
            load_model=("*",),
            **options,  # type: ignore[arg-type]
        )
    )
    return server


def ask(server: EmbeddedServer, model: str = "counted", version: int = -1) -> float:
    return float(server.infer(model, {"INPUT": np.zeros(1, np.float32)}, version=version)["OUTPUT"][0])


def successes(version: ModelVersion) -> int:
    return version.scheduler.statistics("", "").inference_stats.success.count


def wait_until(condition: object) -> None:
    deadline = 20_000
    while not condition():  # type: ignore[operator]
        deadline -= 1
        assert deadline, "never happened"
        threading.Event().wait(0.001)


def test_instances_are_added_and_taken_away_and_the_others_stay(site: Site) -> None:
    with controlled(site) as server:
        version = server.core.model("counted")
        assert ask(server) == 1.0
        site.write(instances=3)
        server.core.load_model("counted")
        assert server.core.model("counted") is version
        assert site.noted("initialized") == ["1:counted_0_0", "1:counted_0_1", "1:counted_0_2"]
        assert version.config.instance_group[0].count == 3
        assert b'"count":3' in version.config_json
        site.write(instances=1)
        server.core.load_model("counted")
        wait_until(lambda: len(site.noted("finalized")) == 2)
        assert site.noted("finalized") == ["1:counted_0_1", "1:counted_0_2"]
        assert ask(server) == 1.0
        assert server.core.model("counted") is version
        assert successes(version) == 2
    assert site.noted("finalized") == ["1:counted_0_0", "1:counted_0_1", "1:counted_0_2"]


def test_an_instance_that_is_taken_away_finishes_its_batch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv("GATE_OF_TEST", str(reader))
    site.write(instances=2)
    answers: list[float] = []
    with controlled(site) as server:
        callers = [threading.Thread(target=lambda: answers.append(ask(server))) for _ in range(3)]
        for caller in callers:
            caller.start()
        version = server.core.model("counted")
        wait_until(lambda: version.scheduler.in_flight == 3 and version.scheduler.pending() == 1)
        site.write(instances=1)
        server.core.load_model("counted")
        assert site.noted("finalized") == []
        os.write(writer, b"...")
        for caller in callers:
            caller.join()
        wait_until(lambda: site.noted("finalized") == ["1:counted_0_1"])
        os.write(writer, b".")
        assert ask(server) == 1.0
    assert answers == [1.0] * 3
    os.close(reader)
    os.close(writer)


def test_an_instance_that_is_added_is_told_the_new_configuration(site: Site) -> None:
    site.write_version(1, class_of(TELLING))
    with controlled(site) as server:
        site.write(instances=2)
        server.core.load_model("counted")
    assert site.noted("counts") == ["counted_0_0:1", "counted_0_1:2"]


def test_work_that_waits_runs_at_once_in_an_instance_that_is_added(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv("GATE_OF_TEST", str(reader))
    with controlled(site) as server:
        callers = [threading.Thread(target=ask, args=(server,)) for _ in range(2)]
        for caller in callers:
            caller.start()
        version = server.core.model("counted")
        wait_until(lambda: version.scheduler.pending() == 1)
        site.write(instances=2)
        server.core.load_model("counted")
        wait_until(lambda: version.scheduler.pending() == 0)
        os.write(writer, b"..")
        for caller in callers:
            caller.join()
    os.close(reader)
    os.close(writer)


def test_versions_come_and_go_by_the_policy_and_the_others_stay(site: Site) -> None:
    site.write_version(2)
    with controlled(site) as server:
        second = server.core.model("counted")
        assert ask(server) == 2.0
        site.write(policy="all { }")
        server.core.load_model("counted")
        assert server.core.model_versions("counted") == [1, 2]
        assert server.core.model("counted", 2) is second
        assert ask(server, version=1) == 1.0
        assert site.noted("initialized") == ["1:counted_0_0", "2:counted_0_0"]
        site.write(policy="specific { versions: [1] }")
        server.core.load_model("counted")
        assert server.core.model_versions("counted") == [1]
        assert ask(server) == 1.0
        wait_until(lambda: site.noted("finalized") == ["2:counted_0_0"])


def test_a_version_that_is_added_on_disk_leaves_the_others_alone(site: Site) -> None:
    site.write(policy="all { }")
    with controlled(site) as server:
        first = server.core.model("counted")
        site.write_version(3)
        server.core.load_model("counted")
        assert server.core.model_versions("counted") == [1, 3]
        assert server.core.model("counted", 1) is first
        site.write_version(3, CODE + "\n# changed\n")
        server.core.load_model("counted")
        assert server.core.model("counted", 1) is first
        assert site.noted("initialized") == ["1:counted_0_0", "3:counted_0_0", "3:counted_0_0"]


@pytest.mark.parametrize("change", ["parameter", "shared file"])
def test_any_other_change_loads_every_version_again(site: Site, change: str) -> None:
    with controlled(site) as server:
        first = server.core.model("counted")
        if change == "parameter":
            site.write(extra='parameters { key: "OTHER" value { string_value: "x" } }')
        else:
            (site.repository / "counted" / "helpers.py").write_text("VALUE = 1\n")
        server.core.load_model("counted")
        assert server.core.model("counted") is not first
        assert site.noted("initialized") == ["1:counted_0_0"] * 2


def test_a_configuration_that_says_the_same_in_other_words_changes_nothing(site: Site) -> None:
    with controlled(site) as server:
        first = server.core.model("counted")
        site.write(extra="# The same.")
        server.core.load_model("counted")
        assert server.core.model("counted") is first
        assert site.noted("initialized") == ["1:counted_0_0"]


def test_ensembles_are_made_again_only_where_a_model_of_theirs_is(site: Site) -> None:
    step = step_text("counted", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(site.repository, "over", ensemble_config([IN], [OUT], [step]))
    with controlled(site) as server:
        over = server.core.model("over")
        assert ask(server, "over") == 1.0
        site.write(instances=2)
        server.core.load_model("counted")
        assert server.core.model("over") is over
        assert (ask(server, "over"), successes(over)) == (1.0, 2)
        site.write_version(2)
        server.core.load_model("counted")
        assert server.core.model("over") is not over
        assert ask(server, "over") == 2.0


def test_an_update_that_fails_leaves_everything_as_it_was(site: Site) -> None:
    with controlled(site) as server:
        first = server.core.model("counted")
        # Instances with that name are refused by the model itself.
        failing = CODE.replace('self._note("initialized")', "raise RuntimeError('not today')")
        site.write(instances=2, policy="all { }")
        site.write_version(2, failing)
        with pytest.raises(InferenceError, match="not today"):
            server.core.load_model("counted")
        wait_until(lambda: site.noted("finalized") == ["1:counted_0_1"])
        assert server.core.model("counted") is first
        assert first.config.instance_group[0].count == 1
        assert ask(server) == 1.0
        site.write_version(2)
        server.core.load_model("counted")
        assert (ask(server, version=1), ask(server)) == (1.0, 2.0)
        assert server.core.model("counted", 1) is first


def test_the_rate_limiter_learns_of_the_instances(site: Site) -> None:
    limiter = "rate_limiter { resources [ { name: 'R' count: 1 } ] }"
    with controlled(site, rate_limit=RateLimitMode.EXECUTION_COUNT) as server:
        for count in (1, 3, 2):
            group = f"instance_group [ {{ kind: KIND_CPU count: {count} {limiter} }} ]"
            config = python_config([IN], [OUT], extra=f"{group}\n{THREADS}")
            write_model(site.repository, "counted", config)
            server.core.load_model("counted")
            assert ask(server) == 1.0
        wait_until(lambda: len(site.noted("finalized")) == 2)


def test_one_instance_more_that_makes_them_processes_loads_the_version_again(site: Site) -> None:
    def write(count: int) -> None:
        group = f"instance_group [ {{ kind: KIND_CPU count: {count} }} ]"
        write_model(site.repository, "counted", python_config([IN], [OUT], extra=group))

    write(1)
    with controlled(site) as server:
        first = server.core.model("counted")
        write(2)
        server.core.load_model("counted")
        second = server.core.model("counted")
        assert second is not first
        assert (ask(server), first.process_figures() is None, second.process_figures() is None) == (
            1.0,
            True,
            False,
        )
        write(3)
        server.core.load_model("counted")
        assert server.core.model("counted") is second
        assert ask(server) == 1.0


@pytest.fixture
def sequences(site: Site) -> Iterator[tuple[Site, EmbeddedServer]]:
    write_sequences(site, 1)
    with controlled(site) as server:
        yield site, server


def write_sequences(site: Site, count: int) -> None:
    """A model that counts the requests of each sequence; every instance has one slot."""
    counting = """
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            if pb_utils.get_input_tensor_by_name(request, "START").as_numpy()[0]:
                self.count = 0
            self.count += 1
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([self.count], np.float32))])
            )
        return responses
    """
    group = f"instance_group [ {{ kind: KIND_CPU count: {count} }} ]"
    batching = f"sequence_batching {{ direct {{ }} {CONTROLS} }}"
    config = python_config([IN], [OUT], extra=f"{group}\n{THREADS}\n{batching}")
    is_first = not (site.repository / "counting").exists()
    write_model(site.repository, "counting", config, counting if is_first else None)


def count(server: EmbeddedServer, sequence_id: int, *, start: bool = False, end: bool = False) -> float:
    outputs = server.infer(
        "counting",
        {"INPUT": np.zeros(1, np.float32)},
        sequence_id=sequence_id,
        sequence_start=start,
        sequence_end=end,
    )
    return float(outputs["OUTPUT"][0])


def test_sequences_go_on_in_their_instances_until_they_end(sequences: tuple[Site, EmbeddedServer]) -> None:
    site, server = sequences
    version = server.core.model("counting")
    assert count(server, 1, start=True) == 1.0
    write_sequences(site, 2)
    server.core.load_model("counting")
    assert server.core.model("counting") is version
    # The first has the slot of the first instance, so this one runs in the new one.
    assert count(server, 2, start=True) == 1.0
    assert (count(server, 1), count(server, 2)) == (2.0, 2.0)
    write_sequences(site, 1)
    server.core.load_model("counting")
    host = version.scheduler
    assert len(host.backend_instances()) == 2  # type: ignore[attr-defined]
    assert (count(server, 1), count(server, 2)) == (3.0, 3.0)
    assert count(server, 2, end=True) == 4.0
    wait_until(lambda: len(host.backend_instances()) == 1)  # type: ignore[attr-defined]
    assert count(server, 1, end=True) == 4.0
    assert count(server, 3, start=True, end=True) == 1.0
