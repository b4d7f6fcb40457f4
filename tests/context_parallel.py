# SPDX-License-Identifier: MIT
"""Two processes that share the tokens of one denoiser (diffusers' Ulysses over gloo); its output is gathered."""

import sys
from pathlib import Path

import company
import torch
import torch.distributed as dist
import torch.multiprocessing
from diffusers import ContextParallelConfig

from ascedfast import AscedConfig, disable_asced, enable_asced

RANKS = 2
NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101)


def serve(rank: int, folder: str) -> None:
    """Four runs: stock, nothing found, corrected twice. Writes their states, and the mask, to ``folder``."""
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and a CPU counts none
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    made = company.flux()
    made.share = (rank, RANKS)
    made.pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    runs = {}
    for name, config in {"stock": None, "clean": NOTHING, "first": AscedConfig(), "again": AscedConfig()}.items():
        handle = None if config is None else enable_asced(made.pipe, config)
        made()
        runs[name] = torch.stack(made.states)
        if handle is not None:
            runs[name + " mask"], runs[name + " t_c"] = handle.report.masks_grown, handle.report[0].plan.t_c
            disable_asced(made.pipe)
    torch.save(runs, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    torch.multiprocessing.spawn(serve, (str(where),), nprocs=RANKS)
