"""How an exception of a model's code is told: its text, and where in the model's files it came from."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

_OWN_FOLDER: Final = f"{Path(__file__).parent}/"


def describe_failure(error: BaseException) -> str:
    """`ValueError: text`, and below it `At:` with the model's frames, innermost last."""
    frames = _model_frames(error)
    text = failure_text(error)
    if not frames:
        return text
    lines = "".join(f"  {frame.filename}({frame.lineno}): {frame.name}\n" for frame in frames)
    return f"{text}\n\nAt:\n{lines}"


def describe_import_failure(error: BaseException) -> str:
    """`FILE:LINE: ImportError: text`, then the model's frames with their statements."""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
        return f"{place}\n    {error.text.strip()}" if error.text else place
    frames = _model_frames(error)
    if not frames:
        return failure_text(error)
    last = frames[-1]
    statements = "".join(f"\n  {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames)
    return f"{last.filename}:{last.lineno}: {failure_text(error)}{statements}"


def failure_text(error: BaseException) -> str:
    """`ValueError: text`, or the type alone where there is no text."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _model_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the traceback that are neither ours nor the import system's."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen importlib", _OWN_FOLDER))
    ]
