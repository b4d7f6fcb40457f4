# SPDX-License-Identifier: MIT
"""Until when what a modular block began lasts: the blocks that follow it in its sequence have run, or one has raised.

A sequence tells its blocks nothing of its end. So the blocks that follow have their class swapped while the span lasts.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks

from ascedfast.adapters import class_swap


class Span:
    """Ends at the end of the last of some blocks, or where one raises. Mutates: the blocks' classes until then.

    Args: blocks: one at least, in their order. A span that one of them is in is ended first.
    """

    def __init__(self, blocks: list[ModularPipelineBlocks], end: Callable[[], Any]) -> None:
        end_others(blocks)
        self._blocks, self._end = blocks, end
        for block in blocks:
            block.__dict__[class_swap.STATE] = self
            block.__class__ = _block_class(type(block))

    def end(self) -> None:
        """End it now; once."""
        for block in self._blocks:
            class_swap.restore(block)
        self._blocks = []
        self._end()

    def fresh(self) -> None:
        """What a copy of a block has of the span: nothing."""

    @contextlib.contextmanager
    def around(self, block: ModularPipelineBlocks):
        try:
            yield
        except BaseException:
            self.end()
            raise
        if self._blocks and block is self._blocks[-1]:
            self.end()


def end_others(blocks: list[ModularPipelineBlocks]) -> None:
    """End the spans that the blocks are in."""
    for block in blocks:
        span = block.__dict__.get(class_swap.STATE)
        if span is not None:
            span.end()


def following(blocks: ModularPipelineBlocks, block: ModularPipelineBlocks) -> list[ModularPipelineBlocks] | None:
    """What runs behind a block in the innermost sequence that goes on behind it; None where it is not among ``blocks``,
    empty where nothing goes on."""
    parts = list(blocks.sub_blocks.values())
    for place, part in enumerate(parts):
        behind = [] if part is block else following(part, block)
        if behind is not None:
            in_sequence = isinstance(blocks, SequentialPipelineBlocks)
            return behind or (parts[place + 1 :] if in_sequence else [])
    return None


@functools.cache
def _block_class(base: type) -> type:
    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        span = self.__dict__.get(class_swap.STATE)
        with contextlib.nullcontext() if span is None else span.around(self):
            return base.__call__(self, *args, **kwargs)

    return class_swap.make_subclass(base, {"__call__": __call__}, _as_stock)


def _as_stock(block: Any) -> Any:
    block.__dict__.pop(class_swap.STATE, None)
    return block
