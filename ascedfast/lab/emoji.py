# SPDX-License-Identifier: MIT
"""The Noto colour emoji bitmaps as a training set.

The font's CBDT table holds 3,926 PNG bitmaps of 136x128 pixels. More than half of them are people and hands: one
emoji such as "person running" is there 36 times, once for each skin tone, gender and direction. Drawn uniformly, a
model would see little else. So every bitmap is filed under its *base*, the code points that are left without skin
tones, gender signs and direction, with man, woman and person (and boy, girl and child) taken as one, and every base
under one of seven categories. Then

- a category has the share of the draws that CATEGORY_SHARES gives it: most for people, who vary most, and for faces,
  but less for people than by number. Drawn equally often, objects and symbols, each unlike the next, would have half
  of the draws, and a network of 5 million weights learns few of them;
- inside a category a base with n bitmaps is drawn with weight sqrt(n), split equally among them. Weight 1 would draw
  each of the 36 runners 36 times less often than the one snowboarder although they are different pictures; weight n is
  the uniform draw again.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEBIAN_PACKAGE = "fonts-noto-color-emoji"
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
)
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL_LETTERS = range(0x1F1E6, 0x1F200)
PRIVATE_USE = range(0xF0000, 0x110000)
BLACK_FLAG, TAG_END = 0x1F3F4, 0xE007F
# zero-width joiner, variation selector, female, male, facing right
MODIFIERS = {0x200D, 0xFE0F, 0x2640, 0x2642, 0x27A1, *SKIN_TONES}
CATEGORY_SHARES = {
    "people": 0.38,
    "faces": 0.26,
    "objects": 0.05,
    "animals": 0.07,
    "flags": 0.14,
    "food": 0.06,
    "symbols": 0.04,
}
# First match wins; what matches nothing is an object. Unicode's blocks mix the categories, hence the many pieces.
CATEGORY_RANGES = {
    "faces": (
        *[(0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F925), (0x1F927, 0x1F92F), (0x1F970, 0x1F976)],
        *[(0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE8), (0x1F479, 0x1F47B), (0x1F47D, 0x1F480)],
        *[(0x2639, 0x263A), (0x1F4A9, 0x1F4A9), (0x1F31A, 0x1F31E)],
    ),
    "animals": ((0x1F400, 0x1F43F), (0x1F980, 0x1F9AE), (0x1F54A, 0x1F54A), (0x1F577, 0x1F578), (0x1FAB0, 0x1FABF)),
    "food": ((0x1F32D, 0x1F330), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FADB)),
    "symbols": (
        *[(0x0, 0x2BFF), (0x3000, 0x32FF), (0x1F100, 0x1F2FF), (0x1F493, 0x1F49F), (0x1F500, 0x1F549)],
        *[(0x1F54B, 0x1F567), (0x1F7E0, 0x1F7F0), (0x1F3E7, 0x1F3E7), (0x1F6AB, 0x1F6BF)],
    ),
}
ADULT, CHILD = 0x1F9D1, 0x1F9D2
SAME_ROLE = {0x1F468: ADULT, 0x1F469: ADULT, 0x1F466: CHILD, 0x1F467: CHILD}


@dataclass(frozen=True)
class EmojiSet:
    """`images` uint8 (N, S, S, 3) on white; `names` N glyph names; `weights` float64 (N,), summing to 1; `categories`
    int64 (N,), places in CATEGORY_SHARES, or None from a file of an earlier version."""

    images: np.ndarray
    names: list[str]
    weights: np.ndarray
    categories: np.ndarray | None = None

    def save(self, path: Path) -> None:
        known = {} if self.categories is None else {"categories": self.categories}
        np.savez_compressed(path, images=self.images, names=np.array(self.names), weights=self.weights, **known)


def find_font() -> Path | None:
    """The first Noto Color Emoji font in the usual places, or None."""
    return next((path for place in FONT_PLACES if (path := Path(place).expanduser()).is_file()), None)


def load_emoji(source: Path | None = None, size: int = 64, limit: int | None = None) -> EmojiSet:
    """Reads the set from a font or from a file written by `EmojiSet.save`.

    Args:
        source: a .ttf with a CBDT table, a .npz, or None to look for the font in the usual places.
        size: side of the square images, in pixels. A .npz must have been rendered at this size.
        limit: keep this many bitmaps, evenly spread over the font. Default: all.
    """
    source = source or find_font()
    if source is None or not Path(source).is_file():
        where = source or ", ".join(FONT_PLACES)
        raise FileNotFoundError(
            f"no Noto Color Emoji font at {where}: install the Debian package {DEBIAN_PACKAGE} "
            f"(apt-get install {DEBIAN_PACKAGE}) or name the file with --font"
        )
    if Path(source).suffix != ".npz":
        return _render(Path(source), size, limit)
    with np.load(source) as stored:
        images, names, weights = stored["images"], stored["names"].tolist(), stored["weights"]
        categories = stored.get("categories")
    if images.shape[1:] != (size, size, 3):
        raise ValueError(f"{source} holds images of shape {images.shape[1:]}, expected {(size, size, 3)}")
    keep = _spread(len(names), limit)
    kept = None if categories is None else categories[keep]
    return EmojiSet(images[keep], [names[i] for i in keep], weights[keep] / weights[keep].sum(), kept)


def _spread(count: int, limit: int | None) -> np.ndarray:
    """Indices of `limit` of `count` things, evenly spaced; all of them without a limit."""
    return np.arange(count) if limit is None else np.linspace(0, count - 1, min(limit, count)).astype(int)


def _render(font_path: Path, size: int, limit: int | None) -> EmojiSet:
    # Imported here: a cached .npz needs neither.
    from fontTools.ttLib import TTFont
    from PIL import Image

    font = TTFont(font_path, lazy=True)
    if "CBDT" not in font:
        raise ValueError(f"{font_path} has no CBDT table: a font with PNG bitmaps is needed, not one with COLR or SVG")
    strike = font["CBDT"].strikeData[0]
    sequences = code_points(font)
    names = list(strike)
    spelled = [sequences.get(name, ()) for name in names]
    weights, categories = (
        sampling_weights(spelled),
        np.array([list(CATEGORY_SHARES).index(c) for c in categories_of(spelled)]),
    )
    keep = _spread(len(names), limit)
    images = np.empty((len(keep), size, size, 3), np.uint8)
    for row, i in enumerate(keep):
        drawing = Image.open(io.BytesIO(strike[names[i]].imageData)).convert("RGBA")
        side = max(drawing.size)
        square = Image.new("RGBA", (side, side), "white")
        # Composited before the resize, so that the colour of transparent pixels cannot bleed into the edges.
        square.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
        images[row] = np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return EmojiSet(images, [names[i] for i in keep], weights[keep] / weights[keep].sum(), categories[keep])


def code_points(font) -> dict[str, tuple[int, ...]]:
    """The code points that each glyph stands for, through the character map and the ligatures.

    The font turns some sequences round (gender sign before person), so read the values as sets with repeats.
    """
    sequences: dict[str, tuple[int, ...]] = {}
    aliases: dict[str, tuple[int, ...]] = {}  # old private-use code points of glyphs that are ligatures today
    for code, name in font.getBestCmap().items():
        (aliases if code in PRIVATE_USE else sequences).setdefault(name, (code,))
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable if lookup.LookupType == 4 else ():
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    parts = [first, *ligature.Component]
                    if all(part in sequences for part in parts):
                        whole = tuple(code for part in parts for code in sequences[part])
                        sequences.setdefault(ligature.LigGlyph, whole)
    return aliases | sequences


def is_flag(sequence: tuple[int, ...]) -> bool:
    """Whether the code points spell a country's or a region's flag, or one letter of it."""
    return any(code in REGIONAL_LETTERS for code in sequence) or (BLACK_FLAG in sequence and TAG_END in sequence)


def base_of(sequence: tuple[int, ...]) -> tuple[int, ...]:
    """What is left of an emoji without skin tone, gender and direction: variants of one emoji share it."""
    if is_flag(sequence) or len(sequence) == 1:
        return tuple(SAME_ROLE.get(code, code) for code in sequence)
    return tuple(sorted(SAME_ROLE.get(code, code) for code in sequence if code not in MODIFIERS))


def category_of(sequence: tuple[int, ...], variants: int) -> str:
    """The category of a bitmap whose base has this many bitmaps: only people and hands come in variants."""
    if is_flag(sequence):
        return "flags"
    if variants > 2:
        return "people"
    for category, ranges in CATEGORY_RANGES.items():
        if any(low <= code <= high for low, high in ranges for code in sequence[:1]):
            return category
    return "objects"


def categories_of(sequences: list[tuple[int, ...]]) -> list[str]:
    """Category of each bitmap, by its base and how many share that."""
    bases = [base_of(sequence) for sequence in sequences]
    count = Counter(bases)
    return [category_of(s, count[base]) for s, base in zip(sequences, bases, strict=True)]


def sampling_weights(sequences: list[tuple[int, ...]]) -> np.ndarray:
    """Probability of each bitmap, float64 (N,); the rule is in this module's docstring."""
    bases = [base_of(sequence) for sequence in sequences]
    count = Counter(bases)
    weights = np.array([count[base] ** -0.5 for base in bases])
    categories = np.array(categories_of(sequences))
    for category, share in CATEGORY_SHARES.items():
        inside = categories == category
        weights[inside] *= share / max(weights[inside].sum(), 1e-12)
    return weights / weights.sum()
