# SPDX-License-Identifier: MIT
"""Cells of the matrix of pipelines: what a pipeline's latents look like, a trap for ASCED in its network's output, and
every state that its scheduler is given."""

import contextlib
import functools
from typing import NamedTuple

import tiny_layouts

from ascedfast.adapters.class_swap import stock_class
from ascedfast.adapters.layout import PipelineContext, layout_of


class Cell(NamedTuple):
    """axes: of the latents and of the network's output. grid: of the latents. calls: of ``step`` in one of the
    solver's. halves: the second half of the rows is thrown away."""

    axes: str
    grid: tuple[int, ...]
    calls: int = 1
    halves: bool = False


IMAGE = Cell("BCHW", (32, 24))
CELLS = {
    "sd15": IMAGE,
    "sd15-v": IMAGE,
    "sd15-sample": IMAGE,
    "sd15-dpm": IMAGE,
    "sd15-unipc": IMAGE,
    "sd15-heun": IMAGE._replace(calls=2),
    "sd15-lms": IMAGE,
    "sd15-euler-a": IMAGE,
    "sdxl": Cell("BCHW", (24, 32)),
    "dit": Cell("BCHW", (16, 16), halves=True),
    "pixart": Cell("BCHW", (16, 16)),
    "sd3": Cell("BCHW", (16, 16)),
    "sana": Cell("BCHW", (16, 16)),
    "ddpm": Cell("BCHW", (24, 24)),
    "flux": Cell("BSC", (16, 8)),
    "qwen": Cell("BSC", (16, 12)),
    "wan": Cell("BCFHW", (3, 16, 16)),
    "wan-unipc": Cell("BCFHW", (3, 16, 16)),
    "hunyuan": Cell("BCFHW", (3, 16, 12)),
    "cosmos": Cell("BCFHW", (3, 16, 12)),
    "cogvideox": Cell("BFCHW", (3, 16, 12)),
    "cogvideox-dpm": Cell("BFCHW", (3, 16, 12)),
    "kandinsky5": Cell("BFHWC", (3, 16, 12)),
    "ltx": Cell("BSC", (3, 12, 10)),
    "stable-audio": Cell("BCL", (1, 256)),
}
FEW_STEPS = dict.fromkeys(tiny_layouts.FEW_STEPS, IMAGE)


def made(name):
    pipe, kwargs = (tiny_layouts.PIPELINES | tiny_layouts.FEW_STEPS)[name]()
    return pipe, kwargs


def view_of(cell):
    """Tensors in the latents' axes as [R, C, *grid]."""
    grid = cell.grid if "S" in cell.axes else None
    return lambda t: layout_of(t, PipelineContext(), grid, cell.axes).view(t)


def spot(cell):
    """Slices of the grid: where the trap lies, a quarter of each long side."""
    if cell.grid[0] == 1:
        return (..., slice(100, 140))
    frames = [slice(0, 2)] if len(cell.grid) == 3 else []
    return (..., *frames, *(slice(side // 4, side // 4 + side // 4) for side in cell.grid[-2:]))


class Watch:
    """Within it, ``states`` are all that the stock scheduler's ``step`` is given, and with a trap the network's output
    leaps to and fro inside the spot, as a location does that cannot settle."""

    def __init__(self, pipe, cell, trap=0.0):
        self.pipe, self.cell, self.trap, self.states = pipe, cell, trap, []

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        base = stock_class(self.pipe.scheduler)
        original = base.step
        rehearses = type(self.pipe).__name__.startswith("Cosmos")

        @functools.wraps(original)
        def step(scheduler, *args, **kwargs):
            ours = scheduler is self.pipe.scheduler  # not a copy that is probed for its coefficients
            if ours and (not rehearses or "pred_original_sample" in kwargs):
                place = 4 if "timestep_back" in original.__code__.co_varnames[:8] else 2
                self.states.append(kwargs.get("sample", args[place] if len(args) > place else None).clone())
            return original(scheduler, *args, **kwargs)

        base.step = step
        self._stack.callback(setattr, base, "step", original)
        network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        if self.trap:
            self._stack.callback(network.register_forward_hook(self._spring).remove)
        return self

    def __exit__(self, *error):
        self._stack.close()

    def _spring(self, network, inputs, output):
        first = output[0] if isinstance(output, tuple) else output.sample
        sign = 1 if len(self.states) // self.cell.calls % 2 else -1
        first = first.clone()
        view_of(self.cell)(first)[spot(self.cell)] += sign * self.trap
        if isinstance(output, tuple):
            return (first, *output[1:])
        output.sample = first
        return output
