# SPDX-License-Identifier: MIT
"""The package's version, in its only place."""

__version__ = "0.1.0"
