# SPDX-License-Identifier: MIT
"""A server of the packaged transformer: python -m benchmarks.serving.packaged SETTINGS.

What a request alone must give is computed here by the stock pipeline, watched as any pipeline is.
"""

import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ascedfast

SIZE = (64, 64)


class Alone:
    """The packaged pipeline in this process, with one thread as the server's."""

    def __init__(self) -> None:
        from ascedfast.adapters.pipeline_folder import load_pipeline

        torch.set_num_threads(1)
        with resources.as_file(resources.files("ascedfast") / "assets" / "emoji64-dit") as folder:
            self._pipe = load_pipeline(Path(folder))

    def __call__(self, request: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels uint8 [H, W, 3] and the mask bool [H, W] of a request for one image in mode "fast"."""
        generator = torch.Generator().manual_seed(request["seed"])
        with ascedfast.asced(self._pipe, ascedfast.AscedConfig.fast(), seeds=[request["seed"]]) as handle:
            image = self._pipe(num_inference_steps=request["steps"], generator=generator).images[0]
            mask = handle.report[0].mask
        return np.asarray(image), None if mask is None else mask.numpy()


if __name__ == "__main__":
    from ascedfast.server.ray_environment import set_ray_environment

    set_ray_environment()
    from ascedfast.server.settings import ServerSettings
    from ascedfast.server.start import serve_until_told

    sys.exit(serve_until_told(ServerSettings.model_validate_json(sys.argv[-1]), SIZE) > 0)
