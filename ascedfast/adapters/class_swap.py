# SPDX-License-Identifier: MIT
"""Changing one object's methods by swapping its class for a subclass that goes by the same name.

Unlike a proxy or a patched method it keeps ``isinstance``, signatures, saved configurations and model indices as they
are, and copy, deepcopy and pickle give working objects with state of their own.
"""

from collections.abc import Callable
from typing import Any

STATE = "_asced"
"""Key of our state in the ``__dict__`` of a swapped object."""


def make_subclass(base: type, methods: dict[str, Callable], swap: Callable[[Any], Any]) -> type:
    """A subclass of ``base`` under the same name, with ``methods``.

    Args: swap: puts an unpickled or copied instance of ``base`` back into its subclass (a module-level function).
    """

    def __reduce_ex__(self: Any, protocol: int) -> tuple:
        state = dict(self.__dict__)
        if STATE in state:
            state[STATE] = state[STATE].fresh()
        return _rebuild, (base, swap, state)

    return type(
        base.__name__,
        (base,),
        {
            **methods,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": __reduce_ex__,
            "_asced_base": base,
        },
    )


def is_swapped(obj: Any) -> bool:
    """Whether the object's class is one of ours."""
    return "_asced_base" in vars(type(obj))


def stock_class(obj: Any) -> type:
    """The class the object had before it was swapped."""
    return vars(type(obj)).get("_asced_base", type(obj))


def restore(obj: Any) -> None:
    """Give the object its own class back; our state goes."""
    if is_swapped(obj):
        obj.__dict__.pop(STATE, None)
        obj.__class__ = stock_class(obj)


def _rebuild(base: type, swap: Callable[[Any], Any], state: dict[str, Any]) -> Any:
    obj = base.__new__(base)
    obj.__dict__.update(state)
    return swap(obj)
