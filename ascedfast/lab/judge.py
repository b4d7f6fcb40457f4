# SPDX-License-Identifier: MIT
"""Judges of natural defects for the families F1 to F4, never seen by a detector. (F5 has ``glyphs.judge``.)

``PatchJudge``: how far is each patch of an image from the nearest real one? Frozen: ``freeze`` writes its level, its
AUROC on synthetic damage, and hashes of its code, features and data; ``load`` refuses anything else, and a judge that
is not good enough. ``DenoisingJudge``, for weak twins only: how badly does the full-quality net denoise the image?

    python -m ascedfast.lab.judge --out DIR        # freezes both; done by ascedfast.lab.training too
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from ascedfast.lab import data, families
from ascedfast.lab.cards import write_atomically
from ascedfast.lab.damage import KINDS, damage
from ascedfast.lab.extractors import PatchNet
from ascedfast.lab.sampling import start_noise
from ascedfast.lab.statistics import auroc, threshold_at_rate

if TYPE_CHECKING:
    from ascedfast.lab.families import Model

SOURCES = ("fashion32", "emoji64")
REFERENCES = 5000
SHIFTS = (-2, 0, 2)
EXCEEDED_BY = 0.01
NEEDED_AUROC = 0.9
COVERED = 0.5
IMAGE_CHUNK, BANK_CHUNK = 256, 16384
DENOISED_AT = (0.5, 0.65, 0.8)  # of the run: noise low enough for shapes, high enough to hide small texture
NOISE_DRAWS = 2


class UnfitJudgeError(ValueError):
    """The judge tells synthetic damage from real images too badly, or is not the one that was frozen."""


class PatchJudge:
    """Distance of each of 8x8 patches to the nearest real patch at the same place, give or take 2 px.

    The patches overlap by half (see ``PatchNet``); a map has a cell of half a patch around each one's centre. Features
    are whitened over the real patches: v -> L^-1 (v - mean), L the Cholesky factor of their covariance + 1 % of its
    mean eigenvalue.

    Args:
        net: features. references: real images [m, C, S, S] in [-1, 1], each used at 9 displacements (-2, 0, 2 px).
        level: distance above which a patch is defective; ``calibrate`` sets it.
    """

    def __init__(self, net: PatchNet, references: Tensor, level: float = float("inf")) -> None:
        self.net, self.level = net, level
        self.size = references.shape[-1]
        moved = [_displaced(references, y, x) for y, x in itertools.product(SHIFTS, SHIFTS)]
        raw = torch.cat([self._embed(part) for part in moved])
        flat = raw.flatten(0, 1).double()
        self.mean = flat.mean(0)
        covariance = torch.cov(flat.T)
        ridge = 0.01 * covariance.diagonal().mean().clamp(min=1e-12)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), device=raw.device))
        self.whiten = torch.linalg.inv(factor).T
        self.bank = self._whitened(raw).transpose(0, 1).contiguous()  # [64, 9*m, d]

    @torch.no_grad()
    def distances(self, images: Tensor) -> Tensor:
        """[n, C, S, S], clipped to [-1, 1] -> float32 [n, 8, 8]. Raises: ValueError for NaN or a wrong size."""
        if images.dim() != 4 or images.shape[-1] != self.size or images.shape[-2] != self.size:
            raise ValueError(f"this judge takes images [n, C, {self.size}, {self.size}], got {tuple(images.shape)}")
        if bool(images.isnan().any()):
            raise ValueError("an image holds NaN")
        queries = self._whitened(self._embed(images.to(self.bank.device))).transpose(0, 1)  # [64, n, d]
        nearest = [
            torch.cat([_nearest(rows, bank) for rows in query.split(IMAGE_CHUNK)])
            for query, bank in zip(queries, self.bank, strict=True)
        ]
        return torch.stack(nearest, 1).unflatten(1, (PatchNet.GRID, PatchNet.GRID)).to(images.device)

    def defects(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(largest distance - level [n], above 0 where the image is defective; defective cells, bool [n, 8, 8])."""
        over = self.distances(images) - self.level
        return over.flatten(1).amax(1), over > 0

    def calibrate(self, held_out: Tensor) -> float:
        """Sets the level that 1 % of these real images exceed somewhere."""
        largest = self.distances(held_out).flatten(1).amax(1)
        self.level = threshold_at_rate(largest.double().cpu().numpy(), EXCEEDED_BY)
        return self.level

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        """[n, 64, d]"""
        device = next(self.net.parameters()).device
        parts = [self.net.embed(part.to(device).float().clamp(-1, 1)) for part in images.split(IMAGE_CHUNK)]
        return torch.cat(parts).flatten(2).transpose(1, 2)

    def _whitened(self, features: Tensor) -> Tensor:
        return ((features.double() - self.mean) @ self.whiten).float()

    @classmethod
    def load(cls, source: str, root: Path, device: torch.device | str = "cpu") -> PatchJudge:
        """The frozen judge of a data set.

        Raises: families.MissingWeightsError; UnfitJudgeError where its AUROC is below NEEDED_AUROC (the message has the
            figure), or where code, features or data are not those that were frozen.
        """
        path = record_path(source, root)
        net = _patch_net(source, root, device)
        if not path.is_file():
            raise families.MissingWeightsError(path, "extractors")
        record = json.loads(path.read_text(encoding="utf-8"))
        references = data.load(source, record["limit"]).train.images[: record["references"]]
        for name, found in identity(net, references).items():
            if record[name] != found:
                raise UnfitJudgeError(f"{path}: the {name} is not what was frozen ({found[:12]}); freeze it anew")
        if not record["auroc"] >= NEEDED_AUROC:
            raise UnfitJudgeError(
                f"the judge of {source} has an AUROC of {record['auroc']:.3f} on synthetic damage; {NEEDED_AUROC} is "
                "needed before it may judge"
            )
        return cls(net, references, record["level"])


def measure(judge: PatchJudge, images: Tensor, donors: Tensor, first_seed: int = 0) -> dict[str, Any]:
    """How well the judge tells synthetic damage on held-out real images.

    auroc: mean over the kinds of damage of the AUROC of locations: cells that lie in a damaged box by half or more
    against all cells of the undamaged images. image_auroc: the same of the images' largest distances, damaged against
    undamaged. found: share of damaged images above the level. strength: median, grey levels (RMS over the box).

    Args: images, donors: real images [n, C, S, S], [m, C, S, S], CPU; the donors are not among the images.
    """
    clean = judge.distances(images).cpu()
    kinds = {}
    cell = judge.size // PatchNet.GRID
    for kind in KINDS:
        hurt = damage(images, kind, donors, range(first_seed, first_seed + len(images)))
        distances = judge.distances(hurt.images).cpu()
        inside = F.avg_pool2d(hurt.boxes[:, None].float(), cell)[:, 0] >= COVERED
        largest = distances.flatten(1).amax(1)
        kinds[kind] = {
            "auroc": _auroc(distances[inside], clean.flatten()),
            "image_auroc": _auroc(largest, clean.flatten(1).amax(1)),
            "found": float((largest > judge.level).float().mean()),
            "strength": float(sorted(hurt.strength)[len(images) // 2]),
        }
    mean = {name: sum(k[name] for k in kinds.values()) / len(kinds) for name in ("auroc", "image_auroc", "found")}
    return {**mean, "kinds": kinds, "n": len(images)}


def freeze(source: str, root: Path, device: torch.device | str = "cpu", limit: int | None = None) -> dict[str, Any]:
    """Calibrate and measure the judge of a data set and write its record into ``root``; returns the record.

    The level comes from one half of the held-out images, the AUROC from the other half, 1,000 of each at most.

    Args: limit: as of ``data.load``, for tests.
    """
    net, found = _patch_net(source, root, device), data.load(source, limit)
    references = found.train.images[:REFERENCES]
    judge = PatchJudge(net, references)
    half = len(found.held_out.images) // 2
    judge.calibrate(found.held_out.images[:half])
    figures = measure(judge, found.held_out.images[half:][:1000], found.train.images[-1000:])
    record = {
        "source": source,
        "level": judge.level,
        **figures,
        "limit": limit,
        "references": len(references),
        "calibrated_on": half,
        **identity(net, references),
    }
    write_atomically(record_path(source, root), json.dumps(record, indent=1))
    return record


def identity(net: PatchNet, references: Tensor) -> dict[str, str]:
    """Hashes of the judge's code, weights and real images."""
    code = hashlib.sha256()
    for name in ("judge.py", "extractors.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    pixels = hashlib.sha256(references.contiguous().numpy().tobytes()).hexdigest()
    return {"code": code.hexdigest(), "weights": families.fingerprint(net), "images": pixels}


def record_path(source: str, root: Path) -> Path:
    return Path(root) / f"judge-{source}.json"


@dataclass(frozen=True)
class DenoisingJudge:
    """For weak twins only: the error with which the full-quality net of the same family denoises an image, per patch.

    Noise is added at three levels of the run (DENOISED_AT), the same noise for every image, and the error of the
    predicted noise (flow: velocity) is squared and averaged over levels, draws, channels and the cell. It measures what
    the good model finds unlikely, so it shares that model's blind spots and is no judge of the model itself.
    """

    model: Model
    level: float

    @classmethod
    def calibrated(cls, model: Model, held_out: Tensor) -> DenoisingJudge:
        """With the level that 1 % of these real images exceed somewhere. Raises: ValueError where model is a twin."""
        if families.split_name(model.name)[1] is not None:
            raise ValueError(f"{model.name} is a weak twin: the judge needs the full-quality net")
        largest = denoising_error(model, held_out).flatten(1).amax(1)
        return cls(model, threshold_at_rate(largest.double().cpu().numpy(), EXCEEDED_BY))

    def defects(self, twin: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        """As ``PatchJudge.defects``, of what ``twin`` drew. Raises: ValueError where it is no twin of the model."""
        family, kind = families.split_name(twin.name)
        if kind is None or family.name != self.model.family.name:
            raise ValueError(f"{twin.name} is no weak twin of {self.model.name}")
        over = denoising_error(self.model, images) - self.level
        return over.flatten(1).amax(1), over > 0


@torch.no_grad()
def denoising_error(model: Model, images: Tensor, at: Sequence[float] = DENOISED_AT) -> Tensor:
    """[n, C, S, S] -> float32 [n, 8, 8], mean squared error of the model output; see ``DenoisingJudge``."""
    clean = model.encode(images.to(model.device).clamp(-1, 1))
    cell = clean.shape[-1] // PatchNet.GRID
    noise = start_noise(range(NOISE_DRAWS), model.shape).to(clean)
    total = torch.zeros(len(clean), PatchNet.GRID, PatchNet.GRID, device=clean.device)
    for share in at:
        step = int(share * len(model.schedule))
        level = model.schedule.before[step]
        for draw in noise:
            for part, rows in zip(total.split(IMAGE_CHUNK), clean.split(IMAGE_CHUNK), strict=True):
                x = level.alpha * rows + level.sigma * draw
                # What the net would say if it knew the image: x0 = a*x + b*m.
                expected = (rows - level.a * x) / level.b
                error = (model.denoise(x, step) - expected).square().mean(1, keepdim=True)
                part += F.avg_pool2d(error, cell)[:, 0] / (len(at) * len(noise))
    return total


def _nearest(rows: Tensor, bank: Tensor) -> Tensor:
    """Distance of each row [n, d] to the nearest of the bank [m, d]: float32 [n].

    |r|^2 - 2*r.b + |b|^2, in float64, whose products no GPU rounds to 10 bits: float32 would do neither well."""
    rows = rows.double()
    least = [
        torch.addmm(part.square().sum(1), rows, part.T, alpha=-2).amin(1)
        for part in (piece.double() for piece in bank.split(BANK_CHUNK))
    ]
    return (torch.stack(least).amin(0) + rows.square().sum(1)).clamp(min=0).sqrt().float()


def _displaced(images: Tensor, y: int, x: int) -> Tensor:
    reach, size = max(SHIFTS), images.shape[-1]
    wide = F.pad(images, [reach] * 4, mode="replicate")
    return wide[:, :, reach + y : reach + y + size, reach + x : reach + x + size]


def _patch_net(source: str, root: Path, device: torch.device | str) -> PatchNet:
    return families.load_net(PatchNet, Path(root) / f"patches-{source}", "net", "extractors").to(device).eval()


def _auroc(high: Tensor, low: Tensor) -> float:
    labels = torch.cat([torch.ones(len(high), dtype=torch.bool), torch.zeros(len(low), dtype=torch.bool)])
    return auroc(torch.cat([high, low]).numpy(), labels.numpy())


def main(
    out: Annotated[Path, typer.Option(help="Folder of the weights.")] = families.WEIGHTS,
    device: Annotated[str, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = "",
) -> None:
    """Freezes the judges of Fashion-MNIST and emoji and prints their figures."""
    for source in SOURCES:
        record = freeze(source, out, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        typer.echo(summary(record))


def summary(record: dict[str, Any]) -> str:
    """One line about a frozen judge."""
    kinds = ", ".join(f"{kind} {figures['auroc']:.3f}" for kind, figures in record["kinds"].items())
    verdict = "fit" if record["auroc"] >= NEEDED_AUROC else f"unfit: below {NEEDED_AUROC}"
    return (
        f"judge of {record['source']}: AUROC {record['auroc']:.3f} ({kinds}), of images {record['image_auroc']:.3f}; "
        f"{verdict}"
    )


if __name__ == "__main__":
    typer.run(main)
