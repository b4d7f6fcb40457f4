# SPDX-License-Identifier: MIT
"""Two processes: rows whose latents both hold whole, and rows of which each holds a slice.

python tests/ranks.py FOLDER [gloo|nccl]      # writes what each rank ends with to FOLDER
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from batch_loop import by, serve_batch
from null_tables import calibrated
from row_loop import mixed

from ascedfast import AscedConfig, Engine, Schedule, process
from ascedfast.sharded import ShardedEngine

RANKS, STEPS, T_C = 2, 9, 5
SCHEDULES = [Schedule.from_levels([process.flow(1 - k / steps) for k in range(steps)]) for steps in (STEPS, STEPS + 2)]
IMAGE, VIDEO = (3, 16, 14), (2, 4, 12, 13)
RULES = {"t_c": T_C, "window_start": 0, "reference_size": None, "min_area": 3, "core_width": 2, "grow": 1}
CASES = {
    "lines": (IMAGE, 0, AscedConfig(**RULES), torch.float32),
    "columns": (IMAGE, 1, AscedConfig(x0_noise=0.3, **RULES), torch.bfloat16),
    "frames": (VIDEO, 0, AscedConfig(**RULES), torch.float32),
    "lines of a video": (VIDEO, 1, AscedConfig(**RULES), torch.float32),
    "calibrated": (IMAGE, 0, calibrated(SCHEDULES[0], T_C, IMAGE[1:], above=0.3), torch.float32),
    "observed": (IMAGE, 0, AscedConfig(correct=False, **RULES), torch.float32),
    "a value that is not finite": (IMAGE, 0, AscedConfig(**RULES), torch.float32),
}
"""Shape of a whole row, the axis it is cut along, settings, dtype."""


def outputs(name, shape, dtype):
    """Model outputs of two rows, whole. In motion across the cut."""
    g = torch.Generator().manual_seed(5)
    quiet = torch.randn(2, *shape, generator=g)
    for k in range(STEPS):
        m = quiet + 0.01 * torch.randn(2, *shape, generator=g)
        m[..., 5:11, 4:9] += 0.4 * (-1) ** k
        if "finite" in name and k == 2:
            m[1, 0, 0, 0] = float("nan")  # on the first rank only
        yield m.to(dtype)


def run(name, cut, engine, device):
    """State after the last step, masks that corrections returned, reports. cut: a rank's slice of a tensor."""
    shape, _, config, dtype = CASES[name]
    longer = 0 if "calibrated" in name else 1  # its table knows one schedule
    rows = [engine.add(SCHEDULES[i * longer], config, seed=7 + i, draw=i) for i in range(2)]
    x = cut(torch.randn(2, *shape, generator=torch.Generator().manual_seed(6)).to(dtype)).to(device)
    masks = []
    for m in outputs(name, shape, dtype):
        m = cut(m).to(device)
        engine.observe(x, m, rows)
        x = (x.float() - m.nan_to_num().float() / STEPS).to(dtype)
        mask = engine.correct_(x, rows)
        masks += [] if mask is None else [mask.cpu()]
    reports = [engine.remove(row) for row in rows]
    found = [
        {
            "status": report.status,
            "severity": report.severity,
            "dynamics": [d.cpu() for _, d in report.dynamics],
            **{part: getattr(report, part).cpu() for part in ("mask", "mask_grown", "labels", "z", "finite")},
        }
        for report in reports
    ]
    return {"x": x.cpu(), "masks": masks, "reports": found}


def whole(name, device):
    """By an engine that holds all of it."""
    return run(name, lambda x: x, Engine(), device)


def raised(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refusals(rank, device):
    """What is said of slices that do not fit together."""
    told = {}

    def observe(x, seed=1, axis=0):
        engine = ShardedEngine(shard_axis=axis)
        engine.add(SCHEDULES[0], AscedConfig(**RULES), seed=seed)
        return lambda: engine.observe(x.to(device), x.to(device))

    told["uneven"] = raised(observe(torch.zeros(1, 3, 8 + rank, 8)))
    told["other rows"] = raised(observe(torch.zeros(1, 3, 8, 8), seed=rank))
    told["no such axis"] = raised(observe(torch.zeros(1, 3, 8, 8), axis=2))
    told["fits"] = raised(observe(torch.zeros(1, 3, 8, 8)))
    engine = ShardedEngine(shard_axis=0)
    for mode in ("official", "paper"):
        told[mode] = raised(lambda: engine.add(SCHEDULES[0], AscedConfig.for_mode(mode), seed=1))  # noqa: B023
    told["record"] = raised(lambda: engine.add(SCHEDULES[0], AscedConfig(record="run"), seed=1))
    keep = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    told["keep"] = raised(lambda: engine.add(SCHEDULES[0], AscedConfig(), seed=1, keep_mask=keep))

    def apart(change):
        """Rank 1 does otherwise from step 3 on, in front of T_c."""
        engine = ShardedEngine(shard_axis=0)
        rows = [engine.add(SCHEDULES[0], AscedConfig(**RULES), seed=seed) for seed in range(2)]
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
        for step in range(STEPS):
            state, order = change(x, rows) if rank and step > 2 else (x, rows)
            engine.observe(state, state, order)
            engine.correct_(state, order)

    told["other dtype later"] = raised(lambda: apart(lambda x, rows: (x.bfloat16(), rows)))
    told["other order later"] = raised(lambda: apart(lambda x, rows: (x, rows[::-1])))
    told["axis"] = raised(lambda: ShardedEngine(shard_axis=-1))
    return told


def slice_of(rank, axis, x):
    return x.chunk(RANKS, axis)[rank].contiguous()


def serve(rank, folder, backend):
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    done = {"refusals": refusals(rank, device)}
    for name, (_, axis, _, _) in CASES.items():
        done[name] = run(name, partial(slice_of, rank, 2 + axis), ShardedEngine(shard_axis=axis), device)
    if backend == "gloo":  # whole latents: each rank has rows of its own, in another order
        pool = [by(request, "reference") for request in mixed() if not request.toggles]
        results = serve_batch(pool[:: 1 if rank else -1], order=rank)[:: 1 if rank else -1]
        done["replicated"] = [(one.x, one.report.severity, one.report.mask_grown) for one in results]
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    where, *chosen = sys.argv[1:]
    torch.multiprocessing.spawn(serve, (str(Path(where)), *(chosen or ["gloo"])), nprocs=RANKS)
