# SPDX-License-Identifier: MIT
"""What the server's start asks of Ray, without starting one."""

import pytest

from ascedfast.server.settings import ServerSettings
from ascedfast.server.start import cores


@pytest.mark.parametrize(
    ("replicas", "num_cpus", "wanted"), [(3, 0.4, 2), (2, 0.7, 2), (5, 0.5, 3), (1, 1.4, 2), (2, 1, 2), (4, 0, 1)]
)
def test_all_replicas_find_room(replicas, num_cpus, wanted):
    assert wanted <= cores(replicas, num_cpus) <= max(1, replicas * 2)


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match="finite number"):
        ServerSettings(**{name: value})
