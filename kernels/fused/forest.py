# SPDX-License-Identifier: MIT
"""Device functions for disjoint sets of locations: a forest in memory, every parent smaller than its child.

A root is its own parent, so that a tree's root is its smallest node; -1 stands at locations outside every tree.
"""

import triton
import triton.language as tl


@triton.jit
def any_of(flags):
    """Whether one of the lanes is set."""
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit
def unite(forest, a, b, ask, ROUNDS: tl.constexpr):
    """Join the trees of the nodes a and b of each asking lane. True if a lane was left over after ROUNDS.

    A lane puts the link high -> low in place of high's link and goes on with what it displaced, so that no connection
    is ever lost, whatever other lanes and programs do meanwhile. ``high`` falls from round to round through nodes of
    one and the same set: a lane ends within as many rounds as the set has nodes that occur as a parent or a root.
    """
    high, low = tl.maximum(a, b), tl.minimum(a, b)
    open_ = ask & (high != low)
    rounds = 0
    while any_of(open_) & (rounds < ROUNDS):
        displaced = tl.atomic_min(forest + high, low, mask=open_, sem="relaxed")
        open_ = open_ & (displaced != high) & (displaced != low)
        displaced = tl.where(open_, displaced, low)  # undefined where a lane did not ask
        high, low = tl.where(open_, tl.maximum(displaced, low), high), tl.minimum(displaced, low)
        rounds += 1
    return any_of(open_)


@triton.jit
def shorten(forest, node, ask):
    """Every asking node becomes a child of its root. All of them jump together: log2(longest path) rounds.

    For one program alone with its trees: nobody may unite meanwhile, and every inner node must be among the asking.
    """
    parent = tl.load(forest + node, ask, other=0)
    moving = ask
    while any_of(moving):
        above = tl.load(forest + parent, moving, other=0)
        tl.debug_barrier()
        moving = moving & (above != parent)
        tl.store(forest + node, above, moving)
        parent = tl.where(moving, above, parent)
        tl.debug_barrier()


@triton.jit
def root_of(forest, node, ask):
    """Root of each asking lane's node. Roots may be marked by a negative entry meanwhile. Ends: nodes only fall."""
    moving = ask
    while any_of(moving):
        above = tl.load(forest + node, moving, other=0)
        moving = moving & (above >= 0) & (above != node)
        node = tl.where(moving, above, node)
    return node
