# SPDX-License-Identifier: MIT
"""A local diffusers pipeline folder: loaded from safetensors only, or refused with a message a person can act on."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError, safe_open

from ascedfast.adapters.schedules import refusal
from ascedfast.pipelines import PixelFlowPipeline

PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
LIBRARIES = ("diffusers", "transformers", "ascedfast.pipelines")


class FolderError(ValueError):
    """A folder that cannot be used, and why."""


def load_pipeline(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Load a pipeline without a network, without pickles and without code from the folder.

    Raises: FolderError for a folder that is missing, damaged, of an unsupported class or scheduler, or that holds
        pickled weights.
    """
    index = _read_index(folder)
    _refuse_pickles(folder)
    cls = _pipeline_class(index.get("_class_name"), folder)
    for name, entry in index.items():
        if isinstance(entry, list) and not name.startswith("_"):
            library = entry[0] if len(entry) == 2 else entry
            if library not in (*LIBRARIES, None):
                raise FolderError(f"{folder}: component {name!r} wants code from {library!r}; {LIBRARIES} are loaded")
    _check_weights(folder)
    try:
        pipe = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, dtype=dtype
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise FolderError(f"{folder} cannot be loaded as {cls.__name__}: {error}") from error
    why = refusal(pipe.scheduler) if hasattr(pipe, "scheduler") else f"{cls.__name__} has no scheduler"
    if why is not None:
        raise FolderError(f"{folder}: {why}")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def call_arguments(pipe: DiffusionPipeline, *, n: int, steps: int, prompt: str | None, seeds: list[int]) -> dict:
    """Arguments of one call that draws n images, one generator an image. Raises: FolderError."""
    known = inspect.signature(type(pipe).__call__).parameters
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    arguments: dict[str, Any] = {"generator": generators, "num_inference_steps": steps}
    if "prompt" in known:
        if prompt is None:
            raise FolderError(f"{type(pipe).__name__} needs a prompt: add --prompt 'what to draw'")
        arguments["prompt"] = [prompt] * n
    elif prompt is not None:
        raise FolderError(f"{type(pipe).__name__} takes no prompt: leave --prompt out")
    elif "batch_size" in known:
        arguments["batch_size"] = n
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {name for name, one in known.items() if one.default is one.empty and one.kind not in optional}
    missing = required - arguments.keys() - {"self"}
    if missing:
        raise FolderError(f"{type(pipe).__name__} also needs {', '.join(sorted(missing))}: call it from Python")
    return arguments


def images_of(output: Any) -> list[Image.Image]:
    """The images of a pipeline's output. Raises: FolderError for anything else (video, audio, latents)."""
    images = getattr(output, "images", output[0] if isinstance(output, tuple) else None)
    if not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
        raise FolderError("the pipeline does not return images")
    return images


def _read_index(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FolderError(f"{folder} is not a folder: give the folder of a diffusers pipeline (with model_index.json)")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{folder} has no model_index.json: it is no diffusers pipeline folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FolderError(f"{folder / 'model_index.json'} is damaged: {error}") from error
    if not isinstance(index, dict):
        raise FolderError(f"{folder / 'model_index.json'} is damaged: it holds no object")
    return index


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".py":
            raise FolderError(f"{path} is code; a pipeline folder is loaded without any")
        if path.suffix in PICKLED and not any(path.parent.glob("*.safetensors")):
            raise FolderError(
                f"{path} holds pickled weights, which can run code when loaded; save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True)"
            )


def _pipeline_class(name: Any, folder: Path) -> type[DiffusionPipeline]:
    if name == PixelFlowPipeline.__name__:
        return PixelFlowPipeline
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)):
        raise FolderError(f"{folder}: {name!r} is not a pipeline of diffusers {diffusers.__version__}")
    return cls


def _check_weights(folder: Path) -> None:
    """Open every header before a large load begins."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{path} is damaged: {error}") from error
