# SPDX-License-Identifier: MIT
"""``python -m benchmarks.sanitize``: every kernel under compute-sanitizer's memcheck and racecheck.

memcheck finds accesses outside allocations, in memory of any kind; racecheck finds hazards in shared memory. Neither
sees races in global memory: those are for the tests, which compare bits.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ascedfast import _backend
from benchmarks.every_kernel import CASES
from benchmarks.source import ROOT

FOUND = 86
"""What the sanitizer exits with when it found something; no exit status of Python."""
TOOLS = {"memcheck": ("--padding", "256"), "racecheck": ()}
"""Options of each tool. Padding: so that one allocation does not begin where another ends."""
ALWAYS = ("--error-exitcode", str(FOUND), "--report-api-errors", "no")
"""API errors: CUDA's own probing for newer functions, which is none of ours; a launch that fails ends the child."""
SHOWN = 12
"""Lines of a finding."""
NOISE = re.compile(r"=+ (COMPUTE-SANITIZER|.*SUMMARY:)|=+\s*$")


TOOLKIT = "/usr/local/cuda"
"""Where the CUDA toolkit lies unless CUDA_HOME or CUDA_PATH says otherwise."""


def sanitizer() -> str | None:
    """Path of compute-sanitizer: on the PATH, else in the CUDA toolkit."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT]
    places = [str(Path(folder) / "bin") for folder in folders if folder]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def missing() -> str | None:
    """Why nothing can be checked here; None when it can."""
    if sanitizer() is None:
        return "compute-sanitizer is missing: it comes with the CUDA toolkit; put it on the PATH or set CUDA_HOME"
    if not torch.cuda.is_available():
        return "no CUDA device: compute-sanitizer watches kernels on one"
    if not _backend.has_cuda():
        return "the extension ascedfast._C holds no CUDA: nvcc and `pip install -e .` build it"
    return None


def finding(status: int, output: str) -> list[str]:
    """What a tool says of a child: no line when all is clean, else its first ones.

    Clean is a summary of nothing and an exit status of 0, so that a tool that did not run is no clean bill.
    """
    counts = re.findall(r"SUMMARY: (\d+) (?:errors?|hazards?)", output)
    if status == 0 and counts and not any(map(int, counts)):
        return []
    lines = output.splitlines()
    said = [line for line in lines if line.startswith("====") and not NOISE.match(line)]
    return [*(said or lines[-SHOWN:] or ["no output"])[:SHOWN], f"exit status {status}"]


def watch(tool: str, names: list[str]) -> list[str]:
    """``finding`` of one child that launches these kernels."""
    command = [str(sanitizer()), "--tool", tool, *ALWAYS, *TOOLS[tool]]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a pool hides accesses beyond a tensor
    done = subprocess.run(
        [*command, sys.executable, "-m", "benchmarks.every_kernel", *names],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return finding(done.returncode, done.stdout)


def main() -> int:
    """Exit status: 0 clean, 1 found something, 2 nothing to check with. One line a kernel and tool."""
    why = missing()
    if why is not None:
        print(why)
        return 2
    found = False
    for tool in TOOLS:
        together = watch(tool, [])  # one start for all of them; one by one only to tell which
        findings = {name: watch(tool, [name]) if together else [] for name in CASES}
        if together and not any(findings.values()):
            findings["all together"] = together
        for name, lines in findings.items():
            print(f"{tool:9}  {name:27}  {'FOUND' if lines else 'clean'}", *lines, sep="\n    ", flush=True)
        found |= bool(together)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
