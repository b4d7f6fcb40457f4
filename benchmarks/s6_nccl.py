# SPDX-License-Identifier: MIT
"""S6-nccl: two ranks that are given the same model outputs and speak of nothing else have the same bits.

The packaged DiT runs on the first rank, which sends its outputs to the other. Each rank keeps rows of its own, in
another order and other slots. On a CPU gloo takes NCCL's place.
"""

import socket
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ascedfast import AscedConfig, RowBatch
from ascedfast.adapters.schedules import schedule_of
from ascedfast.demo import load_model

SHAPE = (3, 64, 64)
CONFIGS = (AscedConfig(), AscedConfig(mad_scale=2.0, min_area=30), AscedConfig(x0_noise=0.1))


def _bits(report: Any) -> list[Tensor]:
    parts = [report.mask, report.mask_grown, report.z, report.labels, *(d for _, d in report.dynamics)]
    return [part.contiguous().view(torch.uint8).flatten() for part in parts if part is not None]


def run_rank(rank: int, device: torch.device, lengths: tuple[int, ...], blocks: int | None = None) -> Tensor:
    """All that one rank has in the end, uint8: states and reports of all rows, in the order of their seeds."""
    model, scheduler = load_model("dit", device)
    model.transformer_blocks = model.transformer_blocks[:blocks]
    times = {}

    def schedule(steps: int) -> Any:
        scheduler.set_timesteps(steps)
        times[steps] = scheduler.timesteps.tolist()
        return schedule_of(scheduler)

    count = len(lengths)
    batch = RowBatch(count + 1, SHAPE, device, schedule_of=schedule)
    seeds = list(range(count))[:: -1 if rank else 1]
    strangers = [batch.add(None, 99, lengths[0]) for _ in range(rank)]  # another slot for every row
    ids = {seed: batch.add(CONFIGS[seed % len(CONFIGS)], seed, lengths[seed]) for seed in seeds}
    batch.select(list(ids.values()))
    assert not set(strangers) & set(batch.rows)
    x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(count)])
    x, done = x.to(device), {}
    while ids:
        now = sorted(ids)
        t = torch.tensor([times[lengths[seed]][batch.step_of(ids[seed])] for seed in now], device=device)
        m = model(x[now], timestep=t, return_dict=False)[0] if rank == 0 else torch.empty_like(x[now])
        dist.broadcast(m, 0)
        order = [seed for seed in seeds if seed in ids]
        rows, states = [ids[seed] for seed in order], x[order]
        batch.step_(rows, states, m[[now.index(seed) for seed in order]])
        batch.correct_(rows, states)
        x[order] = states
        for seed in order:
            if batch.is_finished(ids[seed]):
                done[seed] = batch.remove(ids.pop(seed))
    reports = [part for seed in range(count) for part in _bits(done[seed])]
    return torch.cat([x.view(torch.uint8).flatten(), *reports])


def _work(rank: int, port: int, backend: str, lengths: tuple[int, ...], blocks: int | None, answer: Any) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        with torch.inference_mode():
            mine = run_rank(rank, device, lengths, blocks)
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        differing = (mine ^ theirs).unsqueeze(1).bitwise_right_shift(torch.arange(8, device=device).byte()) & 1
        if rank == 1:
            answer.put((int(differing.sum()), 8 * mine.numel()))
    finally:
        dist.destroy_process_group()


def differing_bits(quick: bool) -> dict[str, Any]:
    """How many bits of states and reports differ between the ranks."""
    backend = "nccl" if torch.cuda.device_count() >= 2 else "gloo"
    lengths = (8, 10) if quick else (25, 13, 20, 25, 31, 17, 25, 22)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    answer = context.SimpleQueue()
    mp.start_processes(_work, (port, backend, lengths, 1 if quick else None, answer), nprocs=2, start_method="spawn")
    differing, total = answer.get()
    unit = f"bits of {total} that differ between two ranks, by {backend}"
    return {"id": "S6-nccl", "value": differing, "n": len(lengths), "unit": unit}
