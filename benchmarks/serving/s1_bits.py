# SPDX-License-Identifier: MIT
"""S1: what a request gets owes nothing to the others."""

import asyncio
import random

from benchmarks.serving.load import body_of, requests, send_all
from benchmarks.serving.outcome import Outcome
from benchmarks.serving.process import Running
from benchmarks.serving.stub import alone, differences

COUNT = 1000
CLIENTS = (1, 3, 8, 20, 48)


def s1(server: Running, count: int = COUNT) -> Outcome:
    """Requests in random order, from a number of clients that changes by chance, against the same requests alone.

    Args: server: two replicas of the stub. Returns: the number of requests with any bit that differs.
    """
    wanted = requests(count, seed=1)
    chance = random.Random(2)
    before = server.by_replica("ascedfast_images_total")
    wrong, corrected, sent = [], 0, 0
    while sent < count:
        part = wanted[sent : sent + chance.randrange(1, 120)]
        clients = min(chance.choice(CLIENTS), len(part))
        for request, answer in zip(part, asyncio.run(send_all(server, part, clients)), strict=True):
            body = body_of(answer)
            found = differences(body, alone(request))
            wrong += [found] if found else []
            corrected += sum((image["asced"] or {}).get("status") == "corrected" for image in body["data"])
        sent += len(part)
    drawn = server.by_replica("ascedfast_images_total")
    shares = sorted(int(value - before.get(replica, 0)) for replica, value in drawn.items())
    note = f"{corrected} images corrected; by replica {shares}" + (f"; the first: {wrong[:3]}" if wrong else "")
    return Outcome("S1", len(wrong), 0, count, "requests that differ from the same alone", note)
