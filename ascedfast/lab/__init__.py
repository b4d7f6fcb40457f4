# SPDX-License-Identifier: MIT
"""The laboratory: what a method detects and repairs, with error bars. Definitions and formulas: ``docs/measures.md``.

Nothing here is imported by the engine; the extra ``lab`` installs what it needs.
"""
