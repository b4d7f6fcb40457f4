# SPDX-License-Identifier: MIT
"""Compiles every Triton kernel for an H100 (sm_90) where there is no GPU. The interpreter runs what no compiler takes:
a variable that changes its type in a loop, for one.

    python tests/compile_kernels.py [NAME ...]      # of ``benchmarks.every_kernel``

Launches are turned into compilations, as far as PTX; no kernel runs, and results are whatever memory holds.
"""

import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ascedfast import _backend
from benchmarks import every_kernel

H100 = GPUTarget("cuda", 90, 32)
CPU = torch.device("cpu")
SHARED = 64 << 10  # bytes that a block may have on every card from 7.5 on
ONE_PATCH = partial(every_kernel.CASES["step_dynamics"], patches=(4,))  # others differ by a number
CASES = every_kernel.CASES | {"step_dynamics by patch": ONE_PATCH}


def compile_instead(done: list) -> None:
    """From here on a launch compiles its kernel, which ``done`` receives."""
    driver = SimpleNamespace(
        get_current_target=lambda: H100,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_active_torch_device=lambda: CPU,
    )
    triton.runtime.driver.set_active(driver)

    def launch(kernel: JITFunction, grid: tuple):
        def warm_up(*args, **kwargs):
            done.append(kernel.run(*args, grid=grid, warmup=True, **kwargs))
            return done[-1]

        return warm_up

    JITFunction.__getitem__ = launch
    _backend.why_not = lambda backend, op, device: []


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    done: list = []
    compile_instead(done)
    for name in names or [name for name in CASES if not name.endswith(".cu")]:
        began, before = time.monotonic(), len(done)
        CASES[name](CPU)
        assert len(done) > before, f"{name} launched nothing"
        assert all(".target sm_90" in compiled.asm["ptx"] for compiled in done[before:])
        shared = max(compiled.metadata.shared for compiled in done[before:])
        assert shared <= SHARED, f"{name} needs {shared} bytes of shared memory a block"
        kinds = {compiled.hash for compiled in done[before:]}
        print(f"{name}: {len(kinds)} compiled in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
