# SPDX-License-Identifier: MIT
"""Starts Ray and the server in it, and ends both. Call ``ray_environment.set_ray_environment`` before importing it."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from ascedfast.server.deployments import application
from ascedfast.server.model import load_model
from ascedfast.server.replica import Load
from ascedfast.server.settings import ServerSettings

APP = "ascedfast"
OBJECTS = 80 << 20
"""Bytes of Ray's shared memory, its least: images travel between the processes by themselves."""
PAUSE = 0.2
"""Seconds between two looks at replicas that start."""


def cores(replicas: int, num_cpus: float) -> int:
    """Processors of a Ray in which all replicas find room. They are only counted: too many do no harm."""
    return max(1, replicas * math.ceil(num_cpus))


@contextmanager
def ray_of_its_own(settings: ServerSettings) -> Iterator[None]:
    """A Ray on this machine that ends with the block, with as many processors as the replicas want."""
    ray.init(
        address="local",
        num_cpus=cores(settings.replicas, settings.num_cpus),
        include_dashboard=False,
        object_store_memory=OBJECTS,
        log_to_driver=False,
        _temp_dir=None if settings.folder is None else str(settings.folder),
    )
    try:
        yield
    finally:
        with _without_a_word():
            ray.shutdown()


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Ray tells of actors that it has ended itself as of failures, on standard output."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def start(settings: ServerSettings, size: tuple[int, int], load: Load = load_model) -> DeploymentHandle:
    """Serve in the Ray that runs; return when requests can be sent.

    Raises: RuntimeError where it cannot be started, or not in ``settings.seconds_to_start``.
    Args: size: (height, width) of the model's images. load: makes the model, in each replica.
    """
    serve.start(
        http_options=HTTPOptions(host=settings.host, port=settings.port),
        logging_config={"enable_access_log": False},
    )
    # Not serve.run, which waits for ever.
    target = serve.RunTarget(application(settings, size, load), name=APP, route_prefix="/")
    handle = serve.run_many([target], wait_for_applications_running=False)[0]
    wait_until_running(settings.seconds_to_start)
    return handle


def wait_until_running(seconds: float) -> None:
    """Until all replicas have their model. Raises: RuntimeError where one fails, or that takes longer."""
    until = time.monotonic() + seconds
    while (app := serve.status().applications[APP]).status != ApplicationStatus.RUNNING:
        if app.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(app.message)
        if time.monotonic() > until:
            raise RuntimeError(
                f"not all replicas were ready in {seconds:g} s: set ASCEDFAST_SERVER_SECONDS_TO_START higher"
            )
        time.sleep(PAUSE)


def stop(handle: DeploymentHandle, settings: ServerSettings) -> int:
    """Take no more requests, answer those in flight, end. The number of images that were not drawn."""
    left = handle.drain.remote().result(timeout_s=settings.drain_seconds + 10)
    with _without_a_word():
        serve.shutdown()
    return left


def serve_until_told(settings: ServerSettings, size: tuple[int, int], load: Load = load_model) -> int:
    """Serve until SIGINT or SIGTERM, then answer what is in flight and return the number of images that were not drawn.

    A second signal ends at once. Prints a line when requests can be sent, and two at the end.
    """
    told = threading.Event()

    def tell(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)
        told.set()

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ray_of_its_own(settings):
        handle = start(settings, size, load)
        for number in (signal.SIGINT, signal.SIGTERM):  # now: Ray sets handlers of its own when it starts
            signal.signal(number, tell)
        print(f"{settings.name} is served at http://{settings.host}:{settings.port}/", flush=True)
        told.wait()
        wait = f"at most {settings.drain_seconds:g} s; once more ends at once"
        print(f"stopping: no new requests, those in flight are answered first ({wait})", flush=True)
        left = stop(handle, settings)
    print("stopped", flush=True)
    return left
