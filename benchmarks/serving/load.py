# SPDX-License-Identifier: MIT
"""Requests by chance, and clients that send them."""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.serving.process import Running
from benchmarks.serving.stub import PLACES

Request = dict[str, Any]
PATH = "/v1/images/generations"
STEPS = 6


def requests(count: int, seed: int, steps: Sequence[int] = (STEPS,)) -> list[Request]:
    """Requests of every kind, masks told: of one image or several, with and without treatment, alone or not."""
    chance = random.Random(seed)
    return [_request(chance, steps) for _ in range(count)]


def _request(chance: random.Random, steps: Sequence[int]) -> Request:
    asced: dict[str, Any] = {"report": "masks", "exact": chance.random() < 0.3}
    kind = chance.choice(["fast", "fast", "fast", "official", "paper", "calibrated", "off"])
    if kind == "off":
        asced["enabled"] = False
    elif kind == "calibrated":
        asced["rate"] = chance.choice([0.01, 0.05, 0.2])
    else:
        asced |= {"mode": kind, **PLACES}
    return {
        "seed": chance.randrange(1 << 63),
        "n": chance.choice([1, 1, 1, 2, 3]),
        "steps": chance.choice(steps),
        "stream": chance.random() < 0.25,
        "asced": asced,
    }


def body_of(answer: httpx.Response) -> dict[str, Any]:
    """What was drawn, answered at once or after events. Raises: ValueError where it was not, or events are amiss."""
    if answer.status_code != 200:
        raise ValueError(f"{answer.status_code}: {answer.text[:300]}")
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()
    lines = [line.partition(": ")[2] for line in answer.text.splitlines() if line]
    names, data = lines[::2], [json.loads(line) for line in lines[1::2]]
    steps = [one["step"] for one in data[:-1]]
    if names != ["progress"] * len(steps) + ["completed"] or steps != list(range(1, len(steps) + 1)):
        raise ValueError(f"events {names[-3:]} of steps {steps}")
    return data[-1]


async def send_all(server: Running, wanted: Sequence[Request], clients: int) -> list[httpx.Response]:
    """Send all from that many clients, each one request after another; the answers in the order of the requests."""
    answers: list[httpx.Response | None] = [None] * len(wanted)
    waiting = iter(range(len(wanted)))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:

        async def one_client() -> None:
            for i in waiting:
                answers[i] = await client.post(PATH, json=wanted[i])

        await asyncio.gather(*(one_client() for _ in range(clients)))
    return answers
