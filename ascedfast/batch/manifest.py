# SPDX-License-Identifier: MIT
"""What a folder of results was begun with, so that it only goes on with the same; one run at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ascedfast._version import __version__
from ascedfast.batch.results import FOLDERS, RESULTS, Folder
from ascedfast.calibration.folder import fingerprint
from ascedfast.calibration.table import NullTable
from ascedfast.noise import NOISE_VERSION

FORMAT = 1
LOCK = ".lock"
WORDS = {
    "requests": "another table of requests",
    "pipeline": "another pipeline",
    "table": "another table of sound runs",
}


class FolderInUseError(ValueError):
    """A folder that this batch cannot be written into, and what to do."""


def manifest_of(
    requests: str, pipeline: Path, table: NullTable | None, *, batch_size: int, exact: bool, device: str
) -> dict[str, Any]:
    """All that the bits of the results depend on, but for the machine. requests: SHA-256 of their file.

    Raises: FolderError, OSError for a folder that is no pipeline's."""
    settings = None if table is None else json.dumps(table.to_dict(), sort_keys=True).encode()
    return {
        "format": FORMAT,
        "requests": requests,
        "pipeline": fingerprint(pipeline),
        "table": None if settings is None else hashlib.sha256(settings).hexdigest(),
        "batch_size": batch_size,
        "exact": exact,
        "device": device,
        "ascedfast": __version__,
        "noise": NOISE_VERSION,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }


@contextlib.contextmanager
def claimed(folder: Folder, manifest: dict[str, Any]) -> Iterator[None]:
    """Hold the folder for this batch, made and marked as its own where it is new.

    Raises: FolderInUseError where it belongs to another batch, holds other files, or another run writes into it now.
    """
    path = folder.path
    path.mkdir(parents=True, exist_ok=True)
    _check(folder, manifest)  # before the lock's file is made, which a folder of someone else's is not to get
    with (path / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(f"another run is writing into {path}: wait for it, or give another --out") from None
        _check(folder, manifest)
        folder.make()
        folder.tidy()
        folder.write_manifest(manifest)
        yield


def _check(folder: Folder, manifest: dict[str, Any]) -> None:
    path = folder.path
    try:
        begun = folder.read_manifest()
    except ValueError as error:
        raise FolderInUseError(f"{path}/manifest.json is damaged ({error}): give another --out") from error
    written = [f"{name}/{one}" for name in FOLDERS[:-1] for one in _listed(path / name)]
    written += [RESULTS] * (path / RESULTS).exists()  # alone, where every row was refused
    if begun is None:
        others = sorted(name for name in os.listdir(path) if name not in (LOCK, *FOLDERS)) + written
        if others:
            raise FolderInUseError(f"{path} holds other files ({others[0]}): give a new or an empty folder as --out")
        return
    changed = [key for key in {**begun, **manifest} if begun.get(key) != manifest.get(key)]
    if changed and written:
        told = [WORDS.get(key, f"{key} {begun.get(key)}, not {manifest.get(key)}") for key in changed]
        raise FolderInUseError(
            f"{path} was begun with {'; '.join(told)}: give another --out, or go on with what it was begun with"
        )


def _listed(path: Path) -> list[str]:
    return sorted(os.listdir(path)) if path.is_dir() else []
