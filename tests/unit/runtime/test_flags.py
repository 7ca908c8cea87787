"""How the command line is read: forms, kinds, repetition, suggestions, and the rules between flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from cantata.runtime.execution.rate_limiter import RateLimitMode, ResourceCount
from cantata.runtime.flags import SERVE_FLAGS, FlagError, describe_flags, parse_flags
from cantata.runtime.repository.control import ModelControlMode
from cantata.runtime.serve import ServeOptions
from cantata.runtime.serve_options import serve_options


def options(*arguments: str) -> ServeOptions:
    return serve_options(*parse_flags(arguments, SERVE_FLAGS))


def test_values_follow_an_equals_sign_or_stand_alone() -> None:
    values, positional = parse_flags(["--id=a", "--http-port", "1", "rest"], SERVE_FLAGS)
    assert (values, positional) == ({"id": ("a",), "http-port": ("1",)}, ["rest"])


def test_a_repeated_flag_counts_once_unless_it_may_repeat() -> None:
    values, _ = parse_flags(["--id=a", "--id=b", "--load-model=x", "--load-model=y"], SERVE_FLAGS)
    assert values == {"id": ("b",), "load-model": ("x", "y")}


def test_the_defaults_are_tritons() -> None:
    found = options("--model-repository=models")
    assert found.server.model_repository == (Path("models"),)
    assert found.server.id == "triton"
    assert found.server.exit_on_error
    assert found.server.exit_timeout_secs == 30
    assert found.http is not None
    assert found.grpc is not None
    assert (found.http.port, found.http.metrics_port, found.grpc.port) == (8000, 8002, 8001)
    assert found.http.address == found.grpc.address == "0.0.0.0"


def test_repositories_add_up() -> None:
    found = options("--model-repository=a", "--model-store=b", "--model-repository", "c")
    assert found.server.model_repository == (Path("a"), Path("c"), Path("b"))


def test_front_ends_can_be_switched_off() -> None:
    found = options("--model-repository=a", "--allow-http=False", "--allow-metrics=0", "--allow-grpc=false")
    assert (found.http, found.grpc) == (None, None)


def test_metrics_are_served_without_http() -> None:
    http = options("--model-repository=a", "--allow-http=false").http
    assert http is not None
    assert (http.port, http.metrics_port) == (None, 8002)


def test_backend_settings_belong_to_their_backend_or_to_all() -> None:
    found = options("--model-repository=a", "--backend-config=python,x=1=2", "--backend-config=y=3")
    assert found.server.backend_config == {"python": {"x": "1=2"}, "": {"y": "3"}}


def test_strict_model_config_disables_completion() -> None:
    assert options("--model-repository=a", "--strict-model-config=true").server.disable_auto_complete_config
    assert options(
        "--model-repository=a", "--disable-auto-complete-config"
    ).server.disable_auto_complete_config


def test_watching_is_polling_often() -> None:
    server = options("--model-repository=a", "--watch").server
    assert (server.model_control_mode, server.repository_poll_secs) == (ModelControlMode.POLL, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model-repository must be specified"),
        (["--modle-repository=x"], "unknown flag --modle-repository; did you mean '--model-repository'?"),
        (["--xyzzy"], "unknown flag --xyzzy"),
        (["--http-port"], "--http-port needs a value"),
        (["--http-port=many"], "--http-port expects an integer, got 'many'"),
        (
            ["--model-repository=a", "--http-port=70000"],
            "--http-port expects a port between 0 and 65535, got '70000'",
        ),
        (["--exit-timeout-secs=soon"], "--exit-timeout-secs expects a number, got 'soon'"),
        (["--allow-http=maybe"], "--allow-http expects true or false, got 'maybe'"),
        (["--log-format=xml"], "--log-format expects one of default, ISO8601, json, got 'xml'"),
        (
            ["--model-repository=a", "models"],
            "unexpected argument 'models': name repositories with --model-repository",
        ),
        (
            ["--model-repository=a", "--grpc-port=8000"],
            "The server cannot listen to HTTP requests and GRPC requests at the same address and port 0.0.0.0:8000",
        ),
        (
            ["--model-repository=a", "--load-model=x"],
            "Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.",
        ),
        (
            ["--model-repository=a", "--model-control-mode=explicit", "--load-model=*", "--load-model=x"],
            "Wildcard model name '*' must be the ONLY startup model if specified at all.",
        ),
        (
            ["--model-repository=a", "--backend-config=python"],
            "--backend-config expects [<backend>,]<setting>=<value>, got 'python'",
        ),
        (
            ["--model-repository=a", "--model-load-thread-count=0"],
            "--model-load-thread-count expects a positive number, got '0'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(arguments: list[str], message: str) -> None:
    with pytest.raises(FlagError) as refused:
        options(*arguments)
    assert str(refused.value) == message


def test_help_lists_every_flag() -> None:
    text = describe_flags(SERVE_FLAGS)
    assert all(f"--{flag.name} " in text for flag in SERVE_FLAGS)


def test_resources_are_counted_for_every_device_or_for_one() -> None:
    found = options(
        "--model-repository=m",
        "--rate-limit=execution_count",
        "--rate-limit-resource=R:4",
        "--rate-limit-resource=S:2:1",
    )
    assert found.server.rate_limit is RateLimitMode.EXECUTION_COUNT
    assert found.server.rate_limit_resource == (ResourceCount("R", 4), ResourceCount("S", 2, 1))
    assert options("--model-repository=m").server.rate_limit is RateLimitMode.OFF


@pytest.mark.parametrize("value", ["R", ":1", "R:x", "R:1:", "R:1:2:3", "R:-1"])
def test_a_resource_is_a_name_a_count_and_perhaps_a_device(value: str) -> None:
    with pytest.raises(FlagError, match=f"option format is .* Got {value}$"):
        options("--model-repository=m", f"--rate-limit-resource={value}")
