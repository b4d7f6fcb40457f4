# SPDX-License-Identifier: MIT
"""What the HTTP side makes of Ray Serve's answers, and of no answer."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from ascedfast.server import backend
from ascedfast.server.backend import RayBackend
from ascedfast.server.errors import LostError
from ascedfast.server.schema import ImageRequest

UNAVAILABLE = DeploymentUnavailableError("Replica")
REQUEST = ImageRequest(seed=1)


class Handle:
    """Gives what stands in ``answers``, one a call; raises it where it is an exception."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.draw = self

    def broadcast(self, method):
        self._raise(self.answers.pop(0))

    async def remote(self, request):
        answer = self.answers.pop(0)
        self._raise(answer)
        return answer

    @staticmethod
    def _raise(answer):
        if isinstance(answer, Exception):
            raise answer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(backend, "PAUSE", 0)


@pytest.mark.parametrize("error", [UNAVAILABLE, RuntimeError("no replica has begun"), TimeoutError()])
def test_without_a_replica_metrics_are_empty_and_nothing_is_ready(error):
    assert asyncio.run(RayBackend(Handle(error), 1, print).metrics()) == {}
    assert asyncio.run(RayBackend(Handle(error), 1, print).is_ready()) is False


@pytest.mark.parametrize("error", [UNAVAILABLE, ActorDiedError()])
def test_a_request_is_sent_again_until_there_is_a_replica(error):
    resent = []
    drawn = asyncio.run(RayBackend(Handle(error, error, [{"seed": 1}]), 2, lambda: resent.append(1)).draw(REQUEST))
    assert drawn == [{"seed": 1}]
    assert len(resent) == 2
    with pytest.raises(LostError):
        asyncio.run(RayBackend(Handle(error, error), 1, lambda: None).draw(REQUEST))
