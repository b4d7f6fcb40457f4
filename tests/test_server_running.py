# SPDX-License-Identifier: MIT
"""Servers that run, each in a Ray of its own: S1 to S4, and the limits that need a connection."""

import asyncio
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.serving.load import PATH, send_all
from benchmarks.serving.process import SLOW_STUB, serving
from benchmarks.serving.s1_bits import s1
from benchmarks.serving.s2_kill import s2
from benchmarks.serving.s3_tenants import leaving, tenants
from benchmarks.serving.s4_memory import s4

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="asced-") as short:  # a socket's path has 107 bytes
        yield Path(short)


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, replicas=2, max_rows=16) as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(folder):
    limits = {"queue": 4, "body_seconds": 1, "request_seconds": 6}
    with serving(folder, SLOW_STUB, max_rows=1, max_n=1, **limits) as running:
        yield running


def test_s1_a_thousand_requests_in_company_are_the_same_alone(server):
    outcome = s1(server)
    assert outcome.met, outcome.note
    corrected, shares = outcome.note.split(" images corrected; by replica ")
    assert int(corrected) > 500
    assert min(map(int, shares.strip("[]").split(","))) > 100


def test_s2_each_request_is_answered_once_though_replicas_die(server):
    outcome = s2(server)
    assert outcome.met, outcome.note
    assert int(outcome.note.split("; ")[1].split()[0]) > 0, "no request was in a replica that died"


def test_s3_tenants_do_not_see_each_other(server):
    assert tenants(server).met


def test_s3_who_leaves_gives_up_the_row_within_one_step(slow_server):
    outcome = leaving(slow_server)
    assert outcome.met, outcome


@pytest.mark.timeout(500)  # of which 240 s are the measurement
def test_s4_memory_does_not_grow(server):
    outcome = s4(server)
    assert outcome.n > 1000
    assert outcome.met, outcome


def test_what_a_replica_refuses_is_told(slow_server):
    with slow_server.client() as client:
        answer = client.post(PATH, json={"steps": 3, "asced": {"t_c": 3}})
    assert answer.status_code == 422
    assert "t_c = 3 is past the end of a run of 3 steps" in answer.json()["error"]["message"]


def test_a_full_queue_is_answered_429_and_when_to_come_again(slow_server):
    wanted = [{"seed": seed, "steps": 2} for seed in range(8)]
    answers = asyncio.run(send_all(slow_server, wanted, 8))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "2"
    assert "try again in 2 s" in refused.json()["error"]["message"]


def test_a_request_that_takes_too_long_is_given_up(slow_server):
    with slow_server.client() as client:
        answer = client.post(PATH, json={"steps": 100})
        assert answer.status_code == 504
        assert "fewer steps" in answer.json()["error"]["message"]
        assert client.post(PATH, json={"steps": 1}).elapsed.total_seconds() < 5  # its row is free


def test_nothing_is_open_for_writing_outside_its_folder(slow_server):
    opened = [file for one in slow_server.processes() for file in one.open_files() if file.mode != "r"]
    assert opened
    inside = (str(slow_server.folder.resolve()), "/dev/shm/", "/dev/null")
    assert [file.path for file in opened if not file.path.startswith(inside)] == []


def _send(server, data):
    """Send bytes on a new connection and leave it open; what comes back, and after how many seconds."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        begun = time.monotonic()
        connection.sendall(data)
        answer = b""
        while not answer.endswith(b"}") and (part := connection.recv(1 << 16)):  # words of the HTTP server end with it
            answer += part
        return answer, time.monotonic() - begun


HEAD = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_slow_body_is_not_waited_for(slow_server):
    answer, seconds = _send(slow_server, f'{HEAD}Content-Length: 100\r\n\r\n{{"n":'.encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"send it at once" in answer
    assert seconds < 10


@pytest.mark.parametrize("length", ["1000000000000", "99999999999999999999999", "-5", "ten"])
def test_a_length_that_cannot_be_is_refused(slow_server, length):
    answer, _ = _send(slow_server, f"{HEAD}Content-Length: {length}\r\n\r\n{{}}".encode())
    assert answer.split()[1][:1] == b"4"
    assert b"Traceback" not in answer


@pytest.mark.parametrize("data", [b"\x00" * 100 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + b"x" * 200])
def test_what_is_no_http_is_refused(slow_server, data):
    answer, _ = _send(slow_server, data)
    assert answer == b"" or answer.split()[1][:1] == b"4"


def test_events_of_the_steps_and_the_answer(slow_server):
    with slow_server.client() as client, client.stream("POST", PATH, json={"steps": 3, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert lines == ["event: progress"] * 3 + ["event: completed"]


def test_told_to_stop_it_answers_what_is_in_flight_and_ends(slow_server):
    async def stop_in_the_middle():
        begun = asyncio.create_task(send_all(slow_server, [{"seed": 1, "steps": 12}], 1))
        while slow_server.by_replica("ascedfast_rows_running") and not sum(
            slow_server.by_replica("ascedfast_rows_running").values()
        ):
            await asyncio.sleep(0.05)
        slow_server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        late = await send_all(slow_server, [{"seed": 2, "steps": 1}], 1)
        return (await begun)[0], late[0]

    first, late = asyncio.run(stop_in_the_middle())
    assert first.status_code == 200
    assert late.status_code == 503
    assert "about to stop" in late.json()["error"]["message"]
    said, _ = slow_server.process.communicate(timeout=60)
    assert slow_server.process.returncode == 0
    assert [line.split(":")[0] for line in said.splitlines()] == ["stopping", "stopped"]  # and nothing of Ray's
