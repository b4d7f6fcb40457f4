# SPDX-License-Identifier: MIT
"""The emoji set of `ascedfast.lab.emoji`, and a command that renders it once:

python examples/emoji/data.py emoji64.npz       # the file stands in for the font afterwards
"""

from __future__ import annotations

from pathlib import Path

import typer

from ascedfast.lab.emoji import (
    CATEGORY_SHARES,
    DEBIAN_PACKAGE,
    EmojiSet,
    base_of,
    find_font,
    load_emoji,
    sampling_weights,
)

__all__ = ["CATEGORY_SHARES", "DEBIAN_PACKAGE", "EmojiSet", "base_of", "find_font", "load_emoji", "sampling_weights"]


def main(out: Path, font: Path | None = None, size: int = 64) -> None:
    """Renders the font's bitmaps into OUT (.npz)."""
    emoji = load_emoji(font, size)
    emoji.save(out)
    typer.echo(f"{out}: {len(emoji.names)} images of {size}x{size}")


if __name__ == "__main__":
    typer.run(main)
