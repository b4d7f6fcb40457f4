# SPDX-License-Identifier: MIT
"""Detection at a chosen rate of false alarms: ``ops.temporal_scores`` of a run against those of sound runs."""

STEPS = (12, 25, 50)
"""Numbers of steps that are calibrated by default."""
FIRST_SEED = 1 << 40
"""Of the runs of a table: far from the seeds that images are drawn with."""
