# SPDX-License-Identifier: MIT
"""One step of rows that lie in slots of a batch and stand at steps of their own: a linear update, x0_hat and dynamics.

Where a row stands and what it wants lie on the device (``SCRIPT``), and the last of a row's programs moves it on: a
launch has the same arguments at every step, so that a captured one may be replayed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ascedfast.kernels.observe import clean_of, larger, plus_groups
from ascedfast.kernels.prepared import launch_of, misaligned, stream_getter
from ascedfast.kernels.tile import WARPS, Layout, channel_stride, offset_at
from torch import Tensor

SCRIPT = 16
"""int32 of a slot, by the names below."""
STEP, TICKET, OPENS, CLOSES, START, T_C, SIGNAL, LARGEST = (tl.constexpr(i) for i in range(8))
"""Executed steps; programs that are through with this one; the steps [OPENS, CLOSES) that are recorded; the window
[START, T_C); what is kept of its steps beside the changes; whether channels are reduced by the largest."""
SEED_LOW, SEED_HIGH, DRAW, ALPHA, SIGMA, X0_NOISE, FINITE, FINITE_AFTER = (tl.constexpr(8 + i) for i in range(8))
"""The noise's key and level at T_c, float32 as their bits; 1, 0 once NaN or Inf was recorded before T_c and after."""
GREY_LEVELS, SCORES = tl.constexpr(1), tl.constexpr(2)
"""Signals: those of the modes "official" and "paper"."""
TABLE = 8
"""float32 of a step: a, b, c0, c1, clip (Inf: none), alpha, two that are not used."""


class Slots(NamedTuple):
    """Memory of a batch's rows, all contiguous; n locations.

    x0: float32 [slots, C, n]. bank: float32 [slots, maps, n], changes of x0_hat from step OPENS + 1 on. grey: uint8,
    and scores: float32, [slots, frames, C, n], of the window's steps; no frames where the batch has no such mode.
    script: int32 [slots, SCRIPT]. table: float32 [slots, steps, TABLE]. index: int32 [slots], the slots of x's rows.
    """

    x0: Tensor
    bank: Tensor
    grey: Tensor
    scores: Tensor
    script: Tensor
    table: Tensor
    index: Tensor


@triton.jit
def row_step_kernel(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16; written where SOLVE
    m,  # [R, C, D, H, W], fp32 | fp16 | bf16
    x0,  # these as in ``Slots``
    bank,
    grey,
    scores,
    script,
    table,
    index,
    maps,
    frames,
    steps,
    height,
    width,
    locations,
    x_row,
    x_channel,
    x_d,
    x_h,
    x_w,
    m_row,
    m_channel,
    m_d,
    m_h,
    m_w,
    C: tl.constexpr,
    SOLVE: tl.constexpr,
    KEEPS_GREY: tl.constexpr,
    KEEPS_SCORES: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCRIPT: tl.constexpr,
    TABLE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(index + row).to(tl.int64)
    script += slot * SCRIPT
    step = tl.load(script + STEP)
    opens, closes = tl.load(script + OPENS), tl.load(script + CLOSES)
    start, t_c = tl.load(script + START), tl.load(script + T_C)
    signal, largest = tl.load(script + SIGNAL), tl.load(script + LARGEST)
    table += (slot * steps + tl.minimum(step, steps - 1)) * TABLE
    a, b = tl.load(table), tl.load(table + 1)
    clip = tl.load(table + 4)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = location < locations
    now = tl.zeros((BLOCK,), tl.int32) + step  # a block: the interpreter does not know what a block and one flag give
    kind = tl.zeros((BLOCK,), tl.int32) + signal
    seen = here & (now >= opens) & (now < closes)
    changed = seen & (now > opens)
    in_window = seen & (now >= start) & (now < t_c)
    at_x = offset_at(location, height, width, x_d, x_h, x_w, C, LAYOUT)
    at_m = offset_at(location, height, width, m_d, m_h, m_w, C, LAYOUT)
    x_channel = channel_stride(x_channel, locations, LAYOUT)
    m_channel = channel_stride(m_channel, locations, LAYOUT)
    frame = (slot * frames + (step - start)) * C * locations
    total = tl.zeros((BLOCK,), tl.float32)
    wild = tl.zeros((BLOCK,), tl.int32)
    for first in tl.static_range(0, C, CHANNELS):
        channel = first + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
        real = channel < C
        ok = seen[None, :] & real
        read = here[None, :] & real if SOLVE else ok
        at_state = x + row * x_row + channel * x_channel + at_x[None, :]
        at_clean = channel * locations + location[None, :]
        state = tl.load(at_state, read, other=0.0).to(tl.float32)
        output = tl.load(m + row * m_row + channel * m_channel + at_m[None, :], read, other=0.0).to(tl.float32)
        before = tl.load(x0 + slot * C * locations + at_clean, changed[None, :] & real, other=0.0)
        if SOLVE:
            following = tl.load(table + 2) * state + tl.load(table + 3) * output
            tl.store(at_state, following.to(x.dtype.element_ty), read)
        clean = clean_of(state, output, a, b, clip, True)
        change = tl.where(ok, tl.abs(clean - before), 0.0)
        total = larger(total, change) if largest != 0 else plus_groups(total, change, CHANNELS, BLOCK)
        wild = tl.maximum(wild, tl.max((ok & (clean - clean != 0.0)).to(tl.int32), 0))
        tl.store(x0 + slot * C * locations + at_clean, clean, ok)
        if KEEPS_GREY:
            grey_level = tl.minimum(tl.maximum((clean + 1.0) * 127.5, 0.0), 255.0).to(tl.uint8)
            tl.store(grey + frame + at_clean, grey_level, (in_window & (kind == GREY_LEVELS))[None, :] & real)
        if KEEPS_SCORES:  # of the model's own prediction, before any clipping
            alpha = tl.zeros_like(state) + tl.load(table + 5)
            score = clean_of(state, output, a, b, clip, False) - tl.div_rn(state, alpha)
            tl.store(scores + frame + at_clean, score, (in_window & (kind == SCORES))[None, :] & real)
    if largest == 0:
        total = total * (1.0 / C)
    tl.store(bank + (slot * maps + (step - opens - 1)) * locations + location, total, changed)
    if tl.max(wild, 0) > 0:
        tl.store(script + tl.where(step < t_c, FINITE, FINITE_AFTER), 0)
    tl.debug_barrier()  # every thread has read where the row stands
    programs = tl.num_programs(0)
    if tl.atomic_add(script + TICKET, 1) == programs - 1:
        tl.store(script + TICKET, 0)
        tl.store(script + STEP, step + 1)


class RowStepper:
    """Launches of the kernel on one batch's slots.

    Args: channels, grid: of the states to come, [R, channels, *grid] for any R up to the number of slots.
    """

    def __init__(self, slots: Slots, channels: int, grid: tuple[int, ...]) -> None:
        self._slots = slots
        # Tiles are those of a full batch: a kernel is compiled once for any number of rows.
        self._full = Layout(torch.empty((len(slots.x0), channels, *grid), device="meta"))
        self._prepared: dict[tuple, tuple] = {}

    def __call__(self, x: Tensor, m: Tensor, solve: bool) -> None:
        """One step of the rows that ``Slots.index`` names; on the current stream of x's device, the current one."""
        key = self._kind(x, m, solve)
        prepared = self._prepared.get(key)
        if prepared is None:
            self._first(key, x, m, solve)
            return
        launch, stream_of, device = prepared
        launch(stream_of(device), x.data_ptr(), m.data_ptr())

    def knows(self, x: Tensor, m: Tensor, solve: bool) -> bool:
        """Whether such a step was launched before."""
        return self._kind(x, m, solve) in self._prepared

    @staticmethod
    def _kind(x: Tensor, m: Tensor, solve: bool) -> tuple:
        pattern = misaligned(x.data_ptr(), m.data_ptr())
        return solve, x.shape[0], x.stride(), m.stride(), x.dtype, m.dtype, pattern

    def _first(self, key: tuple, x: Tensor, m: Tensor, solve: bool) -> None:
        layout, slots = Layout(x), self._slots
        strides = [layout.strides(x), layout.strides(m)]
        order = layout.order(strides)
        sizes, flat = layout.numbers(strides, order)
        channels = layout.together(order)
        block = self._full.block(channels)
        numbers = (slots.bank.shape[1], max(slots.grey.shape[1], slots.scores.shape[1]), slots.table.shape[1])
        tail = (
            *numbers,
            *sizes,
            layout.locations,
            *flat,
            layout.channels,
            solve,
            slots.grey.numel() > 0,
            slots.scores.numel() > 0,
            order,
            channels,
            block,
            SCRIPT,
            TABLE,
        )
        grid = (triton.cdiv(layout.locations, block), layout.rows, 1)
        compiled = row_step_kernel[grid](x, m, *slots, *tail, num_warps=WARPS, enable_fp_fusion=False)
        if x.is_cuda:
            fixed = (*(part.data_ptr() for part in slots), *tail)
            self._prepared[key] = (launch_of(compiled, grid, 2, fixed), stream_getter(), x.device.index)
