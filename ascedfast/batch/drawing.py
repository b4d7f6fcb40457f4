# SPDX-License-Identifier: MIT
"""Requests drawn by a pipeline, and what is told of each."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ascedfast.adapters.diffusers import asced
from ascedfast.adapters.pipeline_folder import call_arguments, images_of, load_pipeline
from ascedfast.batch.requests import Request
from ascedfast.batch.results import Folder
from ascedfast.batch.worker import DEATHS
from ascedfast.calibration.table import NullTable
from ascedfast.report import UNAVAILABLE, Report

GREY = {"grown": 128, "found": 255}
"""Of a mask's picture: what was re-noised, and the regions found in it; the rest is 0."""
OF_THE_REQUEST = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a pipeline raises for settings that it cannot run. Others (memory, a device, a disk) stop the batch."""

Rows = Sequence[tuple[int, Request]]
"""Requests, each with its place in the table."""


class Artist:
    """Draws requests with one pipeline and writes their images and masks.

    Raises: FolderError for a folder that is no pipeline that can be drawn with.
    """

    def __init__(self, pipeline: Path, device: str, table: NullTable | None, folder: Folder) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # sums depend on the number; cores are used by the number of workers
        self._pipe, self._table, self._folder = load_pipeline(pipeline, device), table, folder
        self._name = type(self._pipe).__name__
        self._takes_prompt = "prompt" in inspect.signature(type(self._pipe).__call__).parameters
        call_arguments(self._pipe, n=1, steps=1, prompt="" if self._takes_prompt else None, seeds=[0])

    def draw(self, rows: Rows, exact: bool) -> list[dict[str, Any]]:
        """What is told of each, as ``results.SCHEMA`` has it. exact: one call of the pipeline a request; else one for
        all of the same settings."""
        groups: dict[Any, list[tuple[int, Request]]] = {}
        for row, one in rows:
            key = row if exact else (one.steps, one.asced, one.mode, one.rate, one.prompt is None)
            groups.setdefault(key, []).append((row, one))
        told = {row: {"row": row, "id": one.id} for row, one in rows}
        for group in groups.values():
            requests = [one for _, one in group]
            with self._folder.attempt(f"row-{group[0][0]}") as deaths:
                drawn = self._together(requests) if deaths < DEATHS else _failed(requests, f"killed {deaths} workers")
            for (row, _), more in zip(group, drawn, strict=True):
                told[row] |= more
        return list(told.values())

    def _together(self, requests: list[Request]) -> list[dict[str, Any]]:
        """One call for requests of the same settings."""
        first, seeds = requests[0], [one.seed for one in requests]
        if self._takes_prompt != (first.prompt is not None):
            words = "needs one" if self._takes_prompt else "takes none"
            return _failed(requests, f"prompt: a {self._name} {words}")
        arguments = call_arguments(self._pipe, n=len(seeds), steps=first.steps, prompt=first.prompt, seeds=seeds)
        if first.prompt is not None:
            arguments["prompt"] = [one.prompt for one in requests]
        config = first.config(self._table)
        watched = nullcontext() if config is None else asced(self._pipe, config, seeds=seeds)
        try:
            with watched as handle:
                output = self._pipe(**arguments)
        except OF_THE_REQUEST as error:
            return _failed(requests, f"{type(error).__name__}: {str(error)[:500]}")
        report = None if handle is None else handle.report
        return [
            {"image": self._folder.write_image("images", one.id, image), **self._told(one, report, i)}
            for i, (one, image) in enumerate(zip(requests, images_of(output), strict=True))
        ]

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


def _failed(requests: list[Request], error: str) -> list[dict[str, Any]]:
    return [{"status": "failed", "error": error}] * len(requests)
