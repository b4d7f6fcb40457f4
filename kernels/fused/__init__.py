# SPDX-License-Identifier: MIT
"""Triton kernels, one op a file. Installed as ``ascedfast.kernels``."""
