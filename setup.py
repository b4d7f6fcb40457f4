# SPDX-License-Identifier: MIT
"""Builds ascedfast._C, or says in one line what was left out and why. Everything else is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError


def mode(variable):
    modes = ("auto", "require", "skip")
    if (value := os.environ.get(variable, "auto")) not in modes:
        raise SystemExit(f"{variable}: expected one of {', '.join(modes)}, got {value!r}")
    return value


BUILD, CUDA = mode("ASCEDFAST_BUILD"), mode("ASCEDFAST_CUDA")
ARCHITECTURES = (75, 80, 90, 100, 120)  # machine code; 80 serves 86 and 89; newer GPUs translate the last one's PTX
CUDA_SOURCES = ("csrc/label_regions.cu", "csrc/medians.cu", "csrc/kernel_launch.cpp", "csrc/launch_sequence.cpp")


def explain(what, instead, error):
    """The one line for whoever installs without a compiler."""
    reason = textwrap.shorten(str(error) or type(error).__name__, 160)
    print(f"ascedfast: {what} not built, {instead} ({reason})", file=sys.stderr)


def nvcc(*arguments):
    """Run nvcc; its output, or a CompileError."""
    home = os.environ.get("CUDA_HOME")
    found = (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")
    if found is None:
        raise CompileError("no nvcc in CUDA_HOME or on the PATH")
    done = subprocess.run([found, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"nvcc failed: {done.stdout}")
    return done.stdout


def add_cuda(ext, folder):
    """Compile what needs CUDA's headers and let ``ext`` hold it, with the runtime inside: import needs no driver and no
    GPU."""
    known = [a for a in ARCHITECTURES if f"sm_{a}\n" in nvcc("--list-gpu-code") + "\n"]
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in known]
    targets.append(f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}")
    flags = ["-c", "-std=c++17", "-O3", "--fmad=false", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    libraries = re.findall(r'"-L([^"]+)"', nvcc("--dryrun", "-c", CUDA_SOURCES[0]))
    Path(folder).mkdir(parents=True, exist_ok=True)
    objects = [f"{folder}/{Path(source).stem}.cuda.o" for source in CUDA_SOURCES]
    for source, target in zip(CUDA_SOURCES, objects, strict=True):
        nvcc(*flags, *targets, source, "-o", target)
    ext.define_macros += [("ASCEDFAST_CUDA", None), ("ASCEDFAST_CUDA_DRIVER", None)]
    ext.extra_objects += objects
    ext.library_dirs += libraries
    ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
    ext.extra_link_args.append("-Wl,--exclude-libs,ALL")  # torch brings a runtime of its own: neither may see the other


class BuildExtension(build_ext):
    def build_extension(self, ext):
        try:
            import pybind11  # here and not above: a source distribution is made without it

            ext.include_dirs.append(pybind11.get_include())
            self.try_cuda(ext)
            super().build_extension(ext)
        except (ImportError, CCompilerError, BaseError, OSError) as error:
            if BUILD == "require" or CUDA == "require":
                raise
            explain("C++ ops", "the pure torch reference will serve", error)

    def try_cuda(self, ext):
        if CUDA == "skip":
            return
        try:
            add_cuda(ext, self.build_temp)
        except (BaseError, CCompilerError, OSError) as error:
            if CUDA == "require":
                raise
            explain("CUDA ops", "on a GPU Triton and torch will serve", error)


extension = Extension(
    "ascedfast._C",
    sources=["csrc/bindings.cpp", "csrc/label_regions.cpp"],
    depends=sorted(str(path) for path in Path("csrc").iterdir() if path.is_file()),
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
    optional=BUILD == "auto" and CUDA != "require",  # setuptools then also copes with the missing file
)
# A source distribution carries csrc/ in every mode.
skipped = BUILD == "skip" and "sdist" not in sys.argv

setup(ext_modules=[] if skipped else [extension], cmdclass={"build_ext": BuildExtension})
