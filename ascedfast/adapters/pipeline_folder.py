# SPDX-License-Identifier: MIT
"""A local diffusers pipeline folder: loaded from safetensors only, or refused with a message a person can act on."""

import inspect
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from safetensors import SafetensorError, safe_open

from ascedfast.adapters.pipeline_index import FolderError, read_index
from ascedfast.adapters.schedules import refusal
from ascedfast.pipelines import PixelFlowPipeline

PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
LIBRARIES = ("diffusers", "transformers", "ascedfast.pipelines")


def load_pipeline(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Load a pipeline without a network, without pickles and without code from the folder.

    Raises: FolderError for a folder that is missing, damaged, of an unsupported class or scheduler, or that holds
        pickled weights.
    """
    index = read_index(folder)
    _refuse_pickles(folder)
    cls = _pipeline_class(index.get("_class_name"), folder)
    for name, entry in index.items():
        if isinstance(entry, list) and not name.startswith("_"):
            library = entry[0] if len(entry) == 2 else entry
            if library not in (*LIBRARIES, None):
                raise FolderError(f"{folder}: component {name!r} wants code from {library!r}; {LIBRARIES} are loaded")
    names = _tensor_names(folder)
    settings = {"local_files_only": True, "use_safetensors": True, "dtype": dtype}
    try:
        pipe = cls.from_pretrained(folder, low_cpu_mem_usage=find_spec("accelerate") is not None, **settings)
    except Exception as error:  # whatever a foreign folder makes of diffusers and transformers
        said = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        raise FolderError(f"{folder} cannot be loaded as {cls.__name__}: {said}") from error
    _refuse_gaps(pipe, folder, names)
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


def _files(folder: Path) -> Iterator[Path]:
    """All files, those behind links to folders too, each folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen]
        seen.update(os.path.realpath(os.path.join(root, name)) for name in folders)
        yield from (Path(root, name) for name in names)


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(_files(folder)):
        if path.suffix == ".py":
            raise FolderError(f"{path} is code; a pipeline folder is loaded without any")
        if path.suffix in PICKLED and not any(path.parent.glob("*.safetensors")):
            raise FolderError(
                f"{path} holds pickled weights, which can run code when loaded; save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True)"
            )
        if path.name.endswith(".index.json"):
            _refuse_shards(path)


def _refuse_shards(path: Path) -> None:
    """Of an index of weights in several files: those that are no safetensors."""
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        foreign = sorted(name for name in shards if not name.endswith(".safetensors"))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path} is damaged: {error!r}") from error
    if foreign and not path.name.endswith(".bin.index.json"):  # which is not read where safetensors are asked for
        raise FolderError(f"{path} names {foreign[0]}: weights are loaded from safetensors only")


def _pipeline_class(name: Any, folder: Path) -> type[DiffusionPipeline]:
    if name == PixelFlowPipeline.__name__:
        return PixelFlowPipeline
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    missing = [library for library in getattr(cls, "_backends", ()) if find_spec(library) is None]
    if missing:  # diffusers has a stand-in there, which is no pipeline
        raise FolderError(f"{folder}: {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)):
        raise FolderError(f"{folder}: {name!r} is not a pipeline of diffusers {diffusers.__version__}")
    return cls


def _tensor_names(folder: Path) -> dict[str, set[str]]:
    """Names of the tensors by folder of a component; opens every header before a large load begins."""
    names: dict[str, set[str]] = {}
    for path in sorted(_files(folder)):
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as file:
                names.setdefault(path.parent.name, set()).update(file.keys())
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{path} is damaged: {error}") from error
    return names


def _refuse_gaps(pipe: DiffusionPipeline, folder: Path, names: dict[str, set[str]]) -> None:
    """diffusers fills what a file lacks with chance. Older names of as many tensors are no gap, and tensors that share
    memory are stored once."""
    for name, module in pipe.components.items():
        if not isinstance(module, ModelMixin):
            continue
        state, stored = module.state_dict(), names.get(name, set())
        # What was not loaded may have no address.
        if len(stored) < len({tensor.data_ptr() or key for key, tensor in state.items()}):
            gaps = sorted(state.keys() - stored)
            raise FolderError(f"{folder / name}: {len(gaps)} of {len(state)} tensors are missing: {gaps[0]}")
