# SPDX-License-Identifier: MIT
"""Caches that spare a denoiser's work: tells which steps were computed in full, and has the next one computed so.

The caches are those of diffusers' ``enable_cache``. A hook of theirs either calls the forward it replaced or gives what
it remembers, so counting both calls tells whatever the cache's rule is.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ascedfast.report import Report

HOOKS = (
    "FBCHeadBlockHook",
    "FBCBlockHook",
    "FasterCacheDenoiserHook",
    "FasterCacheBlockHook",
    "MagCacheHeadHook",
    "MagCacheBlockHook",
    "PyramidAttentionBroadcastHook",
    "SeaCacheLeaderBlockHook",
    "SeaCacheBlockHook",
    "TaylorSeerCacheHook",
)
"""Classes of diffusers' hooks that may leave work out. TextKVCache's do not: what it keeps never changes in a run."""
UNTOLD = "{whose} skips steps and does not tell which: disable it; diffusers' own caches are told apart"


class CacheWatch:
    """The caching hooks of one pipeline during one call of it.

    Args: hooks: (module, hook) pairs. untold: why the run must be left alone, or None.
    """

    def __init__(self, hooks: list[tuple[nn.Module, Any]], untold: str | None = None) -> None:
        self.untold = untold
        self._hooks = hooks
        self._missing = 0
        self._callbacks: list[tuple[Any, Callable]] = []

    def skipped(self) -> bool:
        """Whether any part of the denoiser's calls since the last question was taken from a cache.

        Mutates: the count, and ends what ``refresh`` asked for.
        """
        missing, self._missing = self._missing, 0
        self._let_skip()
        return missing > 0

    def settle(self, edited: Tensor | None, report: Report, warn: Callable[[str], None]) -> None:
        """After T_c: the caches know nothing of a correction, nor the user of a run that could not be judged.

        Args: edited: bool, what was corrected, or None. warn: called with a text for each run that is left alone.
        """
        # One read of the device a run, so that a run in which nothing is found keeps what its caches hold.
        if edited is not None and bool(edited.any()):
            self.refresh()
        for row in report:
            if row.plan.reason is not None:
                warn(f"this run is left alone: {row.reason}")

    def refresh(self) -> None:
        """Forget what the caches hold, as diffusers does where a pipeline's call ends: the next step is computed in
        full. Mutates: the states of the hooks."""
        for module, hook in self._hooks:
            # MagCache's ratios belong to steps: its count must go on.
            steps = {}
            if type(hook).__name__ == "MagCacheHeadHook":
                steps = {name: state.step_index for name, state in hook.state_manager._state_cache.items()}
            if hook._is_stateful:
                hook.reset_state(module)
            for name, step in steps.items():
                state = hook.state_manager._state_cache[name] = hook.state_manager._state_cls()
                state.step_index = step
            # FasterCache of a distilled model asks its empty memory, were it within its range of timesteps.
            if type(hook).__name__.startswith("FasterCache"):
                self._callbacks.append((hook, hook.current_timestep_callback))
                hook.current_timestep_callback = _out_of_range

    def _let_skip(self) -> None:
        for hook, callback in self._callbacks:
            hook.current_timestep_callback = callback
        self._callbacks.clear()

    @contextlib.contextmanager
    def counting(self) -> Iterator["CacheWatch"]:
        """Count for the length of a ``with`` block; after it the hooks are as they were."""
        kept = []
        for _, hook in self._hooks:
            ref = hook.fn_ref
            kept.append((ref, ref.forward, ref.original_forward))
            ref.forward = self._counted(ref.forward, 1)
            ref.original_forward = self._counted(ref.original_forward, -1)
        try:
            yield self
        finally:
            self._let_skip()
            for ref, forward, original in kept:
                ref.forward, ref.original_forward = forward, original

    def _counted(self, forward: Callable, sign: int) -> Callable:
        def count(*args: Any, **kwargs: Any) -> Any:
            self._missing += sign * _rows((*args, *kwargs.values()))
            return forward(*args, **kwargs)

        return count


@contextlib.contextmanager
def watched(pipe: Any) -> Iterator[CacheWatch | None]:
    """Watch the caches of a pipeline for the length of a ``with`` block; None where it has none."""
    hooks, untold = [], None
    for component in pipe.components.values():
        for module in component.modules() if isinstance(component, nn.Module) else ():
            if module.__dict__.get("_is_cached"):
                untold = UNTOLD.format(whose="cache-dit")
            registry = module.__dict__.get("_diffusers_hook")
            for hook in () if registry is None else registry.hooks.values():
                if type(hook).__name__ in HOOKS:
                    hooks.append((module, hook))
                elif getattr(hook, "_original_decoder_stack", None) is not None:
                    untold = UNTOLD.format(whose="SeaCache of Cosmos 3")
    if not hooks and untold is None:
        yield None
        return
    with CacheWatch(hooks, untold).counting() as watch:
        yield watch


def _rows(values: tuple) -> int:
    """Samples in all tensors of a call: FasterCache runs half of a guided batch."""
    return 1 + sum(len(value) for value in values if isinstance(value, Tensor) and value.dim())


def _out_of_range() -> float:
    return math.inf
