# SPDX-License-Identifier: MIT
"""Adapters know samplers and no kernel; the engine behind them knows no sampler."""
