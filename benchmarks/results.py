# SPDX-License-Identifier: MIT
"""Records of measurements: their form, saving them, and whether what is saved belongs to the code at hand."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import limit_of
from benchmarks.measurement import NAMES, Bench, Measurement
from benchmarks.source import ROOT, sha256_of_tests, source_sha256
from benchmarks.targets import TARGETS

FOLDER = ROOT / "benchmarks" / "results"
SERVING = "serving.json"
"""In that folder: figures of rows and of the server, of other fields."""
GATE = ("-m", "pytest", "-m", "gpu and not slow", "-q", "-n", "auto")
"""Arguments of Python for the tests that must be green before anything is saved."""
PASSED = ROOT / ".benchmarks" / "tests-passed.json"
"""What the tests last passed for."""
FIELDS = [
    "id",
    "shape",
    "dtype",
    "value",
    "bar",
    "met",
    "unit",
    "baseline",
    "ours_us",
    "baseline_us",
    "gbps",
    "share_of_copy",
    "p20",
    "p80",
    "launches",
    "peak_bytes",
    "note",
    "limit",
    "source_sha256",
    "torch",
    "triton",
    "gpu",
    "command",
]

Record = dict[str, Any]


class RefusedToSave(RuntimeError):
    """The tests are red, or what was measured is no result."""


def gpu_name(device: torch.device) -> str:
    """The device's name, normalised: nvidia-h100-80gb-hbm3, nvidia-h200, cpu-x86-64."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def record(id: str, measured: Measurement, bench: Bench, command: str) -> Record:
    """A measurement as it is saved. Tiny sizes are held against no bar."""
    target = TARGETS[id]
    bar, met = (None, None) if bench.quick else (target.bar, target.met(measured.value))
    facts = {name: getattr(measured, name) for name in FIELDS if hasattr(measured, name)}
    facts |= {
        "id": id,
        "shape": list(measured.shape),
        "dtype": NAMES.get(measured.dtype),
        "bar": bar,
        "met": met,
        "unit": target.unit,
        "limit": limit_of(id) if met is False and measured.value is not None else None,
        "source_sha256": source_sha256(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "gpu": gpu_name(bench.device),
        "command": command,
    }
    return {name: _short(facts[name]) for name in FIELDS}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_gate(device: torch.device) -> None:
    """Run the tests; RefusedToSave unless they pass. Once for the same code, tests and kind of device, so that a file
    can be completed in parts."""
    state = {"source": source_sha256(), "tests": sha256_of_tests(), "gpu": gpu_name(device), "torch": torch.__version__}
    if PASSED.exists() and json.loads(PASSED.read_text()) == state:
        print(f"the tests have passed for this code before ({PASSED.relative_to(ROOT)})")
        return
    done = subprocess.run([sys.executable, *GATE], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RefusedToSave(f"the tests are red (python {' '.join(GATE)}: {done.returncode}); nothing was saved")
    PASSED.parent.mkdir(exist_ok=True)
    PASSED.write_text(json.dumps(state))


def save(records: Sequence[Record], folder: Path) -> Path:
    """Write the records of one device to ``folder``/<gpu>.json. Records of other ids, kept from an earlier save of the
    same device, stay with the hash they were measured under, so that a partial run can complete a file."""
    path = folder / f"{records[0]['gpu']}.json"
    kept = {old["id"]: old for old in (load(path) if path.exists() else []) if old["id"] in TARGETS}
    kept |= {new["id"]: new for new in records}
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, [kept[id] for id in TARGETS if id in kept])
    return path


def _write(path: Path, records: Sequence[Record]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in records) + "\n]\n")


def load(path: Path) -> list[Record]:
    """The records of a saved file."""
    return json.loads(path.read_text())


def explain(path: Path) -> list[Record]:
    """Write into a saved file what ``limits`` says of its misses today; its records."""
    records = [
        {name: entry.get(name) for name in FIELDS}
        | {"limit": limit_of(entry["id"]) if entry["met"] is False and entry["value"] is not None else None}
        for entry in load(path)
    ]
    _write(path, records)
    return records


def saved(folder: Path) -> dict[Path, list[Record]]:
    """The saved files and their records; the server's figures are no targets of ours."""
    return {path: load(path) for path in sorted(folder.glob("*.json")) if path.name != SERVING}


def problems(files: dict[Path, list[Record]]) -> list[str]:
    """Why saved results do not speak for the code at hand; empty when they do. Missed bars are no problem here."""
    if not files:
        return ["no results are saved: python -m benchmarks --save on a GPU makes them"]
    now, found = source_sha256(), []
    for path, records in files.items():
        stale = [entry["id"] for entry in records if entry["source_sha256"] != now]
        missing = [id for id in TARGETS if id not in {entry["id"] for entry in records}]
        for what, ids in (("measured with older code", stale), ("missing", missing)):
            if ids:
                found.append(
                    f"{path.name}: {len(ids)} of {len(TARGETS)} {what}: {', '.join(ids[:4])}{', ...' * (len(ids) > 4)}"
                )
    return found
