# SPDX-License-Identifier: MIT
"""S5: the packaged transformer on a CPU, bits and speed."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import numpy as np

from benchmarks.serving.load import send_all
from benchmarks.serving.outcome import Outcome
from benchmarks.serving.packaged import Alone
from benchmarks.serving.process import Running
from benchmarks.serving.stub import decode
from benchmarks.timing import upper_limit

REQUESTS, BAR = 50, 1.02
STEPS = 25
"""What a request takes by itself."""
PAIRS = 10
CLIENTS = (1, 8, 32)


def bits(server: Running, count: int = REQUESTS, clients: int = 8) -> list[Outcome]:
    """The same requests with and without ``exact``, in company, against the stock pipeline with one image a run."""
    alone = Alone()
    wanted = [alone({"seed": seed, "steps": STEPS}) for seed in range(count)]
    answers = {exact: _images(server, count, clients, exact) for exact in (True, False)}
    wrong = sum(not _same(image, one) for image, one in zip(answers[True], wanted, strict=True))
    pixels = [_difference(image, one) for image, one in zip(answers[False], wanted, strict=True)]
    flips = [int((mask != one[1]).sum()) for (_, mask), one in zip(answers[False], wanted, strict=True)]
    note = f"{sum(map(bool, pixels))} of {count} images differ at all, {sum(map(bool, flips))} in their masks"
    found = sum(mask.any() for _, mask in answers[True])
    return [
        Outcome("S5-exact", wrong, 0, count, "requests that differ from the pipeline's", f"{found} were corrected"),
        Outcome("S5-batched-pixels", max(pixels), None, count, "of 255 grey levels, the largest difference", note),
        Outcome("S5-batched-masks", sum(flips), None, count, f"of {count} x 4096 mask locations flipped", note),
    ]


def _images(server: Running, count: int, clients: int, exact: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    asced = {"mode": "fast", "report": "masks", "exact": exact}
    requests = [{"seed": seed, "steps": STEPS, "asced": asced} for seed in range(count)]
    data = [answer.json()["data"][0] for answer in asyncio.run(send_all(server, requests, clients))]
    return [(decode(image["b64_json"]), decode(image["asced"]["mask"]) > 0) for image in data]


def _same(image: tuple, one: tuple) -> bool:
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(image, one, strict=True))


def _difference(image: tuple, one: tuple) -> int:
    return int(np.abs(image[0].astype(int) - one[0].astype(int)).max())


@dataclass
class _Side:
    """Rounds of one kind: seconds of each, and of each of its requests."""

    rounds: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)

    def run(self, server: Running, clients: int, enabled: bool) -> None:
        asced = {"enabled": enabled}
        wanted = [{"seed": seed, "steps": STEPS, "asced": asced} for seed in range(max(clients, 4))]
        began = time.perf_counter()
        answers = asyncio.run(send_all(server, wanted, clients))
        self.rounds.append(time.perf_counter() - began)
        self.requests += [answer.raise_for_status().elapsed.total_seconds() for answer in answers]

    def at(self, share: float) -> float:
        return float(np.quantile(self.requests, share))


def speed(server: Running, clients: int, pairs: int = PAIRS) -> list[Outcome]:
    """Rounds with and without correction in turns; how long they and their requests take, on over off."""
    on, off = _Side(), _Side()
    for pair in range(pairs + 1):
        for side, enabled in ((on, True), (off, False)) if pair % 2 else ((off, False), (on, True)):
            side.run(server, clients, enabled)
        if pair == 0:
            on, off = _Side(), _Side()
    ratios = [ours / theirs for ours, theirs in zip(on.rounds, off.rounds, strict=True)]
    rate = len(off.requests) / sum(off.rounds)
    name, unit, n = f"S5-{clients}-clients", "on over off", len(on.requests)
    note = (
        f"{pairs} pairs of rounds in turns; upper 95 % limit {upper_limit(ratios):.4g}; off: {rate:.3g} images a second"
    )
    told = {share: f"off: {1000 * off.at(share):.0f} ms, on: {1000 * on.at(share):.0f} ms" for share in (0.5, 0.99)}
    return [
        Outcome(f"{name}/throughput", statistics.median(ratios), BAR, n, unit, note),
        Outcome(f"{name}/p50", on.at(0.5) / off.at(0.5), BAR, n, unit, told[0.5]),
        Outcome(f"{name}/p99", on.at(0.99) / off.at(0.99), BAR, n, unit, told[0.99]),
    ]
