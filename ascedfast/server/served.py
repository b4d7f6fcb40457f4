# SPDX-License-Identifier: MIT
"""What one server takes: the request of ``schema`` narrowed to its model and its limits, for checks and OpenAPI."""

from typing import Literal

from pydantic import Field, create_model

from ascedfast.server.schema import ImageRequest
from ascedfast.server.settings import ServerSettings


def request_class(settings: ServerSettings, size: tuple[int, int]) -> type[ImageRequest]:
    """Args: size: (height, width) of the model's images."""
    height, width = size
    drawn = f"{width}x{height}"
    return create_model(
        "ImageRequest",
        __base__=ImageRequest,
        __doc__=ImageRequest.__doc__,
        prompt=(Literal[""], Field("", description="The served model takes none: leave it out, or empty.")),
        model=(Literal[settings.name] | None, Field(None, description="Default: the one that is served.")),
        n=(int, Field(1, ge=1, le=settings.max_n, description="Number of images.")),
        size=(Literal["auto", drawn], Field("auto", description="WIDTHxHEIGHT; the model draws one size.")),
        steps=(int, Field(min(25, settings.max_steps), ge=1, le=settings.max_steps, description="Solver steps.")),
    )
