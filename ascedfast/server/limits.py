# SPDX-License-Identifier: MIT
"""How large a body may be and how long it may take to arrive, refused in words."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimits:
    """ASGI middleware. Whoever reads a body gets an HTTPException 413 where it has more than ``most`` bytes, 408 where
    it is not there after ``seconds``."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _Limited(receive, Headers(scope=scope), self._most, time.monotonic() + self._seconds)
        await self._app(scope, receive, send)


class _Limited:
    def __init__(self, receive: Receive, headers: Headers, most: int, until: float) -> None:
        self._receive, self._most, self._until = receive, most, until
        said = headers.get("content-length", "")
        self._left = -1 if said.isdecimal() and len(said) < 20 and int(said) > most else most
        self._is_read = False

    async def __call__(self) -> Message:
        if self._is_read:  # what comes now is the client's leaving, for which there is no hurry
            return await self._receive()
        if self._left >= 0:
            message = await self._in_time()
            self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._is_read = True
            raise HTTPException(413, f"the body is larger than {self._most} bytes: send the request's fields only")
        self._is_read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _in_time(self) -> Message:
        try:
            return await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except TimeoutError:
            self._is_read = True
            raise HTTPException(408, "the body came too slowly: send it at once") from None
