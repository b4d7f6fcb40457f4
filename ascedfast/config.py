# SPDX-License-Identifier: MIT
"""Settings of one request, frozen and checked when made."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ascedfast.calibration.table import NullTable

Mode = Literal["official", "paper", "fast", "calibrated"]
MODES: tuple[Mode, ...] = ("official", "paper", "fast", "calibrated")
HALF_GREY_LEVEL = 0.5 / 127.5
"""Half of one of 256 grey levels, for pixels in [-1, 1]."""


@dataclass(frozen=True)
class AscedConfig:
    """How artifacts are found and repaired. The defaults are ``AscedConfig.fast()``.

    Lengths are in pixels, or latent locations, of a grid of ``reference_size`` x ``reference_size`` and are scaled by
    sqrt(H*W)/reference_size (areas by its square); with ``reference_size=None`` they are taken as they are.

    Attributes:
        mode: which signal is watched. "official": 8-bit grey levels of x0_hat, all channels, as the released code.
            "paper": the weighted score w(t)*s_t, all channels. "fast": one channel, |change of x0_hat|.
            "calibrated": the scores of ``ops.temporal_scores`` against ``table``, at ``rate``; of what follows it takes
            ``grow``, the sizes' scaling, and what is not about thresholds and regions.
        mad_scale: a location is abnormal above median + mad_scale * 1.4826 * MAD.
        mad_floor: lower bound of the MAD; units of x0_hat ("official": grey levels).
        blur_sigma: standard deviation of the Gaussian smoothing.
        min_area, max_area: a region is kept where min_area < locations < max_area, both strict.
        core_width: and where it holds a full square of this width.
        connectivity: 4 or 8 neighbours.
        grow: the corrected mask is the kept regions grown by this much (a square, not a disc).
        channels: "mean" or "max", how "fast" reduces channels; the other modes keep them.
        t_c: when to correct. None: by rule (see ``schedule.plan_run``). int: after that many executed steps.
            float in (0, 1): that share of the executed steps.
        window_start: first executed step that is watched. None: by rule. int or float as for ``t_c``, from 0.
        correct: False only observes and reports.
        x0_noise: standard deviation of the noise added to x0_hat before it is noised again; units of x0_hat. None, in
            mode "calibrated" only: what the table says that x0_hat lacks.
        record: "window" keeps the dynamics of the steps up to t_c, "run" those of every step, for the report.
        form: of steps that are fused on a GPU. "parity": with the stock scheduler's very bits, or the stock step runs.
            "linear": one float64 sum a step, for more solvers (UniPC, DEIS, LMS, PNDM, IPNDM, SASolver, any order of
            DPM-Solver++); accurate, but not the stock's image bit for bit. A run that began so must end so: the
            solver's own memory stays empty, and the stock step of a copy, or after ``disable_asced``, would start from
            nothing.
        table: what sound runs of the pipeline score (``calibration.folder.load_table``); needed by mode "calibrated".
        rate: share of sound samples in which mode "calibrated" finds anything.
        backend: "auto", "triton", "native" or "reference"; an explicit choice that cannot be met raises.
        statistics: of a video. "sample": one median and MAD for the whole volume, smoothed along all its axes.
            "frame": each frame has its own and is smoothed alone, so that z and severity are by the frame's own, too.
            Regions are three-dimensional either way. The same on images and lines; mode "calibrated" has none of it.
    """

    mode: Mode = "fast"
    mad_scale: float = 3.0
    mad_floor: float = HALF_GREY_LEVEL
    blur_sigma: float = 2.0
    min_area: float = 100
    max_area: float = 10000
    core_width: int = 5
    connectivity: Literal[4, 8] = 4
    grow: int = 5
    reference_size: int | None = 256
    channels: Literal["mean", "max"] = "mean"
    t_c: int | float | None = None
    window_start: int | float | None = None
    correct: bool = True
    x0_noise: float | None = 0.0
    record: Literal["window", "run"] = "window"
    form: Literal["parity", "linear"] = "parity"
    table: NullTable | None = None
    rate: float = 0.05
    backend: Literal["auto", "triton", "native", "reference"] = "auto"
    statistics: Literal["sample", "frame"] = "sample"

    @classmethod
    def fast(cls, **changes: Any) -> Self:
        """The released algorithm on one float channel, sizes scaled to the grid. The default."""
        return cls._preset({}, changes)

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The released code bit for bit: absolute sizes, no MAD floor, banked from the first step."""
        return cls._preset({"mode": "official", "mad_floor": 0.0, "reference_size": None, "channels": "max"}, changes)

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """Algorithm 1 of arXiv 2503.16218 with the repairs it needs."""
        preset = {
            "mode": "paper",
            "mad_floor": 0.0,
            "blur_sigma": 0.0,
            "min_area": 0,
            "max_area": math.inf,
            "core_width": 1,
            "grow": 0,
            "reference_size": None,
            "channels": "max",
            "x0_noise": 0.1,
        }
        return cls._preset(preset, changes)

    @classmethod
    def calibrated(cls, table: NullTable | None = None, **changes: Any) -> Self:
        """Regions that a share ``rate`` of sound runs of the pipeline has any of, watched from the first step on;
        re-noised to the variance that a sound state has."""
        return cls._preset({"mode": "calibrated", "table": table, "x0_noise": None}, changes)

    @classmethod
    def for_mode(cls, mode: str, **changes: Any) -> Self:
        """The preset of that name."""
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")
        return getattr(cls, mode)(**changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``; missing keys take the defaults of ``values["mode"]``. TypeError on unknown keys."""
        rest = {key: math.inf if value == "inf" else value for key, value in values.items()}
        if rest.get("table") is not None:
            rest["table"] = NullTable.from_dict(rest["table"])
        return cls.for_mode(rest.pop("mode", "fast"), **rest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold (an unbounded area is written as "inf")."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["table"] = self.table and self.table.to_dict()
        return {key: "inf" if value == math.inf else value for key, value in values.items()}

    @classmethod
    def _preset(cls, preset: dict[str, Any], changes: dict[str, Any]) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]
        for key in changes:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"AscedConfig has no setting {key!r}{hint} (it has {', '.join(known)})")
        if changes.get("mode", preset.get("mode", "fast")) != preset.get("mode", "fast"):
            raise ValueError(f"mode is fixed by the preset; use AscedConfig.{changes['mode']}(...)")
        return cls(**{**preset, **changes})

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                raise ValueError(f"AscedConfig.{name} must be {wanted}, got {getattr(self, name)!r}")

        def number(name: str) -> bool:
            value = getattr(self, name)
            return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)

        def whole(name: str) -> bool:
            return isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)

        check(self.mode in MODES, "mode", f"one of {', '.join(MODES)}")
        limits = {"mad_scale": 1e12, "mad_floor": 1e12, "blur_sigma": 1e3, "min_area": 1e12, "x0_noise": 1e12}
        if self.mode == "calibrated" and self.x0_noise is None:
            del limits["x0_noise"]
        for name, most in limits.items():
            check(number(name) and 0 <= getattr(self, name) <= most, name, f"a number from 0 to {most:g}")
        check(number("max_area") and self.max_area > self.min_area, "max_area", f"above min_area ({self.min_area})")
        check(whole("core_width") and 1 <= self.core_width <= 1 << 15, "core_width", f"an int from 1 to {1 << 15}")
        check(whole("grow") and 0 <= self.grow <= 1 << 15, "grow", f"an int from 0 to {1 << 15}")
        check(whole("connectivity") and self.connectivity in (4, 8), "connectivity", "4 or 8")
        check(
            self.reference_size is None or (whole("reference_size") and self.reference_size >= 1),
            "reference_size",
            "an int >= 1 or None",
        )
        check(self.channels in ("mean", "max"), "channels", "'mean' or 'max'")
        channels = {"fast": self.channels, "calibrated": "mean"}.get(self.mode, "max")
        check(self.channels == channels, "channels", f"{channels!r} in mode {self.mode!r}")
        check(self.statistics in ("sample", "frame"), "statistics", "'sample' or 'frame'")
        check(
            self.mode != "calibrated" or self.statistics == "sample",
            "statistics",
            "'sample' in mode 'calibrated': its table holds the scores of whole samples",
        )
        has_table = isinstance(self.table, NullTable)
        check(
            has_table or (self.table is None and self.mode != "calibrated"),
            "table",
            "a NullTable, which ascedfast calibrate makes",
        )
        check(number("rate") and 0 < self.rate <= 0.5, "rate", "above 0 and at most .5")
        if self.mode == "calibrated":
            runs = min(null.runs for null in self.table.nulls)
            check(self.rate >= 1 / (runs + 1), "rate", f"that of one of the table's {runs} sound runs, or more")
        check(self.mode != "calibrated" or self.window_start in (None, 0), "window_start", "0 in mode 'calibrated'")
        for name, least in (("t_c", 1), ("window_start", 0)):
            value = getattr(self, name)
            share = isinstance(value, float) and (0 < value < 1 or (value == 0 and least == 0))
            check(
                value is None or share or (whole(name) and value >= least),
                name,
                f"None, an int >= {least} or a float between 0 and 1",
            )
        both = type(self.t_c), type(self.window_start)
        check(
            both not in ((int, int), (float, float)) or self.window_start < self.t_c,
            "window_start",
            f"before t_c ({self.t_c}), or the window is empty",
        )
        check(isinstance(self.correct, bool), "correct", "True or False")
        check(self.record in ("window", "run"), "record", "'window' or 'run'")
        check(self.form in ("parity", "linear"), "form", "'parity' or 'linear'")
        backends = ("auto", "triton", "native", "reference")
        check(self.backend in backends, "backend", f"one of {', '.join(backends)}")

    def x0_noise_at(self, logsnr: Sequence[float]) -> float:
        """``x0_noise`` of a run whose window has these levels. Raises: ValueError where the table does not know it."""
        return self.table.at(logsnr).x0_noise if self.x0_noise is None else self.x0_noise

    def sizes(self, grid: tuple[int, ...]) -> "Sizes":
        """The lengths of this configuration on a grid whose last two axes are (H, W), in its locations."""
        scale = 1.0
        if self.reference_size is not None:
            scale = math.sqrt(grid[-2] * grid[-1]) / self.reference_size
        return Sizes(
            blur_sigma=self.blur_sigma * scale,
            min_area=self.min_area * scale**2,
            max_area=self.max_area * scale**2,
            core_width=max(1, math.floor(self.core_width * scale + 0.5)),
            grow=math.floor(self.grow * scale + 0.5),
        )


@dataclass(frozen=True)
class Sizes:
    """Lengths in locations of one grid, areas in locations; see the attributes of ``AscedConfig``."""

    blur_sigma: float
    min_area: float
    max_area: float
    core_width: int
    grow: int
