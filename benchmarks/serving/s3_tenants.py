# SPDX-License-Identifier: MIT
"""S3: clients do not see each other, and one that leaves takes its rows along."""

import asyncio
import json
import socket
import time
from typing import Any

from benchmarks.serving.load import PATH, Request, send_all
from benchmarks.serving.outcome import Outcome
from benchmarks.serving.process import Running
from benchmarks.serving.stub import PLACES, alone, differences

COUNT = 100
TENANTS: tuple[dict[str, Any], ...] = (
    {"steps": 6, "asced": {"mode": "fast", "report": "masks", **PLACES}},
    {"steps": 9, "asced": {"mode": "paper", "report": "severity", "t_c": 6, "window_start": 0}},
)


def tenants(server: Running, count: int = COUNT) -> Outcome:
    """Two clients with the same seeds and other settings, at the same time, against the same requests alone.

    Returns: the number of requests with a bit that differs, or with an answer that the other was to get.
    """
    both = [[{**settings, "seed": seed} for seed in range(count)] for settings in TENANTS]

    async def send() -> list:
        return await asyncio.gather(*(send_all(server, wanted, 8) for wanted in both))

    wrong, told = 0, set()
    for wanted, answers in zip(both, asyncio.run(send()), strict=True):
        for request, answer in zip(wanted, answers, strict=True):
            body = answer.json()
            wrong += bool(differences(body, alone(request))) or body["steps"] != request["steps"]
            told.add((request["steps"], body["data"][0]["asced"]["mask"] is not None))
    if told != {(6, True), (9, False)}:
        wrong += count
    return Outcome("S3-tenants", wrong, 0, 2 * count, "requests that differ from the same alone")


def leaving(server: Running) -> Outcome:
    """A client closes its connection right after a step has ended, with and without server-sent events.

    Args: server: a replica of the slow stub with one row. Returns: the most steps that its row took afterwards.
    """
    after, waited = [], []
    for stream in (False, True):
        leaver = _open(server, {"seed": 1, "steps": 200, "stream": stream})
        while _steps(server) == (before := _steps(server)) or not _running(server):
            pass
        other = _open(server, {"seed": 2, "steps": 1})  # waits for the row
        while _steps(server) == (before := _steps(server)):
            pass
        before, left = _steps(server), time.monotonic()
        leaver.close()
        status = other.recv(12)
        waited.append(time.monotonic() - left)
        other.close()
        time.sleep(0.1)
        taken = _steps(server) - before - 1  # less the other's
        after.append(taken if status.endswith(b"200") and not _running(server) else 200)
    note = f"who waited for the row had it drawn {max(waited):.2f} s later; a step takes 0.25 s"
    return Outcome("S3-leaving", max(after), 1, len(after), "steps of the row after its client has left", note)


def _open(server: Running, request: Request) -> socket.socket:
    """Send a request and leave the connection open."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    body = json.dumps(request).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def _steps(server: Running) -> float:
    return sum(one.value for one in server.samples("ascedfast_row_steps_total"))


def _running(server: Running) -> float:
    return sum(one.value for one in server.samples("ascedfast_rows_running"))
