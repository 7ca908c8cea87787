"""Finding a model's backend, and making it."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import pytest

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.backends import catalog
from cantata.runtime.backends.backend import BackendSettings
from cantata.runtime.backends.onnx_backend import OnnxBackend
from cantata.runtime.errors import InferenceError, StatusCode
from tests.support.batches import NO_SERVICES


def test_a_backend_is_made_with_its_settings() -> None:
    backend = catalog.open_backend("onnxruntime", BackendSettings(), NO_SERVICES)
    assert isinstance(backend, OnnxBackend)


def test_an_unknown_backend_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InferenceError) as caught:
        catalog.open_backend("onnxrutime", BackendSettings(), NO_SERVICES)
    assert caught.value.code is StatusCode.INVALID_ARG
    assert caught.value.message == (
        "unknown backend 'onnxrutime' (did you mean 'onnxruntime'?); "
        "the known backends are: onnxruntime, pytorch, python"
    )


def test_a_backend_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(f"no module for {name}", name="torch")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(InferenceError) as caught:
        catalog.open_backend("pytorch", BackendSettings(), NO_SERVICES)
    assert caught.value.code is StatusCode.UNAVAILABLE
    assert caught.value.message == (
        "backend 'pytorch' needs the package torch, which is not installed: pip install \"cantata[torch]\""
    )


def test_a_backend_whose_package_is_broken_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise ImportError(f"libcudart.so.12 for {name}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        InferenceError, match="needs the package onnxruntime, which cannot be imported: libcudart"
    ):
        catalog.open_backend("onnxruntime", BackendSettings(), NO_SERVICES)


@pytest.mark.parametrize(
    ("backend", "platform", "expected"),
    [
        ("python", "", "python"),
        ("", "onnxruntime_onnx", "onnxruntime"),
        ("", "pytorch_libtorch", "pytorch"),
        ("", "torch_aoti", "pytorch"),
        ("", "libtorch", "pytorch"),
        ("other", "onnxruntime_onnx", "other"),
        ("", "", ""),
        ("", "ensemble", ""),
    ],
)
def test_a_configuration_names_its_backend_or_its_platform(
    backend: str, platform: str, expected: str
) -> None:
    assert catalog.backend_of_config(ModelConfig(name="m", backend=backend, platform=platform)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.onnx"], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        (["model.pt"], ("pytorch", "pytorch_libtorch", "model.pt")),
        (["model.pt2"], ("pytorch", "torch_aoti", "model.pt2")),
        (["model.py"], ("python", "", "model.py")),
        (["model.py", "model.onnx"], ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        (["model.plan"], ("tensorrt", "tensorrt_plan", "model.plan")),
        (["model.xml"], ("openvino", "", "model.xml")),
        (["weights.bin"], None),
    ],
)
def test_files_tell_the_backend(
    tmp_path: Path, files: list[str], expected: tuple[str, str, str] | None
) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert catalog.backend_of_files(tmp_path) == expected


def test_a_model_file_may_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    found = catalog.backend_of_files(tmp_path)
    assert found is not None
    assert found.backend == "onnxruntime"


def test_the_end_of_a_models_name_can_be_its_backend() -> None:
    assert catalog.backend_of_model_name("resize.v2.python") == "python"


@pytest.mark.parametrize("name", ["resize", "resize."])
def test_a_name_without_a_backend_is_refused(name: str) -> None:
    with pytest.raises(InferenceError) as caught:
        catalog.backend_of_model_name(name)
    assert caught.value.message == (
        f"Invalid model name: Could not determine backend for model '{name}' with no backend in model "
        "configuration. Expected model name of the form 'model.<backend_name>'."
    )


@pytest.mark.parametrize(
    ("backend", "platform", "present", "expected"),
    [
        ("onnxruntime", "", [], "model.onnx"),
        ("pytorch", "", [], "model.pt"),
        ("pytorch", "", ["model.pt2"], "model.pt2"),
        ("pytorch", "", ["model.pt", "model.pt2"], "model.pt"),
        ("pytorch", "pytorch_libtorch", ["model.pt2"], "model.pt"),
        ("pytorch", "libtorch", [], "model.pt"),
        ("pytorch", "torch_aoti", [], "model.pt2"),
        ("python", "", [], "model.py"),
        ("unknown", "", [], ""),
    ],
)
def test_each_backend_has_a_default_file(
    tmp_path: Path, backend: str, platform: str, present: list[str], expected: str
) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert catalog.default_filename(backend, platform, tmp_path) == expected


@pytest.mark.parametrize(
    ("backend", "filename", "expected"),
    [
        ("onnxruntime", "model.onnx", "onnxruntime_onnx"),
        ("onnxruntime", "detector.bin", "onnxruntime_onnx"),
        ("pytorch", "model.pt", "pytorch_libtorch"),
        ("pytorch", "encoder.pt2", "torch_aoti"),
        ("python", "model.py", ""),
        ("", "", ""),
    ],
)
def test_each_backend_has_a_default_platform(backend: str, filename: str, expected: str) -> None:
    assert catalog.default_platform(backend, filename) == expected
