# SPDX-License-Identifier: MIT
"""A folder of untrained small weights in the laboratory's format, made in a second; and what its tests need of the
machine."""

import pytest
import torch

from ascedfast.lab import data, emoji, extractors, families, nets
from ascedfast.lab.jobs import JOBS, LABELS

needs_fashion = pytest.mark.skipif(
    not data.FASHION_FOLDER.is_dir(), reason=f"install the Debian package {data.FASHION_PACKAGE}"
)
needs_font = pytest.mark.skipif(emoji.find_font() is None, reason=f"install the Debian package {emoji.DEBIAN_PACKAGE}")


def write_untrained(root):
    """Every family's folder, as the training writes it, of small networks that have learnt nothing."""
    torch.manual_seed(0)
    for family in families.FAMILIES.values():
        if family.packaged:
            continue
        part = "unet" if family.build is not nets.latent_dit else "transformer"
        net = family.build(True)
        for parameter in net.parameters():  # a layer that starts at 0 would hide what is before it
            parameter.data += 0.02 * torch.randn_like(parameter)
        net.half().save_pretrained(root / family.folder / part)
    vae = nets.emoji_vae(True)
    vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5])
    vae.half().save_pretrained(root / "f4-vae" / "vae")
    for source, (classes, parts) in LABELS.items():
        size, channels = (64, 3) if source == "emoji64" else (32, 1)
        net = extractors.Classifier(channels, size, classes, parts, width=8)
        net.half().save_pretrained(root / f"features-{source}" / "net")
    return root


def full_size_networks():
    """{folder: parameters} of everything that is stored, the packaged demo models left out."""
    made = {f.folder: f.build(False) for f in families.FAMILIES.values() if not f.packaged}
    made["f4-vae"] = nets.emoji_vae()
    for source, (classes, parts) in LABELS.items():
        size, channels = (64, 3) if source == "emoji64" else (32, 1)
        made[f"features-{source}"] = extractors.Classifier(channels, size, classes, parts)
        if source != "glyphs32":
            made[f"patches-{source}"] = extractors.PatchNet(channels, size)
    trained = {job.name for group in JOBS.values() for job in group} | {"f1-early"}
    assert set(made) == trained
    return {name: sum(p.numel() for p in net.parameters()) for name, net in made.items()}
