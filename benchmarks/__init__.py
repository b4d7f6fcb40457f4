# SPDX-License-Identifier: MIT
"""The measurements behind targets P1 to P7: ``python -m benchmarks`` in the repository root; see README.md."""
