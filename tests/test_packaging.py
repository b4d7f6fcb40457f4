# SPDX-License-Identifier: MIT
"""What is installed, built and imported; PyPI's `kernels` stays reachable beside our folder of that name."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = 77  # build-system.requires in pyproject.toml
MISSING_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}


def python(code, cwd, *path, **environment):
    """Run ``code`` in a fresh interpreter with ``path`` in front of sys.path; its output, or a failed test."""
    lines = f"import sys\nsys.path[:0] = {[str(entry) for entry in path]!r}\n{code}"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    # -P: the current directory comes into sys.path by `path` only.
    done = subprocess.run(
        [sys.executable, "-P", "-c", lines], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def editable():
    try:
        text = importlib.metadata.distribution("ascedfast").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(text) and json.loads(text).get("dir_info", {}).get("editable", False)


needs_editable = pytest.mark.skipif(not editable(), reason="ascedfast is not installed with pip install -e")


def test_kernels_folder_is_no_package():
    assert (ROOT / "kernels" / "fused" / "__init__.py").is_file()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_checkout_root_offers_no_kernels_package(tmp_path):
    # A namespace (loader without a file) yields to any installed package; a package of ours would win.
    code = "from importlib.machinery import PathFinder\n"
    code += f"spec = PathFinder.find_spec('kernels', [{str(ROOT)!r}])\nprint(spec and spec.origin)"
    assert python(code, tmp_path) == "None"


def test_installed_kernels_wins_over_the_checkout(tmp_path):
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def get_kernel(name):\n    return 'hub:' + name\n")
    code = "from kernels import get_kernel\nprint(get_kernel('x'))"
    assert python(code, ROOT, ROOT, tmp_path / "site") == "hub:x"


@needs_editable
def test_our_kernels_import_beside_the_other(tmp_path):
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from_the_hub = True\n")
    code = "import kernels, ascedfast.kernels\nprint(kernels.from_the_hub, ascedfast.kernels.__file__)"
    for path in ([tmp_path / "site"], [ROOT, tmp_path / "site"]):
        assert python(code, tmp_path, *path) == f"True {ROOT / 'kernels' / 'fused' / '__init__.py'}"


BLOCK = """
import importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""


def test_core_imports_without_the_extras(tmp_path):
    blocked = {"diffusers", "transformers", "typer", "matplotlib", "rich", "jinja2", "PIL", "safetensors", "scipy"}
    code = BLOCK.format(blocked=blocked)
    code += "try:\n    import diffusers\nexcept ImportError as error:\n    print(error)\nimport ascedfast"
    assert python(code, tmp_path, ROOT) == "blocked: diffusers"


def test_import_builds_nothing_and_needs_no_gpu(tmp_path):
    code = """
import os, subprocess
def refuse(*arguments, **options):
    raise AssertionError(f"import ascedfast started {arguments}")
subprocess.Popen.__init__ = os.system = refuse
import ascedfast, torch
print(torch.cuda.is_initialized(), "setuptools" in sys.modules, "pybind11" in sys.modules)
"""
    before = sorted(ROOT.glob("ascedfast/_C*"))
    assert python(code, tmp_path, ROOT, CUDA_VISIBLE_DEVICES="", TRITON_CACHE_DIR=str(tmp_path / "triton")) == (
        "False False False"
    )
    assert not (tmp_path / "triton").exists()
    assert sorted(ROOT.glob("ascedfast/_C*")) == before


def test_import_works_without_the_extension(tmp_path):
    code = BLOCK.replace('name.partition(".")[0]', "name").format(blocked={"ascedfast._C"})
    code += "import torch\nfrom ascedfast import ops\n"
    code += "print(ops.label_regions(torch.ones(1, 2, 2, dtype=torch.bool), connectivity=4)[0].tolist())"
    assert python(code, tmp_path, ROOT) == "[[[1, 1], [1, 1]]]"


def _init_of(node):
    return next(method for method in node.body if method.name == "__init__")


def test_stub_names_what_the_extension_has():
    extension = pytest.importorskip("ascedfast._C", reason="the extension is not built")
    stub = ast.parse((ROOT / "ascedfast" / "_C.pyi").read_text()).body
    stubbed = {node.name: node for node in stub if hasattr(node, "name")}
    if not extension.has_cuda:
        stubbed = {"label_regions": stubbed["label_regions"]}
    stubbed = {name: _init_of(node) if isinstance(node, ast.ClassDef) else node for name, node in stubbed.items()}
    stubbed = {name: [argument.arg for argument in node.args.args] for name, node in stubbed.items()}
    built = {
        name: made.__init__.__doc__ if isinstance(made, type) else made.__doc__
        for name, made in vars(extension).items()
        if callable(made)
    }
    # pybind11 opens each docstring with the signature: name(argument: type, ...) -> result
    signatures = {name: re.findall(r"(\w+): ", text.partition("->")[0]) for name, text in built.items()}
    assert stubbed == signatures


def why_no_build():
    versions = {}
    for name in ("build", "pybind11", "setuptools"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed"
    if int(versions["setuptools"].partition(".")[0]) < SETUPTOOLS:
        return f"setuptools is {versions['setuptools']}, older than {SETUPTOOLS}"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return "not a git checkout: the list of files is unknown"
    return ""


needs_build = pytest.mark.skipif(bool(why_no_build()), reason=why_no_build())
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def copy_checkout(target):
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def build(source, kind, **environment):
    """`python -m build` without isolation, hence without a network: (exit status, output, built file or None)."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(source / "out")]
    inherited = {name: value for name, value in os.environ.items() if name not in ("ASCEDFAST_BUILD", "ASCEDFAST_CUDA")}
    done = subprocess.run(
        command,
        cwd=source,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, next((source / "out").glob("*"), None)


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def has_extension(names):
    return any(name.startswith("ascedfast/_C.") and not name.endswith(".pyi") for name in names)


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    source = copy_checkout(tmp_path_factory.mktemp("pure"))
    status, output, wheel = build(source, "wheel", ASCEDFAST_BUILD="skip")
    assert status == 0, output
    return wheel


@needs_build
def test_wheel_holds_the_package_and_nothing_else(pure_wheel):
    names = names_in(pure_wheel)
    folders = ("assets", "templates", "lab/weights", "server/page")
    shipped = {path for folder in folders for path in (ROOT / "ascedfast" / folder).rglob("*")}
    expected = {path.relative_to(ROOT).as_posix() for path in shipped if path.is_file()}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "ascedfast").glob("**/*.py*")}
    expected |= {
        f"ascedfast/kernels/{path.relative_to(ROOT / 'kernels' / 'fused').as_posix()}"
        for path in (ROOT / "kernels" / "fused").glob("**/*.py")
    }
    expected = {name for name in expected if "__pycache__" not in name} | {"ascedfast/py.typed"}
    assert not expected - names, "missing"
    packages = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert not packages - expected, "not ours to install"
    assert {"ascedfast/kernels/__init__.py", "ascedfast/_C.pyi"} <= names


@needs_build
def test_wheel_runs_the_demo_away_from_the_checkout(pure_wheel, tmp_path):
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sys, ascedfast.__main__ as m; sys.argv = sys.argv[:1] + sys.argv[2:]; print(m.__file__); m.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--", "demo", "--samples", "1", "--steps", "8", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


@needs_build
def test_skip_builds_a_pure_wheel(pure_wheel):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert not has_extension(names_in(pure_wheel))


@needs_build
def test_sdist_holds_the_headers_in_every_mode(tmp_path):
    status, output, sdist = build(copy_checkout(tmp_path), "sdist", ASCEDFAST_BUILD="skip")
    assert status == 0, output
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").iterdir() if path.is_file()}
    assert any(name.endswith(".h") for name in sources)
    assert not (sources | {"setup.py", "pyproject.toml", "LICENSE", "kernels/fused/__init__.py"}) - names


@needs_build
@needs_compiler
def test_require_builds_an_extension_that_imports(tmp_path):
    modes = {"ASCEDFAST_BUILD": "require", "ASCEDFAST_CUDA": "skip"}
    status, output, wheel = build(copy_checkout(tmp_path / "source"), "wheel", **modes)
    assert status == 0, output
    assert has_extension(names_in(wheel))
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import ascedfast._C as c\nprint(c.__file__, c.label_regions.__name__, c.has_cuda)"
    file, name, has_cuda = python(code, tmp_path, tmp_path / "installed").split()
    assert Path(file).is_relative_to(tmp_path / "installed")
    assert (name, has_cuda) == ("label_regions", "False")


@needs_build
def test_auto_without_a_compiler_says_so_in_one_line(tmp_path):
    status, output, wheel = build(copy_checkout(tmp_path), "wheel", ASCEDFAST_BUILD="auto", **MISSING_COMPILER)
    assert status == 0, output
    said = [line for line in output.splitlines() if "pure torch reference will serve" in line]
    assert len(said) == 1, output
    assert "no-such-compiler" in said[0]
    assert not has_extension(names_in(wheel))


@needs_build
def test_require_without_a_compiler_fails(tmp_path):
    status, output, _ = build(copy_checkout(tmp_path), "wheel", ASCEDFAST_BUILD="require", **MISSING_COMPILER)
    assert status != 0
    assert "no-such-compiler" in output


@needs_build
def test_unknown_mode_is_refused(tmp_path):
    status, output, wheel = build(copy_checkout(tmp_path), "wheel", ASCEDFAST_BUILD="fast")
    assert status != 0
    assert wheel is None
    assert "ASCEDFAST_BUILD: expected one of auto, require, skip, got 'fast'" in output
