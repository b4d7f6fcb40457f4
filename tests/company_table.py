# SPDX-License-Identifier: MIT
"""What skipped steps do to the masks, by treatment: the rows of the table in ``docs/company.md``, printed."""

import contextlib
import logging
from unittest import mock

import company
import torch
from diffusers import FirstBlockCacheConfig

from ascedfast import enable_asced
from ascedfast.adapters import caches
from ascedfast.rows import Row

THRESHOLDS = {"few skips": (0.22, 0.24, 0.26, 0.28, 0.30, 0.32, 0.34), "most skipped": (0.36, 0.40, 0.44, 0.48)}


def unseen(pipe: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


TREATMENTS = {
    "none": lambda: mock.patch.object(caches, "watched", unseen),
    "window fixed": lambda: mock.patch.object(Row, "opens", property(lambda row: row.plan.start)),
    "as built": contextlib.nullcontext,
}


def row_of(thresholds: tuple[float, ...]) -> str:
    square = torch.zeros(company.GRID, dtype=torch.bool)
    square[company.SQUARE] = True
    runs = judged = found = outside = 0
    for threshold in thresholds:
        for seed in (3, 4, 5):
            made = company.flux()
            made.seed = seed
            made.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
            handle = enable_asced(made.pipe)
            made()
            runs += 1
            if handle.report[0].status != "unavailable":
                mask = handle.report.masks_grown[0, 0]
                judged, found = judged + 1, found + bool((mask & square).any())
                outside += int((mask & ~square).sum())
    return f"judged {judged} of {runs}, found {found}, outside {outside / max(judged, 1):.1f}"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for skips, thresholds in THRESHOLDS.items():
        for name, treatment in TREATMENTS.items():
            with treatment():
                print(f"{skips}, {name}: {row_of(thresholds)}", flush=True)
