# SPDX-License-Identifier: MIT
"""A model and its sampler in one process: what Ray Serve makes replicas of."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from prometheus_client.core import Metric

from ascedfast.server.encode import image_of
from ascedfast.server.errors import RefusedError
from ascedfast.server.metrics import ReplicaMetrics
from ascedfast.server.model import RowModel, load_model, load_null_table
from ascedfast.server.sampler import Drawn, Order, Sampler
from ascedfast.server.schema import ImageRequest
from ascedfast.server.settings import ServerSettings
from ascedfast.server.stepper import Stepper

Load = Callable[[ServerSettings], RowModel]


class Replica:
    """Draws the images of any number of requests at once.

    Args: load: makes the model from the settings.
    Raises: FolderError, OSError, ValueError where there is no such model or table.
    """

    def __init__(self, settings: ServerSettings, load: Load = load_model) -> None:
        torch.set_num_threads(settings.threads)
        self._name = uuid.uuid4().hex[:8]
        self._table = load_null_table(settings)
        self._metrics = ReplicaMetrics(settings.max_rows)
        limits = {"max_steps": settings.max_steps, "modes": settings.modes}
        sampler = Sampler(load(settings), settings.max_rows, self._metrics.stepped, **limits)
        self._metrics.running.set_function(lambda: sampler.running)
        self._metrics.waiting.set_function(lambda: sampler.waiting)
        self._stepper = Stepper(sampler)

    async def draw(self, request: ImageRequest) -> list[dict[str, Any]]:
        """The ``data`` of an answer. Its rows are given up when the caller leaves.

        Args: request: with a seed. Raises: RefusedError.
        """
        ticket = _Ticket(told=False)
        order = self._order(request, ticket)
        try:
            return await self._images(await ticket.result, request)
        finally:
            self._stepper.cancel(order)

    async def draw_in_steps(self, request: ImageRequest) -> AsyncIterator[int | list[dict[str, Any]]]:
        """As ``draw``, but yields the number of each step before the answer."""
        ticket = _Ticket(told=True)
        order = self._order(request, ticket)
        try:
            while (step := await ticket.steps.get()) is not None:
                yield step
            yield await self._images(await ticket.result, request)
        finally:
            self._stepper.cancel(order)

    async def metrics(self) -> tuple[str, list[Metric]]:
        """A name for this replica, and its counts."""
        return self._name, self._metrics.families()

    async def ping(self) -> bool:
        """Answers when the model is loaded."""
        return True

    def check_health(self) -> None:
        """Ray Serve calls this, and replaces a replica where it raises."""
        if not self._stepper.is_alive:
            raise RuntimeError("the thread that steps has ended")

    def close(self) -> None:
        self._stepper.stop()

    def _order(self, request: ImageRequest, ticket: "_Ticket") -> Order:
        try:
            config = request.asced.config(self._table)
            order = Order(request.seed, request.n, request.steps, config, request.asced.exact, ticket)
            self._stepper.order(order)
        except ValueError as error:
            raise RefusedError(str(error), "asced") from None
        return order

    async def _images(self, images: list[Drawn], request: ImageRequest) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._encode, images, request)

    def _encode(self, images: list[Drawn], request: ImageRequest) -> list[dict[str, Any]]:
        report = request.asced.report
        self._metrics.drew([image.report for image in images])
        entries = [image_of(image, request.seed, draw, report) for draw, image in enumerate(images)]
        return [entry.model_dump() for entry in entries]


class _Ticket:
    """Carries a sampler's calls from its thread into the loop of the request."""

    def __init__(self, *, told: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = told
        self.steps: asyncio.Queue[int | None] = asyncio.Queue()
        self.result: asyncio.Future[list[Drawn]] = self._loop.create_future()

    def progressed(self, step: int) -> None:
        if self._told:
            self._loop.call_soon_threadsafe(self.steps.put_nowait, step)

    def finished(self, images: list[Drawn]) -> None:
        self._loop.call_soon_threadsafe(self._end, images, None)

    def failed(self, error: Exception) -> None:
        told = RefusedError(str(error), "asced") if isinstance(error, ValueError) else error
        self._loop.call_soon_threadsafe(self._end, None, told)

    def _end(self, images: list[Drawn] | None, error: Exception | None) -> None:
        if not self.result.done():  # the request may have been cancelled meanwhile
            if error is None:
                self.result.set_result(images)
            else:
                self.result.set_exception(error)
        self.steps.put_nowait(None)
