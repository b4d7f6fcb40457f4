# SPDX-License-Identifier: MIT
"""Settings: the presets' numbers, refusals that name the setting, and a round trip through JSON."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascedfast import AscedConfig

NAN, INF = float("nan"), float("inf")


def test_fast_is_the_default():
    assert AscedConfig() == AscedConfig.fast() == AscedConfig.for_mode("fast")
    config = AscedConfig()
    assert (config.mode, config.mad_scale, config.blur_sigma, config.grow) == ("fast", 3.0, 2.0, 5)
    assert (config.min_area, config.max_area, config.core_width, config.connectivity) == (100, 10000, 5, 4)
    assert config.mad_floor == 0.5 / 127.5
    assert (config.x0_noise, config.channels, config.correct, config.record) == (0.0, "mean", True, "window")


def test_official_is_the_released_code():
    config = AscedConfig.official()
    assert (config.mad_floor, config.reference_size, config.channels) == (0.0, None, "max")
    assert (config.blur_sigma, config.min_area, config.max_area, config.core_width) == (2.0, 100, 10000, 5)
    sizes = config.sizes((512, 512))
    assert (sizes.blur_sigma, sizes.min_area, sizes.max_area, sizes.core_width, sizes.grow) == (2.0, 100, 10000, 5, 5)


def test_paper_has_no_area_rule():
    config = AscedConfig.paper()
    assert (config.min_area, config.max_area, config.core_width, config.grow) == (0, INF, 1, 0)
    assert (config.blur_sigma, config.x0_noise, config.mad_floor) == (0.0, 0.1, 0.0)


def test_sizes_scale_with_the_grid():
    assert AscedConfig().sizes((256, 256)).min_area == 100
    half = AscedConfig().sizes((128, 128))
    assert (half.blur_sigma, half.min_area, half.max_area) == (1.0, 25.0, 2500.0)
    assert (half.core_width, half.grow) == (3, 3)  # 2.5, rounded half up
    assert AscedConfig().sizes((64, 256)) == half  # sqrt(H*W)
    assert AscedConfig().sizes((7, 128, 128)) == half  # the depth does not count
    small = AscedConfig().sizes((4, 4))
    assert (small.core_width, small.grow) == (1, 0)


@pytest.mark.parametrize("mode", ["official", "paper", "fast"])
def test_round_trip_through_json(mode):
    config = AscedConfig.for_mode(mode, t_c=7, window_start=2, mad_scale=2.5)
    assert AscedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


numbers = {
    "mad_scale": st.floats(0, 10),
    "mad_floor": st.floats(0, 1),
    "blur_sigma": st.floats(0, 5),
    "min_area": st.floats(0, 99),
    "max_area": st.one_of(st.floats(100, 1e6, exclude_min=True), st.just(INF)),
    "core_width": st.integers(1, 9),
    "grow": st.integers(0, 9),
    "connectivity": st.sampled_from([4, 8]),
    "reference_size": st.one_of(st.none(), st.integers(1, 512)),
    "statistics": st.sampled_from(["sample", "frame"]),
    "t_c": st.one_of(st.none(), st.integers(1, 50), st.floats(0.01, 0.99)),
    "correct": st.booleans(),
    "x0_noise": st.floats(0, 1),
    "record": st.sampled_from(["window", "run"]),
    "form": st.sampled_from(["parity", "linear"]),
}


@given(st.sampled_from(["official", "paper", "fast"]), st.fixed_dictionaries({}, optional=numbers))
def test_any_valid_configuration_survives_a_round_trip(mode, changes):
    if "max_area" not in changes and mode == "paper":
        changes.pop("min_area", None)
    config = AscedConfig.for_mode(mode, **changes)
    again = AscedConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_from_dict_takes_the_modes_own_defaults():
    assert AscedConfig.from_dict({}) == AscedConfig.fast()
    assert AscedConfig.from_dict({"mode": "paper"}) == AscedConfig.paper()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AscedConfig().grow = 3


BAD = {
    "mode": ["slow", None, 3],
    "mad_scale": [-1, NAN, INF, "3", True, None],
    "mad_floor": [-0.1, NAN, INF],
    "blur_sigma": [-2, NAN, INF],
    "min_area": [-1, NAN, INF],
    "max_area": [100, 0, -5, NAN, "all"],
    "core_width": [0, -1, 2.5, True],
    "grow": [-1, 0.5, True],
    "connectivity": [0, 6, 5, "4"],
    "reference_size": [0, -256, 256.0, True],
    "channels": ["sum", None],
    "statistics": ["frames", None, 1],
    "t_c": [0, -3, 0.0, 1.0, 1.5, -0.2, NAN, True, "12"],
    "window_start": [-1, 1.0, -0.2, NAN, True, "0"],
    "correct": [1, None, "yes"],
    "x0_noise": [-0.1, NAN, INF],
    "record": ["all", None],
    "form": ["stock", None],
    "backend": ["cuda", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        AscedConfig(**{name: value})


@pytest.mark.parametrize(("start", "t_c"), [(5, 5), (6, 5), (0.5, 0.5), (0.6, 0.5)])
def test_an_empty_window(start, t_c):
    with pytest.raises(ValueError, match="window"):
        AscedConfig(window_start=start, t_c=t_c)


@pytest.mark.parametrize("mode", ["official", "paper"])
def test_only_fast_reduces_channels_by_mean(mode):
    with pytest.raises(ValueError, match="channels"):
        AscedConfig.for_mode(mode, channels="mean")


@pytest.mark.parametrize("make", [AscedConfig.fast, AscedConfig.official, AscedConfig.paper, AscedConfig])
def test_unknown_settings(make):
    with pytest.raises(TypeError, match="mad_scal"):
        make(mad_scal=2.0)


@pytest.mark.parametrize(("given", "meant"), [("mad_scal", "mad_scale"), ("tc", "t_c"), ("growth", "grow")])
def test_unknown_settings_hint_at_the_close_one(given, meant):
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        AscedConfig.fast(**{given: 1})
    with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
        AscedConfig.from_dict({given: 1})


def test_presets_keep_their_mode():
    with pytest.raises(ValueError, match=r"AscedConfig\.paper"):
        AscedConfig.fast(mode="paper")
    assert AscedConfig.paper(mode="paper") == AscedConfig.paper()


@pytest.mark.parametrize("mode", ["slow", "calibrate", "", None, "_preset", "to_dict"])
def test_unknown_modes(mode):
    with pytest.raises(ValueError, match="unknown mode"):
        AscedConfig.for_mode(mode)
    with pytest.raises(ValueError, match="unknown mode"):
        AscedConfig.from_dict({"mode": mode})


def test_unbounded_area_is_written_as_a_word():
    assert AscedConfig.paper().to_dict()["max_area"] == "inf"
    assert math.isinf(AscedConfig.from_dict(AscedConfig.paper().to_dict()).max_area)
