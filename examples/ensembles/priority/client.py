"""Sends twice as much as the ensemble `priority` can do, a tenth of it urgent, and prints how both classes fared.

Owns the load and the judgement: nothing accepted is lost, and the urgent do not wait with the others. A stock client.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

HERE = Path(__file__).resolve().parent
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
URGENT, PATIENT = 1, 2


@dataclass
class Outcome:
    """How one class of requests fared."""

    sent: int = 0
    refused: int = 0
    latencies_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.latencies_s, share)) * 1e3 if self.latencies_s else float("nan")


class Load:
    """Requests at even intervals, whether or not those before are answered, as many clients together send them."""

    def __init__(self, api: Any, client: Any, refusal: str) -> None:
        self._api = api
        self._client = client
        self._refusal = refusal

    async def send(self, outcome: Outcome, priority: int, number: int) -> None:
        tensor = self._api.InferInput("NUMBER", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.array([[number]], np.int64))
        outcome.sent += 1
        sent = time.perf_counter()
        try:
            result = await self._client.infer("priority", [tensor], priority=priority)
        except InferenceServerException as error:
            if self._refusal in error.message():
                outcome.refused += 1
            else:
                outcome.faults.append(f"request {number} failed: {error}")
            return
        outcome.latencies_s.append(time.perf_counter() - sent)
        if result.as_numpy("SQUARE").item() != number * number:
            outcome.faults.append(f"request {number} got another's answer")

    async def run(self, rates: dict[int, float], seconds: float) -> dict[int, Outcome]:
        """`rates` are requests a second, by priority."""
        outcomes = {priority: Outcome() for priority in rates}
        times = sorted(
            (index / rate, priority)
            for priority, rate in rates.items()
            for index in range(int(rate * seconds))
        )
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, (due, priority) in enumerate(times):
                await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
                group.create_task(self.send(outcomes[priority], priority, number))
        return outcomes


def print_outcomes(title: str, outcomes: dict[int, Outcome]) -> None:
    print(title)
    for priority, outcome in sorted(outcomes.items()):
        print(
            f"  priority {priority}: {outcome.sent:5} sent, {outcome.refused:4} refused, "
            f"{len(outcome.latencies_s):5} answered; median {outcome.quantile_ms(0.5):6.1f} ms, "
            f"99% within {outcome.quantile_ms(0.99):6.1f} ms"
        )


def faults(outcomes: dict[int, Outcome]) -> list[str]:
    """What is not as it should be under overload, in words."""
    urgent, patient = outcomes[URGENT], outcomes[PATIENT]
    found = [*urgent.faults, *patient.faults]
    for priority, outcome in outcomes.items():
        if outcome.sent != outcome.refused + len(outcome.latencies_s) + len(outcome.faults):
            found.append(f"a request of priority {priority} has no answer")
    if urgent.refused:
        found.append("urgent requests were refused")
    if not patient.refused:
        found.append("nothing was refused: this was no overload")
    # Medians, since a machine that does much else delays some of either class.
    if urgent.quantile_ms(0.5) * 2 > patient.quantile_ms(0.5):
        found.append("the urgent waited with the others")
    return found


async def measure(protocol: str, url: str, seconds: float) -> list[str]:
    api = importlib.import_module(f"tritonclient.{protocol}.aio")
    expected = json.loads((HERE / "expected.json").read_text())
    capacity = expected["batch_size"] / expected["seconds_per_batch"]
    rate = capacity * expected["overload"]
    urgent_rate = rate * expected["urgent_share"]
    patient_rate = rate - urgent_rate
    # As many connections over HTTP as there may be requests on their way.
    options = {"conn_limit": 1_000} if protocol == "http" else {}
    async with api.InferenceServerClient(url, **options) as client:
        load = Load(api, client, expected["refusal"])
        alone = await load.run({URGENT: urgent_rate}, seconds / 2)
        print_outcomes(f"priority over {protocol} at {url}: the urgent by themselves", alone)
        outcomes = await load.run({URGENT: urgent_rate, PATIENT: patient_rate}, seconds)
        print_outcomes(f"at {expected['overload']} times what the server can do", outcomes)
    return [*alone[URGENT].faults, *faults(outcomes)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc")
    parser.add_argument("--url", help="host:port (default: localhost, port 8001 for grpc, 8000 for http)")
    parser.add_argument("--seconds", type=float, default=3, help="of overload (default: 3)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    url = arguments.url or DEFAULT_URLS[arguments.protocol]
    found = asyncio.run(measure(arguments.protocol, url, arguments.seconds))
    print("\n".join(found) or "nothing that was accepted is lost, and the urgent are answered as ever")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
