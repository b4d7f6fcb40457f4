# SPDX-License-Identifier: MIT
"""Who may ask: whoever has the token, or where the settings name none, this machine."""

import re
import secrets
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ["127.0.0.1", "localhost", "[::1]"]
"""Names of this machine. Where no token is asked for, a page elsewhere must not reach the server under its own name."""
PORT = re.compile(r":[0-9]*\Z")
BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with.")


def bearer_check(token: SecretStr) -> Callable[..., None]:
    """A dependency that raises an HTTPException 401 without the token."""
    wanted = token.get_secret_value().encode()

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), wanted):
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})

    return check


class HostCheck:
    """ASGI middleware: what is asked under other names than LOCAL and ``host`` is answered 400, in the app's form."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = dict.fromkeys([*LOCAL, f"[{host}]" if ":" in host else host])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and PORT.sub("", Headers(scope=scope).get("host", "").lower()) not in self._names:
            error = HTTPException(400, f"this server is asked as {', '.join(self._names)} only, unless it has a token")
            app = scope["app"].exception_handlers[HTTPException](Request(scope), error)
        await app(scope, receive, send)
