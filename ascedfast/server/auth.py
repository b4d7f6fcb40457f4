# SPDX-License-Identifier: MIT
"""Who may ask, where the settings name a token."""

import secrets
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.exceptions import HTTPException

BEARER = HTTPBearer(auto_error=False, description="The token that the server was started with.")


def bearer_check(token: SecretStr) -> Callable[..., None]:
    """A dependency that raises an HTTPException 401 without the token."""
    wanted = token.get_secret_value().encode()

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), wanted):
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})

    return check
