"""What the README shows: its ensemble is valid, its program runs, and what it points at exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cantata

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADD_SUB = ROOT / "examples" / "ensembles" / "add_sub" / "models" / "add_sub"
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/ensembles/*/README.md")]


def block(language: str) -> str:
    """The README's only code block of a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def test_the_first_ensemble_works(tmp_path: Path) -> None:
    shutil.copytree(ADD_SUB, tmp_path / "add_sub")
    (tmp_path / "twice" / "1").mkdir(parents=True)
    (tmp_path / "twice" / "config.pbtxt").write_text(block("protobuf"))
    with cantata.Server(tmp_path) as server:
        assert server.check() == []
        answer = server.infer("twice", {"A": [[1, 2, 3, 4]], "B": [[5, 6, 7, 8]]})
    assert {name: array.tolist() for name, array in answer.items()} == {"TWICE_A": [[2, 4, 6, 8]]}


def test_the_program_prints_what_it_says() -> None:
    run = subprocess.run(
        [sys.executable, "-c", block("python")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.returncode) == (
        "[[2. 4. 6. 8.]]\n[b'3 is odd']\n[b'2 is even']\n[b'1 is odd']\n",
        0,
    )


def test_what_the_documents_point_at_exists() -> None:
    missing = [
        (document.name, target)
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert missing == []


def test_the_targets_that_the_documents_name_exist() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30).stdout
    targets = set(re.findall(r"^\s+make (\w+)", listed, re.MULTILINE))
    texts = [document.read_text() for document in (*DOCUMENTS, ROOT / "CONTRIBUTING.md")]
    named = {target for text in texts for target in re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE)}
    assert named <= targets
