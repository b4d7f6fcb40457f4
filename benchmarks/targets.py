# SPDX-License-Identifier: MIT
"""Every measurement and the bar it is held to: one entry an id. Light to import: no torch."""

from dataclasses import dataclass
from typing import Literal

PARITY = {"DDIM": 0.33, "Euler": 0.33, "DPM++1M": 0.33, "DPM++2M": 0.33, "FlowMatchEuler": 0.5}
"""Schedulers whose default is the fused step, and the bar of each."""
OBSERVED = ("UniPC", "DEIS", "LMS", "PNDM", "DPM++3M")
"""Schedulers whose default is the stock step plus one observing launch; fused in linear form on request."""
DTYPES = ("bf16", "fp16", "fp32")
"""The first is measured under the bare id."""

RUNS = {"256x256x3": 144.0, "4x128x128": 100.0}
"""P2: microseconds of a 25-step run."""
RELEASED = {"256x256x3": 1e-3, "4x128x128": None}
"""P2: the same as a share of the released detector's time, which was set for one 256x256x3 image."""
PLANES = {64: 6, 128: 6, 256: 8, 512: 16, 1024: 16}
"""P5: launches at T_c of planes with that side."""
STREAMED = {
    "64x4x128x128": "[B, C, H, W]",
    "64x4x128x128 channels-last": "channels last in memory",
    "64x16x128x128": "[B, C, H, W]",
    "64x4096x64 packed": "[B, S, C]",
    "64x4x256x256": "[B, C, H, W]",
    "64x3x1024x1024": "[B, C, H, W]",
}
"""P3: states beyond the cache, and how they lie in memory."""
PIPELINES = ("SD1.5", "SDXL", "FLUX", "Wan")
AT_REST = ("1x4x128x128", "8x4x128x128", "8x3x256x256")
GROWTH = [
    f"{rows}x{4 if rows * side * side < 1 << 31 else 1}x{side}x{side}"
    for rows in (1, 8, 64, 512)
    for side in (64, 128, 256, 512, 1024, 2048)
]
"""P7: one channel where four would not fit into the memory of a GPU."""
DETECTED = ("64x64", "128x128", "256x256")
"""Planes of the comparisons with plain torch; robust_threshold has 12 maps of each."""
RIVALS = ("plain", "compiled")
RIVALED = ("step_dynamics", "robust_threshold", "dilate_mask", "renoise_", "history_fill_")
"""Ops that plain torch can do: it has nothing that labels regions."""
OPS = (*RIVALED[:2], "temporal_scores", "temporal_severity", "label_regions", *RIVALED[2:])


@dataclass(frozen=True)
class Target:
    """One measurement. bar None: recorded beside the targets, held to nothing."""

    id: str
    bar: float | None
    unit: str
    better: Literal["lower", "higher"] = "lower"

    @property
    def group(self) -> str:
        """P1 to P7."""
        return self.id.partition("/")[0]

    def met(self, value: float | None) -> bool | None:
        """Whether a value keeps the bar; False without a value, None without a bar."""
        if self.bar is None:
            return None
        if value is None or value != value:
            return False
        return value <= self.bar if self.better == "lower" else value >= self.bar


def _targets() -> list[Target]:
    over_stock = "of the stock's wall time a step"
    found = []
    for dtype in DTYPES:
        tail = "" if dtype == DTYPES[0] else f"/{dtype}"
        found += [Target(f"P1/{name}{tail}", bar, over_stock) for name, bar in PARITY.items()]
        found += [Target(f"P1/{name}{tail}", 1.15, over_stock) for name in OBSERVED]
        found += [Target(f"P1/{name}/linear{tail}", 0.33, over_stock) for name in OBSERVED]
    found += [Target(f"P1/{name}/calibrated", bar, over_stock) for name, bar in PARITY.items()]
    for run, bar in RUNS.items():
        found.append(Target(f"P2/{run}", bar, "us of a run, in launches that stock does not make"))
        found.append(Target(f"P2/{run}/difference", None, "us of a run, ours less stock"))
        found.append(Target(f"P2/{run}/T_c", None, "us at T_c"))
        found.append(Target(f"P2/{run}/released", RELEASED[run], "of the released detector's time"))
        found.append(Target(f"P2/{run}/calibrated", bar, "us of a run, in launches that stock does not make"))
        found.append(Target(f"P2/{run}/calibrated/T_c", None, "us at T_c"))
    found += [
        Target(f"P2/{op}/{plane}/{rival}", 1.0, f"of {rival} torch's time")
        for op in RIVALED
        for plane in DETECTED
        for rival in RIVALS
    ]
    found += [
        Target(f"P2/op/{op}/{plane}", None, "times its ceiling") for op in OPS for plane in ("128x128", "256x256")
    ]
    found += [Target(f"P3/{shape}", 0.85, "of the copy bandwidth", "higher") for shape in STREAMED]
    found += [Target(f"P4/{name}", 1.002, "on over off, upper 95 % limit") for name in PIPELINES]
    found += [Target(f"P5/syncs/{name}", 0, "host syncs added to a run") for name in PARITY]
    found += [Target(f"P5/launches a step/{name}", 1, "launches in a step of the window") for name in PARITY]
    found += [Target(f"P5/launches at T_c/{side}x{side}", bar, "launches at T_c") for side, bar in PLANES.items()]
    found.append(Target("P5/syncs/DDIM/calibrated", 0, "host syncs added to a run"))
    found.append(Target("P5/launches a step/DDIM/calibrated", 1, "launches in a step of the window"))
    found += [
        Target(f"P5/launches at T_c/{side}x{side}/calibrated", bar, "launches at T_c") for side, bar in PLANES.items()
    ]
    found += [
        Target(f"P6/{what}/{shape}", 1.0, "of the bytes allowed")
        for shape in AT_REST
        for what in ("at rest", "scratch")
    ]
    found += [Target(f"P7/{shape}", 1.2, "times max(launch, bytes / .85 of the copy bandwidth)") for shape in GROWTH]
    return found


TARGETS: dict[str, Target] = {target.id: target for target in _targets()}
GROUPS = ("P1", "P2", "P3", "P4", "P5", "P6", "P7")
