# SPDX-License-Identifier: MIT
"""S1 to S4 on servers that run, in one worker: each starts a Ray of its own."""

import tempfile
from pathlib import Path

import pytest

from benchmarks.serving.process import SLOW_STUB, serving
from benchmarks.serving.s1_bits import s1
from benchmarks.serving.s2_kill import s2
from benchmarks.serving.s3_tenants import leaving, tenants

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="asced-") as short:  # a socket's path has 107 bytes
        yield Path(short)


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, replicas=2, max_rows=16) as running:
        yield running


@pytest.fixture(scope="module")
def slow_server(folder):
    with serving(folder, SLOW_STUB, max_rows=1, max_n=1, queue=4) as running:
        yield running


def test_s1_a_thousand_requests_in_company_are_the_same_alone(server):
    outcome = s1(server)
    assert outcome.met, outcome.note
    corrected, shares = outcome.note.split(" images corrected; by replica ")
    assert int(corrected) > 500
    assert min(map(int, shares.strip("[]").split(","))) > 100


def test_s2_each_request_is_answered_once_though_replicas_die(server):
    outcome = s2(server)
    assert outcome.met, outcome.note
    assert int(outcome.note.split("; ")[1].split()[0]) > 0, "no request was in a replica that died"


def test_s3_tenants_do_not_see_each_other(server):
    assert tenants(server).met


def test_s3_who_leaves_gives_up_the_row_within_one_step(slow_server):
    outcome = leaving(slow_server)
    assert outcome.met, outcome
