# SPDX-License-Identifier: MIT
"""Writes ``docs/layouts.md`` from the cells of the matrix of pipelines and what the code knows of families:

python tests/layouts_page.py
"""

from pathlib import Path

from matrix import CELLS, FEW_STEPS, made
from schedulers_page import table

from ascedfast.adapters.pipeline_context import ORDERS, REHEARSE

PAGE = Path(__file__).parent.parent / "docs" / "layouts.md"
NAMES = {
    "BCHW": "images",
    "BSC": "packed",
    "BCFHW": "video",
    "BFCHW": "video, frames first",
    "BFHWC": "video, channels last",
    "BCL": "sound",
}
TEXT = """# Layouts of latents, and pipelines

<!-- Written by `python tests/layouts_page.py` from the cells of tests/test_pipelines_matrix.py. -->

Axes: B rows, C channels, F frames, H and W, S packed locations, L length, T and M time and mel bands. What the engine
sees is [R, C, *grid], a view: nothing is copied, and the correction writes into the sampler's own tensor.

| axes | grid | told by |
|---|---|---|
| [B, C, H, W]; [B, C, T, M] of spectrograms | (H, W), (T, M) | the shape |
| packed [B, S, C] | (H, W) | height and width of the call or of `prepare_latents`; else `grid=(H, W)` |
| packed video, or layers, [B, S, C] | (F, H, W) | these and num_frames, or layers; else `grid=(F, H, W)` |
| [B, C, F, H, W], [B, F, C, H, W], [B, F, H, W, C] | (F, H, W) | frames, channels, the family; else `axes="BFCHW"` |
| [B, C, L], [B, L, C] of sound | (1, L) | the number of channels; else `axes="BCL"` or `"BLC"` |
| any other order | | `axes=`, as `"BHWC"` |

Families of diffusers' video pipelines that are not [B, C, F, H, W]:
{families}.

A packed location is a block of pixels. Its side is the scale of the pipeline's VAE, twice that, or a usual one (a power
of 2 up to 64) that holds whole latent locations; a grid of other blocks is not made up. QwenImageLayered's grid is
(layers + 1, H, W): the image that the layers make together comes first.

On a scheduler alone [B, C, H, W] needs nothing, all others `grid` or `axes`. A layout that stays unknown (token sets
without a grid, other ranks) leaves the run alone: the stock's bits, severity "unavailable", one warning that says what
to pass. What you pass and does not fit, a `grid` beside latents that are not packed too, raises a ValueError at the
first step, before anything is changed.

- **Regions** of a video are three-dimensional: 6 or 26 neighbours for a `connectivity` of 4 or 8. `grow` is within a
  frame. Areas count locations of the whole volume.
- **Statistics** of a video are by sample: one median and MAD, and smoothing along all three axes, so that a frame that
  moves more than the others raises the threshold of them all, and is flagged as a whole where it is one of many.
  `AscedConfig(statistics="frame")`: each frame is smoothed alone and has its own median and MAD; z and severity are by
  them. What it costs: an artifact that fills a frame, or a frame that leaps as a whole, is that frame's median and is
  not found. Frames know nothing of each other but that NaN or Inf in one leaves the sample without a mask. Images and
  lines have the same bits either way; mode `calibrated` refuses it, its table holds the scores of whole samples, each
  frame of which it smooths alone.
- **A line** holds no square: `core_width` counts as 1. Sizes scale with sqrt(L).
- **Slices**: pipelines that are given a first frame step the other frames, or the first channels, in a view that is not
  contiguous (run here: LTXImageToVideo, Kandinsky5T2V). The grid, `keep_mask` and the report are those of the slice.
- **Doubled rows** (DiT): both halves are corrected alike, the second is thrown away by the pipeline.
- **Called twice an iteration** ({rehearse}): the first call only asks for the prediction
  and is none of the run's.
- **Frames dropped, or a larger sample, under way**: before T_c a new run is watched from there; after it the report
  stays and the rest is the stock's. FlowMatchLCM with scale_factors: see `docs/schedulers.md`.
- **Copies of the scheduler that a pipeline makes within its call** (LTX2's for its sound, SkyReels' for each frame):
  what they step is left alone, with one warning. In LTX2 the video is watched, in SkyReels then nothing is.
- **Timesteps by token** (`per_token_timesteps`: LTXCondition, run here; SanaWM, read): x0_hat is read from the level of
  each token. Tokens that are at another level than the first step's, as a given frame is, are protected for the whole
  run, beside `keep_mask`; that the others stay at the steps' level is taken for granted. Tokens stepped in front of the
  video (an image for a later frame) leave no grid: the run is left alone. So are timesteps by token that were rounded
  to bfloat16 or float16, with a warning: the scheduler takes them for other levels. Such steps are never fused.
- Each scheduler on each layout: `docs/matrix.md`.

## What is never re-noised
`enable_asced(pipe, keep_mask=mask)`, `begin(..., keep_mask=mask)`, `Engine.add(..., keep_mask=mask)`: bool
[B, 1, *grid] in latent locations, axes of length 1 fit any. True is no artifact: it is taken out of the mask before
that grows, nothing grows into it, and it keeps its bits at T_c. The statistics see it; regions, severity and, in mode
"calibrated", the p-value are of what lies outside. A row that is protected everywhere is "clean", with severity 0 and a
p-value of 1. A mask of numbers raises a TypeError, NaN or not: say what is protected by `mask > 0`.

```python
keep = torch.zeros(1, 1, frames, 1, 1, dtype=torch.bool)
keep[:, :, 0] = True  # the first frame
handle = enable_asced(pipe, keep_mask=keep)
```

Of `frames` latent frames as the scheduler steps them. It is for pipelines that step the given frame with the others,
as Wan's image-to-video (a frame given beside the latents; `expand_timesteps`; read, not run), inpainting, and data
that was measured. Where only the other frames are stepped (LTXImageToVideo, Kandinsky5T2V: "Slices" above) the given
one is out of reach anyway, and `keep[:, :, 0]` would protect the first that is generated. Where the tokens of a given
frame have timesteps of their own (LTXCondition) it is protected by itself.

One row is for all. Of n rows for 2n only where these are n rows twice (DiT's): the first state of the run tells, which
waits for the device, once, in such a run only; other numbers raise a ValueError. A mask on the host is copied to the
device without waiting; one on another device is copied when the run begins, and at T_c where rows go one by one.

## What was run
Tiny pipelines with random weights, 25 steps, on a CPU. Each: bit-identical off, and on with nothing found; a trap in
the network's output is found, only its mask changes at T_c, with three predictions or more before, and the change is
still there at the last step; saved, loaded, copied, in two threads.

{cells}

Left alone, with the stock's bits, since fewer than three predictions precede T_c or the run begins after it:
{few}.
Other pipelines of the families above share their `prepare_latents` and loops; they were read, not run.
"""


def page():
    rows = [("pipeline", "layout", "grid here", "scheduler", "case")]
    for name, cell in CELLS.items():
        pipe, _ = made(name)
        layout = f"{NAMES[cell.axes]} [{', '.join(cell.axes)}]" + (", rows twice" if cell.halves else "")
        grid = " x ".join(str(side) for side in cell.grid)
        scheduler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
        rows.append((type(pipe).__name__.removesuffix("Pipeline"), layout, grid, scheduler, name))
    families = ", ".join(f"{family} (`{order}`)" for family, order in ORDERS.items())
    few = ", ".join(f"{name} ({type(made(name)[0]).__name__.removesuffix('Pipeline')})" for name in FEW_STEPS)
    rehearse = ", ".join(name.removesuffix("Pipeline") for name in REHEARSE)
    return TEXT.format(families=families, cells=table(*rows), few=few, rehearse=rehearse)


if __name__ == "__main__":
    PAGE.write_text(page())
