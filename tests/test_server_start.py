# SPDX-License-Identifier: MIT
"""What the server's start asks of Ray, without starting one."""

from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from ascedfast.server import start
from ascedfast.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("replicas", "num_cpus", "wanted"), [(3, 0.4, 2), (2, 0.7, 2), (5, 0.5, 3), (1, 1.4, 2), (2, 1, 2), (4, 0, 1)]
)
def test_all_replicas_find_room(replicas, num_cpus, wanted):
    assert wanted <= start.cores(replicas, num_cpus) <= max(1, replicas * 2)


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match="finite number"):
        ServerSettings(**{name: value})


@pytest.fixture
def turns(monkeypatch):
    """Tell ``start`` that the application goes through these states; the last one stays."""

    def turns(*states):
        left = list(states)

        def status():
            state = left.pop(0) if len(left) > 1 else left[0]
            one = SimpleNamespace(status=ApplicationStatus[state], message="no such model")
            return SimpleNamespace(applications={start.APP: one})

        monkeypatch.setattr(start.serve, "status", status)
        monkeypatch.setattr(start, "PAUSE", 0.01)

    return turns


def test_a_start_is_waited_for(turns):
    turns("DEPLOYING", "DEPLOYING", "RUNNING")
    start.wait_until_running(5)


def test_a_start_that_takes_too_long_is_given_up(turns):
    turns("DEPLOYING")
    with pytest.raises(RuntimeError, match="s: set ASCEDFAST_SERVER_SECONDS_TO_START higher"):
        start.wait_until_running(0.05)


def test_a_start_that_fails_is_told(turns):
    turns("DEPLOYING", "DEPLOY_FAILED")
    with pytest.raises(RuntimeError, match="no such model"):
        start.wait_until_running(5)
