# SPDX-License-Identifier: MIT
"""The images API: one answer, or server-sent events of the steps and then the answer."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ascedfast.server.backend import Backend, Data
from ascedfast.server.errors import BusyError, StoppingError, told
from ascedfast.server.metrics import ServerMetrics
from ascedfast.server.schema import (
    MOST_SEED,
    ErrorBody,
    ErrorResponse,
    ImageRequest,
    ImagesResponse,
    Model,
    ModelList,
    Progress,
)
from ascedfast.server.served import request_class
from ascedfast.server.settings import ServerSettings

REFUSALS = {
    400: "The request cannot be read.",
    401: "The token is missing or wrong.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    422: "A field is wrong, or fields contradict each other.",
    429: "The queue is full.",
    500: "The server failed.",
    503: "The server is about to stop, or lost its replica.",
    504: "The request took too long.",
}


PATH = "/v1/images/generations"
UNKNOWN = {401: {"model": ErrorResponse, "description": REFUSALS[401]}}
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "completed", "error"]},
        "data": {"type": "string", "description": "JSON: Progress, ImagesResponse or ErrorResponse."},
    },
    "required": ["event", "data"],
}


class Counted:
    """Images in flight, and whether more are taken."""

    def __init__(self, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self.in_flight, self.is_stopping = 0, False

    @contextlib.contextmanager
    def one(self, images: int) -> Iterator[None]:
        """Around a request for that many. Raises: BusyError, StoppingError when it is not taken."""
        started, code = time.perf_counter(), 200
        try:
            with self._taken(images):
                yield
        except Exception as error:
            code = told(error, self._settings)[0]
            raise
        except BaseException:  # cancelled, because the client has left
            code = 499
            raise
        finally:
            self._metrics.requests.labels(code).inc()
            self._metrics.seconds.observe(time.perf_counter() - started)

    def refused(self, request: Request, status: int) -> None:
        """Count a request for images that was answered before ``one``; others are not counted."""
        if (request.method, request.scope["path"]) == ("POST", PATH):
            self._metrics.requests.labels(status).inc()

    @contextlib.contextmanager
    def _taken(self, images: int) -> Iterator[None]:
        if self.is_stopping:
            raise StoppingError
        if self.in_flight + images > self._settings.in_flight:
            raise BusyError
        self.in_flight += images
        self._metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= images
            self._metrics.in_flight.set(self.in_flight)


def images_router(settings: ServerSettings, size: tuple[int, int], backend: Backend, counted: Counted) -> APIRouter:
    """Args: size: (height, width) of the model's images."""
    router = APIRouter(tags=["images"])
    began = int(time.time())
    taken = request_class(settings, size)

    def answer(request: ImageRequest, data: Data) -> ImagesResponse:
        return ImagesResponse(
            created=int(time.time()), model=settings.name, size=f"{size[1]}x{size[0]}", steps=request.steps, data=data
        )

    @router.post(
        PATH,
        response_model=ImagesResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": EVENT}}},
            **{code: {"model": ErrorResponse, "description": text} for code, text in REFUSALS.items()},
        },
    )
    async def generate(
        request: Annotated[taken, Body()], accept: Annotated[str, Header(include_in_schema=False)] = ""
    ) -> Any:
        """Draw images, and repair what turns into artifacts while they are drawn."""
        seed = secrets.randbelow(MOST_SEED + 1) if request.seed is None else request.seed  # one for every sending
        request = ImageRequest.model_validate({**request.model_dump(), "seed": seed, "asced": request.asced})
        if not request.stream and "text/event-stream" not in accept:
            with counted.one(request.n):
                async with asyncio.timeout(settings.request_seconds):
                    whole = answer(request, await backend.draw(request))
                    return Response(whole.model_dump_json(), media_type="application/json")
        events = _events(request)
        first = await anext(events)  # what is refused before the first step gets its own status
        return EventSourceResponse(_with(first, events), headers={"Cache-Control": "no-store"})

    async def _events(request: ImageRequest) -> AsyncIterator[bytes]:
        until, begun = time.monotonic() + settings.request_seconds, False
        try:
            with counted.one(request.n):
                async with contextlib.aclosing(backend.draw_in_steps(request)) as steps:
                    while True:
                        one = await asyncio.wait_for(anext(steps), until - time.monotonic())
                        begun = True
                        if not isinstance(one, int):
                            yield _event("completed", answer(request, one))
                            return
                        yield _event("progress", Progress(step=one, steps=request.steps))
        except Exception as error:
            if not begun:
                raise
            _, message, kind, param = told(error, settings)
            yield _event("error", ErrorResponse(error=ErrorBody(message=message, type=kind, param=param)))

    @router.get("/v1/models", responses=UNKNOWN)
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[Model(id=settings.name, created=began, owned_by="local")])

    return router


def _event(name: str, data: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json())


async def _with(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(rest):
        yield first
        async for one in rest:
            yield one
