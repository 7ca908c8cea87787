"""What the names in an ensemble's steps mean where repositories are namespaces: which models (--model-namespacing).

Shared by loading and by the check offline. Which model a name means is `namespaces.py`'s rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from cantata.grammars.model_config import ModelConfig
from cantata.runtime.repository.completion import PreparedModel
from cantata.runtime.repository.namespaces import resolved


def with_meanings(prepared: PreparedModel, identifiers: Collection[str]) -> PreparedModel:
    """An ensemble with what its steps' names mean in its namespace, where they mean one model of `identifiers`."""
    ensemble = prepared.config.ensemble_scheduling
    namespace = prepared.directory.namespace
    if ensemble is None or not namespace:
        return prepared
    found = {name: resolved(name, namespace, identifiers) for name in prepared.step_names}
    meanings = {name: identifier for name, identifier in found.items() if identifier is not None}
    steps = tuple(
        step.model_copy(update={"model_namespace": meanings[step.model_name].rpartition("/")[0]})
        if step.model_name in meanings
        else step
        for step in ensemble.step
    )
    config = prepared.config.model_copy(
        update={"ensemble_scheduling": ensemble.model_copy(update={"step": steps})}
    )
    ambiguous = frozenset(found.keys() - meanings.keys())
    return dataclasses.replace(prepared, config=config, meanings=meanings, ambiguous=ambiguous)


def by_identifier(ensemble: PreparedModel) -> ModelConfig:
    """An ensemble's configuration with the identifiers of its steps' models in the place of their names."""
    scheduling = ensemble.config.ensemble_scheduling
    if scheduling is None or not ensemble.meanings:
        return ensemble.config
    steps = tuple(
        step.model_copy(update={"model_name": ensemble.meanings.get(step.model_name, step.model_name)})
        for step in scheduling.step
    )
    scheduling = scheduling.model_copy(update={"step": steps})
    return ensemble.config.model_copy(update={"ensemble_scheduling": scheduling})
