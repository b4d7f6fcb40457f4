# SPDX-License-Identifier: MIT
"""Tiny pipelines whose runs do not start at the beginning, end early, keep known parts, or guide in other ways.

``RUNS[name]()`` gives (pipeline, keyword arguments of its call), as ``tiny.PIPELINES``.
"""

import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    LEditsPPPipelineStableDiffusion,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UniPCMultistepScheduler,
)
from diffusers.models.modeling_utils import ModelMixin
from tiny import SCALED, randn

LATENT = {"output_type": "latent"}
SIZES = ("height", "width")


def picture(height, width):
    return randn(1, 3, height, width, seed=5).sigmoid()


def known_half(height, width):
    """An inpainting mask: the left half is drawn anew."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def coder():
    """8 pixels a location, four channels: Flux packs blocks of 2 x 2 into the 16 that its transformer takes."""
    return tiny.weights(
        lambda: AutoencoderKL(
            block_out_channels=[4, 4, 4, 4],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            norm_num_groups=2,
            shift_factor=0.1,
            scaling_factor=0.5,
        )
    )


def turned(made, cls, scheduler=None, **changes):
    """The pipeline of other calls with the same networks; it takes its size from the image."""
    pipe, kwargs = made
    rest = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    rest |= {"add_watermarker": False} if "watermark" in vars(pipe) else {}
    other = cls(**(pipe.components | ({"scheduler": scheduler} if scheduler else {})), **rest)
    return other, {key: value for key, value in kwargs.items() if key not in SIZES} | changes


def sdxl_base():
    pipe, kwargs = tiny.sdxl()
    return pipe, kwargs | {"denoising_end": 0.7, "num_inference_steps": 40}


def sdxl_refiner():
    """Goes on with the base's latents for the last steps."""
    start = {"denoising_start": 0.7, "image": randn(1, 4, 24, 32, seed=5), "num_inference_steps": 40}
    return turned(tiny.sdxl(), StableDiffusionXLImg2ImgPipeline, **start)


def sdxl_img2img():
    return turned(tiny.sdxl(), StableDiffusionXLImg2ImgPipeline, image=picture(48, 64), strength=0.95)


def sdxl_inpaint():
    known = {"image": picture(48, 64), "mask_image": known_half(48, 64), "height": 48, "width": 64}
    return turned(tiny.sdxl(), StableDiffusionXLInpaintPipeline, **known, strength=0.95)


def sd15_inpaint():
    known = {"image": picture(64, 48), "mask_image": known_half(64, 48), "height": 64, "width": 48}
    return turned(tiny.sd15(), StableDiffusionInpaintPipeline, **known, strength=1.0)


def sd15_unipc_img2img():
    scheduler = UniPCMultistepScheduler(**SCALED, steps_offset=1)
    given = {"image": picture(64, 48), "strength": 0.95}
    return turned(tiny.sd15(), StableDiffusionImg2ImgPipeline, scheduler, **given)


def sd15_rescaled():
    """Guidance whose spread is set back, as models of zero terminal SNR need it."""
    pipe, kwargs = tiny.sd15_v()
    return pipe, kwargs | {"guidance_rescale": 0.7}


def sd15_perturbed():
    """Guided by perturbed attention as well: three outputs are combined."""
    pipe, kwargs = turned(tiny.sd15(), StableDiffusionPAGPipeline, height=64, width=48, pag_scale=2.0)
    pipe.set_pag_applied_layers("mid")
    return pipe, kwargs


def sd15_timesteps():
    """Timesteps of the caller's."""
    pipe, kwargs = tiny.sd15(DPMSolverMultistepScheduler(**SCALED, steps_offset=1))
    return pipe, kwargs | {"timesteps": list(range(981, 0, -35)), "num_inference_steps": None}


def sd3_img2img():
    pipe, kwargs = tiny.sd3()
    pipe.register_modules(vae=coder())
    return turned((pipe, kwargs), StableDiffusion3Img2ImgPipeline, image=picture(128, 128), strength=0.95)


def flux_img2img():
    return _flux(FluxImg2ImgPipeline, image=picture(256, 128), strength=0.95)


def flux_inpaint():
    known = {"image": picture(256, 128), "mask_image": known_half(256, 128)}
    return _flux(FluxInpaintPipeline, **known, strength=1.0)


def flux_sigmas():
    """Sigmas of the caller's, crowded at the end."""
    pipe, kwargs = tiny.flux()
    return pipe, kwargs | {"sigmas": [(1 - k / 25) ** 1.3 for k in range(25)]}


def _flux(cls, **changes):
    pipe, kwargs = tiny.flux()
    pipe.register_modules(vae=coder())
    pipe.vae_scale_factor = 8
    return turned((pipe, kwargs), cls, height=256, width=128, **changes)


class Encoder(ModelMixin):
    """In the place of a text encoder that is asked for its type only."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class Edited(LEditsPPPipelineStableDiffusion):
    """LEDITS++ with given embeddings in the place of its text encoder's, inverted before each call."""

    def encode_prompt(self, *args, enable_edit_guidance=True, **kwargs):
        return randn(1, 7, 8, seed=1), randn(1, 7, 8, seed=2), torch.tensor([5])

    def __call__(self, num_inference_steps, generator, **kwargs):
        self.invert(picture(64, 64), num_inversion_steps=num_inference_steps, skip=0.05, generator=generator)
        return super().__call__(generator=generator, **kwargs)


def ledits():
    pipe, _ = tiny.sd15()
    scheduler = DPMSolverMultistepScheduler(**SCALED, algorithm_type="sde-dpmsolver++", steps_offset=1)
    parts = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    made = Edited(
        vae=pipe.vae,
        unet=pipe.unet,
        scheduler=scheduler,
        text_encoder=Encoder(),
        requires_safety_checker=False,
        **parts,
    )
    return made, {
        "editing_prompt": ["other"],
        "edit_threshold": 0.5,
        "use_cross_attn_mask": False,
        "use_intersect_mask": False,
        **LATENT,
    }


RUNS = {
    "sdxl-base": sdxl_base,
    "sdxl-img2img": sdxl_img2img,
    "sdxl-inpaint": sdxl_inpaint,
    "sd15-inpaint": sd15_inpaint,
    "sd15-unipc-img2img": sd15_unipc_img2img,
    "sd15-rescaled": sd15_rescaled,
    "sd15-perturbed": sd15_perturbed,
    "sd15-timesteps": sd15_timesteps,
    "sd3-img2img": sd3_img2img,
    "flux-img2img": flux_img2img,
    "flux-inpaint": flux_inpaint,
    "flux-sigmas": flux_sigmas,
    "ledits": ledits,
}
