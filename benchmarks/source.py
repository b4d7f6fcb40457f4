# SPDX-License-Identifier: MIT
"""The fingerprint of the code that a figure belongs to."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUFFIXES = (".py", ".cpp", ".cu", ".cuh", ".h")
NOT_ENGINE = (
    "__main__",
    "_version",
    "cli",
    "command",
    "console",
    "demo",
    "doctor",
    "fit",
    "folder",
    "judge",
    "moments",
    "packaged",
    "pictures",
    "pipelines",
    "plots",
    "presets",
    "report",
    "report_files",
    "runs",
)
"""Modules of ``ascedfast/`` that no sampling step runs through."""


def engine_files(root: Path = ROOT) -> list[Path]:
    """Sources of kernels/ and csrc/, and every module of ascedfast/, its adapters/ and calibration/ that is
    not NOT_ENGINE."""
    files = [p for folder in ("kernels", "csrc") for p in (root / folder).rglob("*") if p.suffix in SUFFIXES]
    for folder in ("ascedfast", "ascedfast/adapters", "ascedfast/calibration"):
        files += [p for p in (root / folder).glob("*.py") if p.stem not in NOT_ENGINE]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def source_sha256(root: Path = ROOT) -> str:
    """SHA-256 over the sorted paths and bytes of ``engine_files``: path, NUL, bytes, NUL for each."""
    return _sha256(engine_files(root), root)


def server_sha256(root: Path = ROOT) -> str:
    """The same of those files, ``ascedfast/server/`` and the programs that measure it."""
    folders = ("ascedfast/server", "benchmarks/serving")
    return _sha256(
        [*engine_files(root), *(p for folder in folders for p in sorted((root / folder).glob("*.py")))], root
    )


def sha256_of_tests(root: Path = ROOT) -> str:
    """The same of the tests, less the laboratory's: none of them needs a GPU."""
    return _sha256([path for path in sorted((root / "tests").rglob("*.py")) if "lab_" not in path.name], root)


def _sha256(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
