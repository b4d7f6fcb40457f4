# SPDX-License-Identifier: MIT
"""Detection at a chosen rate of false alarms: scores of a run's dynamics, and the table of what sound runs score."""

STEPS = (12, 25, 50)
"""Numbers of steps that are calibrated by default."""
FIRST_SEED = 1 << 40
"""Of the runs of a table: far from the seeds that images are drawn with."""
