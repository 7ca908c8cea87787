"""Where a model's instances run, by its configuration and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cantata.bls.worker.settings import (
    Isolation,
    ModelIsolation,
    ProcessSettings,
    model_isolation,
    process_settings,
)
from cantata.grammars.reading import read_model_config
from cantata.runtime.errors import InferenceError, StatusCode

THREAD, PROCESS = Isolation.THREAD, Isolation.PROCESS


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'


def isolation_of(text: str, default: Isolation = THREAD) -> ModelIsolation:
    parsed = read_model_config(f'name: "m"\n{text}')
    assert parsed.config is not None, parsed.problems
    return model_isolation(parsed.config, Path("/models/m"), ProcessSettings(default))


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("", THREAD, ModelIsolation(THREAD)),
        ("", PROCESS, ModelIsolation(PROCESS)),
        (parameter("EXECUTION_ISOLATION", "process"), THREAD, ModelIsolation(PROCESS)),
        (parameter("EXECUTION_ISOLATION", "thread"), PROCESS, ModelIsolation(THREAD)),
        ("instance_group { count: 1 }", THREAD, ModelIsolation(THREAD)),
        ("instance_group { count: 2 }", THREAD, ModelIsolation(PROCESS)),
        ("instance_group [ { count: 1 }, { count: 1 } ]", THREAD, ModelIsolation(PROCESS)),
        ("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }", THREAD, ModelIsolation(PROCESS)),
        (
            "instance_group { count: 2 }" + parameter("EXECUTION_ISOLATION", "thread"),
            THREAD,
            ModelIsolation(THREAD),
        ),
        (parameter("EXECUTION_TIMEOUT", "2.5"), THREAD, ModelIsolation(PROCESS, 2.5)),
        (
            parameter("EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/env"),
            THREAD,
            ModelIsolation(PROCESS, None, Path("/models/m/env")),
        ),
    ],
)
def test_the_rule(text: str, default: Isolation, expected: ModelIsolation) -> None:
    assert isolation_of(text, default) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            parameter("EXECUTION_ISOLATION", "vm"),
            "model 'm', parameter EXECUTION_ISOLATION: expected thread or process, got 'vm'",
        ),
        (
            parameter("EXECUTION_TIMEOUT", "-1"),
            "model 'm', parameter EXECUTION_TIMEOUT: expected a number of seconds, got '-1'",
        ),
        (
            parameter("EXECUTION_TIMEOUT", "inf"),
            "model 'm', parameter EXECUTION_TIMEOUT: expected a number of seconds, got 'inf'",
        ),
        (
            parameter("EXECUTION_ISOLATION", "thread") + parameter("EXECUTION_ENV_PATH", "/env"),
            "model 'm', parameter EXECUTION_ENV_PATH: needs a process, but EXECUTION_ISOLATION is thread",
        ),
    ],
)
def test_a_model_that_asks_for_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(InferenceError) as failure:
        isolation_of(text)
    assert (failure.value.code, failure.value.message) == (StatusCode.INVALID_ARG, message)


def test_the_command_line_sets_the_defaults() -> None:
    settings = process_settings(
        {
            "execution-isolation": "process",
            "arena-max-byte-size": "5000000",
            "stub-timeout-seconds": "7",
            "shm-default-byte-size": "1",
        }
    )
    assert settings == ProcessSettings(PROCESS, 4_997_120, 7.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("execution-isolation", "fork", "expects thread or process, got 'fork'"),
        ("arena-max-byte-size", "1000", "expects a number of bytes, 1048576 or more, got '1000'"),
        ("arena-max-byte-size", "8GB", "expects a number of bytes, 1048576 or more, got '8GB'"),
        ("stub-timeout-seconds", "never", "expects a number of seconds, got 'never'"),
    ],
)
def test_a_wrong_setting_is_told(name: str, value: str, message: str) -> None:
    with pytest.raises(InferenceError) as failure:
        process_settings({name: value})
    assert failure.value.message == f"--backend-config=python,{name} {message}"
