# SPDX-License-Identifier: MIT
"""``python -m benchmarks.serving``: measure S1 to S5 on this machine's CPU and save them."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.serving.outcome import FILE, Outcome, save, write_page
from benchmarks.serving.process import PACKAGED, SLOW_STUB, STUB, Running, serving
from benchmarks.serving.s1_bits import s1
from benchmarks.serving.s2_kill import s2
from benchmarks.serving.s3_tenants import leaving, tenants
from benchmarks.serving.s4_memory import s4
from benchmarks.serving.s5_model import CLIENTS, bits, speed

FIGURES = ("S1", "S2", "S3", "S4", "S5")


@contextmanager
def _server(command: tuple[str, ...], **settings: object) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="asced-") as folder, serving(Path(folder), command, **settings) as server:
        yield server


def _two_replicas(measure: Callable[[Running], Outcome]) -> Iterator[list[Outcome]]:
    with _server(STUB, replicas=2, max_rows=16) as server:
        yield [measure(server)]


def _s3() -> Iterator[list[Outcome]]:
    yield from _two_replicas(tenants)
    with _server(SLOW_STUB, max_rows=1, max_n=1, queue=4) as server:
        yield [leaving(server)]


def _s5() -> Iterator[list[Outcome]]:
    with _server(PACKAGED) as server:
        yield bits(server)
        for clients in CLIENTS:
            yield speed(server, clients)


MEASURES: dict[str, Callable[[], Iterator[list[Outcome]]]] = {
    "S1": lambda: _two_replicas(s1),
    "S2": lambda: _two_replicas(s2),
    "S3": _s3,
    "S4": lambda: _two_replicas(s4),
    "S5": _s5,
}


def main(only: Annotated[str, typer.Option(help="Some of S1 to S5, as S1,S5.")] = ",".join(FIGURES)) -> None:
    """About half an hour on two idle cores. Bars missed do not fail a run."""
    chosen = only.split(",")
    if unknown := set(chosen) - set(MEASURES):
        raise typer.BadParameter(f"there is no {', '.join(sorted(unknown))}: choose among {', '.join(FIGURES)}")
    command = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
    for name in chosen:
        for outcomes in MEASURES[name]():
            save(outcomes, command)  # at once: a run that is cut off keeps what it has
            for one in outcomes:
                bar = "" if one.bar is None else f", bar {one.bar:g}: {'met' if one.met else 'MISSED'}"
                print(f"{one.id}: {one.value:.4g} {one.unit}{bar}; n = {one.n}; {one.note}", flush=True)
    write_page()
    print(f"saved in {FILE}")


if __name__ == "__main__":
    typer.run(main)
