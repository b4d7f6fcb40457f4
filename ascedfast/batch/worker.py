# SPDX-License-Identifier: MIT
"""The worker that Ray Data gives shards of requests to."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ascedfast.batch.requests import Request
from ascedfast.batch.results import Folder
from ascedfast.calibration.table import NullTable

if TYPE_CHECKING:
    from ascedfast.batch.drawing import Artist

DEATHS = 3
"""Of workers, before what they did is taken for the cause."""
STOPPING = (MemoryError, OSError, RuntimeError, ValueError)
"""What no request is to blame for: a pipeline that cannot be loaded, a full disk, memory, a device. Told as a value:
of an exception Ray makes a page."""


@dataclass(frozen=True)
class Settings:
    """What all workers share. table: of sound runs. exact: a request's network calls are its own; else those of a shard
    that agree in their settings run as one batch. device: "cpu" or "cuda". workers: how many there are."""

    pipeline: Path
    out: Path
    table: NullTable | None
    exact: bool
    device: str
    workers: int


class Worker:
    """Draws shards with a pipeline that it loads once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Folder(settings.out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Args: batch: "shard": int [S]; "requests": JSON [S], each a list of [row, request]. Returns: "requests": int
        [S], how many each shard held; "stopped": str [S], "" or why the batch cannot go on. Writes the images, the
        masks and, last, the shards."""
        counts, stopped = [], []
        for shard, text in zip(batch["shard"], batch["requests"], strict=True):
            rows = [(row, Request.model_validate(request)) for row, request in json.loads(text)]
            counts.append(len(rows))
            try:
                self._finish(int(shard), rows)
            except STOPPING as error:
                stopped.append(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
            else:
                stopped.append("")
        return {"requests": np.array(counts), "stopped": np.array(stopped)}

    def _finish(self, shard: int, rows: list[tuple[int, Request]]) -> None:
        if self._folder.read_shard(shard) is None:  # after a worker's death Ray gives all its shards again
            self._folder.write_shard(shard, self._artist.draw(rows, self._settings.exact))

    # Not in __init__: a failure there would have Ray begin the worker anew. The driver needs no diffusers.
    @functools.cached_property
    def _artist(self) -> "Artist":
        from ascedfast.batch.drawing import Artist

        one = self._settings
        with self._folder.attempt("load") as others:
            if others >= one.workers + DEATHS:  # Ray would begin it anew for ever
                raise MemoryError(
                    f"workers died {DEATHS} times or more while they loaded {one.pipeline}: a smaller --num-workers "
                    "leaves each more memory"
                )
            return Artist(one.pipeline, one.device, one.table, self._folder)
