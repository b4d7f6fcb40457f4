# SPDX-License-Identifier: MIT
"""Cells: computed once, resumed, refused when stale, merged."""

import io
import json
import math
from dataclasses import dataclass

import pytest
from rich.console import Console

from ascedfast.lab.cells import StaleResultError, file_name, merge_cells, read_cells, run_cells


@dataclass(frozen=True)
class Cell:
    model: str
    t_c: float
    seeds: tuple[int, int] = (0, 500)


CELLS = [Cell("F1", 0.48), Cell("F1", 0.56), Cell("F4/shift 3", 0.48, (500, 1000))]


class Counting:
    def __init__(self, fail_at=None):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, cell):
        self.seen.append(cell)
        if len(self.seen) - 1 == self.fail_at:
            raise RuntimeError("the machine went away")
        return {"value": cell.t_c * 2, "interval": (cell.t_c, 1.0)}


def quiet():
    return Console(file=io.StringIO())


def run(folder, compute, cells=CELLS, source="aaaa", progress=None):
    return run_cells(cells, compute, folder, progress or quiet(), source=source, command="lab run")


def test_results_are_computed_once(tmp_path):
    compute = Counting()
    first = run(tmp_path, compute)
    again = Counting()
    assert run(tmp_path, again) == first
    assert compute.seen == CELLS
    assert again.seen == []
    assert list(first) == CELLS
    assert first[CELLS[0]] == {"value": 0.96, "interval": [0.48, 1.0]}  # as JSON gives it, resumed or fresh
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(file_name, CELLS))


def test_a_run_goes_on_where_it_stopped(tmp_path):
    broken = Counting(fail_at=1)
    with pytest.raises(RuntimeError, match="went away"):
        run(tmp_path, broken)
    assert len(list(tmp_path.iterdir())) == 1
    rest = Counting()
    assert list(run(tmp_path, rest)) == CELLS
    assert rest.seen == CELLS[1:]


def test_a_file_says_what_makes_it_again(tmp_path):
    run(tmp_path, Counting())
    entry = json.loads((tmp_path / file_name(CELLS[2])).read_text())
    assert entry["cell"] == {"type": "Cell", "fields": {"model": "F4/shift 3", "t_c": 0.48, "seeds": [500, 1000]}}
    assert (entry["source"], entry["command"]) == ("aaaa", "lab run")
    assert entry["date"]
    assert entry["seconds"] >= 0


def test_results_of_other_code_are_refused_before_anything_is_computed(tmp_path):
    run(tmp_path, Counting(), CELLS[1:2])
    compute = Counting()
    with pytest.raises(StaleResultError, match="other code"):
        run(tmp_path, compute, source="bbbb")
    assert compute.seen == []
    with pytest.raises(ValueError, match="hash"):
        run(tmp_path, compute, source="")


def test_a_file_of_another_cell_or_half_a_file_is_refused(tmp_path):
    run(tmp_path, Counting())
    (tmp_path / file_name(CELLS[0])).write_text((tmp_path / file_name(CELLS[1])).read_text())
    with pytest.raises(StaleResultError, match="another cell"):
        read_cells(CELLS, tmp_path, source="aaaa")
    (tmp_path / file_name(CELLS[0])).write_text('{"cell": ')
    with pytest.raises(StaleResultError, match="no result"):
        read_cells(CELLS, tmp_path, source="aaaa")


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    import os

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, Counting())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, object()])
def test_a_result_that_json_cannot_hold_names_its_cell(tmp_path, bad):
    with pytest.raises(ValueError, match="F1"):
        run(tmp_path, lambda cell: {"value": bad})
    assert list(tmp_path.iterdir()) == []


def test_bad_cells(tmp_path):
    @dataclass
    class Loose:
        a: int = 0

        __hash__ = object.__hash__

    for bad in (Loose(), "F1", Cell):
        with pytest.raises(TypeError, match="frozen dataclass"):
            run(tmp_path, Counting(), [bad])
    with pytest.raises(ValueError, match="fields"):
        run(tmp_path, Counting(), [Cell("F1", math.nan)])
    with pytest.raises(ValueError, match="equal"):
        run(tmp_path, Counting(), [CELLS[0], Cell("F1", 0.48)])


def test_names_are_readable_and_apart():
    names = [file_name(cell) for cell in [*CELLS, Cell("F1", 0.48, (0, 501)), Cell("x" * 300, 0.1)]]
    assert len(set(names)) == len(names)
    assert names[0].startswith("Cell-F1-0.48-")
    assert all(len(name) < 120 and "/" not in name and " " not in name for name in names)


def test_results_of_several_machines_are_merged(tmp_path):
    a, b, into = tmp_path / "a", tmp_path / "b", tmp_path / "into"
    run(a, Counting(), CELLS[:2])
    run(b, Counting(), CELLS[1:])
    assert merge_cells([a, b], into, source="aaaa") == 3
    assert merge_cells([a, b], into, source="aaaa") == 0
    compute = Counting()
    assert run(into, compute) == run(tmp_path / "whole", Counting())
    assert compute.seen == []


def test_merging_refuses_what_does_not_fit(tmp_path):
    a, b, into = tmp_path / "a", tmp_path / "b", tmp_path / "into"
    run(a, Counting(), CELLS[:2])
    run(b, lambda cell: {"value": 7}, CELLS[1:])
    with pytest.raises(StaleResultError, match="differ"):
        merge_cells([a, b], into, source="aaaa")
    with pytest.raises(StaleResultError, match="source"):
        merge_cells([a], into, source="bbbb")
    assert not into.exists()


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    run(tmp_path, Counting(), CELLS[:1])
    out = io.StringIO()
    run(tmp_path, Counting(), progress=Console(file=out))
    lines = out.getvalue().splitlines()
    assert lines[0] == "cells: 1/3 were there"
    assert [line.split()[1] for line in lines[1:]] == ["2/3", "3/3"]
    assert all("\x1b" not in line for line in lines)
    assert file_name(CELLS[2]) in lines[2]


def test_a_bar_on_a_terminal(tmp_path):
    out = io.StringIO()
    run(tmp_path, Counting(), progress=Console(file=out, force_terminal=True, width=100))
    assert "3/3" in out.getvalue()
    assert "\x1b" in out.getvalue()
