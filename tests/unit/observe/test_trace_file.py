"""Files of traces: one array, whole after every write."""

from __future__ import annotations

import json
from pathlib import Path

from cantata.runtime.observe.trace_file import TraceFiles


def test_traces_add_up_to_one_array(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("of an earlier server")
    files = TraceFiles()
    for number in (1, 2, 3):
        files.write(str(path), 0, [{"id": number}])
        assert json.loads(path.read_text()) == [{"id": each} for each in range(1, number + 1)]


def test_numbered_files_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    files = TraceFiles()
    for number in range(3):
        files.write(str(path), 2, [{"id": number}])
    assert json.loads((tmp_path / "trace.json.0").read_text()) == [{"id": 0}, {"id": 1}]
    assert json.loads((tmp_path / "trace.json.1").read_text()) == [{"id": 2}]
