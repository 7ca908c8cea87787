"""The models that `kill_soak.py` kills, and the order to end that their requests carry.

Each end is written to a ledger, one short line, before it happens. A model ends in `execute` or a while after it when
its request says so, and in `initialize` or `finalize` when a file lies in its version's directory.
"""

from __future__ import annotations

from pathlib import Path

# How a process ends by itself.
ANSWER, EXIT, CRASH, SPIN = range(4)
# When: in `execute`, or between two requests.
NOW, LATER = 0, 1
ENDS = {EXIT: "exit", CRASH: "segfault", SPIN: "busy loop"}

_END = """
import ctypes
import os
import threading
import time

import numpy as np

import triton_python_backend_utils as pb_utils

LEDGER = {ledger!r}


def end(how, where):
    with open(LEDGER, "a") as ledger:
        ledger.write(f"{{os.getpid()}} {{how}} {{where}}\\n")
    if how == 1:
        os._exit(7)
    if how == 2:
        ctypes.string_at(0)
    while True:
        pass


def end_as_told(where):
    told = os.path.join(pb_utils.get_model_dir(), where)
    try:
        how = int(open(told).read())
        os.unlink(told)
    except FileNotFoundError:
        return
    end(how, where)


def end_later(how):
    time.sleep(0.005)
    # A loop between requests keeps nobody waiting: the next request's limit ends it.
    end(1 if how == 3 else how, "between")


def obey(request):
    how, when, value = request.inputs()[0].as_numpy().tolist()
    if how and when == 0:
        end(how, "execute")
    if how:
        threading.Thread(target=end_later, args=(how,), daemon=True).start()
    return np.array([value], np.int32)


def answer(array):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", array)])


class TritonPythonModel:
    def initialize(self, args):
        end_as_told("initialize")

    def finalize(self):
        end_as_told("finalize")

"""
_PLAIN = """
    def execute(self, requests):
        return [answer(obey(request)) for request in requests]
"""
_COROUTINE = """
    async def execute(self, requests):
        import asyncio

        await asyncio.sleep(0.001)
        return [answer(obey(request)) for request in requests]
"""
_STREAM = """
    def execute(self, requests):
        for request in requests:
            array = obey(request)
            threading.Thread(target=self._send, args=(request.get_response_sender(), array)).start()

    def _send(self, sender, array):
        for index in range(3):
            sender.send(answer(array + index))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
KINDS = {"plain": _PLAIN, "coroutine": _COROUTINE, "stream": _STREAM}
# What each kind answers to `value`.
ANSWERS = {"plain": 1, "coroutine": 1, "stream": 3}

_CONFIG = """backend: "python"
input [ {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 3 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
parameters {{ key: "EXECUTION_ISOLATION" value: {{ string_value: "{isolation}" }} }}
{extra}
"""
_TIMEOUT = 'parameters {{ key: "EXECUTION_TIMEOUT" value: {{ string_value: "{seconds}" }} }}'
_DECOUPLED = "model_transaction_policy { decoupled: true }"


def write_killed(
    repository: Path, name: str, kind: str, ledger: Path, timeout_s: float, instances: int = 1
) -> Path:
    """A model that ends as it is told; returns its version's directory."""
    extra = _TIMEOUT.format(seconds=timeout_s) + ("\n" + _DECOUPLED if kind == "stream" else "")
    return _write(repository, name, kind, ledger, instances, "process", extra)


def write_spared(repository: Path, name: str, isolation: str, ledger: Path) -> None:
    """A model that nobody ends, on a thread or in a process."""
    _write(repository, name, "plain", ledger, 1, isolation, "")


def _write(
    repository: Path, name: str, kind: str, ledger: Path, count: int, isolation: str, extra: str
) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text((_END.format(ledger=str(ledger)) + KINDS[kind]).lstrip())
    config = _CONFIG.format(count=count, isolation=isolation, extra=extra)
    (repository / name / "config.pbtxt").write_text(config)
    return version
