"""How long does it take to read the configurations of a large repository?

Parses and validates 1,000 different configurations of a 10-step ensemble, as a server does when it starts, and prints
the time: `python benchmarks/config_reading.py [COUNT]`.
"""

from __future__ import annotations

import sys
import time

from cantata.grammars.reading import read_model_config
from cantata.grammars.rules import normalize_model_config, validate_model_config

STEPS = 10


def ensemble_text(number: int) -> str:
    """A chain of STEPS models of two inputs and two outputs each."""
    steps = ",\n".join(_step(number, index) for index in range(STEPS))
    return f"""name: "ensemble_{number}"  # one of many
platform: "ensemble"
max_batch_size: 8
input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "MASK" data_type: TYPE_FP32 dims: [ -1 ] }}
]
output [
  {{ name: "SCORE" data_type: TYPE_FP32 dims: [ 1000 ] }},
  {{ name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] reshape: {{ shape: [ ] }} }}
]
ensemble_scheduling {{
  step [
{steps}
  ]
}}
parameters {{ key: "owner" value: {{ string_value: "vision" }} }}
"""


def _step(number: int, index: int) -> str:
    first, second = ("IMAGE", "MASK") if index == 0 else (f"a{index - 1}", f"b{index - 1}")
    third, fourth = ("SCORE", "LABEL") if index == STEPS - 1 else (f"a{index}", f"b{index}")
    return f"""    {{
      model_name: "model_{number}_{index}"
      model_version: -1
      input_map {{ key: "INPUT0" value: "{first}" }}
      input_map {{ key: "INPUT1" value: "{second}" }}
      output_map {{ key: "OUTPUT0" value: "{third}" }}
      output_map {{ key: "OUTPUT1" value: "{fourth}" }}
    }}"""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    texts = [ensemble_text(number) for number in range(count)]
    started = time.perf_counter()
    for text in texts:
        parsed = read_model_config(text)
        assert parsed.config is not None, parsed.problems
        assert not validate_model_config(normalize_model_config(parsed.config), parsed.positions)
    seconds = time.perf_counter() - started
    print(
        f"{count} configurations of a {STEPS}-step ensemble: {seconds:.2f} s, {seconds / count * 1e3:.2f} ms each"
    )


if __name__ == "__main__":
    main()
