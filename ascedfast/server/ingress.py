# SPDX-License-Identifier: MIT
"""What answers HTTP, as a deployment of Ray Serve; holds no model, and imports none."""

import asyncio
import time

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from ascedfast.server.app import create_app
from ascedfast.server.backend import RayBackend
from ascedfast.server.metrics import ServerMetrics
from ascedfast.server.settings import ServerSettings


@serve.ingress()
class Ingress:
    """Answers HTTP with what the replicas draw."""

    def __init__(self, settings: ServerSettings, size: tuple[int, int], replicas: DeploymentHandle) -> None:
        self._settings, self._size = settings, size
        self._metrics = ServerMetrics()
        self._backend = RayBackend(replicas, settings.retries, self._metrics.resent.inc)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._settings, self._size, self._backend, self._metrics)
        self._counted = app.state.counted
        return app

    async def drain(self) -> int:
        """Take no more requests for images; return when those in flight are answered, or the time for that is over.
        The number of images that are not drawn."""
        self._counted.is_stopping = True
        until = time.monotonic() + self._settings.drain_seconds
        while self._counted.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._counted.in_flight
