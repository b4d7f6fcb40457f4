# SPDX-License-Identifier: MIT
"""A flow-matching scheduler that watches its runs, for vllm-omni's scheduler registry: the entry point
``asced_flow_match_euler`` of the group ``vllm_omni.schedulers``. Needs diffusers; nothing of vllm-omni is imported.

Written from vllm-omni's source (its registry of schedulers, and how it configures one for a request). It was never run
inside vllm-omni; the contract that its registry states is what the tests hold it to.
"""

import inspect
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from ascedfast.adapters import class_swap
from ascedfast.adapters.diffusers import disable_asced, enable_asced
from ascedfast.config import AscedConfig
from ascedfast.report import Report

PER_REQUEST = ("enabled", "seed", "grid", "axes")
"""What ``configure`` takes beside the settings of ``AscedConfig``."""


class AscedFlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """diffusers' scheduler with ASCED enabled. Its ``step`` returns what the stock's does, corrected once, at T_c.

    Copies (vllm-omni's step mode makes one a request) have settings like the original's and a run of their own. The
    noise of a correction has the seed of the generator that ``step`` is given, else one told by ``configure``, else a
    fresh one that the report states: where several ranks step the same latents, give one of the two.

    Args:
        asced: settings, as ``AscedConfig.to_dict`` writes them, and those of ``configure``; None: the defaults. All
            others are the stock's. Neither is written into ``config``.
    Raises: TypeError, ValueError for settings that are none.
    """

    def __init__(self, *args: Any, asced: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._of_all_requests = dict(asced or {})
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Settings of the coming request, over those that the scheduler was made with; ends the run under way.

        Args:
            settings: of ``AscedConfig`` (mode, mad_scale, ...); enabled: False leaves the request alone; seed: of its
                correction; grid: (H, W) or (frames, H, W) of packed latents; axes: of others (docs/layouts.md).
        Raises: TypeError, ValueError; then nothing has changed.
        """
        chosen = {**self._of_all_requests, **settings}
        own = {name: chosen.pop(name) for name in PER_REQUEST if name in chosen}
        config = AscedConfig.from_dict(chosen)
        grid = None if own.get("grid") is None else tuple(own["grid"])
        told = {"seeds": own.get("seed"), "grid": grid, "axes": own.get("axes")}
        enable_asced(FlowMatchEulerDiscreteScheduler.from_config(self.config), config, **told)  # raises what is wrong
        disable_asced(self)
        if own.get("enabled", True):
            enable_asced(self, config, **told)

    def reset(self) -> None:
        """The settings that the scheduler was made with, and no run."""
        self.configure()

    def get_trajectory(self) -> dict[str, Any]:
        """Nothing is collected; with ``configure`` and ``reset`` vllm-omni takes this for a scheduler that can be
        configured for a request (``extra_args["scheduler_configure"]``)."""
        return {}

    @property
    def asced_report(self) -> Report:
        """Of the last run; empty before the first, and where ASCED is off."""
        state = self.__dict__.get(class_swap.STATE)
        return Report([]) if state is None else state.report


def _with_asced(signature: inspect.Signature) -> inspect.Signature:
    """diffusers reads the names of the configuration from the constructor's signature."""
    asced = inspect.Parameter("asced", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*signature.parameters.values(), asced])


AscedFlowMatchEuler.__init__.__signature__ = _with_asced(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__))
