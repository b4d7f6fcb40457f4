# SPDX-License-Identifier: MIT
"""The index of a diffusers pipeline folder, read without diffusers."""

import json
from pathlib import Path
from typing import Any


class FolderError(ValueError):
    """A folder that cannot be used, and why."""


def read_index(folder: Path) -> dict[str, Any]:
    """What model_index.json holds. Raises: FolderError."""
    try:
        there = folder.is_dir()
    except OSError as error:
        raise FolderError(f"{folder} cannot be read: {error.strerror}") from error
    if not there:
        raise FolderError(f"{folder} is not a folder: give the folder of a diffusers pipeline (with model_index.json)")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{folder} has no model_index.json: it is no diffusers pipeline folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FolderError(f"{folder / 'model_index.json'} is damaged: {error}") from error
    if not isinstance(index, dict):
        raise FolderError(f"{folder / 'model_index.json'} is damaged: it holds no object")
    return index
