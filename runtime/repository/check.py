"""`cantata check`: a whole repository validated offline, every problem at once.

Uses what loading uses, but loads no model: a backend is asked only about a model whose configuration leaves its
tensors open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cantata.dag.checks import check_cycles
from cantata.dag.composition import ComposingModel, FindModel, MissingModel, check_composition
from cantata.grammars.problems import Problem
from cantata.runtime.backends.backend import Backend, BackendSettings
from cantata.runtime.backends.catalog import open_backend
from cantata.runtime.errors import InferenceError, unavailable
from cantata.runtime.execution.worker_pool import WorkerPool
from cantata.runtime.observe.custom_metrics import CustomMetrics
from cantata.runtime.repository.completion import Completing, PreparedModel, prepare_model
from cantata.runtime.repository.meanings import by_identifier, with_meanings
from cantata.runtime.repository.namespaces import ambiguity, identifiers_named, name_in
from cantata.runtime.repository.source import scan_repositories
from cantata.runtime.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class RepositoryCheck:
    """What a check found: all models that were looked at, by identifier, and the problems by model, then position."""

    models: dict[str, PreparedModel]
    problems: list[Problem]


def check_repositories(
    paths: str | Path | Sequence[str | Path], config_name: str = "", *, namespacing: bool = False
) -> RepositoryCheck:
    """Validate every model of one or several repositories, without serving any.

    With `namespacing` each of them is a namespace, as with `--model-namespacing`. Raises InferenceError when a
    repository cannot be read.
    """
    roots = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    contents = scan_repositories(roots, config_name, namespacing=namespacing)
    backends = _OfflineBackends()
    try:
        models = {
            name: with_meanings(
                prepare_model(directory, backends.open, Completing.WHEN_INCOMPLETE), contents.models
            )
            for name, directory in contents.models.items()
        }
    finally:
        backends.close()
    problems = [
        Problem("model appears in two or more repositories", model=name)
        for name in sorted(contents.duplicated)
    ]
    for name, model in models.items():
        problems += _own_problems(name, model)
    problems += _ensemble_problems(models)
    return RepositoryCheck(models, problems)


def find_prepared(models: dict[str, PreparedModel], ensemble: PreparedModel) -> FindModel:
    """The lookup that an ensemble's checks and drawings need, over models that are not loaded."""

    def find(name: str, version: int) -> ComposingModel | MissingModel:
        model = models.get(ensemble.meanings.get(name, name))
        if model is None:
            if name in ensemble.ambiguous:
                count = len(identifiers_named(name, models))
                return MissingModel(is_known=True, reason=ambiguity(name, count), is_valid=False)
            return MissingModel(is_known=False, known_models=tuple(map(name_in, models)))
        if model.failure() is not None and not model.config.input and not model.config.output:
            return MissingModel(is_known=True, reason=str(model.failure()), is_valid=False)
        is_complete = bool(model.config.input) and bool(model.config.output)
        return ComposingModel(model.config, model.versions, is_complete=is_complete)

    return find


def _own_problems(name: str, model: PreparedModel) -> list[Problem]:
    problems = [dataclasses.replace(problem, model=name) for problem in model.problems]
    if model.error is not None:
        located = model.positions.problem((), model.error.message)
        problems.append(dataclasses.replace(located, model=name))
    return problems


def _ensemble_problems(models: dict[str, PreparedModel]) -> list[Problem]:
    ensembles = {
        name: model for name, model in models.items() if model.config.ensemble_scheduling is not None
    }
    problems: list[Problem] = []
    for name, ensemble in ensembles.items():
        problems += [
            dataclasses.replace(problem, model=name)
            for problem in check_composition(
                ensemble.config, ensemble.positions, find_prepared(models, ensemble)
            )
        ]
    problems += check_cycles(
        {name: by_identifier(ensemble) for name, ensemble in ensembles.items()},
        {name: ensemble.positions for name, ensemble in ensembles.items()},
    )
    return problems


class _OfflineBackends:
    """Backends that complete configurations and never run a model; also what such a backend may ask of a server."""

    def __init__(self) -> None:
        self.workers = WorkerPool()
        self.custom_metrics = CustomMetrics()
        self._opened: dict[str, Backend] = {}

    def open(self, name: str) -> Backend:
        backend = self._opened.get(name)
        if backend is None:
            backend = self._opened[name] = open_backend(name, BackendSettings(), self)
        return backend

    def close(self) -> None:
        for backend in self._opened.values():
            backend.close()

    def submit(self, request: InferenceRequest) -> None:
        raise _not_serving(request.model_name)

    def run_now(self, request: InferenceRequest, *, only_if_quick: bool = False) -> bool:
        return False

    def is_decoupled(self, model_name: str, model_version: int) -> bool:
        raise _not_serving(model_name)

    def batches_here(self, model_name: str, model_version: int) -> bool:
        return False

    def is_model_ready(self, model_name: str, model_version: int) -> bool:
        return False

    def load_model(self, model_name: str, parameters: Mapping[str, str | bytes]) -> None:
        raise _not_serving(model_name)

    def unload_model(self, model_name: str, unload_dependents: bool) -> None:
        raise _not_serving(model_name)


def _not_serving(model_name: str) -> InferenceError:
    return unavailable(f"model '{model_name}' cannot be called: nothing is being served")
