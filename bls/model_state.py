"""The functions of pb_utils about models: the calling one's files, others' readiness, loading and unloading them."""

from __future__ import annotations

from collections.abc import Mapping

from cantata.bls.current_model import Activity, current_model, find_activity
from cantata.bls.errors import TritonModelException
from cantata.runtime.backends.backend import ServerServices
from cantata.runtime.errors import InferenceError


def get_model_dir() -> str:
    """The directory of the calling model's version."""
    return str(current_model().version_directory)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model answers requests, in that version or, without one, in any."""
    version = int(model_version) if model_version else -1
    return current_model().services.is_model_ready(model_name, version)


def load_model(model_name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
    """Load or reload a model and wait until it serves.

    Only under explicit model control, and only while the calling model serves. `config` is a configuration as JSON,
    and `files` are the model's own, by "file:" and their path in its directory: both take the place of what the
    repository holds, for this load alone.
    """
    services = _controlling()
    parameters: dict[str, str | bytes] = {
        str(path): bytes(content) for path, content in (files or {}).items()
    }
    if config:
        parameters["config"] = str(config)
    try:
        services.load_model(model_name, parameters)
    except InferenceError as error:
        raise TritonModelException(error.message) from None


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Begin to unload a model: it answers what it has accepted. Where it may be called is as for `load_model`."""
    services = _controlling()
    try:
        services.unload_model(model_name, bool(unload_dependents))
    except InferenceError as error:
        raise TritonModelException(error.message) from None


def _controlling() -> ServerServices:
    activity: Activity | None = find_activity()
    # A model's hooks run while models are loaded or unloaded, one change at a time: a change made there would wait
    # for itself.
    if activity is None or not activity.allows_calls:
        raise TritonModelException(
            "Models can be loaded and unloaded by a model that serves, not in its other hooks than execute."
        )
    return activity.model.services
