# SPDX-License-Identifier: MIT
"""Closed loops over the packaged DiT: so many requests are always under way, each replaced as soon as it is through.

Requests stand at steps of their own. All loops draw the same noise for a request and call the same network, on a CUDA
device one CUDA graph of it, as servers do; they differ in what takes a state to the next one.
"""

import copy
import time
from collections import deque

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ascedfast import AscedConfig, RowBatch, RowReport
from ascedfast.adapters.schedules import schedule_of
from ascedfast.linear_update import euler_updates
from benchmarks.timing import synchronize

SHAPE = (3, 64, 64)


class Network:
    """The packaged DiT on so many rows, with memory of its own for states, timesteps and outputs."""

    def __init__(self, model: torch.nn.Module, rows: int, device: torch.device) -> None:
        self.x = torch.zeros(rows, *SHAPE, device=device)
        self.t = torch.full((rows,), 500.0, device=device)
        self._model, self._graph = model, None
        if device.type == "cuda":
            for _ in range(3):
                self._forward()
            torch.cuda.synchronize(device)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.m = self._forward()

    def _forward(self) -> Tensor:
        return self._model(self.x, timestep=self.t, return_dict=False)[0]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The output, which the next call overwrites. x: [R, *SHAPE]; t: [R], on the host or on the device."""
        self.x.copy_(x)
        self.t.copy_(t, non_blocking=True)
        if self._graph is None:
            return self._forward()
        self._graph.replay()
        return self.m


class Loop:
    """A closed loop of R requests of so many steps. The first ones begin under way, each at a step of its own.

    step_us: of each step, from states to the next ones. between_us: of what follows it, requests that leave and join.
    """

    def __init__(
        self, network: Network, scheduler: FlowMatchEulerDiscreteScheduler, rows: int, steps: int, device: torch.device
    ) -> None:
        self.network, self.rows, self.steps, self.device = network, rows, steps, device
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(steps)
        self.times, self.sigmas = self.scheduler.timesteps.tolist(), self.scheduler.sigmas.tolist()
        self.at = [place * steps // rows for place in range(rows)]
        self.x = torch.zeros(rows, *SHAPE, device=device)
        self.asked = 0
        self.step_us: list[float] = []
        self.between_us: list[float] = []
        self.start()
        for place, first in enumerate(self.at):
            self._draw(place, first)

    def start(self) -> None:
        """Before the first request."""

    def join(self, place: int, seed: int, first: int) -> None:
        """A request comes, at its step ``first``."""

    def leave(self, place: int) -> None:
        """A request is through."""

    def advance(self) -> None:
        """All requests by one step."""
        raise NotImplementedError

    def timesteps(self) -> Tensor:
        return torch.tensor([self.times[k] for k in self.at])

    def turn(self) -> None:
        """One step, and what follows it, both timed."""
        synchronize(self.device)
        start = time.perf_counter()
        self.advance()
        synchronize(self.device)
        middle = time.perf_counter()
        for place in range(self.rows):
            self.at[place] += 1
            if self.at[place] == self.steps:
                self.leave(place)
                self.at[place] = 0
                self._draw(place, 0)
        synchronize(self.device)
        self.step_us.append((middle - start) * 1e6)
        self.between_us.append((time.perf_counter() - middle) * 1e6)

    def _draw(self, place: int, first: int) -> None:
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(self.asked))
        self.x[place].copy_(noise, non_blocking=True)
        self.join(place, self.asked, first)
        self.asked += 1


class Stock(Loop):
    """ASCED off, as servers do it: a scheduler a request, whose ``step`` is called for its row."""

    def start(self) -> None:
        self.schedulers = [self.scheduler] * self.rows

    def join(self, place: int, seed: int, first: int) -> None:
        own = copy.deepcopy(self.scheduler)
        own.set_timesteps(self.steps, device=self.device)
        own.set_begin_index(first)
        self.schedulers[place] = own

    def advance(self) -> None:
        m = self.network(self.x, self.timesteps())
        rows = []
        for place, own in enumerate(self.schedulers):
            row = slice(place, place + 1)
            rows.append(own.step(m[row], own.timesteps[self.at[place]], self.x[row], return_dict=False)[0])
        self.x = torch.cat(rows)


class Vectorised(Loop):
    """ASCED off, the hardest to beat: one Euler update of all rows, in place, which comes with the timesteps."""

    def start(self) -> None:
        self.dt = [one for _, one in euler_updates(self.sigmas)]
        self.on_device = torch.empty(2, self.rows, device=self.device)

    def advance(self) -> None:
        pair = torch.tensor([[self.times[k] for k in self.at], [self.dt[k] for k in self.at]])
        self.on_device.copy_(pair, non_blocking=True)
        m = self.network(self.x, self.on_device[0])
        self.x.addcmul_(m, self.on_device[1].view(-1, 1, 1, 1))


class Watched(Loop):
    """ASCED on: ``RowBatch``."""

    config = AscedConfig()

    def start(self) -> None:
        schedule, self.updates = schedule_of(self.scheduler), euler_updates(self.sigmas)
        self.batch = RowBatch(self.rows, SHAPE, self.device, schedule_of=lambda steps: schedule)
        self.batch.warm_up(self.config, self.steps)
        self.ids = [-1] * self.rows
        self.reports: deque[RowReport] = deque(maxlen=self.rows)

    def join(self, place: int, seed: int, first: int) -> None:
        updates = self.updates[first:] if first else self.updates
        self.ids[place] = self.batch.add(self.config, seed, self.steps, first=first, updates=updates)

    def leave(self, place: int) -> None:
        self.reports.append(self.batch.remove(self.ids[place]))

    def advance(self) -> None:
        m = self.network(self.x, self.timesteps())
        self.batch.step_(self.ids, self.x, m)
        self.batch.correct_(self.ids, self.x)


class Observing(Watched):
    """ASCED on, nothing corrected: the states are those of the stock loop."""

    config = AscedConfig(correct=False)
