"""Texts that are almost configurations: the reader must say what is wrong with each, soon, and raise nothing.

Runs in this process: the reader is a function from text to problems.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Final

from cantata.grammars.config_json import to_json
from cantata.grammars.messages import model_config_to_message
from cantata.grammars.reading import read_model_config, read_model_config_json
from cantata.grammars.rules import normalize_model_config, validate_model_config
from tests.fuzz.mutation import Mutator

# Of the processor's time, for texts of some kilobytes: the slowest of them take a tenth.
_LONGEST_READING_S: Final = 2.0

_WORDS: Final = (
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        ";",
        "<",
        ">",
        '"',
        "'",
        "\\",
        "#",
        "\n",
        "-",
        "0x",
        "1e999",
        "-nan",
        "inf",
    ),
    *("name", "input", "output", "dims", "data_type", "TYPE_FP32", "TYPE_STRING", "max_batch_size", "step"),
    *("ensemble_scheduling", "sequence_batching", "dynamic_batching", "instance_group", "parameters", "key"),
    *("value", "string_value", "input_map", "output_map", "version_policy", "latest", "num_versions", "true"),
    *("reshape", "shape", "optimization", "model_warmup", "inputs", "zero_data", "[a.b/c]", "99999999999999"),
    *("kind", "KIND_GPU", "count", "gpus", "control_input", "oldest", "direct", "rate_limiter", "priority"),
)
_SEEDS: Final = (
    'name: "m" backend: "python" max_batch_size: 4\n'
    'input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1, 3 ] reshape { shape: [ 3 ] } } ]\n'
    'output { name: "OUT" data_type: TYPE_STRING dims: 1 label_filename: "l.txt" }\n'
    "dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 }\n"
    "instance_group [ { count: 2 kind: KIND_CPU } ]\n"
    'parameters { key: "a" value: { string_value: "b" } }\n',
    'name: "m" platform: "onnxruntime_onnx" version_policy: { latest { num_versions: 2 } }\n'
    'sequence_batching { max_sequence_idle_microseconds: 5 control_input [ { name: "S" control [ '
    "{ kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ] oldest { max_candidate_sequences: 4 } }\n",
    'platform: "ensemble" input { name: "A" data_type: TYPE_INT32 dims: [ 1 ] }\n'
    'output { name: "B" data_type: TYPE_INT32 dims: [ 1 ] }\n'
    'ensemble_scheduling { step [ { model_name: "x" model_version: -1 input_map { key: "I" value: "A" } '
    'output_map { key: "O" value: "B" } } ] }\n',
)


class PbtxtTexts:
    """Cases for the reader of configurations, in both of their forms."""

    def __init__(self) -> None:
        examples = sorted(Path(__file__).parents[2].glob("examples/ensembles/*/models/*/config.pbtxt"))
        self._seeds = (*_SEEDS, *(path.read_text() for path in examples))

    def run_case(self, random: Random) -> str:
        """Read the text that `random` makes; returns what went wrong, empty where nothing did."""
        mutator = Mutator(random)
        text = self._text(mutator)
        reads_json = mutator.happens(0.15)
        started = time.thread_time()
        try:
            parsed = read_model_config_json(text) if reads_json else read_model_config(text, "config.pbtxt")
            if parsed.config is not None:
                config = normalize_model_config(parsed.config)
                validate_model_config(config, parsed.positions)
                to_json(config)
                model_config_to_message(config)
            elif not parsed.problems:
                return f"neither a configuration nor a problem: {text!r}"
        except Exception as error:
            return f"{type(error).__name__}: {error} for {text!r}"
        took = time.thread_time() - started
        return f"{took:.1f} s for {text!r}" if took > _LONGEST_READING_S else ""

    def restore(self) -> None:
        """A text leaves nothing behind."""

    def close(self) -> None:
        """Nothing is open."""

    def _text(self, mutator: Mutator) -> str:
        if mutator.happens(0.1):
            return " ".join(mutator.choice(_WORDS) for _ in range(mutator.random.randrange(200)))
        if mutator.happens(0.02):
            return mutator.choice(("a {", "a: [", "input {", '"', "a: -", "<")) * mutator.choice((100, 5000))
        text: str = mutator.choice(self._seeds)
        for _ in range(mutator.choice((1, 1, 2, 4, 8))):
            place, end = sorted(mutator.random.randrange(len(text) + 1) for _ in range(2))
            match mutator.random.randrange(5):
                case 0:
                    text = text[:place] + text[min(end, place + 20) :]
                case 1 | 2:
                    text = f"{text[:place]} {mutator.choice(_WORDS)} {text[place:]}"
                case 3:
                    text = text[:end] + text[place:end] + text[end:]
                case _:
                    text = mutator.data(text.encode()).decode(mutator.choice(("utf-8", "latin-1")), "replace")
        return text
