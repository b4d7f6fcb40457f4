# SPDX-License-Identifier: MIT
"""What the server promises, shown on a server that runs: S1 to S5 of ``results/serving.json`` (``docs/serving.md``)."""
