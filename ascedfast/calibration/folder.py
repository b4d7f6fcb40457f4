# SPDX-License-Identifier: MIT
"""The table beside its pipeline: where it lies, and whether the pipeline is still the one that it was made for."""

import hashlib
import os
from pathlib import Path

from ascedfast.adapters.pipeline_index import read_index
from ascedfast.calibration.table import NullTable

NAME = "asced_null.json"
WHOLE = 64 << 20
"""A larger file is known by its size and by SAMPLES parts of it of SAMPLE bytes each."""
SAMPLES, SAMPLE = 32, 1 << 20


def fingerprint(folder: Path) -> str:
    """SHA-256 over model_index.json and the names and bytes of all files of the components that it names, behind links
    too; of files above WHOLE bytes over parts. What else lies in the folder does not count.

    Raises: FolderError, OSError for a folder that cannot be read."""
    names = [name for name, entry in read_index(folder).items() if isinstance(entry, list)]
    files = [folder / "model_index.json"]
    for name in names:
        for root, folders, found in os.walk(folder / name, followlinks=True):
            folders[:] = sorted(one for one in folders if not one.startswith("."))
            files += [Path(root, one) for one in found if not one.startswith(".")]
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
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


def load_table(folder: Path, path: Path | None = None) -> NullTable:
    """The table of a pipeline's folder, from the folder or from a file elsewhere.

    Raises: FileNotFoundError where there is none; ValueError where it is damaged, or the pipeline has changed since."""
    path = path or folder / NAME
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: run ascedfast calibrate --pipeline {folder}")
    table = NullTable.load(path)
    if table.pipeline != fingerprint(folder):
        raise ValueError(f"{path} was made for other weights or settings: run ascedfast calibrate again")
    return table
