# SPDX-License-Identifier: MIT
"""Claim C17: run the repository's parity tests and count the sequences that they compared."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = ("tests/test_artifact_mask.py", "tests/test_artifact_mask_stages.py", "tests/test_renoise.py")
COUNTED = "test_official_mask_equals_oracle"


class NoCheckout(FileNotFoundError):
    """The parity tests are part of the repository, not of the installed package."""


def count(root: Path) -> dict[str, Any]:
    """Run ``TESTS`` and return {"sequences", "passed", "failed"}; sequences: those of the mask tests that passed.

    Args: root: a checkout of the repository. Raises: NoCheckout.
    """
    source = root / TESTS[0]
    if not source.exists():
        raise NoCheckout(f"{source} does not exist: claim C17 is checked in a checkout of the repository")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "-n", "0", *TESTS]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return read(done.stdout, source.read_text(encoding="utf-8"), done.returncode)


def read(output: str, source: str, code: int) -> dict[str, Any]:
    """The counts from pytest's summary (``-rA``) and from the size that the test's source states."""
    per_kind = int(re.search(r"^SEQUENCES_A_KIND = (\d+)", source, re.MULTILINE).group(1))
    passed = re.findall(r"^PASSED (\S+)", output, re.MULTILINE)
    failed = len(re.findall(r"^(?:FAILED|ERROR) ", output, re.MULTILINE))
    counted = sum(f"::{COUNTED}[" in name for name in passed)
    return {"sequences": per_kind * counted, "passed": len(passed), "failed": max(failed, int(code != 0))}
