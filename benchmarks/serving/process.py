# SPDX-License-Identifier: MIT
"""A server in a process of its own, on a free port of the loopback interface, and its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.source import ROOT

STUB = ("-m", "benchmarks.serving.stub", "fast")
SLOW_STUB = ("-m", "benchmarks.serving.stub", "slow")
PACKAGED = ("-m", "benchmarks.serving.packaged")
SECONDS_TO_START = 240


@dataclass(frozen=True)
class Running:
    """A server. url: without a slash at the end. folder: where it writes."""

    url: str
    process: subprocess.Popen
    folder: Path

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **settings)

    def processes(self) -> list[psutil.Process]:
        """Of the server and all its children."""
        whole = psutil.Process(self.process.pid)
        return [whole, *whole.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model."""
        return [one for one in self.processes() if _title(one).startswith("ray::ServeReplica:ascedfast:Replica")]

    def samples(self, name: str) -> list[Sample]:
        """Of that name, from /metrics."""
        with self.client() as client:
            families = list(text_string_to_metric_families(client.get("/metrics").text))
        return [sample for family in families for sample in family.samples if sample.name == name]

    def by_replica(self, name: str) -> dict[str, float]:
        """Sums of the samples of that name, a replica each."""
        sums: dict[str, float] = {}
        for sample in self.samples(name):
            replica = sample.labels["replica"]
            sums[replica] = sums.get(replica, 0) + sample.value
        return sums


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(folder: Path, command: tuple[str, ...] = STUB, **settings: Any) -> Iterator[Running]:
    """Start, yield when requests can be sent, and end with SIGTERM.

    Args: command: of Python; gets the settings as one argument of JSON. Raises: RuntimeError where it does not start.
    """
    port = free_port()
    chosen = {"port": port, "folder": str(folder), **settings}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *command, json.dumps(chosen)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            start_new_session=True,
        )
    hurry = threading.Timer(SECONDS_TO_START, process.kill)
    hurry.start()
    try:
        line = process.stdout.readline()
        hurry.cancel()
        if not line:
            raise RuntimeError(f"the server did not start: {(folder / 'out.txt').read_text()[-2000:]}")
        yield Running(f"http://127.0.0.1:{port}", process, folder)
    finally:
        hurry.cancel()
        _end(process)


def _end(process: subprocess.Popen) -> None:
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, 10)
    for child in alive:
        child.kill()
