# SPDX-License-Identifier: MIT
"""S4: what a server holds does not grow with what it has drawn."""

import asyncio
import statistics
import time

import httpx
import psutil

from benchmarks.serving.load import PATH, requests
from benchmarks.serving.outcome import Outcome
from benchmarks.serving.process import Running

WARM_UP, SECONDS, ENDS = 60.0, 180.0, 30.0
CLIENTS = 32


def s4(server: Running, warm_up: float = WARM_UP, seconds: float = SECONDS, ends: float = ENDS) -> Outcome:
    """Clients that always wait for an answer; the resident memory of every process of the server, twice a second.

    Args: server: two replicas of the stub. Lengths of time in seconds; ends: of the first and the last part.
    Returns: the largest growth of a process from the mean of the first part to that of the last, in per cent.
    """
    memory: dict[psutil.Process, list[tuple[float, int]]] = {one: [] for one in server.processes()}

    async def run() -> int:
        stop = asyncio.Event()
        clients = [asyncio.create_task(_client(server, number, stop)) for number in range(CLIENTS)]
        await asyncio.sleep(warm_up)
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            for process, seen in memory.items():
                seen.append((now, process.memory_info().rss))
            await asyncio.sleep(0.5)
        stop.set()
        return sum(await asyncio.gather(*clients))

    answered = asyncio.run(run())
    growth = {process: _growth(seen, seconds, ends) for process, seen in memory.items()}
    worst = max(growth, key=growth.get)
    rss = statistics.fmean(seen for _, seen in memory[worst])
    note = f"{answered} requests; of {len(growth)} processes the most in {worst.name()}, {rss / 1e6:.0f} MB"
    return Outcome("S4", growth[worst], 2.0, answered, "per cent of resident memory", note)


def _growth(seen: list[tuple[float, int]], seconds: float, ends: float) -> float:
    first = statistics.fmean(rss for at, rss in seen if at < ends)
    last = statistics.fmean(rss for at, rss in seen if at > seconds - ends)
    return 100 * (last / first - 1)


async def _client(server: Running, number: int, stop: asyncio.Event) -> int:
    """The number of requests that were answered. Raises: httpx.HTTPStatusError for one that was not."""
    wanted, answered = requests(100, seed=1000 + number), 0
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        while not stop.is_set():
            answer = await client.post(PATH, json=wanted[answered % len(wanted)])
            answer.raise_for_status()
            answered += 1
    return answered
