# SPDX-License-Identifier: MIT
"""ASCED in k-diffusion's samplers: what is wrapped is the model that they are given, they themselves stay as they are.

    sampler = asced_sampler(k_diffusion.sampling.sample_dpmpp_2m, seeds=[0, 1])
    images = sampler(model, x, sigmas)
    sampler.report

A sampler calls its callback once a step, after the step's first evaluation: there the step is observed, with x0_hat the
denoised tensor. After T_c steps its state is corrected in place, just before the model sees it. No sigma is compared on
the device: the evaluations of a step are counted between two callbacks.
"""

import functools
import inspect
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ascedfast.begin_run import begin
from ascedfast.config import AscedConfig
from ascedfast.engine import Engine
from ascedfast.noise import seed_to_int64
from ascedfast.process import sample
from ascedfast.protected import check_keep, checked_keep_mask, keep_by_row
from ascedfast.report import Report
from ascedfast.schedule import Schedule

logger = logging.getLogger("ascedfast")

REMEMBERED = 2
"""Predictions that the multistep samplers of k-diffusion look back on, at most (dpmpp_3m_sde)."""

CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf}
"""Arguments of the samplers that add noise first, and what k-diffusion has for a default."""

_ADAPTIVE = "it chooses its steps while it runs, so T_c is not known; take dpm_fast, dpmpp_2m or another of fixed steps"
_CORRECTOR = "its corrector rebuilds the state from the one before and would undo the correction; take dpmpp_2m"
REFUSED = {
    "sample_dpm_adaptive": _ADAPTIVE,
    "dpm_adaptive_function": _ADAPTIVE,
    "dpm_fast_function": "its steps are not those of the sigmas it is given; take dpmpp_2m, or k-diffusion's own",
    "log_likelihood": "it draws no sample",
    "sample_unipc": _CORRECTOR,
    "sample_unipc_bh2": _CORRECTOR,
    "sample_sa_solver": _CORRECTOR,
    "sample_sa_solver_pece": _CORRECTOR,
}
"""Functions of k-diffusion and of ComfyUI that cannot be corrected, and why."""


class WatchedModel:
    """The model of one run as the sampler sees it; every other attribute is the model's own.

    Args: callback: the user's.
    """

    def __init__(self, model: Callable, engine: Engine, callback: Callable | None) -> None:
        self._model = model
        self._engine = engine
        self._users = callback
        plan = engine.report[0].plan
        self._t_c, self._open = plan.t_c, plan.reason is None
        self._steps = 0
        self._calls = 0
        self._per_step: int | None = None
        self._answer: Tensor | None = None
        self._remembered: deque[Tensor] = deque(maxlen=REMEMBERED)
        self._corrected: Tensor | None = None
        self._told: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The model's prediction for x, which is corrected before where its time has come (then x is modified)."""
        self._calls += 1
        mask = self._correct_(x) if self._calls == self._per_step and self._engine.due else None
        denoised = self._model(x, *args, **kwargs)
        if mask is not None:
            # What the sampler remembers belongs to the state that was edited away; equal entries have no slope.
            for old in self._remembered:
                torch.where(mask, denoised, old, out=old)
        elif self._t_c - REMEMBERED <= self._steps < self._t_c:
            self._answer = denoised = denoised.clone()  # ours to write into, whatever the model keeps of its own
        return denoised

    def on_step(self, info: Mapping[str, Any]) -> None:
        """The sampler's callback. info: "x", "i", "denoised" of the step's first evaluation, and more."""
        if info["i"] != self._steps:
            self._leave("the sampler does not count its steps one by one")
        elif self._steps > 0 and self._per_step not in (None, self._calls):
            self._leave("the sampler's steps take different numbers of evaluations")
        elif self._steps > 0:
            self._per_step = self._calls
        if self._engine.due:
            self._leave("the model was not called when T_c had come")
        # ComfyUI's ipndm and deis tell the same x, that of the start, at every step: that says nothing.
        if self._corrected is not None and info["x"] is not self._corrected and info["x"] is not self._told:
            logger.warning("ASCED's correction may be lost: the sampler goes on from another tensor than the model got")
        self._corrected = None
        self._told = info["x"] if self._steps == self._t_c - 1 else None
        self._calls = 0
        if self._steps >= self._t_c:
            self._remembered.clear()
        elif self._answer is not None:
            self._remembered.append(self._answer)
        self._answer = None
        if self._engine.wants_step():
            self._engine.observe(info["x"], info["denoised"])
        else:
            self._engine.skip()
        self._steps += 1
        if self._users is not None:
            self._users(info)

    def _correct_(self, x: Tensor) -> Tensor | None:
        mask = self._engine.correct_(x)
        self._open = False
        if mask is not None:
            self._corrected = x
        return mask

    def _leave(self, why: str) -> None:
        """Correct nothing in the rest of this run."""
        if self._open:
            self._open = False
            logger.warning("this run is left alone from step %d on: %s", self._steps, why)
            for row in self._engine.rows:
                self._engine.set_enabled(row, False)


class AscedSampler:
    """What ``asced_sampler`` returns: called like the sampler function. ``enabled = False`` passes calls through."""

    def __init__(
        self,
        sampler_fn: Callable,
        config: AscedConfig | None,
        seeds: Sequence[int] | int | None,
        keep_mask: Tensor | None = None,
    ) -> None:
        if not callable(sampler_fn):
            raise TypeError(f"sampler_fn must be a sampler function, got {type(sampler_fn).__name__}")
        config = AscedConfig() if config is None else config
        if not isinstance(config, AscedConfig):
            raise TypeError(f"config must be an AscedConfig, got {type(config).__name__}")
        if isinstance(sampler_fn, AscedSampler):
            raise ValueError("ASCED watches this sampler already; wrap the sampler function itself")
        name = getattr(getattr(sampler_fn, "func", sampler_fn), "__name__", type(sampler_fn).__name__)
        if name in REFUSED:
            raise ValueError(f"ASCED cannot correct {name}: {REFUSED[name]}")
        self._signature = inspect.signature(sampler_fn)
        taken = set(self._signature.parameters)
        if "callback" not in taken or not ({"sigmas"} <= taken or {"sigma_min", "sigma_max", "n"} <= taken):
            raise ValueError(
                f"{name}{self._signature} is no k-diffusion sampler: it must take (model, x, sigmas, ..., callback); "
                "in any other loop use ascedfast.begin, as examples/ddim_loop.py does"
            )
        for seed in [seeds] if isinstance(seeds, int) else seeds or ():
            seed_to_int64(seed)
        self.sampler_fn, self.config, self.seeds, self.enabled = sampler_fn, config, seeds, True
        self.keep_mask = checked_keep_mask(keep_mask)
        self._engine: Engine | None = None
        functools.update_wrapper(self, sampler_fn, updated=())
        self.__name__ = name

    @property
    def report(self) -> Report:
        """The last run's; empty before the first."""
        return Report([]) if self._engine is None else self._engine.report

    def __call__(self, model: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the sampler. Args, returns: its own. Reads the sigmas back from their device once, before the first step.

        Raises: ValueError for sigmas that rise, a state that is no [B, C, H, W] or [B, C, F, H, W], a number of seeds
            that is not the number of rows, or a mask that does not fit; what the sampler raises.
        """
        call = self._signature.bind(model, x, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        sigmas = _sigmas_of(given)
        if not self.enabled or len(sigmas) < 2 or not len(x):
            return self.sampler_fn(model, x, *args, **kwargs)
        if any(low > high for high, low in itertools.pairwise(sigmas)):
            raise ValueError("ASCED corrects sampling, in which sigmas fall; for an inversion call the sampler itself")
        if x.dim() not in (4, 5):
            raise ValueError(
                f"the state must be [B, C, H, W] or [B, C, F, H, W], got {tuple(x.shape)}; for another layout (packed, "
                "audio) call the sampler itself"
            )
        extra_args = given.get("extra_args") or {}
        levels = [sample(*pair) for pair in self._levels(model, _churned(sigmas, given))]
        schedule = Schedule.from_levels(levels[:-1], end=(levels[-1].alpha, levels[-1].sigma))
        keep, seeds = self._keep_mask_of(x, extra_args), self._row_seeds(extra_args)
        check_keep(keep_by_row(keep, len(x)), x.shape[2:])
        self._engine = begin(schedule, self.config, seeds=seeds, rows=len(x), keep_mask=keep)
        watched = WatchedModel(model, self._engine, given["callback"])
        given.update({"callback": watched.on_step, next(iter(given)): watched})
        return self.sampler_fn(*call.args, **call.kwargs)

    def _levels(self, model: Callable, sigmas: list[float]) -> list[tuple[float, float]]:
        """(alpha, sigma) of the state at each sigma."""
        return [(1.0, sigma) for sigma in sigmas]

    def _keep_mask_of(self, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor | None:
        """What is protected in a run that starts from x."""
        return self.keep_mask

    def _row_seeds(self, extra_args: Mapping[str, Any]) -> Sequence[int] | int | None:
        return self.seeds


def asced_sampler(
    sampler_fn: Callable,
    config: AscedConfig | None = None,
    *,
    seeds: Sequence[int] | int | None = None,
    keep_mask: Tensor | None = None,
) -> AscedSampler:
    """A sampler function of k-diffusion that watches its runs and repairs them at T_c.

    Args:
        sampler_fn: called as ``sampler_fn(model, x, sigmas, extra_args, callback, ...)``, or ``sample_dpm_fast``.
            ``model(x, sigma)`` predicts the clean sample from x = x0 + sigma*noise, [B, C, H, W] or [B, C, F, H, W].
        config: default ``AscedConfig.fast()``.
        seeds: one 64-bit seed a row, for the noise of the correction; an int for all rows of one request; default: a
            fresh one, stated in the report. No generator is drawn from, the global one included.
        keep_mask: bool [B, 1, H, W] or [B, 1, F, H, W] in locations of x, axes of 1 fit any: True where nothing is an
            artifact and nothing is re-noised. Referred to, not modified.
    Returns: a callable with the sampler's signature; ``.report`` is of its last run, so take one for each thread.
        Mutates: the sampler's own state (never the x it is called with), inside the mask, and there what
        dpmpp_2m, dpmpp_2m_sde and dpmpp_3m_sde remember. The derivatives that lms keeps cannot be reached: for as many
        steps as its order they still pull towards the old path.
    Raises: TypeError, ValueError for what cannot be watched.
    """
    return AscedSampler(sampler_fn, config, seeds, keep_mask)


def _sigmas_of(given: Mapping[str, Any]) -> list[float]:
    """Levels of the states between the steps, on the host."""
    if "sigmas" in given:
        return torch.as_tensor(given["sigmas"], dtype=torch.float64).tolist()
    # sample_dpm_fast: steps of three evaluations each, evenly in log sigma.
    high, low, steps = math.log(given["sigma_max"]), math.log(given["sigma_min"]), given["n"] // 3 + 1
    return [math.exp(high + (low - high) * k / steps) for k in range(steps + 1)]


def _churned(sigmas: list[float], given: Mapping[str, Any]) -> list[float]:
    """Levels at which the model is called: Algorithm 2 of arXiv 2206.00364 adds noise first (``s_churn``). None, which
    a sampler of one's own may have for a default, says nothing."""
    churn, low, high = (unsaid if given.get(name) is None else given[name] for name, unsaid in CHURN.items())
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    hats = [sigma * (1 + gamma) if low <= sigma <= high else sigma for sigma in sigmas[:-1]]
    return [*hats, sigmas[-1]]
