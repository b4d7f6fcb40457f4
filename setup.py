# SPDX-License-Identifier: MIT
"""Builds ascedfast._C, or says in one line why not. Everything else about the package is in pyproject.toml."""

import os
import sys
import textwrap

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

MODES = ("auto", "require", "skip")
MODE = os.environ.get("ASCEDFAST_BUILD", "auto")
if MODE not in MODES:
    raise SystemExit(f"ASCEDFAST_BUILD: expected one of {', '.join(MODES)}, got {MODE!r}")


def explain(error):
    """The one line for whoever installs without a compiler."""
    reason = textwrap.shorten(str(error) or type(error).__name__, 160)
    print(f"ascedfast: C++ ops not built, the pure torch reference will serve ({reason})", file=sys.stderr)


class BuildExtension(build_ext):
    def build_extension(self, ext):
        try:
            import pybind11  # here and not above: a source distribution is made without it

            ext.include_dirs.append(pybind11.get_include())
            super().build_extension(ext)
        except (ImportError, CCompilerError, BaseError, OSError) as error:
            if MODE == "require":
                raise
            explain(error)


extension = Extension(
    "ascedfast._C",
    sources=["csrc/bindings.cpp", "csrc/label_regions.cpp"],
    depends=["csrc/ops.h"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
    optional=MODE == "auto",  # setuptools then also copes with the missing file
)
# A source distribution carries csrc/ in every mode.
skipped = MODE == "skip" and "sdist" not in sys.argv

setup(ext_modules=[] if skipped else [extension], cmdclass={"build_ext": BuildExtension})
