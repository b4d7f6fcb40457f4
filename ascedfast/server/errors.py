# SPDX-License-Identifier: MIT
"""What a client is told when it gets no image: never more than what is wrong, and what to do."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ascedfast.server.schema import ErrorBody, ErrorResponse
from ascedfast.server.settings import ServerSettings

logger = logging.getLogger("ascedfast.server")
SEE = "GET /openapi.json describes what is taken"


class RefusedError(ValueError):
    """A request that cannot be run as it is; the text says what to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


class BusyError(RuntimeError):
    """The queue is full."""


class StoppingError(RuntimeError):
    """The server ends what it has begun and takes nothing more."""


class LostError(RuntimeError):
    """No replica could run the request to its end."""


def error_response(
    status: int, message: str, kind: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=None))
    return JSONResponse(body.model_dump(), status, headers)


def told(error: Exception, settings: ServerSettings) -> tuple[int, str, str, str | None]:
    """Status, message, kind and parameter of what went wrong with a request."""
    again = f"try again in {settings.retry_after} s or later"
    if isinstance(error, RefusedError):
        return 422, error.message, "invalid_request_error", error.param
    if isinstance(error, BusyError):
        return 429, f"the queue is full: {again}", "rate_limit_error", None
    if isinstance(error, TimeoutError):
        limit = f"the request took longer than {settings.request_seconds:g} s"
        return 504, f"{limit}: ask for fewer steps or images, or at a quieter time", "timeout_error", None
    if isinstance(error, StoppingError):
        return 503, f"the server is about to stop: {again}", "server_error", None
    if isinstance(error, LostError):
        return 503, f"the server lost what it was drawing: {again}", "server_error", None
    logger.error("a request failed", exc_info=error)
    return 500, "the server failed at this request; its log says why", "server_error", None


def add_handlers(app: FastAPI, settings: ServerSettings, refused: Callable[[Request, int], None]) -> None:
    """Answer all errors of the app's routes in OpenAI's form.

    Args: refused: called with the status where a request did not reach its route's function.
    """

    def failed(request: Request, error: Exception) -> JSONResponse:
        status, message, kind, param = told(error, settings)
        headers = {"Retry-After": str(settings.retry_after)} if status in (429, 503) else None
        return error_response(status, message, kind, param=param, headers=headers)

    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = _in_words(error.errors())
        status = 400 if _is_unreadable(error.errors()[0]) else 422
        refused(request, status)
        return error_response(status, message, "invalid_request_error", param=param)

    def http(request: Request, error: HTTPException) -> JSONResponse:
        refused(request, error.status_code)
        return error_response(error.status_code, _http_message(error), "invalid_request_error", headers=error.headers)

    for kind in (RefusedError, BusyError, TimeoutError, StoppingError, LostError, Exception):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _in_words(errors: list[dict[str, Any]]) -> tuple[str, str | None]:
    """The first faults of a body, and the field of the first; nothing of what the client sent is repeated but names."""
    parts = []
    for error in errors[:3]:
        names = [str(part)[:40] for part in error["loc"] if part != "body"]
        place = ".".join(names) if names and not _is_unreadable(error) else "the body"
        parts.append(f"{place}: {_what(error)}")
    more = f", and {len(errors) - 3} more" if len(errors) > 3 else ""
    names = [str(part) for part in errors[0]["loc"] if part != "body"]
    is_field = bool(names) and not _is_unreadable(errors[0])
    return f"{'; '.join(parts)}{more}. {SEE}", ".".join(names)[:200] if is_field else None


def _is_unreadable(error: dict[str, Any]) -> bool:
    return error["type"] == "json_invalid"


def _what(error: dict[str, Any]) -> str:
    if _is_unreadable(error):
        return "this is no JSON; send an object such as {}"
    if error["type"] == "extra_forbidden":
        return "there is no such field: leave it out"
    return error["msg"][:200]


def _http_message(error: HTTPException) -> str:
    advice = {
        401: "send the header Authorization: Bearer followed by the server's token",
        404: "there is nothing here: images are asked for with POST /v1/images/generations",
        405: f"this path takes {(error.headers or {}).get('Allow', 'another method')}",
    }
    return advice.get(error.status_code, str(error.detail)[:200])
