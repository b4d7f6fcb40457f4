# SPDX-License-Identifier: MIT
"""The sanitizer's command: it knows every kernel, tells which one was found, and says so where it cannot run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import DEVICES

from ascedfast import _backend

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks/ is not installed

from benchmarks import every_kernel, sanitize

ROOT = Path(__file__).parent.parent
MEMCHECK = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: {} errors\n"
RACECHECK = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: {} hazards displayed (0 errors, {} warnings)\n"
FAKE = """#!{python}
import os, sys
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
assert "--error-exitcode" in sys.argv
names = sys.argv[sys.argv.index("benchmarks.every_kernel") + 1 :]
bad = {bad!r}
print("========= COMPUTE-SANITIZER")
if sys.argv[sys.argv.index("--tool") + 1] == "memcheck" and bad and (not names or bad in names):
    print("========= Invalid __global__ read of size 4 bytes")
    print("========= ERROR SUMMARY: 1 error")
    sys.exit(int(sys.argv[sys.argv.index("--error-exitcode") + 1]))
print("========= ERROR SUMMARY: 0 errors")
"""


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """A sanitizer that finds something in the kernel of the name given."""

    def fake(bad):
        tool = tmp_path / "compute-sanitizer"
        tool.write_text(FAKE.format(python=sys.executable, bad=bad))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(_backend, "has_cuda", lambda: True)

    return fake


def test_every_op_and_every_cuda_file_has_a_case():
    assert set(_backend.OPS) <= set(every_kernel.CASES)
    assert {path.name for path in (ROOT / "csrc").glob("*.cu")} <= set(every_kernel.CASES)


def test_a_missing_tool_is_named(tmp_path, monkeypatch, capsys):
    for variable in ("PATH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(sanitize, "TOOLKIT", str(tmp_path))
    assert sanitize.main() == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compute-sanitizer is missing")


def test_the_command_line_ends_with_the_status():
    """As a user meets it; without a visible device nothing can be checked, wherever the tool is."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.sanitize"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **hidden}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1


def test_what_else_may_be_missing(faked, monkeypatch):
    faked("")
    assert sanitize.missing() is None
    monkeypatch.setattr(_backend, "has_cuda", lambda: False)
    assert "nvcc" in sanitize.missing()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in sanitize.missing()


def test_clean_is_one_line_a_kernel_and_tool(faked, capsys):
    faked("")
    assert sanitize.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(every_kernel.CASES) * len(sanitize.TOOLS)
    assert all(line.endswith("clean") for line in lines)


def test_a_finding_names_its_kernel(faked, capsys):
    faked("dilate_mask")
    assert sanitize.main() == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.endswith("FOUND")]
    assert line.split() == ["memcheck", "dilate_mask", "FOUND"]
    assert "    ========= Invalid __global__ read of size 4 bytes\n" in out


@pytest.mark.parametrize(
    ("status", "output", "clean"),
    [
        (0, MEMCHECK.format(0), True),
        (0, RACECHECK.format(0, 0), True),
        (86, MEMCHECK.format(3), False),
        (0, RACECHECK.format(1, 1), False),
        (1, MEMCHECK.format(0), False),  # the child failed
        (0, "", False),  # the tool did not run
    ],
)
def test_what_counts_as_clean(status, output, clean):
    assert (sanitize.finding(status, output) == []) is clean


def launched_kernels():
    """Names that the sources launch, as in ``_row[grid](...)`` or ``PreparedLaunch(_blur, grid, ...)``."""
    for path in (ROOT / "kernels" / "fused").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name):
                yield node.func.value.id
            elif isinstance(node.func, ast.Name) and node.func.id == "PreparedLaunch":
                yield node.args[0].id


@pytest.mark.timeout(600)  # every op, interpreted
@pytest.mark.skipif(DEVICES != ["cpu"], reason="counts interpreted launches")
def test_every_triton_kernel_is_launched(monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    seen = set()
    launch = InterpretedFunction.__getitem__

    def noted(self, grid):
        seen.add(self.fn.__name__)
        return launch(self, grid)

    monkeypatch.setattr(InterpretedFunction, "__getitem__", noted)
    for name, case in every_kernel.CASES.items():
        if not name.endswith(".cu"):
            case(torch.device("cpu"))
    assert len(set(launched_kernels())) > 12
    assert set(launched_kernels()) - seen == set()
