"""Every example, as its README runs it: prepared, served, and asked over both protocols by its own client."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import cantata
from examples.server_process import serving

ENSEMBLES = Path(__file__).parents[2] / "examples" / "ensembles"
EXAMPLES = sorted(path.name for path in ENSEMBLES.iterdir() if (path / "client.py").exists())

# The examples that ask for more than one model of theirs, and what to add to their client's command line.
VARIANTS = {"ocr": [["--model", name, "--timeline"] for name in ("ocr", "ocr_bls", "ocr_pipeline")]}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Path:
    """An example's directory, prepared. What `prepare.py` fetches stays there: only the first run is slow."""
    directory = ENSEMBLES / request.param
    if (directory / "prepare.py").exists():
        subprocess.run([sys.executable, directory / "prepare.py"], check=True, timeout=540)
    return directory


@pytest.mark.timeout(600)
def test_the_clients_get_the_expected_answers(example: Path) -> None:
    outcomes = {}
    with serving(example / "models") as server:
        for protocol in ("grpc", "http"):
            for variant in VARIANTS.get(example.name, [[]]):
                command = [sys.executable, example / "client.py", "--protocol", protocol]
                command += ["--url", server.url(protocol), *variant]
                run = subprocess.run(command, capture_output=True, text=True, timeout=240)
                outcomes[protocol, *variant] = (run.returncode, run.stdout + run.stderr)
    assert {key: text for key, (status, text) in outcomes.items() if status != 0} == {}


@pytest.mark.timeout(600)
def test_the_repository_has_no_problems(example: Path) -> None:
    assert cantata.check(example / "models").problems == []


def test_the_readme_shows_the_graph_and_how_to_run_it(example: Path) -> None:
    readme = (example / "README.md").read_text()
    for part in ("```mermaid", "cantata serve --model-repository models", "python client.py"):
        assert part in readme


def test_a_step_that_no_requested_output_needs_does_not_run() -> None:
    with serving(ENSEMBLES / "fan_out" / "models") as server:
        command = [sys.executable, ENSEMBLES / "fan_out" / "client.py", "--url", server.grpc]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        with urllib.request.urlopen(f"http://{server.http}/v2/models/stats") as answer:
            statistics = json.load(answer)["model_stats"]
    executions = {model["name"]: model["execution_count"] for model in statistics}
    # Three cases, each sent once for both outputs and once for PEAK alone.
    assert executions == {"readings": 6, "clean": 6, "peak": 6, "average": 3, "report": 3}


def test_no_two_examples_have_a_model_of_the_same_name() -> None:
    # `make serve` serves them all together.
    names = [path.name for path in ENSEMBLES.glob("*/models/*")]
    assert sorted(names) == sorted(set(names))
