# SPDX-License-Identifier: MIT
"""S2: a replica dies, and nobody notices but by the time that it takes."""

import asyncio
import time

from benchmarks.serving.load import body_of, requests, send_all
from benchmarks.serving.outcome import Outcome
from benchmarks.serving.process import Running
from benchmarks.serving.stub import alone, differences

COUNT = 200
CLIENTS = 16


def s2(server: Running, count: int = COUNT) -> Outcome:
    """Kill a replica with SIGKILL when a quarter of the requests is answered, and another at a half, as soon as every
    replica draws.

    Args: server: two replicas of the stub. Returns: the number of requests that were not answered once and right; all
        of them where no request was in a replica that died, since nothing is shown then.
    """
    wanted = requests(count, seed=3, steps=(6, 20, 60))
    answered, resent = _answered(server), _resent(server)

    async def kill_and_send() -> list:
        sending = asyncio.create_task(send_all(server, wanted, CLIENTS))
        for part in (count // 4, count // 2):
            while not sending.done() and not await asyncio.to_thread(_is_time, server, answered + part):
                await asyncio.sleep(0.01)
            server.replicas()[0].kill()
        return await sending

    answers = asyncio.run(kill_and_send())
    right = [not differences(body_of(answer), alone(one)) for one, answer in zip(wanted, answers, strict=True)]
    counted, again = int(_answered(server) - answered), int(_resent(server) - resent)
    wait_for_replicas(server, 2)
    note = f"2 replicas killed; {again} sendings repeated; the server counts {counted} answers"
    wrong = right.count(False) + abs(counted - count) if again else count
    return Outcome("S2", wrong, 0, count, "requests not answered once and with the right bits", note)


def wait_for_replicas(server: Running, count: int, seconds: float = 60) -> None:
    """Raises: TimeoutError."""
    until = time.monotonic() + seconds
    while len(server.by_replica("ascedfast_rows_running")) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"there are no {count} replicas after {seconds} s")
        time.sleep(0.2)


def _is_time(server: Running, answered: float) -> bool:
    running = server.by_replica("ascedfast_rows_running").values()
    return _answered(server) >= answered and bool(running) and min(running) > 0


def _answered(server: Running) -> float:
    return sum(one.value for one in server.samples("ascedfast_requests_total") if one.labels["code"] == "200")


def _resent(server: Running) -> float:
    return sum(one.value for one in server.samples("ascedfast_requests_resent_total"))
