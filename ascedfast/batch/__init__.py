# SPDX-License-Identifier: MIT
"""``ascedfast batch``: a table of requests drawn with Ray Data; it goes on where it was stopped."""
