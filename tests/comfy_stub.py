# SPDX-License-Identifier: MIT
"""Stand-ins for the few interfaces of ComfyUI that ``adapters/comfyui.py`` meets, with its names and signatures:
a SAMPLER object, the model it is given (with a denoise mask), and two families of ``model_sampling``."""

import torch


class Eps:
    """x = x0 + sigma*noise."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * (torch.sqrt(1.0 + sigma**2.0) if max_denoise else sigma) + latent_image


class Const:
    """Flow models: x = (1 - sigma)*x0 + sigma*noise."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent_image


class BaseModel:
    def __init__(self, model_sampling):
        self.model_sampling = model_sampling

    def scale_latent_inpaint(self, sigma, noise, latent_image):
        return self.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent_image)


class Guider:
    def __init__(self, base, denoiser):
        self.inner_model, self.denoiser = base, denoiser

    def __call__(self, x, sigma, model_options=None, seed=None):
        return self.denoiser(x, sigma)


class X0Inpaint:
    """What the sampler function is given: blends the known region in before the model, and out of its answer."""

    def __init__(self, model, latent_image, noise):
        self.inner_model, self.latent_image, self.noise = model, latent_image, noise

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is not None:
            known = self.inner_model.inner_model.scale_latent_inpaint(sigma, self.noise, self.latent_image)
            x = x * denoise_mask + known * (1.0 - denoise_mask)
        out = self.inner_model(x, sigma, model_options, seed)
        return out if denoise_mask is None else out * denoise_mask + self.latent_image * (1.0 - denoise_mask)


class Sampler:
    """A SAMPLER: its function and options."""

    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function = sampler_function
        self.extra_options = extra_options or {}
        self.inpaint_options = inpaint_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None):
        extra_args["denoise_mask"] = denoise_mask
        model = X0Inpaint(model_wrap, latent_image, noise)
        x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
        steps = len(sigmas) - 1

        def report_step(info):
            callback(info["i"], info["denoised"], info["x"], steps)

        return self.sampler_function(
            model, x, sigmas, extra_args=extra_args, callback=report_step, disable=True, **self.extra_options
        )


@torch.no_grad()
def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method in sigma; for both families, since (x - x0) / sigma is the slope of either."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)), **(extra_args or {}))
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x
