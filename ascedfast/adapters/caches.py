# SPDX-License-Identifier: MIT
"""Caches that spare a denoiser's work: tells which steps were computed in full, and has the next one computed so.

The caches are those of diffusers' ``enable_cache``. A hook of theirs either calls the forward it replaced or gives what
it remembers, so counting both calls tells whatever the cache's rule is.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ascedfast.adapters import cache_counters
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
LATE = "a cache was enabled within the pipeline's call, before T_c: enable it before the call, or after T_c"


class CacheWatch:
    """The caching hooks of one pipeline during one call of it.

    Args: hooks: (module, hook) pairs. untold: why the run must be left alone, or None. parts: the pipeline's modules
        that have caches, or may be given one.
    Attributes: missing: calls of the hooks less those they passed on, by samples. full: the coming step is to be
        computed in full.
    """

    def __init__(
        self, hooks: list[tuple[nn.Module, Any]], untold: str | None = None, parts: tuple[nn.Module, ...] = ()
    ) -> None:
        self.untold = untold
        self.missing, self.full = 0, False
        self._hooks = hooks
        self._configs = [(part, part._cache_config) for part in parts]

    @property
    def serves(self) -> bool:
        """A cache may answer for steps."""
        return bool(self._hooks) or self.untold is not None

    def skipped(self) -> bool:
        """Whether any part of the denoiser's calls since the last question was taken from a cache.

        Mutates: the count, and ends what ``refresh`` asked for.
        """
        missing, self.missing, self.full = self.missing, 0, False
        return missing > 0

    def began_late(self) -> bool:
        """Whether a cache was enabled, also anew, since this was asked last: which steps it skips is not told then.

        Mutates: ``untold``.
        """
        known = self._configs
        self._configs = [(part, part._cache_config) for part, _ in known]
        enabled = [
            (old, part, new) for (_, old), (part, new) in zip(known, self._configs, strict=True) if new is not None
        ]
        if all(new is old and not self._is_hooked_anew(part) for old, part, new in enabled):
            return False
        self.untold = LATE
        return True

    def _is_hooked_anew(self, part: nn.Module) -> bool:
        """Whether hooks were taken from a part whose cache is enabled: it was disabled, and enabled with the same
        configuration."""
        removed = [module for module, hook in self._hooks if _is_removed(module, hook)]
        return bool(removed) and any(own is module for own in part.modules() for module in removed)

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
            # It would ask its empty memory, of a distilled model.
            if type(hook).__name__ == "FasterCacheBlockHook":
                hook.state.iteration = hook.block_skip_range
        # The second call of a step may not ask what the first one left.
        self.full = True

    @contextlib.contextmanager
    def counting(self) -> Iterator["CacheWatch"]:
        """Count for the length of a ``with`` block; after it the hooks are as they were."""
        cache_counters.join(self, self._hooks)
        try:
            yield self
        finally:
            cache_counters.leave(self, self._hooks)


@contextlib.contextmanager
def watched(pipe: Any) -> Iterator[CacheWatch]:
    """Watch the caches of a pipeline for the length of a ``with`` block."""
    hooks, parts, untold = [], [], None
    components = vars(pipe).values()  # ``pipe.components`` raises for a class whose signature is *args, **kwargs
    for module in _with_caches([component for component in components if isinstance(component, nn.Module)]):
        if _takes_caches(type(module)):
            parts.append(module)
        own = vars(module)
        if own.get("_is_cached"):
            untold = UNTOLD.format(whose="cache-dit")
        registry = own.get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            if type(hook).__name__ in HOOKS:
                hooks.append((module, hook))
            elif getattr(hook, "_original_decoder_stack", None) is not None:
                untold = UNTOLD.format(whose="SeaCache of Cosmos 3")
    with CacheWatch(hooks, untold, tuple(parts)).counting() as watch:
        yield watch


def _with_caches(roots: list[nn.Module]) -> list[nn.Module]:
    """The modules below the roots that have caches, or may be given one, each once.

    Every call of a pipeline waits for it: ``nn.Module.modules`` takes 2.5 ms of SDXL's U-Net, this .3.
    """
    found: dict[int, nn.Module] = {}
    plain: set[type] = set()
    for module in roots:  # which grows
        if module is None:
            continue
        own, kind = module.__dict__, type(module)
        if "_diffusers_hook" in own or "_is_cached" in own:
            found[id(module)] = module
        elif kind not in plain:
            if _takes_caches(kind):
                found[id(module)] = module
            else:
                plain.add(kind)
        if below := own["_modules"]:
            roots.extend(below.values())
    return list(found.values())


@functools.cache
def _takes_caches(kind: type) -> bool:
    return hasattr(kind, "_cache_config")


def _is_removed(module: nn.Module, hook: Any) -> bool:
    """Whether a hook was taken from its module."""
    registry = module.__dict__.get("_diffusers_hook")
    return registry is None or all(one is not hook for one in registry.hooks.values())
