# SPDX-License-Identifier: MIT
"""What the tests of ``ascedfast batch`` share: small pipelines on disk, tables, and what each request gives alone."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import ascedfast
from ascedfast.adapters.pipeline_folder import load_pipeline
from ascedfast.pipelines import PixelFlowPipeline

SIDE = 16


def save_flow(folder):
    """A transformer of one layer on 16x16 pixels; a step takes about 2 ms."""
    options = {"sample_size": SIDE, "patch_size": 2, "in_channels": 3, "out_channels": 3, "num_layers": 1}
    options |= {"attention_head_dim": 8, "num_attention_heads": 2, "caption_channels": None}
    options |= {"cross_attention_dim": None, "use_additional_conditions": False}
    transformer = tiny.weights(lambda: PixArtTransformer2DModel(**options))
    PixelFlowPipeline(transformer, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    return folder


def save_prompted(folder):
    """Stable Diffusion in small: words of the letters a, c, d, g, o, t; at most 50 steps."""
    letters = list("acdgot")
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=7, projection_dim=8, **sizes, **marks)
    StableDiffusionPipeline(
        vae=tiny.vae(),
        unet=tiny.sd15()[0].unet,
        scheduler=DDIMScheduler(num_train_timesteps=50, clip_sample=False, steps_offset=1),
        text_encoder=tiny.weights(lambda: CLIPTextModel(text)),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=7),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_table(path, rows, **types):
    """rows: dicts. types: of columns that pyarrow would guess otherwise."""
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    pq.write_table(table, path)
    return path


@dataclasses.dataclass
class Alone:
    """pixels [H, W, 3]; mask [H, W]: 0, 128 where re-noised, 255 where found, or None."""

    pixels: np.ndarray
    status: str
    severity: float | None
    mask: np.ndarray | None


def drawn_alone(folder, requests):
    """What the pipeline itself gives for each request, by id, with one generator and a batch of one."""
    pipe = load_pipeline(folder)
    found = {}
    for request in requests:
        generator = torch.Generator().manual_seed(request["seed"])
        arguments = {"num_inference_steps": request["steps"], "generator": generator}
        if "prompt" in request:
            arguments["prompt"] = request["prompt"]
        if request.get("asced") is False:
            found[request["id"]] = Alone(np.asarray(pipe(**arguments).images[0]), "off", None, None)
            continue
        config = ascedfast.AscedConfig.for_mode(request.get("mode") or "fast")
        with ascedfast.asced(pipe, config, seeds=request["seed"]) as handle:
            pixels = np.asarray(pipe(**arguments).images[0])
        row, mask = handle.report[0], None
        if row.mask is not None:
            factor = pixels.shape[0] // row.mask.shape[0]
            both = np.where(row.mask, 255, np.where(row.mask_grown, 128, 0)).astype(np.uint8)
            mask = both.repeat(factor, 0).repeat(factor, 1)
        severity = row.severity if isinstance(row.severity, float) else None
        found[request["id"]] = Alone(pixels, row.status, severity, mask)
    return found


def results_of(out):
    """By id, after a look that every row and every id stands there once."""
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(len(rows)))
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def same_as_alone(out, requests, alone):
    """Every request has the bits, the status and what it asked to be told, as drawn by itself."""
    found = results_of(out)
    for request in requests:
        row, one = found[request["id"]], alone[request["id"]]
        assert row["error"] is None, row
        assert np.array_equal(np.asarray(Image.open(out / row["image"])), one.pixels), request
        report = request.get("report") or "severity"
        told = report != "none" and one.status != "off"
        assert row["status"] == ("done" if report == "none" and one.status != "off" else one.status)
        assert row["severity"] == (one.severity if told else None)
        assert (row["mask"] is not None) == (report == "masks" and one.mask is not None)
        if row["mask"] is not None:
            assert np.array_equal(np.asarray(Image.open(out / row["mask"])), one.mask)
    return found


class Command:
    """``ascedfast batch`` in a process of its own, and the processes of Ray below it."""

    def __init__(self, *arguments, ray_folder):
        command = [sys.executable, "-m", "ascedfast", "batch", "--json", *map(str, arguments)]
        environment = {**os.environ, "RAY_TMPDIR": str(ray_folder), "RAY_USAGE_STATS_ENABLED": "0"}
        root = Path(ascedfast.__file__).parent.parent
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seen = {}

    def below(self):
        """Live descendants; those seen earlier stay known after their parent's death."""
        if self.process.poll() is None:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                self.seen[one.pid] = one
        return [one for one in self.seen.values() if one.is_running()]

    def workers(self):
        return [one for one in self.below() if "MapWorker" in _title(one)]

    def wait_for(self, ready, seconds=400):
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "nothing happened"
            self.below()
            time.sleep(0.02)
        return found

    def kill(self):
        """SIGKILL of the driver alone."""
        self.below()
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def wait_for_the_rest(self, seconds=60):
        """Until the workers have noticed the driver's death; Ray's own processes take a minute, and are ended here."""
        psutil.wait_procs(self.workers(), timeout=seconds)
        for one in self.below():
            one.kill()

    def finish(self, seconds=400):
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, errors


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
