# SPDX-License-Identifier: MIT
"""How long a body may take to arrive."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyTime:
    """ASGI middleware: raises an HTTPException 408 in whoever reads a body that is not there after ``seconds``."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until, is_read = time.monotonic() + self._seconds, False

        async def in_time() -> Message:
            nonlocal is_read
            if is_read:  # what comes now is the client's leaving, for which there is no hurry
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                is_read = True
                raise HTTPException(408) from None
            is_read = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self._app(scope, in_time, send)
