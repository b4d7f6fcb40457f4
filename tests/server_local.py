# SPDX-License-Identifier: MIT
"""The server's HTTP side and one replica of the stub in this process, without Ray in between."""

from contextlib import contextmanager

from starlette.testclient import TestClient

from ascedfast.server.app import create_app
from ascedfast.server.replica import Replica
from ascedfast.server.settings import ServerSettings
from benchmarks.serving.stub import SHAPE, load


class LocalBackend:
    """What ``backend.RayBackend`` is for replicas elsewhere."""

    def __init__(self, replica):
        self.replica = replica

    def draw(self, request):
        return self.replica.draw(request)

    def draw_in_steps(self, request):
        return self.replica.draw_in_steps(request)

    async def metrics(self):
        return dict([await self.replica.metrics()])

    async def is_ready(self):
        return await self.replica.ping()


@contextmanager
def local_app(**settings):
    """An app, its settings, and the replica behind it."""
    chosen = ServerSettings(**settings)
    replica = Replica(chosen, load)
    try:
        yield create_app(chosen, SHAPE[1:], LocalBackend(replica))
    finally:
        replica.close()


@contextmanager
def local_client(**settings):
    with (
        local_app(**settings) as app,
        TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client,
    ):
        yield client
