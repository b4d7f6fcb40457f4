# SPDX-License-Identifier: MIT
"""House rules that a program can hold: format, lint, sizes, names, and the README's promises."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ascedfast import ops, reference

ROOT = Path(__file__).parent.parent
SOURCES = ("ascedfast", "benchmarks", "csrc", "examples", "kernels", "tests")
SUFFIXES = (".py", ".cpp", ".cu", ".h")


def source_files():
    return [p for folder in SOURCES for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SUFFIXES]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(command):
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff, "ruff is missing: pip install -c constraints.txt -e '.[test]'"
    done = subprocess.run([ruff, *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for p in source_files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"split by meaning: {long}"


def test_every_source_file_names_its_licence():
    assert len(source_files()) > 30
    bare = [
        str(p.relative_to(ROOT)) for p in source_files() if "SPDX-License-Identifier: MIT" not in p.read_text()[:200]
    ]
    assert not bare


def test_one_word_finds_an_op():
    """ops.X, reference.X and a test that names it."""
    names = [n for n, f in vars(ops).items() if callable(f) and f.__module__ == ops.__name__ and not n.startswith("_")]
    assert {"step_dynamics", "robust_threshold", "label_regions", "dilate_mask", "renoise_"} <= set(names)
    tests = "\n".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))
    for name in names:
        assert hasattr(reference, name.rstrip("_")), name
        assert re.search(rf"\b{name}\b", tests), name


def test_no_module_is_named_utils():
    assert not [p for p in source_files() if p.stem in ("utils", "helpers", "misc", "common")]


def test_readme_and_ci_agree():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    command = "pip install -q -c constraints.txt -e '.[test]' && pytest -n auto"
    assert command in readme
    assert command in (ROOT / ".ci/run").read_text()


def test_ddim_example_is_short():
    assert len((ROOT / "examples/ddim_loop.py").read_text().splitlines()) < 40
