# SPDX-License-Identifier: MIT
"""Detection at a chosen rate of false alarms: scores of a run's dynamics, and the table of what sound runs score."""
