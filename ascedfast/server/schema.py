# SPDX-License-Identifier: MIT
"""What clients send and get: OpenAI's images API, and an object ``asced`` in both."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ascedfast.calibration.table import NullTable
from ascedfast.config import AscedConfig

MOST_SEED = (1 << 63) - 1
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
Share = Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)]
Place = Annotated[int, Field(ge=0, le=10_000)] | Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Asced(BaseModel):
    """How artifacts are found and repaired in the images of one request."""

    model_config = STRICT

    enabled: bool = Field(True, description="False: the stock sampler's images.")
    mode: Literal["fast", "official", "paper", "calibrated"] | None = Field(
        None, description="Default: calibrated where a rate is given, else fast."
    )
    rate: Share | None = Field(None, description="Share of sound images that may be flagged; mode calibrated.")
    report: Literal["none", "severity", "masks"] = Field("severity", description="What is told of each image.")
    exact: bool = Field(
        False, description="Evaluate the network for each image alone: slower, the bits owe nothing to the batch."
    )
    t_c: Place | None = Field(None, description="Correct after this many steps, or this share of them.")
    window_start: Place | None = Field(None, description="First step that is watched, or that share of them.")

    def config(self, table: NullTable | None) -> AscedConfig | None:
        """The settings; None where nothing is to be watched. Raises: ValueError where they contradict each other."""
        if not self.enabled:
            return None
        mode = self.mode or ("fast" if self.rate is None else "calibrated")
        changes = {"t_c": self.t_c, "window_start": self.window_start}
        if mode == "calibrated":
            changes |= {"table": table, "rate": 0.05 if self.rate is None else self.rate}
        elif self.rate is not None:
            raise ValueError(f"asced.rate is mode calibrated's: leave it out, or mode {mode}")
        return AscedConfig.for_mode(mode, **changes)


class ImageRequest(BaseModel):
    """What is drawn. A server narrows the first fields to its model and limits (``served.request_class``)."""

    model_config = STRICT

    prompt: str = ""
    model: str | None = None
    n: int = 1
    size: str = "auto"
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="Default: drawn, and told in the answer.")
    steps: int = 25
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: bool = Field(False, description="Answer with server-sent events: progress, then completed or error.")
    user: str | None = Field(None, max_length=200, description="Taken as OpenAI's clients send it; not used, not kept.")
    asced: Asced = Asced()


class Found(BaseModel):
    """What was found in one image (``ascedfast.RowReport``)."""

    status: str = Field(description="corrected, clean, observed, unavailable, not finite or off.")
    reason: str | None = Field(description="Why there is no severity.")
    severity: float | None
    area: float | None = Field(description="Share of the image inside the mask; null without a severity.")
    p_value: float | None = Field(description="Mode calibrated: the share of sound images at least as severe.")
    t_c: int | None = Field(description="Steps after which it was corrected.")
    mask: str | None = Field(None, description="report masks: PNG in base64, white where something was found.")
    mask_grown: str | None = Field(None, description="report masks: the same, as it was re-noised.")


class Image(BaseModel):
    b64_json: str = Field(description="PNG in base64.")
    seed: int
    draw: int = Field(description="Number of the image in its request; seed and draw repeat it.")
    sha256: str = Field(
        description="Of the pixels before they were rounded: float32 [C, H, W], little-endian, -1 to 1."
    )
    asced: Found | None = None


class ImagesResponse(BaseModel):
    created: int = Field(description="Unix time in seconds.")
    model: str
    size: str
    steps: int
    output_format: Literal["png"] = "png"
    data: list[Image]


class Progress(BaseModel):
    """Data of the event ``progress``."""

    step: int = Field(description="Steps that every image of the request has taken.")
    steps: int


class ErrorBody(BaseModel):
    message: str = Field(description="What is wrong, and what to do.")
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
