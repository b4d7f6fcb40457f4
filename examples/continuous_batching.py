# SPDX-License-Identifier: MIT
"""Continuous batching: requests join and leave between the steps of one model, each with its own seed, number of steps
and settings, and get what they would get alone, given the same model outputs.

    python examples/continuous_batching.py --device cpu --requests 6

Prints a line a request when it leaves, and writes all images. Some 15 s on two cores.
"""

import argparse
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ascedfast import AscedConfig, RowBatch, Schedule
from ascedfast.adapters.schedules import schedule_of
from ascedfast.pictures import draw_mask, grid, to_images
from ascedfast.pipelines import PixelFlowPipeline

MOST, SHAPE, STEPS = 3, (3, 64, 64), (8, 10, 12)
CONFIGS = (AscedConfig(), AscedConfig(mad_scale=2.0, min_area=30), AscedConfig(correct=False))


@dataclass
class Request:
    """What a client asks for. tick: when it arrives, in steps of the server."""

    name: str
    tick: int
    seed: int
    steps: int
    config: AscedConfig
    enabled: bool


def arrivals(count: int) -> list[Request]:
    """Made-up ones that overlap: other lengths and settings, one of four not watched at all."""
    kinds = [(STEPS[i % 3], CONFIGS[i % 3], i % 4 != 3) for i in range(count)]
    return [Request(f"request {i}", 3 * i, 40 + i, *kind) for i, kind in enumerate(kinds)]


class Server:
    """Steps all requests as one batch: one call of the network, one of ``step_``, one of ``correct_``."""

    def __init__(self, model: torch.nn.Module, scheduler: FlowMatchEulerDiscreteScheduler, device: str):
        self.model, self.scheduler, self.device = model, scheduler, device
        self.times: dict[int, list[float]] = {}
        self.batch = RowBatch(MOST, SHAPE, device, schedule_of=self.schedule)
        self.requests: dict[int, Request] = {}
        self.x = torch.empty(0, *SHAPE, device=device)

    def schedule(self, steps: int) -> Schedule:
        """Noise levels of a run of so many steps; called once a number."""
        self.scheduler.set_timesteps(steps)
        self.times[steps] = self.scheduler.timesteps.tolist()
        return schedule_of(self.scheduler)

    def join(self, request: Request) -> None:
        row = self.batch.add(request.config, request.seed, request.steps, enabled=request.enabled)
        self.requests[row] = request
        noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(request.seed)).to(self.device)
        self.x = torch.cat([self.x, noise])

    def step(self) -> None:
        rows = list(self.requests)
        t = [self.times[self.requests[row].steps][self.batch.step_of(row)] for row in rows]
        m = self.model(self.x, timestep=torch.tensor(t, device=self.device), return_dict=False)[0]
        self.batch.step_(rows, self.x, m)  # x = c0*x + c1*m, each row at its own noise level
        self.batch.correct_(rows, self.x)

    def leave(self) -> list[tuple[Request, torch.Tensor, object]]:
        """Requests that are through: each with its state and its report."""
        done = set(self.batch.finished)
        pairs = list(zip(self.requests.items(), self.x, strict=True))
        gone = [(request, x.clone(), self.batch.remove(row)) for (row, request), x in pairs if row in done]
        self.x = self.x[[row not in done for row in self.requests]]
        self.requests = {row: request for row, request in self.requests.items() if row not in done}
        return gone


@torch.inference_mode()
def serve(server: Server, requests: list[Request]) -> dict[str, tuple[torch.Tensor, object]]:
    """By name, what each request was answered with."""
    waiting, answers, tick = list(requests), {}, 0
    while waiting or server.requests:
        while waiting and waiting[0].tick <= tick and server.batch.free:
            server.join(waiting.pop(0))
        if server.requests:
            server.step()
        for request, x, report in server.leave() if server.batch.finished else ():
            severity = "none" if isinstance(report.severity, str) else f"{report.severity:.3f}"
            print(f"{request.name}: {request.steps} steps, severity {severity}, {report.status}", flush=True)
            answers[request.name] = (x, report)
        tick += 1
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("continuous_batching.png"))
    asked = parser.parse_args()
    folder = str(resources.files("ascedfast") / "assets" / "emoji64-dit")
    pipe = PixelFlowPipeline.from_pretrained(folder).to(asked.device)
    requests = arrivals(asked.requests)
    answers = serve(Server(pipe.transformer, pipe.scheduler, asked.device), requests)
    states, reports = zip(*(answers[request.name] for request in requests), strict=True)
    images = to_images(torch.stack(states) / 2 + 0.5)
    blank = torch.zeros(SHAPE[1:], dtype=torch.bool)
    masks = [(blank, blank) if report.mask is None else (report.mask, report.mask_grown) for report in reports]
    grid(list(map(lambda image, mask: draw_mask(image, *mask), images, masks))).save(asked.out)


if __name__ == "__main__":
    main()
