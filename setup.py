# SPDX-License-Identifier: MIT
"""Builds ascedfast._C, or says in one line why not. Everything else about the package is in pyproject.toml."""

import os
import sys
import textwrap

from setuptools import setup
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
            super().build_extension(ext)
        except (CCompilerError, BaseError, OSError) as error:
            if MODE == "require":
                raise
            explain(error)


def extensions():
    # A source distribution carries csrc/ in every mode.
    if MODE == "skip" and "sdist" not in sys.argv:
        return []
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError as error:
        if MODE == "require":
            raise
        explain(error)
        return []
    return [
        Pybind11Extension(
            "ascedfast._C",
            sources=["csrc/bindings.cpp", "csrc/label_regions.cpp"],
            depends=["csrc/ops.h"],
            cxx_std=17,
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=MODE == "auto",  # setuptools then also copes with the missing file
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
