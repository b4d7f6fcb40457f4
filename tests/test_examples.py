# SPDX-License-Identifier: MIT
"""Every example runs and says what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "ddim_loop.py": "row 1: ",
    "two_lines.py": "row 0: ",
    "x0_callback.py": "step  9  t   0",
    "redraw_by_severity.py": "keep seed",
    "per_row_seeds.py": "seeds: [11, 12]",
}


def test_every_example_is_listed():
    training = {"sample_emoji.py", "train_emoji.py"}  # tests/test_train_emoji.py
    assert {path.name for path in EXAMPLES.glob("*.py")} - training == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[name] in done.stdout
    assert "unavailable" not in done.stdout
