"""Models in processes of their own: what crosses, and what becomes of requests and models when a process ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import psutil
import pytest

from cantata import InferenceError, Server
from cantata.bls.worker import direct_batches
from cantata.bls.worker.channel import Channel
from cantata.runtime.clock import monotonic_ns
from cantata.runtime.errors import StatusCode
from cantata.runtime.execution.calls import WaitingSender
from cantata.runtime.execution.file_watch import FileWatch
from cantata.runtime.observe.snapshots import ProcessFigures
from cantata.runtime.request import InferenceRequest
from cantata.runtime.scheduling import scheduled_instance
from cantata.runtime.scheduling.model_scheduler import ModelScheduler
from cantata.runtime.tensor import tensor_of_array
from tests.support.model_files import (
    IDENTITY,
    ensemble_config,
    python_config,
    step_text,
    tensor_text,
    write_identity,
    write_model,
)

IN, OUT = tensor_text("INPUT"), tensor_text("OUTPUT")
PROCESS = {"python": {"execution-isolation": "process"}}

# Answers with its process' number; does what INPUT says first.
OBEDIENT = """
def execute(self, requests):
    import ctypes, os, sys, time
    responses = []
    for request in requests:
        order = int(request.inputs()[0].as_numpy()[0])
        if order == 1:
            print("about to go", file=sys.stderr, flush=True)
            os._exit(7)
        if order == 2:
            ctypes.string_at(0)
        if order == 3:
            while True:
                pass
        if order == 4:
            time.sleep(60)
        responses.append(
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([os.getpid()], np.float32))])
        )
    return responses
"""
ANSWER, EXIT, CRASH, SPIN, SLEEP = range(5)


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'


IN_PROCESS = parameter("EXECUTION_ISOLATION", "process")


def write_obedient(repository: Path, name: str = "obedient", extra: str = IN_PROCESS, code: str = "") -> None:
    write_model(repository, name, python_config([IN], [OUT], extra=extra), code + OBEDIENT)


def order(server: Server, what: int, model: str = "obedient") -> int:
    return int(server.infer(model, {"INPUT": [what]})["OUTPUT"][0])


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def is_ready(server: Server, model: str = "obedient") -> bool:
    return server.core.is_model_ready(model)


def children() -> list[psutil.Process]:
    """The server's, in this very process; not the helper that Python starts for shared memory, and keeps."""
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [child for child in psutil.Process().children() if child.pid != tracker]


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group below our own in which a process may take 200 MB; skips where none can be made."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((path for _, kinds, path in (line.split(":", 2) for line in lines) if kinds == "memory"), None)
    group = Path(f"/sys/fs/cgroup/memory{own}/cantata-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for memory can be made: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
        yield group
        eventually(lambda: not (group / "cgroup.procs").read_text())
    finally:
        group.rmdir()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """`obedient`, an ensemble of it, and `identity` in a process of its own."""
    write_obedient(tmp_path)
    write_identity(tmp_path, "identity", extra=IN_PROCESS)
    step = step_text("obedient", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
    write_model(tmp_path, "ensemble", ensemble_config([IN], [OUT], [step]))
    with Server(tmp_path) as server:
        yield server


def test_an_instance_is_a_process_that_ends_with_its_model(tmp_path: Path) -> None:
    write_obedient(tmp_path)
    with Server(tmp_path) as server:
        assert [order(server, ANSWER)] == [child.pid for child in children()]
    assert children() == []


def test_more_than_one_instance_means_processes(tmp_path: Path) -> None:
    write_obedient(tmp_path, extra="instance_group { count: 2 kind: KIND_CPU }")
    with Server(tmp_path) as server, ThreadPoolExecutor(8) as clients:
        seen = set(clients.map(lambda _: order(server, ANSWER), range(400)))
        assert seen == {child.pid for child in children()}
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (
            parameter("EXECUTION_ISOLATION", "container"),
            "parameter EXECUTION_ISOLATION: expected thread or process, got 'container'",
        ),
        (
            parameter("EXECUTION_TIMEOUT", "soon"),
            "parameter EXECUTION_TIMEOUT: expected a number of seconds, got 'soon'",
        ),
        (
            parameter("EXECUTION_ISOLATION", "thread") + parameter("EXECUTION_TIMEOUT", "1"),
            "parameter EXECUTION_TIMEOUT: needs a process, but EXECUTION_ISOLATION is thread",
        ),
        (
            parameter("EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/env"),
            "parameter EXECUTION_ENV_PATH: there is no folder and no archive",
        ),
    ],
)
def test_a_wrong_parameter_is_told_at_load(tmp_path: Path, extra: str, reason: str) -> None:
    write_obedient(tmp_path, extra=extra)
    server = Server(tmp_path, exit_on_error=False)
    with server:
        [failure] = server.core.failures()
        assert reason in failure.reason


def test_large_tensors_cross(server: Server) -> None:
    tensor = np.arange(16 << 20, dtype=np.float32)
    for _ in range(3):
        assert np.array_equal(server.infer("identity", {"INPUT": tensor})["OUTPUT"], tensor)
    empty = np.zeros(0, np.float32)
    assert server.infer("identity", {"INPUT": empty})["OUTPUT"].shape == (0,)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tensor_of_a_gigabyte_crosses(server: Server) -> None:
    tensor = np.arange(256 << 20, dtype=np.float32)
    assert np.array_equal(server.infer("identity", {"INPUT": tensor})["OUTPUT"], tensor)
    [instance] = server.core.model("identity").scheduler.backend_instances()
    # Nobody holds it any more: its memory is the system's again.
    eventually(lambda: psutil.Process(instance.pid).memory_info().shared < 200 << 20)


def test_results_that_a_caller_keeps_stay_as_they_are(server: Server) -> None:
    kept = [
        server.infer("identity", {"INPUT": np.full(100_000, value, np.float32)})["OUTPUT"]
        for value in range(30)
    ]
    assert [float(result[0]) for result in kept] == [float(result[-1]) for result in kept]
    assert [float(result[0]) for result in kept] == list(range(30))


def test_a_tensor_that_finds_no_room_is_an_error_that_says_how_much_it_needs(tmp_path: Path) -> None:
    write_identity(tmp_path, "identity", extra=IN_PROCESS)
    with Server(tmp_path, backend_config={"python": {"arena-max-byte-size": str(1 << 20)}}) as server:
        with pytest.raises(
            InferenceError, match=r"4000000 bytes do not fit .*arena-max-byte-size"
        ) as failure:
            server.infer("identity", {"INPUT": np.zeros(1_000_000, np.float32)})
        assert failure.value.code is StatusCode.UNAVAILABLE
        assert server.infer("identity", {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]


def test_strings_and_batches_cross(tmp_path: Path) -> None:
    text_in, text_out = tensor_text("INPUT", "STRING"), tensor_text("OUTPUT", "STRING")
    extra = f"dynamic_batching {{ max_queue_delay_microseconds: 2000 }} {IN_PROCESS}"
    config = python_config([text_in], [text_out], max_batch_size=8, extra=extra)
    write_model(tmp_path, "strings", config, IDENTITY)
    texts = [[f"{index}-äö".encode() * (1 + index * 50)] for index in range(64)]
    with Server(tmp_path) as server, ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda text: server.infer("strings", {"INPUT": [text]}), texts)
        assert [answer["OUTPUT"].tolist()[0] for answer in answers] == texts
        assert server.core.statistics("strings")[0].execution_count < 64


def test_the_models_log_is_the_servers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    says = """
def execute(self, requests):
    pb_utils.Logger.log_warn("from afar")
    return [pb_utils.InferenceResponse([r.inputs()[0]], None) for r in requests]
"""
    write_model(tmp_path, "says", python_config([IN], [tensor_text("INPUT")], extra=IN_PROCESS), says)
    with Server(tmp_path) as server:
        server.infer("says", {"INPUT": [1]})
    assert ("cantata.model.says", logging.WARNING, "from afar") in caplog.record_tuples


CALLS = """
REQUESTS
    responses = []
    for request in requests:
        name = {0: "nobody", 1: "many", 2: "identity"}[int(request.inputs()[0].as_numpy()[0])]
        call = pb_utils.InferenceRequest(
            model_name=name,
            inputs=[pb_utils.Tensor("INPUT", np.ones(1, np.float32))],
            requested_output_names=["OUTPUT"],
        )
        answer = CALL
        error = answer.error() if answer.has_error() else pb_utils.TritonError("none")
        responses.append(pb_utils.InferenceResponse(error=error))
    return responses
"""


@pytest.mark.parametrize(
    ("execute", "call"),
    [
        ("def execute(self, requests):", "call.exec()"),
        ("async def execute(self, requests):", "await call.async_exec()"),
    ],
    ids=["waiting", "awaiting"],
)
def test_a_call_is_refused_as_it_is_on_a_thread(tmp_path: Path, execute: str, call: str) -> None:
    code = CALLS.replace("REQUESTS", execute).replace("CALL", call)
    write_model(tmp_path, "on_thread", python_config([IN], [OUT]), code)
    write_model(tmp_path, "in_process", python_config([IN], [OUT], extra=IN_PROCESS), code)
    write_model(
        tmp_path, "many", python_config([IN], [OUT], decoupled=True), "def execute(self, requests): pass"
    )
    write_identity(tmp_path, "identity")
    with Server(tmp_path) as server:
        for callee, text in enumerate(
            ("Model 'nobody' is not ready", "use 'decoupled=True' argument", "none")
        ):
            errors = []
            for caller in ("on_thread", "in_process"):
                with pytest.raises(InferenceError) as failure:
                    order(server, callee, caller)
                errors.append((failure.value.code, failure.value.message))
            assert errors[0] == errors[1]
            assert text in errors[0][1]


def test_a_model_completes_its_configuration_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
@staticmethod
def auto_complete_config(config):
    import os
    config.add_input({"name": "INPUT", "data_type": "TYPE_FP32", "dims": [-1]})
    config.add_output({"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [-1]})
    assert os.getppid() == int(open(pb_utils.get_model_dir() + "/server").read())
    return config
"""
    write_model(tmp_path, "completes", 'backend: "python"\n' + IN_PROCESS, code + IDENTITY)
    (tmp_path / "completes" / "1" / "server").write_text(str(os.getpid()))
    with Server(tmp_path) as server:
        assert server.infer("completes", {"INPUT": [1]})["OUTPUT"].tolist() == [1.0]


def test_cancelling_reaches_a_model_that_looks(tmp_path: Path) -> None:
    waits = """
def execute(self, requests):
    while not requests[0].is_cancelled():
        pass
    open(pb_utils.get_model_dir() + "/seen", "w").close()
    return [pb_utils.InferenceResponse(error=pb_utils.TritonError("seen"))]
"""
    write_model(tmp_path, "waits", python_config([IN], [OUT], extra=IN_PROCESS), waits)

    async def ask_and_leave(server: Server) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(server.infer_async("waits", {"INPUT": [1]}), 0.2)

    with Server(tmp_path) as server:
        asyncio.run(ask_and_leave(server))
        eventually((tmp_path / "waits" / "1" / "seen").exists)


class TestAProcessThatEnds:
    @pytest.mark.parametrize(
        ("what", "cause"),
        [
            (EXIT, r"ended with exit code 7; its stderr ended with:\nabout to go$"),
            (
                CRASH,
                r"was killed by SIGSEGV; its stderr ended with:[\s\S]*Segmentation fault[\s\S]*model\.py",
            ),
        ],
    )
    def test_fails_its_requests_with_the_cause(self, server: Server, what: int, cause: str) -> None:
        with pytest.raises(
            InferenceError, match=f"process of model instance 'obedient_0' {cause}"
        ) as failure:
            order(server, what)
        assert failure.value.code is StatusCode.UNAVAILABLE
        assert server.infer("identity", {"INPUT": [5]})["OUTPUT"].tolist() == [5.0]
        eventually(lambda: is_ready(server))
        assert order(server, ANSWER) > 0

    def test_in_an_odd_way_fails_its_request_and_is_replaced(self, tmp_path: Path) -> None:
        odd = """
def execute(self, requests):
    import marshal, os, socket

    def write(data):
        for file in os.listdir("/proc/self/fd"):
            try:
                socket.socket(fileno=os.dup(int(file))).send(data)
            except OSError:
                continue

    deed = int(requests[0].inputs()[0].as_numpy()[0])
    if deed == 1:
        write(b"gibberish")
    if deed == 2:
        write(marshal.dumps((9, "not", "an answer", 1, 2, 3)))
    if deed == 3:
        write(marshal.dumps((5,)))
    if deed == 4:
        write(b"")
    if deed == 5:
        os.closerange(3, 4096)
    if deed == 6:
        os.abort()
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([os.getpid()], np.float32))])]
"""
        write_model(tmp_path, "odd", python_config([IN], [OUT], extra=IN_PROCESS), odd)
        write_identity(tmp_path, "identity", extra=IN_PROCESS)
        with Server(tmp_path) as server:
            first = order(server, 0, "odd")
            for deed in range(1, 7):
                with pytest.raises(InferenceError) as failure:
                    order(server, deed, "odd")
                assert failure.value.code is StatusCode.UNAVAILABLE, (deed, failure.value)
                assert "the process of model instance 'odd_0'" in failure.value.message
                assert server.infer("identity", {"INPUT": [5]})["OUTPUT"].tolist() == [5.0]
                eventually(lambda: is_ready(server, "odd"))
            assert order(server, 0, "odd") != first

    def test_that_the_system_ends_when_memory_runs_out_is_replaced(
        self, tmp_path: Path, memory_group: Path
    ) -> None:
        """Really: the process is moved into a control group with little memory, and takes more."""
        grows = """
def execute(self, requests):
    import os
    wanted = int(requests[0].inputs()[0].as_numpy()[0])
    taken = bytearray(os.urandom(1)) * (wanted << 20)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([os.getpid()], np.float32))])]
"""
        write_model(tmp_path, "grows", python_config([IN], [OUT], extra=IN_PROCESS), grows)
        write_identity(tmp_path, "identity", extra=IN_PROCESS)
        with Server(tmp_path) as server:
            first = order(server, 1, "grows")
            (memory_group / "cgroup.procs").write_text(str(first))
            with pytest.raises(InferenceError, match=r"killed by SIGKILL .*when memory runs out") as failure:
                order(server, 400, "grows")
            assert failure.value.code is StatusCode.UNAVAILABLE
            assert server.infer("identity", {"INPUT": [5]})["OUTPUT"].tolist() == [5.0]
            eventually(lambda: is_ready(server, "grows"))
            assert order(server, 1, "grows") != first

    def test_that_is_out_of_memory_by_its_own_limit_lives_on(self, tmp_path: Path) -> None:
        grows = """
def initialize(self, args):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))

def execute(self, requests):
    import os
    taken = bytearray((int(requests[0].inputs()[0].as_numpy()[0])) << 30)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([os.getpid()], np.float32))])]
"""
        write_model(tmp_path, "grows", python_config([IN], [OUT], extra=IN_PROCESS), grows)
        with Server(tmp_path) as server:
            first = order(server, 0, "grows")
            with pytest.raises(InferenceError, match="MemoryError") as failure:
                order(server, 1000, "grows")
            assert failure.value.code is StatusCode.INTERNAL
            assert order(server, 0, "grows") == first

    def test_between_requests_is_replaced(self, server: Server) -> None:
        first = order(server, ANSWER)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not is_ready(server))
        eventually(lambda: is_ready(server))
        assert order(server, ANSWER) != first

    def test_makes_its_model_and_ensembles_unready_until_it_is_replaced(self, tmp_path: Path) -> None:
        gate = "def initialize(self, args):\n    import os, time\n    while os.path.exists('GATE'): time.sleep(0.01)\n"
        write_obedient(tmp_path, code=gate.replace("GATE", str(tmp_path / "gate")))
        step = step_text("obedient", {"INPUT": "INPUT"}, {"OUTPUT": "OUTPUT"})
        write_model(tmp_path, "ensemble", ensemble_config([IN], [OUT], [step]))
        with Server(tmp_path) as server:
            assert server.core.is_ready()
            (tmp_path / "gate").touch()
            os.kill(order(server, ANSWER), signal.SIGKILL)
            eventually(lambda: not is_ready(server))
            assert not is_ready(server, "ensemble")
            assert not server.core.is_ready()
            for model in ("obedient", "ensemble"):
                with pytest.raises(InferenceError, match="was killed by SIGKILL") as failure:
                    order(server, ANSWER, model)
                assert failure.value.code is StatusCode.UNAVAILABLE
            (tmp_path / "gate").unlink()
            eventually(lambda: is_ready(server, "ensemble"))
            assert order(server, ANSWER, "ensemble") > 0
            assert server.core.is_ready()

    def test_may_start_for_ever_without_keeping_its_model_from_unloading(self, tmp_path: Path) -> None:
        gate = "def initialize(self, args):\n    import os, time\n    while os.path.exists('GATE'): time.sleep(0.01)\n"
        write_obedient(tmp_path, code=gate.replace("GATE", str(tmp_path / "gate")))
        with Server(tmp_path) as server:
            (tmp_path / "gate").touch()
            first = order(server, ANSWER)
            os.kill(first, signal.SIGKILL)
            eventually(lambda: any(child.pid != first for child in children()))
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert children() == []

    def test_is_killed_when_it_takes_longer_than_its_limit(self, tmp_path: Path) -> None:
        write_obedient(tmp_path, extra=parameter("EXECUTION_TIMEOUT", "0.5"))
        with Server(tmp_path) as server:
            for _ in range(2):
                with pytest.raises(
                    InferenceError, match=r"longer than EXECUTION_TIMEOUT \(0.5 s\)"
                ) as failure:
                    order(server, SPIN)
                assert failure.value.code is StatusCode.UNAVAILABLE
                eventually(lambda: is_ready(server))
                assert order(server, ANSWER) > 0
            [figures] = server.core.model_figures()
            assert figures.processes == ProcessFigures(deaths=2, restarts=2, timeouts=2)

    def test_in_initialize_fails_the_load_and_is_not_tried_again(self, tmp_path: Path) -> None:
        write_obedient(tmp_path, code="def initialize(self, args):\n    import os\n    os._exit(3)\n")
        with Server(tmp_path, exit_on_error=False) as server:
            [failure] = server.core.failures()
            assert "the process of model instance 'obedient_0' ended with exit code 3" in failure.reason
            assert children() == []

    def test_in_finalize_hurts_nobody(self, tmp_path: Path) -> None:
        write_obedient(tmp_path, code="def finalize(self):\n    import os\n    os._exit(3)\n")
        write_obedient(
            tmp_path,
            "endless",
            parameter("EXECUTION_TIMEOUT", "0.3"),
            code="def finalize(self):\n    while True: pass\n",
        )
        with Server(tmp_path) as server:
            assert order(server, ANSWER) != order(server, ANSWER, "endless")
        assert children() == []

    def test_fails_all_that_a_coroutine_holds(self, tmp_path: Path) -> None:
        holds = """
async def execute(self, requests):
    import os
    if requests[0].inputs()[0].as_numpy()[0] == 1:
        os._exit(9)
    await asyncio.sleep(60)
"""
        write_model(tmp_path, "holds", python_config([IN], [OUT], extra=IN_PROCESS), holds)
        with Server(tmp_path) as server, ThreadPoolExecutor(8) as clients:
            held = [clients.submit(server.infer, "holds", {"INPUT": [0]}) for _ in range(7)]
            eventually(lambda: server.core.model("holds").scheduler.in_flight == 7)
            with pytest.raises(InferenceError, match="ended with exit code 9"):
                server.infer("holds", {"INPUT": [1]})
            for future in held:
                assert "ended with exit code 9" in str(future.exception(10))

    def test_fails_the_streams_that_outlive_execute(self, tmp_path: Path) -> None:
        keeps = """
def execute(self, requests):
    self.senders = getattr(self, "senders", []) + [r.get_response_sender() for r in requests]
    self.senders[-1].send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.ones(1, np.float32))]))
    if len(self.senders) == 3:
        threading.Timer(0.1, lambda: __import__("os")._exit(4)).start()
"""
        write_model(tmp_path, "keeps", python_config([IN], [OUT], decoupled=True, extra=IN_PROCESS), keeps)
        with Server(tmp_path) as server:
            streams = [server.stream("keeps", {"INPUT": [1]}) for _ in range(3)]
            for stream in streams:
                assert next(stream)["OUTPUT"].tolist() == [1.0]
                with pytest.raises(InferenceError, match="ended with exit code 4"):
                    next(stream)

    def test_leaves_the_others_instances_requests_alone(self, tmp_path: Path) -> None:
        write_obedient(tmp_path, extra="instance_group { count: 2 kind: KIND_CPU }")
        with Server(tmp_path) as server, ThreadPoolExecutor(1) as clients:
            asleep = clients.submit(order, server, SLEEP)
            eventually(lambda: server.core.model("obedient").scheduler.in_flight == 1)
            with pytest.raises(InferenceError, match="exit code 7"):
                order(server, EXIT)
            eventually(lambda: len(children()) == 2)
            assert order(server, ANSWER) > 0
            assert not asleep.done()
            for child in children():
                child.kill()
            assert "SIGKILL" in str(asleep.exception(10))


def test_nothing_is_left_of_processes_that_are_killed_under_load() -> None:
    """The soak of the benchmarks, in short: every request is answered once, and the counters are right, too."""
    soak = Path(__file__).parents[2] / "benchmarks" / "kill_soak.py"
    command = [sys.executable, soak, "--kills", "20", "--clients", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    write_obedient(tmp_path)
    program = (
        "import sys, time; from cantata import Server\n"
        "server = Server(sys.argv[1]); server.start()\n"
        "print(int(server.infer('obedient', {'INPUT': [0]})['OUTPUT'][0]), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        child = int(host.stdout.readline())
        assert psutil.pid_exists(child)
        host.kill()
    eventually(lambda: not psutil.pid_exists(child))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with this one's numpy, and a module that this one lacks."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs"):
        source = Path(np.__file__).parents[1] / name
        if source.exists():
            (packages / name).symlink_to(source)
    (packages / "only_there.py").write_text("ANSWER = 42.0")
    return folder


class TestAnEnvironmentOfTheModelsOwn:
    SAYS = """
def execute(self, requests):
    import only_there
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([only_there.ANSWER], np.float32))])
        for _ in requests
    ]
"""

    def test_runs_the_model(self, tmp_path: Path, environment: Path) -> None:
        extra = parameter("EXECUTION_ENV_PATH", str(environment))
        write_model(tmp_path, "elsewhere", python_config([IN], [OUT], extra=extra), self.SAYS)
        with Server(tmp_path) as server:
            assert server.infer("elsewhere", {"INPUT": [1]})["OUTPUT"].tolist() == [42.0]

    def test_may_lie_in_the_models_directory_and_be_an_archive(
        self, tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        repository = tmp_path / "models"
        extra = parameter("EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/environment.tar.gz")
        write_model(repository, "packed", python_config([IN], [OUT], extra=extra), self.SAYS)
        packed = tmp_path / "packed"
        shutil.copytree(environment, packed, symlinks=True)
        # As conda-pack leaves one: it repairs the paths of the machine that has packed the environment.
        (packed / "bin" / "conda-unpack").write_text(
            "import pathlib, sys\npathlib.Path(sys.prefix, 'repaired').touch()"
        )
        archive = repository / "packed" / "environment.tar.gz"
        subprocess.run(["tar", "-czf", archive, "-C", packed, "."], check=True)
        for _ in range(2):
            with Server(repository) as server:
                assert server.infer("packed", {"INPUT": [1]})["OUTPUT"].tolist() == [42.0]
        assert len(list((tmp_path / "cache").rglob(".complete"))) == 1
        assert len(list((tmp_path / "cache").rglob("repaired"))) == 1

    def test_without_numpy_is_refused(self, tmp_path: Path) -> None:
        venv.create(tmp_path / "bare", symlinks=True)
        extra = parameter("EXECUTION_ENV_PATH", str(tmp_path / "bare"))
        write_model(tmp_path / "models", "bare", python_config([IN], [OUT], extra=extra), self.SAYS)
        with Server(tmp_path / "models", exit_on_error=False) as server:
            [failure] = server.core.failures()
            assert "numpy must be installed in it" in failure.reason


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that has run a few times passes for quick, however busy the machine is."""
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)


def submit(server: Server, what: int, model: str) -> WaitingSender:
    sender = WaitingSender()
    inputs = {"INPUT": tensor_of_array(np.array([what], np.float32))}
    server.core.submit(InferenceRequest(model, inputs, sender, monotonic_ns()))
    return sender


def begin(server: Server, what: int, model: str = "obedient") -> WaitingSender:
    """Give an order as a front-end does: on a thread that serves others, and must not be held up."""
    with server.core.workers.collecting() as work:
        sender = submit(server, what, model)
        work.run()
    return sender


def become_quick(server: Server, model: str = "obedient") -> None:
    for _ in range(20):
        order(server, ANSWER, model)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instant is long, however busy the machine is."""
    monkeypatch.setattr(direct_batches, "_PATIENCE_MS", 20_000)
    monkeypatch.setattr(direct_batches, "_INSTANT_NS", 10**12)


def is_begun_by_front_ends(server: Server, model: str = "obedient") -> bool:
    scheduler = server.core.model(model).scheduler
    assert isinstance(scheduler, ModelScheduler)
    return all(instance.is_quick_alone for instance in scheduler._instances)


@pytest.mark.usefixtures("trusting", "patient")
def test_a_quick_batch_is_answered_on_the_thread_that_began_it(server: Server) -> None:
    become_quick(server)
    assert is_begun_by_front_ends(server)
    sender = begin(server, ANSWER)
    assert sender.is_done
    assert int(sender.responses[0].outputs["OUTPUT"].array[0]) in [child.pid for child in children()]


@pytest.mark.usefixtures("trusting")
def test_a_thread_that_serves_others_is_not_held_up_by_a_process(server: Server) -> None:
    become_quick(server)
    assert is_begun_by_front_ends(server)
    pid = order(server, ANSWER)
    asleep = begin(server, SLEEP)
    assert not asleep.is_done
    # Others are served meanwhile, and what comes for this model waits.
    assert server.infer("identity", {"INPUT": [2]})["OUTPUT"][0] == 2
    waiting = begin(server, ANSWER)
    os.kill(pid, signal.SIGKILL)
    for sender in (asleep, waiting):
        (response,) = sender.wait()
        assert response.error is not None
        assert response.error.code is StatusCode.UNAVAILABLE
        assert "was killed by SIGKILL" in response.error.message
    eventually(lambda: is_ready(server))
    assert order(server, ANSWER) != pid


@pytest.mark.usefixtures("trusting", "patient")
@pytest.mark.parametrize(
    ("what", "cause"), [(EXIT, "ended with exit code 7"), (CRASH, "was killed by SIGSEGV")]
)
def test_a_process_that_ends_in_an_instant_fails_its_batch(server: Server, what: int, cause: str) -> None:
    become_quick(server)
    assert is_begun_by_front_ends(server)
    (response,) = begin(server, what).wait()
    assert response.error is not None
    assert cause in response.error.message
    eventually(lambda: is_ready(server))
    assert order(server, ANSWER)


CALLS_TWICE = """
def execute(self, requests):
    for _ in range(2):
        call = pb_utils.InferenceRequest(
            model_name="callee", inputs=requests[0].inputs(), requested_output_names=["OUTPUT"]
        )
        answer = call.exec()
        if answer.has_error():
            return [pb_utils.InferenceResponse(error=answer.error())]
    return [pb_utils.InferenceResponse(answer.output_tensors())]
"""
# Says that it has begun, and waits, when it is told to.
WAITS = """
def execute(self, requests):
    import os, time
    number = float(requests[0].inputs()[0].as_numpy()[0])
    if number == 4:
        open(BEGUN, "w").close()
        while not os.path.exists(MAY_END):
            time.sleep(0.001)
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([number], np.float32))])] * len(requests)
"""


@pytest.mark.usefixtures("trusting", "patient")
def test_what_a_quick_model_asks_for_is_done_by_another_thread(tmp_path: Path) -> None:
    """Between the calls of a model in a process, its callee answers those who have come meanwhile."""
    begun, may_end = tmp_path / "begun", tmp_path / "may_end"
    code = WAITS.replace("BEGUN", repr(str(begun))).replace("MAY_END", repr(str(may_end)))
    write_model(tmp_path / "models", "callee", python_config([IN], [OUT]), code)
    write_model(tmp_path / "models", "caller", python_config([IN], [OUT], extra=IN_PROCESS), CALLS_TWICE)
    with Server(tmp_path / "models") as server, ThreadPoolExecutor(1) as client:
        become_quick(server, "caller")
        assert is_begun_by_front_ends(server, "caller")
        asking = begin(server, 4, "caller")
        eventually(begun.exists)
        assert not asking.is_done
        other = client.submit(server.infer, "callee", {"INPUT": [2]})
        eventually(lambda: server.core.model("callee").scheduler.pending() == 1)
        may_end.touch()
        assert other.result(20)["OUTPUT"][0] == 2
        (response,) = asking.wait()
        assert response.error is None
        assert float(response.outputs["OUTPUT"].array[0]) == 4


class Loop:
    """What a front-end does between its turns, with a watch of its own."""

    def __init__(self, server: Server) -> None:
        self.watch = FileWatch()
        self._workers = server.core.workers
        self._server = server

    def begin(self, what: int, model: str = "obedient") -> WaitingSender:
        with self._workers.collecting(self.watch) as work:
            sender = submit(self._server, what, model)
            work.run()
        return sender

    def has_ended(self, sender: WaitingSender) -> bool:
        """Go on where there is something to go on with; whether a request is answered."""
        if not sender.is_done and select.select([self.watch.fileno()], [], [], 0)[0]:
            self.turn()
        return sender.is_done

    def turn(self) -> None:
        """Wait until a process has said something, and go on."""
        ready, _, _ = select.select([self.watch.fileno()], [], [], 20)
        assert ready
        with self._workers.collecting(self.watch) as work:
            for rest in self.watch.take_ready():
                self._workers.dispatch(rest)
            work.run()


@pytest.fixture
def loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """A loop that never has its answer before it turns."""
    monkeypatch.setattr(Channel, "has_message_within", lambda *_, **__: False)
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    become_quick(server)
    assert is_begun_by_front_ends(server)
    loop = Loop(server)
    yield loop
    server.core.workers.take_over(loop.watch)


def pid_in(sender: WaitingSender) -> int:
    (response,) = sender.wait()
    assert response.error is None
    return int(response.outputs["OUTPUT"].array[0])


def test_a_loop_ends_the_batches_that_it_has_begun(server: Server, loop: Loop) -> None:
    pid = order(server, ANSWER)
    first = loop.begin(ANSWER)
    second = loop.begin(ANSWER)
    while not (first.is_done and second.is_done):
        loop.turn()
    assert [pid_in(first), pid_in(second)] == [pid, pid]


def test_loops_and_others_take_turns_with_one_process(server: Server, loop: Loop) -> None:
    pid = order(server, ANSWER)
    other = Loop(server)
    for _ in range(3):
        for turning in (loop, other):
            sender = turning.begin(ANSWER)
            while not sender.is_done:
                turning.turn()
            assert pid_in(sender) == pid
        assert order(server, ANSWER) == pid
    assert other.watch.close() == []


@pytest.mark.parametrize(
    ("what", "cause"), [(EXIT, "ended with exit code 7"), (CRASH, "was killed by SIGSEGV")]
)
def test_a_process_that_ends_fails_the_batch_that_a_loop_has_begun(
    server: Server, loop: Loop, what: int, cause: str
) -> None:
    sender = loop.begin(what)
    loop.turn()
    (response,) = sender.wait()
    assert response.error is not None
    assert cause in response.error.message
    eventually(lambda: is_ready(server))
    assert order(server, ANSWER)


def test_a_process_that_is_gone_holds_up_no_loop(server: Server, loop: Loop) -> None:
    """Where the batch comes between the end of the process and our hearing of it, or after both."""
    for _ in range(5):
        os.kill(order(server, ANSWER), signal.SIGKILL)
        try:
            sender = loop.begin(ANSWER)
        except InferenceError as error:
            refusal = error
        else:
            eventually(lambda sender=sender: loop.has_ended(sender))
            (response,) = sender.wait()
            assert response.error is not None
            refusal = response.error
        assert refusal.code is StatusCode.UNAVAILABLE
        eventually(lambda: is_ready(server))
        become_quick(server)


CALLS_OBEDIENT = """
def execute(self, requests):
    for request in requests:
        if request.inputs()[0].as_numpy()[0] >= self.first_call:
            call = pb_utils.InferenceRequest(
                model_name="obedient", inputs=request.inputs(), requested_output_names=["OUTPUT"]
            )
            tensor = call.exec().output_tensors()[0]
        else:
            tensor = pb_utils.Tensor("OUTPUT", np.array([0], np.float32))
    return [pb_utils.InferenceResponse([tensor])]
"""


@pytest.mark.parametrize("first_call", [ANSWER, SLEEP])
def test_a_loop_may_run_a_model_that_calls_what_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_call: int
) -> None:
    """The caller runs on the loop's thread, and its callee is busy with a batch that this very loop is to end.

    Known to call others, or trusted because it has never done so yet.
    """
    monkeypatch.setattr(Channel, "has_message_within", lambda *_, **__: False)
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    quiet = OBEDIENT.replace("time.sleep(60)", "time.sleep(0.1)")
    write_model(tmp_path / "models", "obedient", python_config([IN], [OUT], extra=IN_PROCESS), quiet)
    calls = CALLS_OBEDIENT.replace("self.first_call", str(first_call))
    write_model(tmp_path / "models", "caller", python_config([IN], [OUT]), calls)
    with Server(tmp_path / "models") as server:
        become_quick(server)
        become_quick(server, "caller")
        loop = Loop(server)
        for _ in range(3):
            left = loop.begin(SLEEP)
            called = loop.begin(first_call, "caller")
            for sender in (left, called):
                eventually(lambda sender=sender: loop.has_ended(sender))
                assert pid_in(sender) > 0
        server.core.workers.take_over(loop.watch)


WAITS_FOR_A_THREAD = """
def initialize(self, args):
    from concurrent.futures import ThreadPoolExecutor
    self.threads = ThreadPoolExecutor(1)

def execute(self, requests):
    return [self.threads.submit(self._answer, request).result() for request in requests]

def _answer(self, request):
    call = pb_utils.InferenceRequest(
        model_name="callee", inputs=request.inputs(), requested_output_names=["OUTPUT"]
    )
    return pb_utils.InferenceResponse(call.exec().output_tensors())
"""
CALLS_NOW_AND_THEN = """
def execute(self, requests):
    tensor = pb_utils.Tensor("OUTPUT", np.array([0], np.float32))
    if requests[0].inputs()[0].as_numpy()[0] == 4:
        call = pb_utils.InferenceRequest(
            model_name="process", inputs=requests[0].inputs(), requested_output_names=["OUTPUT"]
        )
        (tensor,) = call.exec().output_tensors()
    return [pb_utils.InferenceResponse([tensor])]
"""


def assert_both_are_answered(repository: Path) -> None:
    """`caller` and `callee`, both trusted, in one round of a thread that serves others."""
    with Server(repository) as server:
        become_quick(server, "caller")
        become_quick(server, "callee")
        with server.core.workers.collecting() as work:
            senders = [submit(server, 4, model) for model in ("caller", "callee")]
            work.run()
        for sender in senders:
            (response,) = sender.wait()
            assert response.error is None
            assert float(response.outputs["OUTPUT"].array[0]) == 4


@pytest.mark.usefixtures("trusting", "patient")
def test_a_model_may_wait_for_a_process_that_calls_what_waits_behind_it(tmp_path: Path) -> None:
    """The first call that a trusted model makes, while its thread holds back the work of its callee's callee."""
    repository = tmp_path / "models"
    write_identity(repository, "callee")
    write_model(repository, "process", python_config([IN], [OUT], extra=IN_PROCESS), WAITS_FOR_A_THREAD)
    write_model(repository, "caller", python_config([IN], [OUT]), CALLS_NOW_AND_THEN)
    assert_both_are_answered(repository)


@pytest.mark.usefixtures("trusting")
def test_a_model_may_wait_for_threads_that_call_what_waits_behind_it(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_identity(repository, "callee")
    write_model(repository, "caller", python_config([IN], [OUT]), WAITS_FOR_A_THREAD)
    assert_both_are_answered(repository)


def test_a_loop_learns_what_the_ends_of_batches_cost_it(
    server: Server, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = server.core.model("obedient").scheduler
    assert isinstance(scheduler, ModelScheduler)
    (instance,) = scheduler._instances
    sender = loop.begin(ANSWER)
    before = instance._trust
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 0)
    while not sender.is_done:
        loop.turn()
    assert pid_in(sender)
    assert instance._trust < before


def test_waiting_for_a_process_costs_no_trust(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A front-end does not wait: it may begin the batches of a model that takes long."""
    times = itertools.count(0, 10**18)
    monkeypatch.setattr(direct_batches, "monotonic_ns", lambda: next(times))
    monkeypatch.setattr(scheduled_instance, "monotonic_ns", lambda: monotonic_ns() + 10**18)
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    for _ in range(20):
        order(server, ANSWER)
    assert is_begun_by_front_ends(server)


def test_what_a_loop_has_begun_is_ended_without_it(server: Server, loop: Loop) -> None:
    pid = order(server, ANSWER)
    sender = loop.begin(ANSWER)
    assert not sender.is_done
    server.core.workers.take_over(loop.watch)
    assert pid_in(sender) == pid
    assert order(server, ANSWER) == pid


def test_the_calls_of_a_model_are_made_for_a_loop_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "has_message_within", lambda *_, **__: False)
    monkeypatch.setattr(scheduled_instance, "_QUICK_NS", 10**12)
    write_identity(tmp_path / "models", "callee", extra=IN_PROCESS)
    write_model(tmp_path / "models", "caller", python_config([IN], [OUT], extra=IN_PROCESS), CALLS_TWICE)
    with Server(tmp_path / "models") as server:
        become_quick(server, "caller")
        loop = Loop(server)
        for number in range(3):
            asking = loop.begin(number, "caller")
            assert not asking.is_done
            loop.turn()
            # The loop has heard of a call, and nothing more is left to it.
            (response,) = asking.wait()
            assert response.error is None
            assert float(response.outputs["OUTPUT"].array[0]) == number
        assert loop.watch.close() == []


def test_a_batch_that_cannot_be_sent_holds_up_no_other(server: Server) -> None:
    class Text(str):
        """What no message holds."""

    with pytest.raises(InferenceError, match="unmarshallable"):
        server.infer("obedient", {"INPUT": [ANSWER]}, id=Text("an id"))
    assert order(server, ANSWER)
