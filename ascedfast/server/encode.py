# SPDX-License-Identifier: MIT
"""What was drawn, as a client gets it: the host reads from the device here, when a request is done, nowhere else."""

import base64
import hashlib
import io

import numpy as np
from PIL import Image as Picture
from torch import Tensor

from ascedfast.report import RowReport
from ascedfast.server.sampler import Drawn
from ascedfast.server.schema import Found, Image


def image_of(drawn: Drawn, seed: int, draw: int, report: str) -> Image:
    """One entry of ``data``. Args: report: of the request."""
    x = drawn.x.float().cpu()
    pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    found = None
    if drawn.report is not None and report != "none":
        found = found_in(drawn.report, masks=report == "masks")
    digest = hashlib.sha256(x.contiguous().numpy().astype("<f4").tobytes()).hexdigest()
    return Image(b64_json=png(pixels), seed=seed, draw=draw, sha256=digest, asced=found)


def found_in(row: RowReport, *, masks: bool) -> Found:
    """The report of a row; with its masks, where there are any."""
    known = not isinstance(row.severity, str)
    return Found(
        status=row.status,
        reason=row.reason,
        severity=row.severity if known else None,
        area=row.area if known else None,
        p_value=row.p_value,
        t_c=None if row.plan.reason else row.plan.t_c,
        mask=mask_png(row.mask) if masks else None,
        mask_grown=mask_png(row.mask_grown) if masks else None,
    )


def mask_png(mask: Tensor | None) -> str | None:
    return None if mask is None else png(mask.cpu().numpy().astype(np.uint8) * 255)


def png(pixels: np.ndarray) -> str:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] as a PNG in base64."""
    file = io.BytesIO()
    Picture.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
