"""A model's modules are its own."""

from __future__ import annotations

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cantata.bls.loader import open_model_code
from cantata.runtime.errors import InferenceError
from tests.support.python_models import CONFIG, PythonModelHost, request_with

# Answers with WORTH, from wherever the import in the first line takes it.
USING = """
{at_import}
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        {in_execute}
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 1), WORTH, np.float32))])]
"""


def load_using(host: PythonModelHost, name: str, at_import: str = "", in_execute: str = "pass"):
    return host.load(USING.format(at_import=at_import, in_execute=in_execute), name=name)


@pytest.mark.parametrize(
    ("at_import", "in_execute"),
    [
        ("from helpers import WORTH", "pass"),
        ("import helpers; WORTH = helpers.WORTH", "pass"),
        ("", "from helpers import WORTH"),
        ("", "import helpers as h; WORTH = h.WORTH"),
        ("from .helpers import WORTH", "pass"),
        ("from . import helpers; WORTH = helpers.WORTH", "pass"),
    ],
)
def test_two_models_have_siblings_of_the_same_name(
    host: PythonModelHost, at_import: str, in_execute: str
) -> None:
    for name, worth in (("one", 1), ("two", 2)):
        host.write(f"WORTH = {worth}", name=name, path="helpers.py")
    first = load_using(host, "one", at_import, in_execute)
    second = load_using(host, "two", at_import, in_execute)
    assert [host.infer(first).values(), host.infer(second).values()] == [[[[1.0]]], [[[2.0]]]]
    assert "helpers" not in sys.modules


@pytest.mark.parametrize(
    ("path", "source", "statement"),
    [
        ("../shared_by_versions.py", "WORTH = 3", "from shared_by_versions import WORTH"),
        ("parts/__init__.py", "from parts.deep import WORTH", "from parts import WORTH"),
        ("parts/__init__.py", "from .deep import WORTH", "import parts.deep; WORTH = parts.deep.WORTH"),
        ("loose/x.py", "from parts.deep import WORTH", "import loose.x; WORTH = loose.x.WORTH"),
        ("json.py", "raise ImportError('not the real one')", "import json; WORTH = json.loads('3')"),
        ("numpy/data.txt", "", "from numpy import float32; WORTH = float32(3)"),
        (
            "ml_dtypes.py",
            "import ml_dtypes; WORTH = 3 if ml_dtypes.bfloat16 else 0",
            "from ml_dtypes import WORTH",
        ),
    ],
)
def test_siblings_are_found_where_a_model_keeps_them(
    host: PythonModelHost, path: str, source: str, statement: str
) -> None:
    host.write("WORTH = 3", path="parts/deep.py")
    host.write("", path="parts/__init__.py")
    host.write(source, path=path)
    instance = load_using(host, "model", statement)
    assert host.infer(instance).values() == [[[3.0]]]


def test_siblings_are_found_from_threads(host: PythonModelHost) -> None:
    host.write("WORTH = 4", path="late.py")
    instance = load_using(
        host,
        "model",
        "import threading",
        """
        found = []
        def work():
            import late
            found.append(late.WORTH)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        WORTH = found[0]
""".strip(),
    )
    assert host.infer(instance).values() == [[[4.0]]]


def test_a_missing_module_is_missing(host: PythonModelHost) -> None:
    with pytest.raises(InferenceError, match="No module named 'helpers'"):
        load_using(host, "model", "import helpers")


def test_a_failure_in_a_sibling_names_its_line(host: PythonModelHost) -> None:
    files = host.write("x = 1\nraise ValueError('here')\n", path="helpers.py")
    with pytest.raises(InferenceError) as failure:
        load_using(host, "model", "import helpers")
    assert failure.value.message.startswith(
        f"model 'model' could not be imported: {files.version_directory}/helpers.py:2: ValueError: here\n"
        f"  {files.version_directory}/model.py:2: import helpers\n"
    )


def test_an_edited_file_is_read_again_and_nothing_is_left_behind(host: PythonModelHost) -> None:
    before = set(sys.modules)
    for worth in (1, 2):
        files = host.write(f"WORTH = {worth}", path="helpers.py")
        assert host.infer(load_using(host, "model", "from helpers import WORTH")).values() == [[[worth]]]
    assert not list(files.model_directory.rglob("__pycache__"))
    host.close()
    assert not [name for name in set(sys.modules) - before if name.startswith("cantata_model_")]


def test_the_file_may_have_another_name(host: PythonModelHost) -> None:
    files = host.write("from helpers import TritonPythonModel", path="my-model.py")
    host.write(USING.format(at_import="WORTH = 5", in_execute="pass"), path="helpers.py")
    instance = host.load_files(files, CONFIG + 'default_model_filename: "my-model.py"')
    assert host.infer(instance).values() == [[[5.0]]]


@pytest.mark.parametrize(
    ("filename", "message"),
    [
        ("model.txt", "model 'model': the name of a Python model's file must end in .py, not 'model.txt'"),
        ("other.py", "model 'model': there is no file {directory}/other.py"),
    ],
)
def test_a_file_that_is_not_there_is_named(host: PythonModelHost, filename: str, message: str) -> None:
    files = host.write("", path="model.txt")
    with pytest.raises(InferenceError) as failure:
        host.load_files(files, f'{CONFIG}default_model_filename: "{filename}"')
    assert failure.value.message == message.format(directory=files.version_directory)


def test_every_instance_has_an_object_of_its_own(host: PythonModelHost) -> None:
    source = USING.format(
        at_import="WORTH = 0", in_execute="self.count = getattr(self, 'count', 0) + 1; WORTH = self.count"
    )
    files = host.write(source)
    first, second = host.load_files(files), host.load_files(files)
    counts = []
    for instance in (first, first, second):
        request, client = request_with()
        host.run(instance, [request])
        counts += client.values()
    assert counts == [[[1.0]], [[2.0]], [[1.0]]]


def test_pickles_and_import_module_find_the_calling_models_siblings(host: PythonModelHost) -> None:
    for name, worth in (("one", 1), ("two", 2)):
        host.write(f"class Thing:\n    worth = {worth}", name=name, path="own_things.py")
    # As written by a training script that had own_things.py beside it.
    pickled = b"cown_things\nThing\n."
    first, second = (
        load_using(host, name, "import importlib, pickle", statement)
        for name, statement in (
            ("one", f"WORTH = pickle.loads({pickled!r}).worth"),
            ("two", "WORTH = importlib.import_module('own_things').Thing.worth"),
        )
    )
    for _ in range(2):
        assert [host.infer(first).values(), host.infer(second).values()] == [[[[1.0]]], [[[2.0]]]]
    with pytest.raises(AttributeError, match="no model that has"):
        __import__("own_things").Thing  # noqa: B018


def test_the_import_systems_caches_are_invalidated_by_one_thread_at_a_time(
    host: PythonModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [host.write("class TritonPythonModel: pass", name=f"model_{number}") for number in range(4)]
    alone, overlaps = threading.Lock(), []

    def invalidate_caches() -> None:
        if not alone.acquire(blocking=False):
            overlaps.append(threading.current_thread().name)
            return
        others_have_had_their_chance.wait(0.02)
        alone.release()

    others_have_had_their_chance = threading.Event()
    monkeypatch.setattr(importlib, "invalidate_caches", invalidate_caches)
    with ThreadPoolExecutor(len(files)) as executor:
        opened = executor.map(
            lambda one: open_model_code(one.name, one.model_directory, one.version_directory, ""), files
        )
        for code in opened:
            code.unload()
    assert overlaps == []
