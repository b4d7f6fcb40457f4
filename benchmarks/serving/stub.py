# SPDX-License-Identifier: MIT
"""A server around a denoiser of under a millisecond: python -m benchmarks.serving.stub fast|slow SETTINGS.

What a request alone must give is computed here by a plain loop that shares no code with the server's sampler.
"""

import base64
import hashlib
import io
import logging
import sys
import time
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

import ascedfast
from ascedfast.adapters.schedules import schedule_of
from ascedfast.calibration.packaged import packaged_table

SHAPE = (3, 16, 16)
SHIFT = 3.0
PLACES = {"t_c": 4, "window_start": 0}
"""Where 6 steps are few: three predictions must precede the correction."""
SLOW = 0.25
"""Seconds of a slow step."""


def denoise_row(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The velocity [1, C, H, W] of one row, whose x0_hat wanders by its own values."""
    return x - torch.tanh(2.5 * x + torch.sin(t / 90.0 + 4 * x))


def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Row by row: what a row gives owes nothing to its batch."""
    return torch.cat([denoise_row(x[i : i + 1], t[i]) for i in range(len(x))])


def load(settings: Any) -> Any:
    """What ``ascedfast.server.model.load_model`` is for the packaged model."""
    from ascedfast.server.model import RowModel

    return RowModel(denoise, FlowMatchEulerDiscreteScheduler(shift=SHIFT), SHAPE)


def load_slow(settings: Any) -> Any:
    """The same model, with steps long enough to be looked at."""
    from ascedfast.server.model import RowModel

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time.sleep(SLOW)
        return denoise(x, t)

    return RowModel(network, FlowMatchEulerDiscreteScheduler(shift=SHIFT), SHAPE)


LOADS = {"fast": load, "slow": load_slow}


def alone(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What a request must be answered with, image by image: sha256, pixels, masks, and the values of the report."""
    asced = {"enabled": True, "report": "severity", "t_c": None, "window_start": None, **request.get("asced", {})}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    generator = torch.Generator().manual_seed(request["seed"])
    return [_alone(request, asced, draw, generator, scheduler) for draw in range(request.get("n", 1))]


def _alone(request, asced, draw, generator, scheduler) -> dict[str, Any]:
    x = torch.randn(1, *SHAPE, generator=generator)
    scheduler.set_timesteps(request["steps"])
    logging.getLogger("ascedfast").setLevel(logging.ERROR)  # runs of six steps are left alone by some modes
    run, row = None, None
    if asced["enabled"]:
        mode = asced.get("mode") or ("calibrated" if "rate" in asced else "fast")
        changes = {"t_c": asced["t_c"], "window_start": asced["window_start"]}
        if mode == "calibrated":
            changes |= {"table": packaged_table(), "rate": asced.get("rate", 0.05)}
        run = ascedfast.Engine()
        config = ascedfast.AscedConfig.for_mode(mode, **changes)
        row = run.add(schedule_of(scheduler), config, seed=request["seed"], draw=draw)
    for t in scheduler.timesteps:
        m = denoise_row(x, t)
        if run is not None:
            run.observe(x, m)
        x = scheduler.step(m, t, x, return_dict=False)[0]
        if run is not None:
            run.correct_(x)
    report = None if run is None else run.remove(row)
    return {
        "draw": draw,
        "sha256": hashlib.sha256(x[0].numpy().tobytes()).hexdigest(),
        "pixels": ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy(),
        "asced": None if report is None or asced["report"] == "none" else _values(report, asced["report"] == "masks"),
    }


def _values(report: ascedfast.RowReport, masks: bool) -> dict[str, Any]:
    known = report.severity != "unavailable"
    return {
        "status": report.status,
        "reason": report.reason,
        "severity": report.severity if known else None,
        "area": report.area if known else None,
        "p_value": report.p_value,
        "t_c": None if report.plan.reason else report.plan.t_c,
        "mask": None if report.mask is None or not masks else report.mask.numpy(),
        "mask_grown": None if report.mask is None or not masks else report.mask_grown.numpy(),
    }


def decode(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def differences(answer: dict[str, Any], wanted: list[dict[str, Any]]) -> list[str]:
    """Names of what differs between an answer's ``data`` and what ``alone`` gives; empty where all bits agree."""
    found = [] if len(answer["data"]) == len(wanted) else ["n"]
    for image, one in zip(answer["data"], wanted, strict=False):
        found += [name for name in ("draw", "sha256") if image[name] != one[name]]
        found += ["pixels"] * (not np.array_equal(decode(image["b64_json"]), one["pixels"]))
        if (image["asced"] is None) != (one["asced"] is None):
            found.append("asced")
        for name, value in (one["asced"] or {}).items():
            told = (image["asced"] or {}).get(name)
            if name.startswith("mask") and value is not None:
                same = told is not None and np.array_equal(decode(told) > 0, value)
            else:
                same = told == value
            found += [] if same else [name]
    return found


if __name__ == "__main__":
    from ascedfast.server.ray_environment import set_ray_environment

    set_ray_environment()
    from ascedfast.server.settings import ServerSettings
    from ascedfast.server.start import serve_until_told

    sys.exit(serve_until_told(ServerSettings.model_validate_json(sys.argv[-1]), SHAPE[1:], LOADS[sys.argv[1]]) > 0)
