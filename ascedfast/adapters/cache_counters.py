# SPDX-License-Identifier: MIT
"""What stands in diffusers' caching hooks while somebody watches them.

Only what belongs to the hook alone is replaced: never the forward that a removed hook gives back to its module, so a
cache that is disabled within a call takes ours along. Copies and pickles are of what was replaced.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

_CHANGING = threading.Lock()


class Watch(Protocol):
    """Who counts. missing: rises with the samples that a hook is called with, falls with those that it passes on.
    full: the hooks are to believe that they are out of their range of timesteps."""

    missing: int
    full: bool


class _InPlaceOf:
    """Serves the watches, of which the last one to join counts: a call within another one is no part of that one's."""

    def __init__(self, own: Any, watches: list[Watch]) -> None:
        self.own, self.watches = own, watches

    def __reduce__(self) -> tuple:
        return _as_it_is, (self.own,)


class _Calls(_InPlaceOf):
    """Counts the samples of a function's calls."""

    sign = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for watch in self.watches[-1:]:
            watch.missing += self.sign * _rows((*args, *kwargs.values()))
        return self.own(*args, **kwargs)


class _PassedOn(_Calls):
    sign = -1


class _Timestep(_InPlaceOf):
    """Tells a timestep beyond every range where a step is to be computed in full."""

    def __call__(self) -> float:
        return math.inf if any(watch.full for watch in self.watches[-1:]) else self.own()


class _Reference(_InPlaceOf):
    """A hook's way to the forward it replaced. The registry keeps the genuine one."""

    def __init__(self, own: Any, watches: list[Watch]) -> None:
        super().__init__(own, watches)
        self.original_forward: Callable = _PassedOn(own.original_forward, watches)


def join(watch: Watch, hooks: list[tuple[nn.Module, Any]]) -> None:
    """Have a watch count the calls of the hooks, (module, hook) pairs, from now on. Mutates: the hooks."""
    with _CHANGING:
        for _, hook in hooks:
            if not isinstance(hook.fn_ref, _Reference):
                own, watches = hook.fn_ref, []
                hook.fn_ref = _Reference(own, watches)
                own.pre_forward = _Calls(own.pre_forward, watches)
                if hasattr(hook, "current_timestep_callback"):
                    hook.current_timestep_callback = _Timestep(hook.current_timestep_callback, watches)
            hook.fn_ref.watches.append(watch)


def leave(watch: Watch, hooks: list[tuple[nn.Module, Any]]) -> None:
    """End it. Where nobody else watches, the hooks are as they were. Mutates: the hooks."""
    with _CHANGING:
        for _, hook in hooks:
            hook.fn_ref.watches.remove(watch)
            if not hook.fn_ref.watches:
                hook.fn_ref = hook.fn_ref.own
                hook.fn_ref.pre_forward = hook.fn_ref.pre_forward.own
                if isinstance(getattr(hook, "current_timestep_callback", None), _Timestep):  # else the user's new one
                    hook.current_timestep_callback = hook.current_timestep_callback.own


def _rows(values: tuple) -> int:
    """Samples in all tensors of a call: FasterCache runs half of a guided batch."""
    return 1 + sum(len(value) for value in values if isinstance(value, Tensor) and value.dim())


def _as_it_is(own: Any) -> Any:
    return own
