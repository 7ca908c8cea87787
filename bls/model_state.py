"""The functions of pb_utils that ask about models: the calling one's files, others' readiness."""

from __future__ import annotations

from cantata.bls.current_model import Activity, find_activity
from cantata.bls.errors import TritonModelException
from cantata.runtime.errors import InferenceError


def get_model_dir() -> str:
    """The directory of the calling model's version."""
    return str(_activity().model.version_directory)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model answers requests, in that version or, without one, in any."""
    version = int(model_version) if model_version else -1
    try:
        _activity().model.services.is_decoupled(model_name, version)
    except InferenceError:
        return False
    return True


def _activity() -> Activity:
    activity = find_activity()
    if activity is None:
        raise TritonModelException(
            "This function can only be called by the code of a model that is being served."
        )
    return activity
