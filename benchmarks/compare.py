# SPDX-License-Identifier: MIT
"""``python -m benchmarks.compare --base REF``: is the CPU slower than at another commit, on this machine?

The pytest-benchmark rows of both commits run in turn, five times each, on one thread; a run's figure is its fastest
round, which other work on the machine can only slow down. A row is suspected where its median of the five is more than
30 % worse, and only what a second such series of the suspects confirms fails: short rows moved by 38 % between two
commits with the same code. No base, or no benchmark in it: one line, and no failure.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.source import ROOT

REPEATS = 5
WORSE = 1.3
ROWS = "not scipy and not (label_regions and reference) and not official and not paper and not pixels"
"""Ours, without those that take seconds: a whole comparison takes one to two minutes."""
PYTEST = ("--benchmark-enable", "--benchmark-only", "--benchmark-max-time=0.1", "--benchmark-min-rounds=3", "--dist=no")
"""``--dist``: any other, as in ``addopts``, turns benchmarks off."""
Times = dict[str, float]
Measure = Callable[[Sequence[str] | None], Times]


class BenchmarksFail(RuntimeError):
    """A checkout's benchmarks do not run: (the end of their output, the line that says so)."""


def main(base: Annotated[str, typer.Option(help="A git ref, as HEAD~1 or origin/main.")]) -> None:
    """Compare the working tree's CPU benchmarks with those of a commit."""
    why = why_not(base)
    if why:
        print(f"no comparison of CPU benchmarks: {why}")
        return
    with worktree(base) as tree:
        try:
            rows_of(tree)
        except BenchmarksFail as failure:
            print(f"no comparison of CPU benchmarks: {base}'s own fail here: {failure.args[1]}")
            return
        try:
            slower = slower_rows(lambda rows: rows_of(ROOT, rows), lambda rows: rows_of(tree, rows))
        except BenchmarksFail as failure:
            print(failure.args[0])
            raise typer.Exit(1) from None
    if slower:
        print(f"over {WORSE - 1:.0%} slower than {base}, twice: {', '.join(slower)}")
        raise typer.Exit(1)


def slower_rows(ours: Measure, theirs: Measure) -> list[str]:
    """Rows that became too slow in two series of interleaved runs; prints what it sees.

    Args: ours, theirs: run the rows of these names (None: all) and give each one's time.
    """
    suspects: list[str] | None = None
    for _ in range(2):
        pairs = [(theirs(suspects), ours(suspects)) for _ in range(REPEATS)]
        lines, suspects = verdict([ours for _, ours in pairs], [theirs for theirs, _ in pairs])
        print("\n".join(lines) or "no row is in both commits")
        if not suspects:
            return []
        print(f"{len(suspects)} over {WORSE - 1:.0%} slower")
    return suspects


def why_not(base: str, root: Path = ROOT) -> str | None:
    """Why there is nothing to compare with; None when there is."""
    known = _git("cat-file", "-e", f"{base}^{{commit}}", root=root)
    if known.returncode != 0:
        return f"{base} is not available here (a shallow clone, or no git checkout)"
    listing = _git("ls-tree", "--name-only", base, "benchmarks/", root=root).stdout.split()
    if not any(Path(name).name.startswith("test_") for name in listing):
        return f"{base} has no benchmarks"
    return None


@contextlib.contextmanager
def worktree(base: str) -> Iterator[Path]:
    """A checkout of ``base`` that imports by itself, with its own kernels and its own extension."""
    folder = Path(tempfile.mkdtemp(prefix="ascedfast-base-"))
    tree = folder / "tree"
    try:
        _git("worktree", "add", "--detach", str(tree), base, check=True)
        kernels = tree / "ascedfast" / "kernels"
        if not kernels.exists():  # the editable install knows the working tree's only
            kernels.symlink_to(Path("..") / "kernels" / "fused")
        _extension(tree)
        yield tree
    finally:
        _git("worktree", "remove", "--force", str(tree))
        shutil.rmtree(folder, ignore_errors=True)


def _extension(tree: Path) -> None:
    """The base's extension: ours where its sources are the same, else built. Without one its rows are skipped."""
    sources = ("csrc", "setup.py")
    if _git("diff", "--quiet", "HEAD", "--", *sources).returncode == 0 and all(
        _git("rev-parse", f"HEAD:{name}").stdout == _git("rev-parse", f"HEAD:{name}", root=tree).stdout
        for name in sources
    ):
        for built in (ROOT / "ascedfast").glob("_C*.so"):
            shutil.copy2(built, tree / "ascedfast")
    elif any((ROOT / "ascedfast").glob("_C*.so")):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, check=False, capture_output=True)


def rows_of(tree: Path, rows: Sequence[str] | None = None) -> Times:
    """Seconds of the fastest round of each row of a checkout, or of those named. Raises: BenchmarksFail."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "rows.json"
        chosen = ["benchmarks", "-k", ROWS] if rows is None else list(rows)
        command = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", *PYTEST]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, f"--benchmark-json={report}"],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            output = done.stdout + done.stderr
            named = [line for line in output.splitlines() if "failed" in line or "rror" in line]
            raise BenchmarksFail(output[-3000:], named[-1] if named else f"pytest exits with {done.returncode}")
        measured = json.loads(report.read_text())["benchmarks"]
    return {row["fullname"]: row["stats"]["min"] for row in measured}


def verdict(ours: list[Times], theirs: list[Times]) -> tuple[list[str], list[str]]:
    """A line for each row that all runs have, and the names of those that became too slow."""
    shared = sorted(set.intersection(*(set(run) for run in (*ours, *theirs))))
    lines, slower = [], []
    for name in shared:
        now, then = (statistics.median(run[name] for run in runs) for runs in (ours, theirs))
        lines.append(f"{now / then:6.2f}  {then * 1e3:10.3f} -> {now * 1e3:10.3f} ms  {name.rpartition('/')[2]}")
        if now > WORSE * then:
            slower.append(name)
    return lines, slower


def _git(*arguments: str, root: Path = ROOT, check: bool = False) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=check)


if __name__ == "__main__":
    typer.run(main)
