# SPDX-License-Identifier: MIT
"""Stand-ins for what docs/servers.md and the adapters meet of other servers, with their names and signatures."""

import copy
import importlib
import sys
from types import ModuleType, SimpleNamespace

import torch


class Registry:
    """vllm-omni's: resolves an entry point, builds by ``from_pretrained``, configures a request's copy."""

    def __init__(self, entry_points):
        self.classes = {point.name: point.load() for point in entry_points}

    def build(self, model, name, scheduler_kwargs):
        return self.classes[name].from_pretrained(
            model, subfolder="scheduler", local_files_only=True, **scheduler_kwargs
        )

    @staticmethod
    def for_request(scheduler, extra_args):
        own = copy.deepcopy(scheduler)
        if all(callable(getattr(own, name, None)) for name in ("configure", "reset", "get_trajectory")):
            own.reset()
            own.configure(**extra_args.get("scheduler_configure", {}))
        return own


def async_omni(seen):
    """The module ``vllm_omni.entrypoints.async_omni``, whose engine only notes what it was asked for."""
    for name in ("vllm_omni", "vllm_omni.entrypoints", "vllm_omni.entrypoints.async_omni"):
        sys.modules[name] = ModuleType(name)
    sys.modules[name].AsyncOmni = lambda **options: seen.append(options)
    return importlib.import_module(name)


def packed_euler(sigma_tables, indices, packed_model_output, packed_sample):
    """One step of SGLang's packed solver: each row by the sigmas of its own scheduler, in float32."""
    now = torch.stack([table[i] for table, i in zip(sigma_tables, indices, strict=True)])
    following = torch.stack([table[i + 1] for table, i in zip(sigma_tables, indices, strict=True)])
    delta = (following - now).view(-1, *([1] * (packed_sample.ndim - 1)))
    return (packed_sample.to(torch.float32) + delta * packed_model_output).to(packed_model_output.dtype)


def state_of(scheduler, latents):
    """A member of one of SGLang's packed groups."""
    return SimpleNamespace(
        denoising_context=SimpleNamespace(scheduler=scheduler, latents=latents), step_index=0, asced_rows=None
    )


class EulerOfLightX2V:
    """A scheduler with the names of LightX2V's: latents [C, F, H, W], a velocity, one Euler step."""

    def __init__(self, sigmas, latents):
        self.sigmas, self.latents = torch.tensor(sigmas), latents
        self.noise_pred, self.step_index, self.infer_steps = None, 0, len(sigmas) - 1

    def step_pre(self, step_index):
        self.step_index = step_index

    def step_post(self):
        dt = self.sigmas[self.step_index + 1] - self.sigmas[self.step_index]
        self.latents = self.latents + dt * self.noise_pred.to(torch.float32)
