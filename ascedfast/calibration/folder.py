# SPDX-License-Identifier: MIT
"""The table beside its pipeline: where it lies, and whether the pipeline is still the one that it was made for."""

import hashlib
from pathlib import Path

from ascedfast.calibration.table import NullTable

NAME = "asced_null.json"
WHOLE = 64 << 20
"""A larger file is known by its size and by SAMPLES parts of it of SAMPLE bytes each."""
SAMPLES, SAMPLE = 32, 1 << 20


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of the folder's weights and settings (.safetensors, .json)."""
    digest = hashlib.sha256()
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json") and path.is_file()]
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        if path.name.endswith(NAME) or path.name.startswith("."):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            for part in range(SAMPLES):
                file.seek((size - SAMPLE) * part // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def load_table(folder: Path) -> NullTable:
    """The table of a pipeline's folder.

    Raises: FileNotFoundError where there is none; ValueError where it is damaged, or the pipeline has changed since."""
    path = folder / NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {NAME}: run ascedfast calibrate --pipeline {folder}")
    table = NullTable.load(path)
    if table.pipeline != fingerprint(folder):
        raise ValueError(f"{path} was made for other weights or settings: run ascedfast calibrate again")
    return table
