# SPDX-License-Identifier: MIT
"""What ASCED saw and did, row by row. Values leave the device when they are first asked for, not before."""

import functools
import importlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast import reference
from ascedfast._version import __version__
from ascedfast.config import HALF_GREY_LEVEL, AscedConfig
from ascedfast.noise import NOISE_VERSION
from ascedfast.schedule import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ascedfast.detect import Detection

Status = Literal["corrected", "clean", "observed", "unavailable", "not finite", "pending", "off"]
UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Region:
    """One connected region of the abnormal locations, in locations of the grid.

    label: its number in ``RowReport.labels``. area: locations. box: (top, left, bottom, right), the last two
    exclusive ((front, top, ..) for volumes). peak_z: largest robust z. severity: sum of z over the region, by the
    number of locations of the grid; those of the kept regions add up to the row's. kept: False when a rule dropped it.
    """

    label: int
    area: int
    box: tuple[int, ...]
    peak_z: float
    severity: float
    kept: bool


@dataclass(frozen=True, eq=False)
class RowReport:
    """One request. Tensors are on the device of the run; properties that return numbers read them back.

    Attributes:
        config, seed, draw, plan: what repeats the run. steps, executed: solver steps planned and done.
        finite: 0-dim bool, False if a step up to T_c held NaN or Inf; None before the first. finite_after: the same for
            the recorded steps after it.
        dynamics: (executed step, d [*grid]) of every recorded one. logsnr: log(alpha^2/sigma^2) of each executed one.
        keep: bool, broadcasts against [*grid], what was protected: no region, severity or p-value counts it.
    """

    config: AscedConfig
    seed: int
    draw: int
    enabled: bool
    plan: Plan
    steps: int
    executed: int
    finite: Tensor | None
    finite_after: Tensor | None
    detection: "Detection | None"
    dynamics: tuple[tuple[int, Tensor], ...]
    logsnr: tuple[float, ...]
    keep: Tensor | None = None

    @functools.cached_property
    def status(self) -> Status:
        """corrected | clean: nothing found | observed: found, not to be corrected | unavailable: left alone, see
        ``reason`` | not finite: NaN or Inf was seen before T_c, left alone | pending: T_c not reached | off."""
        if not self.enabled:
            return "off"
        if self.plan.reason is not None:
            return "unavailable"
        if self.finite is not None and not bool(self.finite):
            return "not finite"
        if self.detection is None:
            return "pending" if self.executed <= self.plan.t_c else "unavailable"
        if bool(self.detection.overflow):
            return "unavailable"
        if not bool(self.detection.mask.any()):
            return "clean"
        return "corrected" if self.config.correct else "observed"

    @property
    def reason(self) -> str | None:
        """Why there is no severity, in words; None where there is one."""
        why = self.plan.reason or "the row was off when its T_c came, or was not corrected then"
        if self.detection is not None and bool(self.detection.overflow):
            why = "its regions are beyond the bound of the Triton labelling: build the CUDA extension"
        return {
            "off": "switched off",
            "unavailable": why,
            "not finite": "a prediction held NaN or Inf",
            "pending": f"{self.executed} of the {self.plan.t_c} steps before the correction were run",
        }.get(self.status)

    @property
    def broken_after(self) -> bool:
        """Whether a step after T_c held NaN or Inf."""
        return self.finite_after is not None and not bool(self.finite_after)

    @property
    def mask(self) -> Tensor | None:
        """bool [*grid], the regions found, before growth; None before T_c."""
        return None if self.detection is None else self.detection.mask

    @property
    def mask_grown(self) -> Tensor | None:
        """bool [*grid], the mask of the correction."""
        return None if self.detection is None else self.detection.grown

    @property
    def labels(self) -> Tensor | None:
        """int32 [*grid], all regions above the threshold, also those that a rule dropped."""
        return None if self.detection is None else self.detection.labels

    @property
    def z(self) -> Tensor | None:
        """float32 [*grid], the largest robust z-score of the window; in mode "calibrated" the severity."""
        return None if self.detection is None else self.detection.z

    @functools.cached_property
    def severity(self) -> float | Literal["unavailable"]:
        """Sum of z over the mask, divided by the number of locations: 0 for nothing found. "unavailable" when the row
        was left alone. Larger is worse; comparable between runs of the same settings only."""
        if self.status not in ("corrected", "clean", "observed"):
            return UNAVAILABLE
        return float((self.z.double() * self.mask).sum() / self.mask.numel())

    @functools.cached_property
    def p_value(self) -> float | None:
        """Mode "calibrated": the share of sound samples that are at least as severe. None in other modes, and where
        there is no severity."""
        if self.config.mode != "calibrated" or self.severity == UNAVAILABLE:
            return None
        null = self.config.table.at(self.logsnr[self.plan.start : self.plan.t_c])
        return null.p_value(float(self.outside_keep(self.z, -math.inf).max()))

    def outside_keep(self, values: Tensor, instead: float) -> Tensor:
        """Values [*grid], and ``instead`` where the row is protected."""
        return values if self.keep is None else values.masked_fill(self.keep.to(values.device), instead)

    @functools.cached_property
    def area(self) -> float:
        """Share of the locations inside ``mask``, 0 to 1."""
        return 0.0 if self.mask is None else float(self.mask.double().mean())

    @functools.cached_property
    def regions(self) -> tuple[Region, ...]:
        """Every region above the threshold outside ``keep``, the largest severity first, dropped ones included."""
        if self.labels is None:
            return ()
        labels = self.outside_keep(self.labels, 0).cpu().flatten().long()
        count = int(labels.max())
        mask, z = self.mask.cpu().flatten(), self.z.double().cpu().flatten()
        areas = torch.bincount(labels, minlength=count + 1)
        sums = torch.zeros(count + 1, dtype=torch.float64).index_add(0, labels, z)
        peaks = torch.full((count + 1,), -math.inf, dtype=torch.float64).scatter_reduce(0, labels, z, "amax")
        kept = torch.zeros(count + 1, dtype=torch.bool).scatter(0, labels[mask], True)
        where = torch.stack(torch.unravel_index(torch.arange(labels.numel()), self.labels.shape), 1)
        index = labels[:, None].expand_as(where)
        low = torch.full((count + 1, where.shape[1]), labels.numel()).scatter_reduce(0, index, where, "amin")
        high = torch.zeros(count + 1, where.shape[1], dtype=torch.int64).scatter_reduce(0, index, where + 1, "amax")
        regions = [
            Region(
                label=label,
                area=int(areas[label]),
                box=(*low[label].tolist(), *high[label].tolist()),
                peak_z=float(peaks[label]),
                severity=float(sums[label] / labels.numel()),
                kept=bool(kept[label]),
            )
            for label in range(1, count + 1)
            if areas[label]
        ]
        return tuple(sorted(regions, key=lambda region: (-region.severity, region.label)))

    @functools.cached_property
    def curves(self) -> dict[str, list[float]]:
        """Mean dynamics a recorded step: "step", "logsnr", "all", and "inside" and "outside" of the mask (NaN where
        there is none)."""
        curves: dict[str, list[float]] = {"step": [], "logsnr": [], "all": [], "inside": [], "outside": []}
        for step, d in self.dynamics:
            inside = torch.zeros_like(d, dtype=torch.bool) if self.mask is None else self.mask
            curves["step"].append(step)
            curves["logsnr"].append(self.logsnr[step])
            curves["all"].append(float(d.double().mean()))
            curves["inside"].append(float(d[inside].double().mean()))
            curves["outside"].append(float(d[~inside].double().mean()))
        return curves

    def step_z(self, d: Tensor) -> Tensor:
        """Robust z-score of one recorded map of the dynamics, after this configuration's smoothing: float32 [*grid]."""
        return self._threshold(d)[1]

    @functools.cached_property
    def abnormal(self) -> list[tuple[int, float]]:
        """(executed step, share of locations above the threshold at that step alone), by the rule of mode "fast"."""
        return [(step, float(self._threshold(d)[0].double().mean())) for step, d in self.dynamics]

    def _threshold(self, d: Tensor) -> tuple[Tensor, Tensor]:
        floor = max(HALF_GREY_LEVEL, self.config.mad_floor if self.config.mode == "fast" else 0.0)
        flags, z = reference.robust_threshold(
            d[None, None, None].float(),
            mad_scale=self.config.mad_scale,
            mad_floor=floor,
            blur_sigma=self.config.sizes(tuple(d.shape)).blur_sigma,
            z_floor=floor,
            by_frame=self.config.statistics == "frame",
        )
        return flags[0], z[0]

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON: what repeats the run, and what was found."""
        return {
            "status": self.status,
            "reason": self.reason,
            "mode": self.config.mode,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "draw": self.draw,
            "noise_version": NOISE_VERSION,
            "steps": self.steps,
            "window": None if self.plan.reason else [self.plan.start, self.plan.t_c],
            "t_c": None if self.plan.reason else self.plan.t_c,
            "severity": self.severity,
            "p_value": self.p_value,
            "area": self.area,
            "finite_after": None if self.finite_after is None else bool(self.finite_after),
            "regions": [vars(region) for region in self.regions],
            "curves": {name: [_finite_or_none(v) for v in values] for name, values in self.curves.items()},
            "abnormal": self.abnormal,
        }


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


SHEETS = ("masks", "overview", "dynamics")
"""Pictures of a saved report beside those that were attached."""


class Report(Sequence[RowReport]):
    """The rows of one run, in the order of its batch.

    Attributes:
        image_size: (height, width) of the decoded image in pixels, where the adapter knows it.
        images: named batches of RGB images to show, see ``attach``. frames: films of them, a batch a step.
        notes: lines for the head of the page.
    """

    def __init__(self, rows: Sequence[RowReport], image_size: tuple[int, int] | None = None) -> None:
        self.rows = tuple(rows)
        self.image_size = image_size
        self.images: dict[str, list[Image]] = {}
        self.frames: dict[str, dict[int, list[Image]]] = {}
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def __iter__(self) -> Iterator[RowReport]:
        return iter(self.rows)

    def __repr__(self) -> str:
        def shown(severity: float | str) -> str:
            return severity if isinstance(severity, str) else f"{severity:.3f}"

        lines = [
            f"row {i}: {row.status}, "
            + (row.reason if row.reason else f"severity {shown(row.severity)}, area {row.area:.1%}")
            for i, row in enumerate(self)
        ]
        return "\n".join(["ascedfast report", *lines]) if lines else "ascedfast report: no run was watched yet"

    @property
    def mode(self) -> str | None:
        """The mode all rows ran in, or None where they differ."""
        modes = {row.config.mode for row in self}
        return modes.pop() if len(modes) == 1 else None

    @property
    def seeds(self) -> list[int]:
        """The 64-bit seed of each row."""
        return [row.seed for row in self]

    @property
    def severity(self) -> list[float | str]:
        """``RowReport.severity`` of each row."""
        return [row.severity for row in self]

    @property
    def masks(self) -> Tensor | None:
        """bool [R, 1, *grid] before growth; None before any row reached T_c. Rows left alone are empty."""
        return self._stack("mask")

    @property
    def masks_grown(self) -> Tensor | None:
        """bool [R, 1, *grid], as corrected."""
        return self._stack("mask_grown")

    def masks_image(self, size: tuple[int, int] | None = None, *, grown: bool = False) -> Tensor | None:
        """bool [R, 1, height, width]: the masks at image resolution, each location a block of pixels. Of a video
        [R, 1, F, height, width], with the frames of its latents.

        Args: size: (height, width) in pixels; default: the size the adapter knows, else the grid's.
        """
        masks = self.masks_grown if grown else self.masks
        size = size or self.image_size
        if masks is None or size is None:
            return masks
        return F.interpolate(masks.float(), size=(*masks.shape[2:-2], *size), mode="nearest") > 0

    def attach(self, **images: "Tensor | Sequence[Image]") -> Self:
        """Give the report images to show, a batch a name: ``report.attach(after=pipe_output.images)``. "before" and
        "after" are what masks are drawn over. Float [R, 1 or 3, H, W] in [0, 1] or PIL images, one a row."""
        pictures = _needs_demo("pictures")
        for name, batch in images.items():
            if not name.isidentifier():
                raise ValueError(f"images are named by an identifier, like 'after', got {name!r}")
            converted = pictures.to_images(batch)
            if name in SHEETS:
                raise ValueError(f"{name!r} is a sheet that the report draws itself: choose another name")
            if len({image.size for image in converted}) > 1:
                raise ValueError(f"images of several sizes were given as {name!r}")
            if len(converted) != len(self):
                raise ValueError(f"{len(converted)} images were given as {name!r} for a report of {len(self)} rows")
            self.images[name] = converted
        return self

    def attach_frames(self, films: "Mapping[str, Mapping[int, Tensor | Sequence[Image]]]") -> Self:
        """Give the report a batch of images a step, by name of the film: what the page's slider runs through."""
        pictures = _needs_demo("pictures")
        for name, film in films.items():
            self.frames[name] = {step: pictures.to_images(batch) for step, batch in film.items()}
        return self

    def plot(self, row: int = 0) -> "Figure":
        """Dynamics and acceleration of one row, inside and outside its mask, as a matplotlib figure."""
        return _needs_demo("plots").curves(self[row])

    def to_html(self) -> str:
        """One self-contained page: pictures, masks, dynamics step by step, curves, regions, settings and seeds."""
        return _needs_demo("report_files").page(self)

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write report.html, report.json, maps.safetensors and the pictures into ``folder``; returns the paths.

        Raises: OSError when the folder cannot be written."""
        return _needs_demo("report_files").write(self, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ascedfast": __version__,
            "image_size": self.image_size,
            "notes": self.notes,
            "rows": [row.summary() for row in self],
        }

    def save_json(self, path: str | os.PathLike) -> None:
        """Write ``to_dict`` to ``path``."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2)

    def _stack(self, name: str) -> Tensor | None:
        found = [getattr(row, name) for row in self]
        known = next((mask for mask in found if mask is not None), None)
        if known is None:
            return None
        if any(mask is not None and mask.shape != known.shape for mask in found):
            raise ValueError("the rows have grids of several shapes: read report[i].mask one by one")
        return torch.stack([torch.zeros_like(known) if mask is None else mask for mask in found])[:, None]


def _needs_demo(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"ascedfast.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reports with pictures need {error.name}: pip install 'ascedfast[demo]' (in a checkout: -e '.[demo]')"
        ) from error
