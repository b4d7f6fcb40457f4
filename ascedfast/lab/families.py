# SPDX-License-Identifier: MIT
"""The model families F1 to F5: what each is made of, and loading one, or a weak twin of it, as a ``Subject``.

| name | data | network | learns | state | from |
|---|---|---|---|---|---|
| F1 | Fashion-MNIST | U-Net | noise, linear beta | 1x32x32 | weights/f1-unet |
| F1-early | the same | F1 after 4 % of its training | | | weights/f1-early |
| F1c | the same, a class given | U-Net | noise, linear beta | 1x32x32 | weights/f1c-unet |
| F2 | the same | U-Net | noise, cosine schedule | 1x32x32 | weights/f2-unet |
| F3 | emoji | U-Net | noise, linear beta | 3x64x64 | assets/emoji64-unet |
| F4, F4-s1 | emoji | transformer on a VAE's latents | flow, shift 3 and 1 | 4x16x16 | weights/f4-dit, f4-vae |
| F4-px | emoji | transformer | flow, shift 3 | 3x64x64 | assets/emoji64-dit |
| F5 | glyph grids | U-Net | noise, linear beta | 1x32x32 | weights/f5-unet |

"-W8", "-W6", "-W4" and "-P30" behind a name give the weak twin of it (``twins``).

Sizes of the weights, 2 bytes a parameter (the packaged demo models are not counted):

| folder | parameters | bytes |
|---|---|---|
| f1-unet | 976,289 | 1,952,578 |
| f1-early | 976,289 | 1,952,578 |
| f1c-unet | 977,697 | 1,955,394 |
| f2-unet | 976,289 | 1,952,578 |
| f4-dit | 1,461,604 | 2,923,208 |
| f4-vae | 460,695 | 921,390 |
| f5-unet | 976,289 | 1,952,578 |
| features-fashion32 | 108,906 | 217,812 |
| features-emoji64 | 175,271 | 350,542 |
| features-glyphs32 | 149,744 | 299,488 |
| patches-fashion32 | 138,289 | 276,578 |
| patches-emoji64 | 204,465 | 408,930 |
| all | 7,581,827 | 15,163,654 |
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    UNet2DModel,
)
from torch import Tensor, nn

from ascedfast.adapters.schedules import schedule_of
from ascedfast.lab import data, glyphs, nets
from ascedfast.lab.objectives import TRAIN_STEPS
from ascedfast.lab.sampling import start_noise
from ascedfast.lab.twins import TWINS, twin
from ascedfast.schedule import Schedule

WEIGHTS = Path(str(resources.files("ascedfast"))) / "lab" / "weights"
ASSETS = Path(str(resources.files("ascedfast"))) / "assets"
STEPS = 25
DECODE_CHUNK = 256


class MissingWeightsError(FileNotFoundError):
    """Weights are not there; the message says which command makes them."""

    def __init__(self, folder: Path, job: str) -> None:
        command = f"python -m ascedfast.lab.training --family {job} --out {folder.parent}"
        super().__init__(f"no weights at {folder}: make them with `{command}`")


def linear_ddim() -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=TRAIN_STEPS, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


def cosine_ddim() -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=TRAIN_STEPS, beta_schedule="squaredcos_cap_v2")


def flow_euler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS, shift=shift)


@dataclass(frozen=True)
class Family:
    """What a model is made of.

    prediction: "epsilon" or "flow". shape: of one state. image_shape: of one image. build(small): an untrained network.
    scheduler(): diffusers' own, for sampling. folder, vae: names below the folder of weights (``packaged``: below the
    package's assets). job: what ``ascedfast.lab.training`` calls the training of it. classes: of a conditional model.
    """

    name: str
    data: str
    prediction: str
    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    build: Callable[[bool], nn.Module] | None
    net_class: type[nn.Module]
    scheduler: Callable[[], Any]
    folder: str
    job: str
    vae: str | None = None
    classes: int | None = None
    packaged: bool = False


_GREY, _COLOUR, _LATENT = (1, 32, 32), (3, 64, 64), (4, 16, 16)


def _unet(name: str, source: str, scheduler: Callable[[], Any], folder: str, job: str, classes: int | None = None):
    build = functools.partial(nets.unet32, classes)
    return Family(name, source, "epsilon", _GREY, _GREY, build, UNet2DModel, scheduler, folder, job, classes=classes)


def _latent_flow(name: str, shift: float) -> Family:
    scheduler = functools.partial(flow_euler, shift)
    net = PixArtTransformer2DModel
    args = (name, "emoji64", "flow", _LATENT, _COLOUR, nets.latent_dit, net, scheduler, "f4-dit", "F4")
    return Family(*args, vae="f4-vae")


def _packaged(name: str, prediction: str, net: type, scheduler: Callable[[], Any], folder: str) -> Family:
    args = ("emoji64", prediction, _COLOUR, _COLOUR, None, net, scheduler, folder, "")
    return Family(name, *args, packaged=True)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _unet("F1", "fashion32", linear_ddim, "f1-unet", "F1"),
        _unet("F1-early", "fashion32", linear_ddim, "f1-early", "F1"),
        _unet("F1c", "fashion32", linear_ddim, "f1c-unet", "F1c", classes=10),
        _unet("F2", "fashion32", cosine_ddim, "f2-unet", "F2"),
        _packaged("F3", "epsilon", UNet2DModel, linear_ddim, "emoji64-unet"),
        _latent_flow("F4", 3.0),
        _latent_flow("F4-s1", 1.0),
        _packaged("F4-px", "flow", PixArtTransformer2DModel, functools.partial(flow_euler, 3.0), "emoji64-dit"),
        _unet("F5", "glyphs32", linear_ddim, "f5-unet", "F5"),
    )
}
NAMES = (*FAMILIES, *(f"{name}-{kind}" for name in FAMILIES for kind in TWINS))


def split_name(name: str) -> tuple[Family, str | None]:
    """Family and kind of weak twin, None for the full-quality model. Raises: ValueError for an unknown name."""
    base, _, kind = name.rpartition("-")
    if base in FAMILIES and kind in TWINS:
        return FAMILIES[base], kind
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}: choose one of {', '.join(FAMILIES)}, or a weak twin, as F1-W4")
    return FAMILIES[name], None


def load(name: str, device: torch.device | str = "cpu", root: Path | None = None) -> Model:
    """A family, or a weak twin of it, ready to sample in float32.

    Args: name: one of ``NAMES``. root: the folder of weights; default: that in the package.
    Raises: ValueError for an unknown name, MissingWeightsError.
    """
    family, kind = split_name(name)
    root = Path(root or WEIGHTS)
    part = "unet" if family.net_class is UNet2DModel else "transformer"
    net = load_net(family.net_class, (ASSETS if family.packaged else root) / family.folder, part, family.job)
    if kind is not None:
        net = twin(net, kind)
    vae = None
    if family.vae is not None:
        vae = load_net(AutoencoderKL, root / family.vae, "vae", "F4-vae").to(device).eval().requires_grad_(False)
    return Model(name, family, net.to(device).eval().requires_grad_(False), vae, root)


def load_net(cls: type, folder: Path, part: str, job: str) -> Any:
    """A module in float32 from ``folder/part`` (diffusers' format, safetensors). Raises: MissingWeightsError."""
    if not (folder / part / "config.json").is_file():
        raise MissingWeightsError(folder, job)
    found = cls.from_pretrained(folder / part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    return found.float()


@dataclass(frozen=True, eq=False)
class Model:
    """A family as ``subject.Subject``: a sampler whose rows never depend on each other.

    Attributes: net, vae: in eval mode, no gradients. root: where the weights, extractors and judges lie.
    """

    name: str
    family: Family
    net: nn.Module
    vae: AutoencoderKL | None
    root: Path = WEIGHTS
    steps: int = STEPS

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.family.shape

    @property
    def latent(self) -> bool:
        return self.vae is not None

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @functools.cached_property
    def scheduler(self) -> Any:
        """diffusers' own, set to ``steps``."""
        scheduler = self.family.scheduler()
        scheduler.set_timesteps(self.steps)
        return scheduler

    @functools.cached_property
    def schedule(self) -> Schedule:
        return schedule_of(self.scheduler)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and bits of all weights."""
        return fingerprint(self.net, *(() if self.vae is None else (self.vae,)))

    @property
    def last_conv(self) -> nn.Conv2d | None:
        """The convolution that gives the model output; a transformer has none."""
        return getattr(self.net, "conv_out", None)

    def denoise(self, x: Tensor, step: int) -> Tensor:
        """Model output [R, C, H, W] for the states before ``step``; of a conditional model without a class."""
        if self.family.classes is None:
            return self._evaluate(x, step, None)
        return self._evaluate(x, step, torch.full((len(x),), self.family.classes, device=x.device))

    def conditional(self, seeds: Sequence[int]) -> tuple[Callable[[Tensor, int], Tensor], Tensor]:
        """A denoiser that is given each row's class, seed mod number of classes, and the classes, int64 [R].

        Raises: ValueError where the family knows no classes."""
        if self.family.classes is None:
            raise ValueError(f"{self.name} is not conditional")
        labels = torch.tensor([seed % self.family.classes for seed in seeds], device=self.device)
        return lambda x, step: self._evaluate(x, step, labels), labels

    @torch.no_grad()
    def _evaluate(self, x: Tensor, step: int, labels: Tensor | None) -> Tensor:
        t = self.scheduler.timesteps[step].to(x.device).expand(len(x))
        if self.family.net_class is UNet2DModel:
            given = {} if labels is None else {"class_labels": labels}
            return self.net(x, t, return_dict=False, **given)[0]
        return self.net(x, timestep=t, return_dict=False)[0]

    def start(self, seeds: Sequence[int]) -> Tensor:
        """States at the first level: noise of variance 1, each row from its own seed."""
        return start_noise(seeds, self.shape).to(self.device)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images, not clipped, from final states; the identity without a VAE."""
        if self.vae is None:
            return x0
        return torch.cat([nets.from_latents(self.vae, part) for part in x0.split(DECODE_CHUNK)])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """States of real images, the inverse of ``decode``."""
        if self.vae is None:
            return images
        return torch.cat([nets.to_latents(self.vae, part) for part in images.split(DECODE_CHUNK)])

    def with_steps(self, steps: int) -> Model:
        return dataclasses.replace(self, steps=steps)

    def real(self, count: int, offset: int = 0) -> Tensor:
        """Held-out images in [-1, 1], in a fixed order, round and round."""
        images = data.load(self.family.data).held_out.images
        return images[torch.arange(offset, offset + count) % len(images)].to(self.device)

    def reference(self, count: int, offset: int = 0) -> Tensor:
        """Real images in [-1, 1] that drawn ones are compared with. Emoji, of which too few are held out: draws with
        repetition from those trained on, as often as each is drawn in training; of another offset, other draws."""
        train = data.load(self.family.data).train
        if train.weights is None:
            return self.real(count, offset)
        generator = torch.Generator().manual_seed(offset)
        return train.images[torch.multinomial(train.weights, count, True, generator=generator)].to(self.device)

    def features(self, images: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, 128]: of the data's extractor. Raises: MissingWeightsError."""
        from ascedfast.lab.extractors import extract

        return extract(_extractor(self.family.data, self.root, self.device), images)

    def defects(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The judge of natural defects: score [n], above 0 where defective; map bool [n, H, W], grid of the state.

        Raises: MissingWeightsError, judge.UnfitJudgeError.
        """
        if self.family.data == "glyphs32":
            verdict = glyphs.judge(images)
            return verdict.cells.flatten(1).sum(1).float(), verdict.locations[:, 0]
        judge = _judge(self.family.data, self.root, self.device)
        if isinstance(judge, ValueError):
            raise judge
        score, cells = judge.defects(images)
        side = self.shape[-1] // cells.shape[-1]
        return score, cells.repeat_interleave(side, 1).repeat_interleave(side, 2)


def fingerprint(*modules: nn.Module) -> str:
    """SHA-256 over names, shapes and bits of the parameters and buffers."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _extractor(source: str, root: Path, device: torch.device) -> nn.Module:
    from ascedfast.lab.extractors import Classifier

    return load_net(Classifier, root / f"features-{source}", "net", "extractors").to(device).eval()


@functools.lru_cache(maxsize=8)
def _judge(source: str, root: Path, device: torch.device) -> Any:
    """The frozen judge, or why it may not be used: found out once."""
    from ascedfast.lab.judge import PatchJudge, UnfitJudgeError

    try:
        return PatchJudge.load(source, root, device)
    except UnfitJudgeError as error:
        return error
