# SPDX-License-Identifier: MIT
"""docs/schedulers.md says what the code and the tests say."""

import schedulers_page
import solvers
import tiny

from ascedfast.adapters import parity
from ascedfast.adapters.support import SUPPORT


def test_the_page_is_what_is_generated():
    assert schedulers_page.PAGE.read_text() == schedulers_page.page(), "run python tests/schedulers_page.py"


def test_what_is_fused_is_what_has_a_fused_form():
    fused = {name for name, facts in SUPPORT.items() if facts.fused == "parity"}
    assert fused == {base.__name__ for base in parity.BUILDERS}


def test_cases_have_a_name_of_their_own():
    assert not set(tiny.SCHEDULERS) & set(solvers.SETTINGS)
