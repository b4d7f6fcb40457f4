# SPDX-License-Identifier: MIT
"""A network whose forward replays a CUDA graph, as servers run it: the GPU sets the pace, not the host that launches.

A graph reads and writes fixed addresses. So the tensors among a call's arguments are copied into buffers before each
replay, and what it returns is a copy: pipelines and solvers keep outputs from one call to the next.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

MOST_GRAPHS = 4
"""Of one network. Each set of shapes needs one; more of them mean that some argument changes from step to step."""
WARM_UPS = 2

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Takes the work on the buffers; returns what replays it, and the output whose tensors each replay writes anew."""


class StaticInputs:
    """The arguments of a call, flattened, with each tensor in a buffer of its own on ``device``."""

    def __init__(self, leaves: Sequence[Any], layout: TreeSpec, device: torch.device) -> None:
        self.layout = layout
        self.leaves = [torch.empty_like(leaf, device=device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.fill(leaves)

    def fill(self, leaves: Sequence[Any]) -> None:
        """Copy the tensors of another call with the same ``signature``. One on the host makes the host wait."""
        for held, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(held, Tensor):
                held.copy_(leaf)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """args and kwargs, their lists and dicts made anew: a forward may pop from them."""
        return tree_unflatten(self.leaves, self.layout)


def signature(leaves: Sequence[Any], layout: TreeSpec) -> tuple[Any, ...]:
    """What two calls must share to use one graph: shapes and dtypes of tensors, all other arguments themselves."""
    return repr(layout), *(
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves
    )


def capture_graph(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of ``work``, after a few runs on a side stream in which libraries set themselves up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return graph.replay, output


def replay_forward(module: nn.Module, capture: Capture = capture_graph) -> None:
    """Replace ``module.forward`` on this instance by one that captures at its first call and replays from then on,
    without gradients. All else of the module stays as it is. RuntimeError at the fifth graph."""
    forward, device = module.forward, next(module.parameters()).device
    names = list(inspect.signature(forward).parameters)
    graphs: dict[tuple[Any, ...], tuple[StaticInputs, Callable[[], None], Any]] = {}

    @functools.wraps(forward)
    @torch.no_grad()
    def replayed(*args: Any, **kwargs: Any) -> Any:
        args = tuple(_step_as_tensor(names[i], value) if i < len(names) else value for i, value in enumerate(args))
        kwargs = {name: _step_as_tensor(name, value) for name, value in kwargs.items()}
        leaves, layout = tree_flatten((args, kwargs))
        key = signature(leaves, layout)
        if key not in graphs:
            if len(graphs) == MOST_GRAPHS:
                raise RuntimeError(f"{type(module).__name__}: more than {MOST_GRAPHS} kinds of calls to capture")
            inputs = StaticInputs(leaves, layout, device)

            def work() -> Any:
                held_args, held_kwargs = inputs.arguments()
                return forward(*held_args, **held_kwargs)

            graphs[key] = (inputs, *capture(work))
        inputs, replay, output = graphs[key]
        inputs.fill(leaves)
        replay()
        return tree_map_only(Tensor, Tensor.clone, output)

    module.forward = replayed


def _step_as_tensor(name: str, value: Any) -> Any:
    """A timestep given as a number, which changes from call to call, as the tensor that diffusers makes of it."""
    if name != "timestep" or isinstance(value, (Tensor, bool)) or not isinstance(value, (int, float)):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64, device="cpu")
