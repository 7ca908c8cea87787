"""Loading, reloading and unloading while the server serves: nothing accepted is lost, and nothing old is mixed in."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from cantata.runtime.embedded import EmbeddedServer
from cantata.runtime.errors import InferenceError, StatusCode
from cantata.runtime.options import ServerOptions
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.server import Server
from tests.support.model_files import ensemble_config, python_config, step_text, tensor_text, write_model

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")


def constant(value: int) -> str:
    return (
        "def execute(self, requests):\n"
        f"    return [pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT', np.array([{value}], np.float32))])"
        " for _ in requests]"
    )


def write_constant(repository: Path, value: int, name: str = "constant") -> None:
    write_model(repository, name, python_config([IN], [OUT]), constant(value))


def write_over(repository: Path, model: str = "constant", name: str = "over") -> None:
    step = step_text(model, {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(repository, name, ensemble_config([IN], [OUT], [step]))


def write_mapped(repository: Path, output: str, version: int = -1) -> None:
    """An ensemble that answers with one of the model's outputs."""
    step = step_text("constant", {"INPUT": "INPUT"}, {output: "OUTPUT"}, version=version)
    write_model(repository, "over", ensemble_config([IN], [OUT], [step]))


class Controlled(EmbeddedServer):
    """An embedded server under explicit control."""

    def __init__(
        self, repository: Path, *load: str, mode: ModelControlMode = ModelControlMode.EXPLICIT
    ) -> None:
        super().__init__(repository)
        self.core = Server(
            ServerOptions(model_repository=(repository,), model_control_mode=mode, load_model=load)
        )

    def value(self, model: str = "over") -> float:
        return float(self.infer(model, {"INPUT": np.zeros(1, np.float32)})["OUTPUT"][0])

    def states(self) -> dict[str, tuple[str, str]]:
        return {entry.name: (entry.state, entry.reason) for entry in self.core.repository_index()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_constant(tmp_path, 1)
    write_over(tmp_path)
    return tmp_path


def test_nothing_is_loaded_until_it_is_asked_for(repository: Path) -> None:
    with Controlled(repository) as server:
        assert server.states() == {"constant": ("", ""), "over": ("", "")}
        with pytest.raises(InferenceError, match="Request for unknown model: 'over' is not found"):
            server.value()
        server.core.load_model("over")
        assert server.value() == 1.0
        assert server.states() == {"constant": ("READY", ""), "over": ("READY", "")}


def test_a_reload_takes_the_ensembles_over_it_along(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        write_constant(repository, 22)
        assert server.value() == 1.0
        server.core.load_model("constant")
        assert (server.value(), server.value("constant")) == (22.0, 22.0)


def test_loading_what_has_not_changed_changes_nothing(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        before = server.core.model("constant")
        server.core.load_model("over")
        server.core.load_model("constant")
        assert server.core.model("constant") is before


def test_a_reload_that_fails_leaves_the_old_version_serving(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        write_model(repository, "constant", None, code="raise RuntimeError('not today')\n")
        with pytest.raises(
            InferenceError, match=r"load failed for model 'constant': version 1 .*not today"
        ) as failed:
            server.core.load_model("constant")
        assert failed.value.code is StatusCode.INVALID_ARG
        assert (server.value(), server.value("constant")) == (1.0, 1.0)
        write_constant(repository, 333)
        server.core.load_model("constant")
        assert server.value() == 333.0


def test_a_reload_that_failed_for_a_passing_reason_can_be_tried_again(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    needed = tmp_path_factory.mktemp("elsewhere") / "needed"
    with Controlled(repository, "*") as server:
        initialize = f"def initialize(self, args):\n    open({str(needed)!r}).close()\n"
        write_model(repository, "constant", None, initialize + constant(22))
        for _ in range(2):
            with pytest.raises(InferenceError, match=r"load failed for model 'constant': version 1 .*needed"):
                server.core.load_model("constant")
        needed.touch()
        server.core.load_model("constant")
        assert (server.value(), server.value("constant")) == (22.0, 22.0)
        assert server.states()["constant"] == ("READY", "")


def test_an_ensemble_whose_reload_failed_is_still_what_it_was_when_its_model_gets_another_version(
    repository: Path,
) -> None:
    every = "version_policy { all { } }"
    write_model(repository, "constant", python_config([IN], [OUT], extra=every), constant(1))
    write_mapped(repository, "OUTPUT", version=1)
    with Controlled(repository, "*") as server:
        write_mapped(repository, "OTHER", version=1)
        with pytest.raises(InferenceError, match="OTHER"):
            server.core.load_model("over")
        write_model(repository, "constant", None, constant(2), version=2)
        server.core.load_model("constant")
        ensemble = server.core.model("over").config.ensemble_scheduling
        assert ensemble is not None
        assert dict(ensemble.step[0].output_map) == {"OUTPUT": "OUTPUT"}
        assert server.value() == 1.0


def test_an_ensemble_that_came_to_fit_by_its_models_reload_is_changed_by_its_own(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        write_mapped(repository, "OTHER")
        with pytest.raises(InferenceError, match="OTHER"):
            server.core.load_model("over")
        both = (
            "def execute(self, requests):\n"
            "    values = [('OUTPUT', 1), ('OTHER', 2)]\n"
            "    tensors = [pb_utils.Tensor(name, np.array([n], np.float32)) for name, n in values]\n"
            "    return [pb_utils.InferenceResponse(tensors) for _ in requests]"
        )
        write_model(repository, "constant", python_config([IN], [OUT, tensor_text("OTHER")]), both)
        server.core.load_model("constant")
        assert server.value() == 2.0
        write_mapped(repository, "OUTPUT")
        server.core.load_model("over")
        assert server.value() == 1.0


def test_an_ensemble_that_is_loaded_with_a_model_that_fails_in_part_calls_what_serves(
    repository: Path,
) -> None:
    every = "version_policy { all { } }"
    write_model(repository, "constant", python_config([IN], [OUT], extra=every), constant(1))
    step = step_text("constant", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"}, version=1)
    write_model(repository, "over", ensemble_config([IN], [OUT], [step]))
    with Controlled(repository, "*") as server:
        write_model(repository, "constant", None, constant(22))
        write_model(repository, "constant", None, code="raise RuntimeError('not today')\n", version=2)
        write_model(
            repository,
            "over",
            ensemble_config([IN], [OUT], [step]) + '\nparameters { key: "a" value { string_value: "b" } }',
        )
        server.core.load_model("over")
        assert server.core.model("over").config.parameters["a"].string_value == "b"
        assert (server.value(), server.value("constant")) == (1.0, 1.0)


def test_an_ensemble_that_no_longer_fits_keeps_the_model_that_it_had(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        write_model(
            repository,
            "constant",
            python_config([tensor_text("OTHER")], [OUT]),
            constant(4444),
        )
        server.core.load_model("constant")
        assert server.value() == 1.0
        outputs = server.infer("constant", {"OTHER": np.zeros(1, np.float32)})
        assert outputs["OUTPUT"].tolist() == [4444.0]
        # As Model Analyzer asks, between one model of an ensemble and the next.
        assert server.core.is_model_ready("over")
        assert server.core.is_ready()


def test_unloading_a_model_unloads_the_ensembles_that_need_it(repository: Path) -> None:
    with Controlled(repository, "*") as server:
        server.core.unload_model("constant")
        for name in ("constant", "over"):
            with pytest.raises(InferenceError) as refused:
                server.value(name)
            assert refused.value.code is StatusCode.NOT_FOUND
        server.core.load_model("over")
        assert server.value() == 1.0


def test_unload_dependents_keeps_what_was_asked_for_by_name(repository: Path) -> None:
    write_constant(repository, 5, "other")
    write_over(repository, "other", "over_other")
    with Controlled(repository, "over", "other", "over_other") as server:
        server.core.unload_model("over", unload_dependents=True)
        server.core.unload_model("over_other", unload_dependents=True)
        ready = {name for name, (state, _) in server.states().items() if state == "READY"}
        assert ready == {"other"}


def test_a_model_that_is_gone_is_unloaded_by_polling(repository: Path) -> None:
    with Controlled(repository, mode=ModelControlMode.POLL) as server:
        (repository / "over").rename(repository.parent / f"{repository.name}-over")
        write_constant(repository, 66)
        server.core._repository.poll()
        assert server.value("constant") == 66.0
        assert server.states() == {"constant": ("READY", "")}


def test_control_by_hand_is_refused_in_the_other_modes(repository: Path) -> None:
    with Controlled(repository, mode=ModelControlMode.NONE) as server:
        for operation in (server.core.load_model, server.core.unload_model):
            with pytest.raises(
                InferenceError, match="explicit model load / unload is not allowed"
            ) as refused:
                operation("over")
            assert refused.value.code is StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("../etc", "invalid model name '../etc', model name must not contain path traversal characters"),
        ("nobody", "failed to load 'nobody', failed to poll from model repository"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(repository: Path, name: str, message: str) -> None:
    with Controlled(repository) as server, pytest.raises(InferenceError) as refused:
        server.core.load_model(name)
    assert refused.value.message == message


def test_reloads_under_load_fail_nothing_and_mix_nothing(repository: Path) -> None:
    steps = [
        step_text("constant", {"INPUT": "INPUT"}, {"OUTPUT": "FIRST"}),
        step_text("constant", {"INPUT": "FIRST"}, {"OUTPUT": "SECOND"}),
    ]
    write_model(
        repository, "twice", ensemble_config([IN], [tensor_text("FIRST"), tensor_text("SECOND")], steps)
    )
    stop = threading.Event()
    wrong: list[object] = []

    def call(server: Controlled) -> None:
        while not stop.is_set():
            try:
                outputs = server.infer("twice", {"INPUT": np.zeros(1, np.float32)})
            except InferenceError as error:
                wrong.append(error)
                continue
            if outputs["FIRST"].tolist() != outputs["SECOND"].tolist():
                wrong.append(outputs)

    with Controlled(repository, "*") as server:
        threads = [threading.Thread(target=call, args=(server,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for value in range(2, 22):
            # The length differs each time, so that the change is seen whatever the clock of the file system.
            write_constant(repository, 10**value)
            server.core.load_model("constant")
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_model_may_be_loaded_again_while_it_is_still_leaving(repository: Path) -> None:
    slow = """
    def initialize(self, args):
        self.finalized = 0

    def execute(self, requests):
        import os
        os.read(int(os.environ["GATE_OF_TEST"]), 1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.zeros(1, np.float32))]) for _ in requests]

    def finalize(self):
        self.finalized += 1
        assert self.finalized == 1
    """
    write_model(repository, "slow", python_config([IN], [OUT]), slow)
    reader, writer = os.pipe()
    os.environ["GATE_OF_TEST"] = str(reader)
    try:
        with Controlled(repository, "slow") as server:
            old = server.core.model("slow")
            answers: list[float] = []
            caller = threading.Thread(target=lambda: answers.append(server.value("slow")))
            caller.start()
            while not old.scheduler.in_flight:
                os.sched_yield()
            server.core.unload_model("slow")
            server.core.load_model("slow")
            assert server.core.model("slow") is not old
            server.core.unload_model("slow")
            os.write(writer, b".")
            caller.join()
        assert answers == [0.0]
        assert (old.state.value, old.reason) == ("UNAVAILABLE", "unloaded")
    finally:
        del os.environ["GATE_OF_TEST"]
        os.close(reader)
        os.close(writer)


def test_a_model_whose_configuration_is_wrong_is_not_polled_and_says_where(repository: Path) -> None:
    write_model(repository, "wrong", "max_batch_size: true", "def execute(self, requests): ...")
    with Controlled(repository) as server, pytest.raises(InferenceError) as refused:
        server.core.load_model("wrong")
    assert refused.value.code is StatusCode.INTERNAL
    assert refused.value.message.startswith(
        "failed to load 'wrong', failed to poll from model repository: Invalid argument: "
    )
    assert "wrong/config.pbtxt:1:17: max_batch_size: " in refused.value.message
