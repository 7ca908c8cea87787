"""What a model.py may ask of its server beside calls: metrics, models to load, readiness, and its own way to say it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton_grpc

from cantata.runtime.repository.control import ModelControlMode
from tests.support.model_files import python_config, tensor_text, write_identity, write_model
from tests.support.wire_servers import Ports, wire_server

WORD_IN, WORD_OUT = tensor_text("INPUT", "STRING", "1"), tensor_text("OUTPUT", "STRING", "1")

# Runs the statement that it is sent, and answers with what `found` is afterwards or what was raised.
OBEDIENT = """
def execute(self, requests):
    responses = []
    for request in requests:
        names = {"self": self, "pb_utils": pb_utils, "found": ""}
        try:
            exec(request.inputs()[0].as_numpy()[0].decode(), names)
            text = str(names["found"])
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([text.encode()], np.object_))]))
    return responses
"""
# Ready or not, as the file beside the model says; takes as long as it says, too.
SAYS_READY = """
def initialize(self, args):
    self.path = args["model_repository"] + "/ready"

def is_ready(self):
    with open(self.path) as file:
        said = json.loads(file.read())
    threading.Event().wait(said["after_s"])
    return said["ready"]
"""


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    return {"python": {"execution-isolation": request.param}}


def write_obedient(repository: Path, name: str = "obedient", code: str = "", extra: str = "") -> Path:
    return write_model(
        repository, name, python_config([WORD_IN], [WORD_OUT], extra=extra), code + "\n" + OBEDIENT
    )


def order(ports: Ports, statement: str, model: str = "obedient") -> str:
    entry = {"name": "INPUT", "shape": [1], "datatype": "BYTES", "data": [statement]}
    url = f"http://127.0.0.1:{ports.http}/v2/models/{model}/infer"
    reply = httpx.post(url, json={"inputs": [entry]}, timeout=30).json()
    return str(reply["outputs"][0]["data"][0])


def metrics_named(ports: Ports, name: str) -> list[str]:
    lines = httpx.get(f"http://127.0.0.1:{ports.metrics}/metrics").text.splitlines()
    return [line for line in lines if line.startswith(name)]


def eventually_no_metrics(ports: Ports, name: str) -> None:
    deadline = time.monotonic() + 10
    while metrics_named(ports, name):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestMetrics:
    def test_live_as_long_as_their_objects(
        self, tmp_path: Path, isolation: dict[str, dict[str, str]]
    ) -> None:
        write_obedient(tmp_path)
        with wire_server(tmp_path, backend_config=isolation) as ports:
            order(ports, "self.f = pb_utils.MetricFamily('hits', 'Hits.', pb_utils.MetricFamily.GAUGE)")
            order(ports, "self.m = self.f.Metric({'a': 'b'}); self.m.set(3); self.m.increment(-0.5)")
            assert order(ports, "found = self.m.value()") == "2.5"
            assert metrics_named(ports, "hits") == ['hits{a="b"} 2.5']
            order(ports, "del self.m")
            eventually_no_metrics(ports, "hits")
            order(ports, "self.m = self.f.Metric(); del self.f")
            eventually_no_metrics(ports, "hits")
            assert "Invalid metric operation as the corresponding 'MetricFamily' has been deleted" in order(
                ports, "self.m.increment(1)"
            )

    @pytest.mark.parametrize(
        ("statement", "error"),
        [
            ("COUNTER).Metric(labels=3)", "Failed to create metric. Labels must be a dictionary."),
            ("HISTOGRAM).Metric(buckets={})", "Failed to create metric. Buckets must be a list."),
            ("COUNTER).Metric(buckets=[1])", "Failed to create metric. Unexpected buckets found."),
            ("HISTOGRAM).Metric()", "Failed to create metric. Missing required buckets."),
        ],
    )
    def test_are_made_of_the_right_things(self, tmp_path: Path, statement: str, error: str) -> None:
        write_obedient(tmp_path)
        with wire_server(tmp_path) as ports:
            made = f"pb_utils.MetricFamily('hits', 'Hits.', pb_utils.MetricFamily.{statement}"
            assert order(ports, made) == f"TritonModelException: {error}"

    def test_end_with_their_model(self, tmp_path: Path, isolation: dict[str, dict[str, str]]) -> None:
        keeps = """
            def initialize(self, args):
                type(self).kept = [pb_utils.MetricFamily("kept", "Kept.", pb_utils.MetricFamily.COUNTER)]
                self.kept.append(self.kept[0].Metric())
        """.replace("\n            ", "\n")
        write_obedient(tmp_path, code=keeps)
        with wire_server(
            tmp_path,
            backend_config=isolation,
            model_control_mode=ModelControlMode.EXPLICIT,
            load_model=("*",),
        ) as ports:
            assert metrics_named(ports, "kept") == ["kept 0"]
            ports.server.unload_model("obedient")
            eventually_no_metrics(ports, "kept")

    def test_are_not_for_completing_a_configuration(
        self, tmp_path: Path, isolation: dict[str, dict[str, str]]
    ) -> None:
        code = """
            @staticmethod
            def auto_complete_config(config):
                pb_utils.MetricFamily("early", "Early.", pb_utils.MetricFamily.COUNTER)
                return config
        """.replace("\n            ", "\n")
        write_obedient(tmp_path, code=code)
        with wire_server(tmp_path, backend_config=isolation, exit_on_error=False) as ports:
            [failure] = ports.server.failures()
            assert "Metrics cannot be used in auto_complete_config" in failure.reason


class TestLoading:
    def test_a_model_loads_and_unloads_another(
        self, tmp_path: Path, isolation: dict[str, dict[str, str]]
    ) -> None:
        write_obedient(tmp_path)
        write_identity(tmp_path)
        with wire_server(
            tmp_path,
            backend_config=isolation,
            model_control_mode=ModelControlMode.EXPLICIT,
            load_model=("obedient",),
        ) as ports:
            is_ready = "found = pb_utils.is_model_ready('identity')"
            assert order(ports, is_ready) == "False"
            assert order(ports, f"pb_utils.load_model('identity'); {is_ready}") == "True"
            assert order(ports, "found = pb_utils.is_model_ready('identity', '2')") == "False"
            # Itself, too: the new one serves from then on, and this one ends with its request.
            assert order(ports, "pb_utils.load_model(model_name='obedient')") == ""
            assert order(ports, f"pb_utils.unload_model('identity', True); {is_ready}") == "False"
            assert "failed to load 'nobody'" in order(ports, "pb_utils.load_model('nobody')")

    def test_a_model_gives_another_its_configuration_and_files(
        self, tmp_path: Path, isolation: dict[str, dict[str, str]]
    ) -> None:
        write_obedient(tmp_path)
        write_identity(tmp_path)
        with wire_server(
            tmp_path,
            backend_config=isolation,
            model_control_mode=ModelControlMode.EXPLICIT,
            load_model=("obedient",),
        ) as ports:
            tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
            config = json.dumps(
                {
                    "backend": "python",
                    "max_batch_size": 3,
                    "input": [{"name": "INPUT", **tensor}],
                    "output": [{"name": "OUTPUT", **tensor}],
                }
            )
            assert order(ports, f"pb_utils.load_model('identity', config={config!r})") == ""
            assert ports.server.model("identity").config.max_batch_size == 3
            code = (tmp_path / "identity" / "1" / "model.py").read_bytes()
            files = {"file:1/model.py": code}
            assert order(ports, f"pb_utils.load_model('made', config={config!r}, files={files!r})") == ""
            assert order(ports, "found = pb_utils.is_model_ready('made')") == "True"
            assert "must be specified for model file override" in order(
                ports, f"pb_utils.load_model('made', files={files!r})"
            )

    def test_only_under_explicit_control(self, tmp_path: Path, isolation: dict[str, dict[str, str]]) -> None:
        write_obedient(tmp_path)
        with wire_server(tmp_path, backend_config=isolation) as ports:
            assert order(ports, "pb_utils.load_model('obedient')") == (
                "TritonModelException: explicit model load / unload is not allowed if polling is enabled"
            )

    def test_not_while_a_model_is_initialized(
        self, tmp_path: Path, isolation: dict[str, dict[str, str]]
    ) -> None:
        code = "def initialize(self, args):\n    pb_utils.load_model('identity')\n"
        write_obedient(tmp_path, code=code)
        write_identity(tmp_path)
        with wire_server(
            tmp_path,
            backend_config=isolation,
            model_control_mode=ModelControlMode.EXPLICIT,
            load_model=("obedient",),
            exit_on_error=False,
        ) as ports:
            [failure] = ports.server.failures()
            assert "can be loaded and unloaded by a model that serves" in failure.reason


class TestReadiness:
    def test_is_what_the_model_says(self, tmp_path: Path, isolation: dict[str, dict[str, str]]) -> None:
        said = write_obedient(tmp_path, code=SAYS_READY) / "ready"
        write_identity(tmp_path)
        with wire_server(tmp_path, backend_config=isolation) as ports:
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
            for text, expected in (
                ('{"ready": true, "after_s": 0}', True),
                ('{"ready": false, "after_s": 0}', False),
                ('{"ready": 3, "after_s": 0}', False),
                ("", False),
            ):
                said.write_text(text)
                url = f"http://127.0.0.1:{ports.http}/v2"
                assert [
                    client.is_model_ready("obedient"),
                    client.is_server_ready(),
                    httpx.get(f"{url}/models/obedient/ready").status_code == 200,
                    httpx.get(f"{url}/health/ready").status_code == 200,
                ] == [expected] * 4
                assert client.is_model_ready("identity")
            client.close()

    def test_taking_long_to_say_holds_nobody_up(self, tmp_path: Path) -> None:
        said = write_obedient(tmp_path, code=SAYS_READY) / "ready"
        said.write_text('{"ready": true, "after_s": 1.5}')
        with wire_server(tmp_path) as ports:
            url = f"http://127.0.0.1:{ports.http}/v2"
            answers: list[int] = []
            asking = threading.Thread(
                target=lambda: answers.append(httpx.get(f"{url}/models/obedient/ready").status_code)
            )
            asking.start()
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")
            while asking.is_alive() and not answers:
                started = time.monotonic()
                assert httpx.get(f"{url}/health/live").status_code == 200
                assert client.is_server_live()
                assert order(ports, "found = 1") == "1"
                assert time.monotonic() - started < 1
                time.sleep(0.1)
            asking.join(10)
            client.close()
            assert answers == [200]


def test_a_parameter_about_gpu_tensors_is_accepted(tmp_path: Path) -> None:
    extra = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value: { string_value: "no" } }'
    write_obedient(tmp_path, extra=extra)
    with wire_server(tmp_path) as ports:
        assert order(ports, "found = 1") == "1"
