# SPDX-License-Identifier: MIT
"""Every kernel, launched on small inputs with odd sides: planes, volumes, batches, strides. What ``sanitize`` watches.

``python -m benchmarks.every_kernel [NAME ...]`` launches those named, or all, on the CUDA device. Nothing is checked or
timed here; the tests do the one, the benchmarks the other.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ascedfast import AscedConfig, RowBatch, Schedule, _native_cuda, ops, process
from ascedfast.reference_scores import Gumbel
from benchmarks.loops import Loop, randn, step_guided

GRIDS = ((2, 3, 19, 23), (1, 17, 5, 1), (2, 4, 3, 9, 7))
"""[R, C, *grid]."""
BY_TRITON = {"backend": "triton"}
STATISTICS = {"mad_scale": 2.0, "mad_floor": 0.01, "z_floor": 0.01}
SOLVERS = {"DDIM": torch.float32, "Euler": torch.bfloat16, "DPM++2M": torch.float16, "FlowMatchEuler": torch.bfloat16}
LINEAR_SOLVERS = {"UniPC": torch.bfloat16, "PNDM": torch.float32}
"""Solvers that are fused with the stock's bits, and in linear form (see ``loops``), and a state's dtype for each."""
LARGER_THAN_REGISTERS = (131, 129)
"""A plane beyond 128x128, which other kernels serve."""
LARGER_THAN_A_BLOCK = (515, 509)
"""A row of locations beyond the shared memory of any block."""
LARGER_THAN_A_CLUSTER = 641 * 643
"""Values of a plane beyond the shared memory of any cluster."""
MORE_THAN_A_MILLION = (1, 3, 601, 603)
"""A state whose history is filled another way."""


def _states(shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    """The same shape dense, channels last, and as the end of a larger tensor, each of another dtype."""
    yield randn(shape, 1, device)
    yield randn((shape[0], *shape[2:], shape[1]), 2, device).bfloat16().movedim(-1, 1)
    yield randn((shape[0], shape[1] + 1, *shape[2:-1], shape[-1] + 2), 3, device).half()[:, 1:, ..., 2:]


def _masks(device: torch.device) -> Iterator[Tensor]:
    for rows, _, *grid in GRIDS:
        yield randn((rows, *grid), 4, device) > 0.5
        yield (randn((rows, *grid[:-1], grid[-1] + 2), 5, device) > 0.5)[..., 2:]


def _rows(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.rand(rows, device=device), torch.arange(rows, device=device)


def _step_dynamics(device: torch.device, patches: tuple[int, ...] = (1,)) -> None:
    for shape in GRIDS:
        a, _ = _rows(shape[0], device)
        for x in _states(shape, device):
            for patch in patches:
                x0, _ = ops.step_dynamics(x, x, a, -a, x.float(), clip=1.0, patch=patch, **BY_TRITON)
                ops.step_dynamics(x, x, a, -a, x0, reduce="max", patch=patch, **BY_TRITON)
            ops.step_dynamics(x, x, a, -a, **BY_TRITON)


def _patch_dynamics(device: torch.device) -> None:
    _step_dynamics(device, (2, 4, 8, 16))


def _solvers(device: torch.device, solvers: dict[str, torch.dtype] = SOLVERS, form: str = "parity") -> None:
    """The solvers' updates fused into the step, with detection and correction, as a sampling loop launches them."""
    config = AscedConfig.fast(t_c=12, min_area=0, core_width=1, mad_scale=2.0, form=form, **BY_TRITON)
    for name, dtype in solvers.items():
        loop = Loop(name, (2, 3, 19, 23), dtype, device)
        scheduler, _ = loop.make(config)
        step_guided(loop, scheduler)


def _linear_solvers(device: torch.device) -> None:
    _solvers(device, LINEAR_SOLVERS, "linear")


def _robust_threshold(device: torch.device) -> None:
    for rows, channels, *grid in GRIDS:
        maps = randn((2, rows, channels, *grid), 6, device).abs()
        scale = torch.full((rows, *grid), 2.0, device=device)
        ops.robust_threshold(maps, blur_sigma=1.5, **STATISTICS, **BY_TRITON)
        ops.robust_threshold(maps, blur_sigma=1.5, by_frame=True, **STATISTICS, **BY_TRITON)
        for mad_scale in (scale, scale.flatten(1)[:, 0]):
            settings = STATISTICS | {"mad_scale": mad_scale}
            ops.robust_threshold(maps, blur_sigma=0.0, count=True, **settings, **BY_TRITON)
    maps = randn((1, 1, 1, *LARGER_THAN_REGISTERS), 6, device).abs()
    ops.robust_threshold(maps, blur_sigma=0.0, **STATISTICS, **BY_TRITON)


def _label_regions(device: torch.device, backend: str = "triton") -> None:
    plane = randn((2, *LARGER_THAN_REGISTERS), 7, device) > 0.2
    wide = randn((1, 24, 1500), 8, device) > 0.2  # 16 locations a lane
    for mask in (*_masks(device), plane, plane.transpose(1, 2), wide):
        for connectivity in (4, 8) if mask.dim() == 3 else (6, 26):
            ops.label_regions(mask, connectivity=connectivity, min_area=1, core_width=2, backend=backend)


def _label_levels(device: torch.device, backend: str = "triton") -> None:
    """Levels, with seeds: small, in bands, and in lines that are cut in parts."""
    plane = (2, *LARGER_THAN_REGISTERS)
    for shape in (*((rows, *grid) for rows, _, *grid in GRIDS), plane, (1, 24, 1500), (1, 2, 9001)):
        drawn = randn(shape, 12, device)
        levels = (drawn > 0.2).to(torch.uint8) + (drawn > 1.5)
        for view in (levels, levels.transpose(-1, -2)) if shape == plane else (levels,):
            for connectivity in (4, 8) if view.dim() == 3 else (6, 26):
                ops.label_regions(view, connectivity=connectivity, min_area=1, backend=backend)


def _dilate_mask(device: torch.device) -> None:
    for mask in (*_masks(device), randn((1, 5, 131), 8, device) > 1):
        for radius in (0, 2, 17):
            ops.dilate_mask(mask, radius, **BY_TRITON)


def _renoise(device: torch.device) -> None:
    for shape in GRIDS:
        level, count = _rows(shape[0], device)
        mask = randn((shape[0], *shape[2:]), 4, device) > 0
        keys = {"seeds": count, "steps": count, "draws": count}
        for x in _states(shape, device):
            ops.renoise_(x, mask, x.float(), level, level, **keys, **BY_TRITON)
            ops.renoise_(x, mask, x.float(), level, level, **keys, x0_noise=level, **BY_TRITON)


def _history_fill(device: torch.device) -> None:
    for shape in (*GRIDS, MORE_THAN_A_MILLION):
        mask = randn((shape[0], *shape[2:]), 4, device) > 0
        entries = list(_states(shape, device))
        for count in (1, 2, 3):
            ops.history_fill_(entries[:count], mask, randn(shape, 9, device), **BY_TRITON)


def _label_regions_cuda(device: torch.device) -> None:
    _label_regions(device, "native")
    _label_levels(device, "native")
    for mask in (randn((2, *LARGER_THAN_A_BLOCK), 7, device) > 0.2, randn((1, 11, 151, 157), 7, device) > 0.8):
        connectivity = 8 if mask.dim() == 3 else 26
        ops.label_regions(mask, connectivity=connectivity, min_area=1, core_width=2, backend="native")
        ops.label_regions(mask.to(torch.uint8) * 2, connectivity=connectivity, min_area=1, backend="native")


def _medians_cuda(device: torch.device) -> None:
    for planes, count in ((3, 1), (2, 31), (5, 4097), (3, 65539), (2, LARGER_THAN_A_CLUSTER)):
        _native_cuda.medians(randn((planes, count + 3), 10, device).abs()[:, 3:])


def _temporal_scores(device: torch.device) -> None:
    for shape in ((2, 2, 9, 7), (5, 3, 40, 31), (12, 1, 3, 300, 301), (23, 2, 16, 16)):
        d = randn(shape, 11, device).abs()
        for changes in (d, d.bfloat16()):
            ops.temporal_scores(changes, [1.0 + k for k in range(len(d))], **BY_TRITON)


def _temporal_severity(device: torch.device) -> None:
    for shape in ((2, 2, 9, 7), (5, 3, 40, 31), (12, 1, 3, 300, 301), (23, 2, 16, 16)):
        d, among = randn(shape, 11, device).abs(), (Gumbel(1.0, 0.2), Gumbel(0.5, 0.3))
        for changes in (d, d.bfloat16()):
            ops.temporal_severity(changes, [1.0 + k for k in range(len(d))], *among, low=0.0, high=1.0, **BY_TRITON)


def _row_batch(device: torch.device) -> None:
    """A server's rows over the steps of a window and its end: planes in every mode, volumes, several types."""
    schedule = Schedule.from_levels([process.flow(1 - k / 7) for k in range(7)])
    rules = {"t_c": 4, "window_start": 0}
    small = rules | {"min_area": 1, "core_width": 1, **BY_TRITON}
    configs = [AscedConfig.fast(**small), AscedConfig.fast(channels="max", x0_noise=0.1, **small)]
    configs += [make(**rules, **BY_TRITON) for make in (AscedConfig.official, AscedConfig.paper)]
    for shape in GRIDS:
        modes = ("fast", "official", "paper")
        for i, x in enumerate(_states(shape, device)):
            batch = RowBatch(shape[0], shape[1:], device, x.dtype, max_maps=3, modes=modes, backend="triton")
            for config in configs if i == 0 and len(shape) == 4 else configs[:1]:
                rows = [batch.add(config, seed, schedule) for seed in range(shape[0])]
                for step in range(5):
                    (batch.step_ if step else batch.observe)(rows, x, x.float())
                    batch.correct_(rows, x)
                batch.select([])


CASES: dict[str, Callable[[torch.device], None]] = {
    "step_dynamics": _step_dynamics,
    "step_dynamics by patch": _patch_dynamics,
    "step_dynamics with a solver": _solvers,
    "linear_step": _linear_solvers,
    "robust_threshold": _robust_threshold,
    "temporal_scores": _temporal_scores,
    "temporal_severity": _temporal_severity,
    "label_regions": _label_regions,
    "label_regions of levels": _label_levels,
    "dilate_mask": _dilate_mask,
    "renoise_": _renoise,
    "history_fill_": _history_fill,
    "rows of a batch": _row_batch,
    "label_regions.cu": _label_regions_cuda,
    "medians.cu": _medians_cuda,
}
"""Launches by name: an op's is its Triton kernels', a file's those of csrc."""


def main(names: list[str]) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for name in names or CASES:
        CASES[name](device)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
