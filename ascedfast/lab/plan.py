# SPDX-License-Identifier: MIT
"""What there is to compute: the families' roles in the tables, and the cells that suites are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """What a family is in the tables. net: "unet" or "dit". linear: trained and sampled with linear betas. of: the
    family that it is a weak twin of."""

    net: str = "unet"
    linear: bool = False
    of: str | None = None


ROLES: Mapping[str, Role] = {
    "F1": Role(linear=True),
    "F2": Role(),
    "F3": Role(linear=True),
    "F4": Role("dit"),
    "F4-s1": Role("dit"),
    "F4-px": Role("dit"),
    "F5": Role(linear=True),
    "F1c": Role(linear=True),
    "F1-W8": Role(linear=True, of="F1"),
    "F1-W6": Role(linear=True, of="F1"),
    "F1-W4": Role(linear=True, of="F1"),
    "F1-P30": Role(linear=True, of="F1"),
    "F1-early": Role(linear=True, of="F1"),
    "F2-W4": Role(of="F2"),
    "F3-W4": Role(linear=True, of="F3"),
    "F4-W4": Role("dit", of="F4"),
    "toy": Role(linear=True),
    "toy-blend": Role("dit", linear=True, of="toy"),
}
MAIN = ("F1", "F2", "F3", "F4", "F4-s1", "F4-px", "F5")


def role_of(family: str) -> Role:
    """Of a folder nothing is known."""
    return ROLES.get(family, Role())


WEAK = tuple(name for name, role in ROLES.items() if role.of == "F1")


@dataclass(frozen=True)
class Cell:
    """One computation. part: which of the suite, for example a kind of plant. start, count: its reporting seeds."""

    suite: str
    family: str
    part: str
    size: str
    start: int
    count: int
    settings: tuple[tuple[str, float | int | str], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.settings)[name]
