"""Our parser against protobuf's own text_format, over the compiled protos."""

from __future__ import annotations

import warnings
from typing import Any

from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cantata.grammars import messages
from cantata.grammars.messages import message_to_model_config, model_config_to_message
from cantata.grammars.reading import ParsedConfig, read_model_config
from tests.support.protobuf_messages import messages as random_messages
from tests.support.protobuf_messages import mutated

# What we refuse although protobuf's Python parser takes it; Triton's parser takes none but the first.
STRICTER = ("expected a value of", "is no escape of a string", "expected a number, found")

PRINT_OPTIONS = st.fixed_dictionaries(
    {
        "as_utf8": st.booleans(),
        "as_one_line": st.booleans(),
        "use_short_repeated_primitives": st.booleans(),
        "pointy_brackets": st.booleans(),
        "use_index_order": st.booleans(),
    }
)
quickly = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def parse_with_protobuf(text: str) -> Any:
    """What text_format makes of a text, or None if it refuses it."""
    with warnings.catch_warnings():
        # It reports escapes that it does not know so, and keeps them as they stand.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return text_format.Parse(text, messages.ModelConfig())
        except (text_format.ParseError, ValueError):
            return None


def encoded(parsed: ParsedConfig) -> bytes:
    assert parsed.config is not None, parsed.problems
    return model_config_to_message(parsed.config).SerializeToString(deterministic=True)


@quickly
@given(random_messages(messages.ModelConfig), PRINT_OPTIONS)
def test_any_message_that_protobuf_prints_is_parsed_to_the_same_value(
    message: Any, options: dict[str, bool]
) -> None:
    text = text_format.MessageToString(message, **options)
    assert encoded(read_model_config(text)) == message.SerializeToString(deterministic=True)


@quickly
@given(random_messages(messages.ModelConfig))
def test_a_configuration_survives_its_message(message: Any) -> None:
    config = message_to_model_config(message)
    assert model_config_to_message(config).SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


@quickly
@given(st.data())
def test_any_text_that_protobuf_refuses_is_refused(data: st.DataObject) -> None:
    message = data.draw(random_messages(messages.ModelConfig))
    options = data.draw(PRINT_OPTIONS)
    text = data.draw(mutated(text_format.MessageToString(message, **options)))
    parsed = read_model_config(text)
    expected = parse_with_protobuf(text)
    if expected is None:
        assert parsed.config is None, text
        assert parsed.problems
    elif parsed.config is not None:
        assert encoded(parsed) == expected.SerializeToString(deterministic=True)
    else:
        assert all(any(known in problem.message for known in STRICTER) for problem in parsed.problems), (
            text,
            parsed.problems,
        )


@quickly
@given(st.text() | st.text("{}<>[]:,;\"'\\#ab1-. \n"))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    parsed = read_model_config(text)
    assert (parsed.config is None) == bool(parsed.problems)
    assert (parse_with_protobuf(text) is None) <= (parsed.config is None)
