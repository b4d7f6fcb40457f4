# SPDX-License-Identifier: MIT
"""A small server for tests of the engine: requests join and leave a batch, the denoiser is called row by row."""

from dataclasses import dataclass, field

import tiny
import torch

from ascedfast import AscedConfig, Engine, Schedule, process

CHANNELS, GRID = 3, (24, 20)


def flow_schedule(steps, shift=3.0, **options):
    sigmas = [1 - k / steps for k in range(steps)]
    return Schedule.from_levels([process.flow(shift * s / (1 + (shift - 1) * s)) for s in sigmas], **options)


def eps_schedule(steps, **options):
    abar = [0.0005 + 0.98 * (k / steps) ** 2 for k in range(steps)]
    return Schedule.from_levels([process.eps(a**0.5, (1 - a) ** 0.5) for a in abar], **options)


@dataclass(eq=False)
class Request:
    """What one user asks for. joins: tick at which it enters the batch. spoil: (step, value) put into one location of
    its model output. toggles: {step: on}, switched before that step."""

    schedule: Schedule = field(default_factory=lambda: flow_schedule(20))
    config: AscedConfig = field(default_factory=AscedConfig)
    seed: int = 0
    draw: int = 0
    first: int = 0
    enabled: bool = True
    joins: int = 0
    spoil: tuple[int, float] | None = None
    toggles: dict[int, bool] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    unsteady: bool = True

    def start(self):
        return tiny.randn(1, CHANNELS, *GRID, seed=1000 + self.seed % 2**32).to(self.dtype)

    def model(self, x, step):
        """The output for one row [1, C, H, W], and the next state by the deterministic step to the next level."""
        level, (alpha, sigma) = self.schedule.before[step], self.schedule.after[step]
        where = tiny.spot(GRID, 1 + self.seed % 4)[-1:] & self.unsteady
        mean = 0.25 + 0.125 * tiny.randn(1, CHANNELS, *GRID, seed=self.seed % 2**32 + 1)
        x0 = tiny.pointwise(x.float(), lambda x, x0: x0, step, mean, where)
        m = (x0 - x.float() * level.a) * (1 / level.b)
        if self.spoil is not None and self.spoil[0] == step:
            m[0, 0, 0, 0] = self.spoil[1]
        e = (x.float() - x0 * level.alpha) * (1 / max(level.sigma, 1e-6))
        return m.to(x.dtype), (x0 * alpha + e * sigma).to(x.dtype)


def mixed():
    """Requests that differ in all that may differ."""
    official = AscedConfig.official(min_area=5, grow=2, blur_sigma=0.5, core_width=2)
    return [
        Request(seed=1),
        Request(seed=2, config=official),
        Request(seed=3, config=AscedConfig.paper(mad_scale=5.0)),
        Request(seed=4, schedule=flow_schedule(13, shift=5.0)),
        Request(seed=5, schedule=eps_schedule(20, clip=1.0)),
        Request(seed=6, config=AscedConfig(channels="max", x0_noise=0.25)),
        Request(seed=7, enabled=False),
        Request(seed=8, config=AscedConfig(correct=False, record="run")),
        Request(seed=9, config=AscedConfig(connectivity=8, t_c=9, window_start=2), draw=3),
        Request(seed=10, first=3),
        Request(seed=11, unsteady=False),
        Request(seed=12, spoil=(8, float("nan"))),
        Request(seed=13, config=AscedConfig(backend="reference")),
        Request(seed=14, toggles={6: False, 9: True}),
        Request(seed=2**64 - 1, config=official),
        Request(seed=-5, schedule=flow_schedule(4)),
        Request(seed=15, spoil=(2, float("nan"))),  # before its window: nobody looks
        Request(seed=16, config=AscedConfig.paper(mad_scale=5.0), schedule=eps_schedule(20)),
    ]


@dataclass
class Result:
    x: torch.Tensor
    report: object
    masks: list


def serve(requests, ticks=200):
    """Run the requests in one engine, in the order of the list; a Result for each, in that order."""
    engine, active, results = Engine(), {}, {}
    waiting = list(requests)
    for tick in range(ticks):
        for request in [r for r in waiting if r.joins == tick]:
            waiting.remove(request)
            row = engine.add(
                request.schedule,
                request.config,
                seed=request.seed,
                draw=request.draw,
                first=request.first,
                enabled=request.enabled,
            )
            active[row] = (request, request.start(), [])
        if not active and not waiting:
            break
        if active:
            _tick(engine, active)
        for row, (request, x, masks) in list(active.items()):
            if request.first + engine.step_of(row) == len(request.schedule):
                results[id(request)] = Result(x, engine.remove(row), masks)
                del active[row]
    assert not waiting
    assert not active
    return [results[id(request)] for request in requests]


def _tick(engine, active):
    rows = list(active)
    outputs = []
    for row in rows:
        request, x, _ = active[row]
        step = engine.step_of(row)
        if step in request.toggles:
            engine.set_enabled(row, request.toggles[step])
        outputs.append(request.model(x, request.first + step))
    x, m = (torch.cat([active[row][1] for row in rows]), torch.cat([m for m, _ in outputs]))
    if engine.wants_step(rows):
        engine.observe(x, m, rows)
    else:
        engine.skip(rows)
    x = torch.cat([after for _, after in outputs])
    mask = engine.correct_(x, rows)
    for i, row in enumerate(rows):
        request, _, masks = active[row]
        if mask is not None:
            masks.append((engine.step_of(row), mask[i]))
        active[row] = (request, x[i : i + 1].clone(), masks)


def same(one, other):
    """Assert that two results are equal, bit for bit."""
    assert torch.equal(bits(one.x), bits(other.x))
    a, b = one.report, other.report
    for name in ("status", "reason", "plan", "executed", "steps", "seed", "draw", "severity", "area", "regions"):
        assert getattr(a, name) == getattr(b, name), name
    assert repr(a.curves) == repr(b.curves)
    for name in ("mask", "mask_grown", "labels", "z", "finite"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        assert left is None or torch.equal(bits(left), bits(right)), name
    assert [step for step, _ in a.dynamics] == [step for step, _ in b.dynamics]
    for (_, left), (_, right) in zip(a.dynamics, b.dynamics, strict=True):
        assert torch.equal(bits(left), bits(right))


def bits(x):
    """Integers, so that NaN equals itself and -0 differs from 0."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(kinds[x.element_size()])
