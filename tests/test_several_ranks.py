# SPDX-License-Identifier: MIT
"""Several processes: with whole latents the same bits without a word, with slices the bits of the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from batch_loop import by
from layouts import same_bits
from row_loop import mixed, serve

from ascedfast.sharded import ShardedEngine


def launched(folder, backend):
    script = Path(ranks.__file__)
    done = subprocess.run(
        [sys.executable, script, folder, backend], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks.RANKS)]


@pytest.fixture(scope="module")
def by_gloo(tmp_path_factory):
    return launched(tmp_path_factory.mktemp("ranks"), "gloo")


def assert_the_whole(by_rank, name, device):
    _, axis, config, _ = ranks.CASES[name]
    expected = ranks.whole(name, device)
    assert same_bits(torch.cat([one[name]["x"] for one in by_rank], 2 + axis), expected["x"])
    for parts in zip(expected["masks"], *(one[name]["masks"] for one in by_rank), strict=True):
        assert torch.equal(torch.cat(parts[1:], 2 + axis), parts[0])
    assert bool(expected["masks"]) == config.correct
    for one in by_rank:
        for ours, theirs in zip(one[name]["reports"], expected["reports"], strict=True):
            assert (ours["status"], ours["severity"]) == (theirs["status"], theirs["severity"])
            for part in ("mask", "mask_grown", "labels", "z", "finite"):
                assert same_bits(ours[part], theirs[part]), part
            assert all(same_bits(a, b) for a, b in zip(ours["dynamics"], theirs["dynamics"], strict=True))
    statuses = {report["status"] for report in expected["reports"]}
    wanted = {"a value that is not finite": {"corrected", "not finite"}, "observed": {"observed"}}
    assert statuses == wanted.get(name, {"corrected"})


@pytest.mark.parametrize("name", ranks.CASES)
def test_slices_have_the_bits_of_the_whole(by_gloo, name):
    assert_the_whole(by_gloo, name, torch.device("cpu"))


def test_the_found_regions_lie_across_the_cut(by_gloo):
    for name in ("lines", "frames"):
        shape, axis, _, _ = ranks.CASES[name]
        found = by_gloo[0][name]["reports"][0]["mask"]
        halves = found.chunk(2, axis)
        assert all(half.any() for half in halves), name
        assert found.shape == shape[1:]


def test_whole_latents_give_every_rank_the_same_bits_without_a_word(by_gloo):
    pool = [by(request, "reference") for request in mixed() if not request.toggles]
    one, other = (rank["replicated"] for rank in by_gloo)
    for request, (x, severity, mask), (y, other_severity, other_mask) in zip(pool, one, other, strict=True):
        assert same_bits(x, y)
        assert severity == other_severity
        assert (mask is None) == (other_mask is None)
        assert mask is None or torch.equal(mask, other_mask)
        assert same_bits(x, serve([request])[0].x)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("uneven", "ShardsDifferError: slices must be equal on every rank (rank 0: (1, 3, 8, 8)"),
        ("other rows", "ShardsDifferError: the ranks hold rows of other seeds"),
        ("other dtype later", "ShardsDifferError: slices must be equal on every rank"),
        ("other order later", "ShardsDifferError: the ranks hold rows of other seeds"),
        ("no such axis", "ShardsDifferError: shard_axis 2 of a grid (8, 8)"),
        ("fits", "nothing"),
        ("official", "ValueError: mode 'official' keeps all channels"),
        ("paper", "ValueError: mode 'paper' keeps all channels"),
        ("record", "ValueError: record='run'"),
        ("keep", "ValueError: keep_mask"),
        ("axis", "ValueError: shard_axis must be 0, 1 or 2"),
    ],
)
def test_what_does_not_fit_together_is_refused_on_every_rank(by_gloo, what, message):
    for rank in by_gloo:
        assert rank["refusals"][what].startswith(message)


def test_slices_need_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        ShardedEngine(shard_axis=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_slices_on_two_gpus(tmp_path):
    by_nccl = launched(tmp_path, "nccl")
    for name in ranks.CASES:
        assert_the_whole(by_nccl, name, torch.device("cuda"))
