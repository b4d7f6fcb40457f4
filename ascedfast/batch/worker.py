# SPDX-License-Identifier: MIT
"""A worker of Ray Data: it loads the pipeline once and draws shards of requests."""

import functools
import inspect
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ascedfast.adapters.diffusers import asced
from ascedfast.adapters.pipeline_folder import call_arguments, images_of, load_pipeline
from ascedfast.batch.requests import Request
from ascedfast.batch.results import Folder
from ascedfast.calibration.table import NullTable
from ascedfast.report import UNAVAILABLE, Report

GREY = {"grown": 128, "found": 255}
"""Of a mask's picture: what was re-noised, and the regions found in it; the rest is 0."""
OF_THE_REQUEST = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a pipeline raises for settings that it cannot run. Others (memory, a device, a disk) stop the batch."""


@dataclass(frozen=True)
class Settings:
    """What all workers share. table: of sound runs. exact: a request's network calls are its own; else those of a shard
    that agree in their settings run as one batch. device: "cpu" or "cuda"."""

    pipeline: Path
    out: Path
    table: NullTable | None
    exact: bool
    device: str


class Worker:
    """Draws shards; called by Ray Data with a batch of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Folder(settings.out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Args: batch: "shard": int [S]; "requests": JSON [S], each a list of [row, request]. Returns: "requests": int
        [S], how many each shard held. Writes the images, the masks and, last, the shards."""
        counts = []
        for shard, text in zip(batch["shard"], batch["requests"], strict=True):
            rows = [(row, Request.model_validate(request)) for row, request in json.loads(text)]
            counts.append(len(rows))
            if self._folder.read_shard(int(shard)) is None:  # after a worker's death Ray gives all its shards again
                told = {row: one for group in self._groups(rows) for row, one in self._draw(group).items()}
                self._folder.write_shard(int(shard), [told[row] for row, _ in rows])
        return {"requests": np.array(counts)}

    # Not in __init__: an error of the first call reaches the driver as it is.
    @functools.cached_property
    def _pipe(self) -> DiffusionPipeline:
        if self._settings.device == "cpu":
            torch.set_num_threads(1)  # sums depend on the number; cores are used by the number of workers
        pipe = load_pipeline(self._settings.pipeline, self._settings.device)
        call_arguments(pipe, n=1, steps=1, prompt="" if _takes_prompt(pipe) else None, seeds=[0])
        return pipe

    def _groups(self, rows: Sequence[tuple[int, Request]]) -> list[list[tuple[int, Request]]]:
        """What is drawn by one call of the pipeline."""
        if self._settings.exact:
            return [[one] for one in rows]
        groups: dict[tuple, list[tuple[int, Request]]] = {}
        for row, one in rows:
            key = (one.steps, one.asced, one.mode, one.rate, one.prompt is None)
            groups.setdefault(key, []).append((row, one))
        return list(groups.values())

    def _draw(self, group: list[tuple[int, Request]]) -> dict[int, dict[str, Any]]:
        """Draw requests of the same settings and write their images; what is told of each, by its row."""
        first, seeds = group[0][1], [one.seed for _, one in group]
        if _takes_prompt(self._pipe) != (first.prompt is not None):
            name = type(self._pipe).__name__
            error = f"prompt: {name} takes none" if first.prompt is not None else f"prompt: {name} needs one"
            return _failed(group, error)
        arguments = call_arguments(self._pipe, n=len(group), steps=first.steps, prompt=first.prompt, seeds=seeds)
        if first.prompt is not None:
            arguments["prompt"] = [one.prompt for _, one in group]
        config = first.config(self._settings.table)
        watched = nullcontext() if config is None else asced(self._pipe, config, seeds=seeds)
        try:
            with watched as handle:
                output = self._pipe(**arguments)
        except OF_THE_REQUEST as error:
            return _failed(group, f"{type(error).__name__}: {str(error)[:500]}")
        images, report = images_of(output), None if handle is None else handle.report
        return {
            row: {
                "row": row,
                "id": one.id,
                "image": self._folder.write_image("images", one.id, images[i]),
                **self._told(one, report, i),
            }
            for i, (row, one) in enumerate(group)
        }

    def _told(self, request: Request, report: Report | None, i: int) -> dict[str, Any]:
        """Of the i-th row of a report, what the request asked for."""
        if report is None:
            return {"status": "off"}
        if request.report == "none":
            return {"status": "done"}
        row = report[i]
        told: dict[str, Any] = {"status": row.status, "reason": row.reason}
        if row.severity != UNAVAILABLE:
            told |= {"severity": row.severity, "area": row.area}
        if row.broken_after:
            told["reason"] = "NaN or Inf after the correction"
        if request.report == "masks" and row.mask is not None:
            mask = torch.zeros(report.masks_image().shape[-2:], dtype=torch.uint8)
            mask[report.masks_image(grown=True)[i, 0].cpu()] = GREY["grown"]
            mask[report.masks_image()[i, 0].cpu()] = GREY["found"]
            told["mask"] = self._folder.write_image("masks", request.id, Image.fromarray(mask.numpy()))
        return told


def _takes_prompt(pipe: DiffusionPipeline) -> bool:
    return "prompt" in inspect.signature(type(pipe).__call__).parameters


def _failed(group: list[tuple[int, Request]], error: str) -> dict[int, dict[str, Any]]:
    return {row: {"row": row, "id": one.id, "status": "failed", "error": error} for row, one in group}
