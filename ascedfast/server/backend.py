# SPDX-License-Identifier: MIT
"""Who draws, as the HTTP side sees it: the replicas behind a handle of Ray Serve."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from prometheus_client.core import Metric
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ascedfast.server.errors import LostError, RefusedError
from ascedfast.server.schema import ImageRequest

Data = list[dict[str, Any]]
DIED = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)
PATIENCE = 3
"""Seconds for all replicas to say how they are."""
PAUSE = 0.2
"""Seconds before a request is sent again: Ray Serve has then noticed that the replica is gone."""


class Backend(Protocol):
    async def draw(self, request: ImageRequest) -> Data:
        """The ``data`` of an answer. Raises: RefusedError, LostError."""

    def draw_in_steps(self, request: ImageRequest) -> AsyncIterator[int | Data]:
        """As ``draw``, with the number of each step before it."""

    async def metrics(self) -> dict[str, list[Metric]]:
        """Of every replica that answers at once, by its name."""

    async def is_ready(self) -> bool:
        """Whether a replica can draw."""


class RayBackend:
    """Sends a request again when its replica has died: an image depends on its request alone.

    Args: resent: called each time. retries: how often at most, for one request.
    """

    def __init__(self, handle: DeploymentHandle, retries: int, resent: Callable[[], None]) -> None:
        self._handle, self._retries, self._resent = handle, retries, resent

    async def draw(self, request: ImageRequest) -> Data:
        for _ in range(self._retries + 1):
            response = self._handle.draw.remote(request)
            try:
                return await response
            except DIED:
                self._resent()
                await asyncio.sleep(PAUSE)
            except asyncio.CancelledError:
                response.cancel()
                raise
            except RayTaskError as error:
                raise _cause(error) from None
        raise LostError

    async def draw_in_steps(self, request: ImageRequest) -> AsyncIterator[int | Data]:
        told = 0
        for _ in range(self._retries + 1):
            responses = self._handle.options(stream=True).draw_in_steps.remote(request)
            try:
                async for one in responses:
                    if isinstance(one, int) and one <= told:
                        continue  # told before the replica died
                    told = one if isinstance(one, int) else told
                    yield one
                return
            except DIED:
                self._resent()
                await asyncio.sleep(PAUSE)
            except (asyncio.CancelledError, GeneratorExit):
                responses.cancel()
                raise
            except RayTaskError as error:
                raise _cause(error) from None
        raise LostError

    async def metrics(self) -> dict[str, list[Metric]]:
        return dict(answer for answer in await self._ask_all("metrics") if isinstance(answer, tuple))

    async def is_ready(self) -> bool:
        return any(answer is True for answer in await self._ask_all("ping"))

    async def _ask_all(self, method: str) -> list[Any]:
        try:
            return await self._handle.broadcast(method).results_async(timeout_s=PATIENCE, return_exceptions=True)
        except (TimeoutError, RuntimeError, RayServeException):  # no replica has begun, or one does not answer
            return []


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, RefusedError) else error
