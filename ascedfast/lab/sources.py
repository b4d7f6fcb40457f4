# SPDX-License-Identifier: MIT
"""What results belong to: hashes of the code, and of the weights behind a family."""

import functools
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from ascedfast.calibration import packaged

TRAINED_ON = {"F3": "F1", "F4": "F1", "F4-s1": "F1", "F4-px": "F1", "toy": "toy-blend", "toy-blend": "toy"}
"""Whose planted traps the stand-in was trained on, by the family that it is used on: another data set's. Others: F4."""


REPORTING = ("cli", "report", "claims", "figures", "lab_plots", "parity", "bars", "evidence", "bar_page")
TRAINING = ("training", "loop", "jobs", "cards", "model_cards")
"""What makes the weights; the weights themselves are in the hash."""
MODELS = (".safetensors", "config.json")
"""Ends of the names of the files that decide what a model does; pictures, cards and logs do not."""


def trained_on(family: str) -> str:
    """The family on whose planted traps this one's stand-in was trained."""
    return TRAINED_ON.get(family, "F4")


@functools.cache
def source_hash() -> str:
    """SHA-256 of the code that results depend on: the engine's arithmetic and the laboratory, less what only trains or
    reports; ``emoji`` belongs to the families that it concerns. Read once a process."""
    package = Path(__file__).parent.parent
    engine = ("config", "detect", "noise", "op_checks", "ops", "presets", "process", "reference", "reference_scores")
    engine += ("schedule",)
    files = [package / f"{name}.py" for name in engine] + sorted((package / "calibration").glob("*.py"))
    files.append(packaged.FILE)
    files += [path for path in (package / "lab").glob("*.py") if path.stem not in (*REPORTING, *TRAINING, "emoji")]
    return _digest(package, files)


def source_of(family: str, source: str) -> str:
    """What a family's results belong to: a hash of ``source`` and of its weights, those of its extractor, its judge
    and its stand-in included. Of a pipeline's folder, of what is in it. Of a toy: ``source``."""
    folder = Path(family)
    if family.startswith("toy"):
        return source
    if (folder / "model_index.json").is_file():
        weights = _digest(folder, _models(folder))
    else:
        try:
            weights = _weights(family)
        except ValueError:  # no family of that name
            return source
    return hashlib.sha256(f"{source} {weights}".encode()).hexdigest()


@functools.cache
def _weights(name: str) -> str:
    """Hash of all files of weights and judges behind a family. Read once a process."""
    families = importlib.import_module("ascedfast.lab.families")  # heavy, and a toy does without
    files: list[Path] = []
    for one in (name, trained_on(name)):
        family, _ = families.split_name(one)
        root = families.ASSETS if family.packaged else families.WEIGHTS
        files += _models(root / family.folder)
        files += _models(families.WEIGHTS / family.vae) if family.vae else []
    source = families.split_name(name)[0].data
    files += _models(families.WEIGHTS / f"features-{source}") + _models(families.WEIGHTS / f"patches-{source}")
    files += families.WEIGHTS.glob(f"judge-{source}.json")
    files += [Path(__file__).parent / "emoji.py"] if source == "emoji64" else []
    return _digest(Path(__file__).parent.parent, files)


def _models(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name.endswith(MODELS)]


def _digest(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
