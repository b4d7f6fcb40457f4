# SPDX-License-Identifier: MIT
"""Small offline models: diffusers pipelines with random weights, and location-wise denoisers for plain sampling loops.

``PIPELINES[name]()`` gives (pipeline, keyword arguments of its call); no file and no network is needed.
"""

import inspect
import warnings

import multistep
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

SCALED, V, FLOW = multistep.SCALED, multistep.V, multistep.FLOW
NO_CLIP = {"clip_sample": False}


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make()


SCHEDULERS = {
    "ddim-eps": lambda: DDIMScheduler(**NO_CLIP),
    "ddim-eps-clip": lambda: DDIMScheduler(),
    "ddim-v": lambda: DDIMScheduler(**SCALED, **V, **NO_CLIP, timestep_spacing="trailing", rescale_betas_zero_snr=True),
    "ddim-sample": lambda: DDIMScheduler(prediction_type="sample", **NO_CLIP),
    "ddim-threshold": lambda: DDIMScheduler(thresholding=True, **NO_CLIP),
    "euler-eps": lambda: EulerDiscreteScheduler(**SCALED, steps_offset=1, timestep_spacing="leading"),
    "euler-v": lambda: EulerDiscreteScheduler(
        **SCALED, **V, steps_offset=1, timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
    "euler-karras": lambda: EulerDiscreteScheduler(**SCALED, use_karras_sigmas=True),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
    "flow-shift": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-dynamic": lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "flow-inverted": lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "dpm1": lambda: DPMSolverMultistepScheduler(solver_order=1),
    "dpm2": lambda: DPMSolverMultistepScheduler(**SCALED),
    "dpm2-karras": lambda: DPMSolverMultistepScheduler(**SCALED, use_karras_sigmas=True),
    "dpm2-v": lambda: DPMSolverMultistepScheduler(**SCALED, **V),
    "dpm2-flow": lambda: DPMSolverMultistepScheduler(**FLOW),
    "dpm3": lambda: DPMSolverMultistepScheduler(**SCALED, solver_order=3),
    "dpm2-sde": lambda: DPMSolverMultistepScheduler(**SCALED, algorithm_type="sde-dpmsolver++"),
    "dpm2-eps-space": lambda: quietly(
        lambda: DPMSolverMultistepScheduler(**SCALED, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    ),
    "dpm2-threshold": lambda: DPMSolverMultistepScheduler(**SCALED, thresholding=True),
    **multistep.SCHEDULERS,
}
THRESHOLDING = tuple(name for name in SCHEDULERS if name.endswith("-threshold"))
STOCHASTIC = ("dpm2-sde", *(name for name in SCHEDULERS if name.startswith("sa-sde")))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def set_steps(scheduler, steps):
    extra = {"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **extra)
    return scheduler


def spot(grid, rows=1):
    """[rows, 1, H, W] bool: where the location-wise denoiser below is unsteady, another square in every row."""
    height, width = grid
    side = max(3, height // 5)
    where = torch.zeros(rows, 1, height, width, dtype=torch.bool)
    for row in range(rows):
        top, left = 2 + 3 * row % (height - side - 4), 4 + 5 * row % (width - side - 4)
        where[row, :, top : top + side, left : left + side] = True
    return where


def pointwise(x, m_of_x0, step, mean, unsteady):
    """A denoiser whose output at a location depends on x there alone, with +, - and * only: the same bits in any
    batch. Its prediction is steady but for the ``unsteady`` locations, where it jumps from step to step.

    m_of_x0: from (x, x0) to the model output of that prediction. mean: [.., C, H, W] tensor.
    """
    jump = 0.6 if step % 2 else -0.6
    x0 = mean + 0.015625 * step * mean + torch.where(unsteady, jump, 0.0)
    x0 = x0 + 0.03125 * x.clamp(-2, 2)
    return m_of_x0(x, x0)


def output_of(scheduler, step):
    """(x, x0) -> model output, from the scheduler's own tables; scalars are Python floats."""
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = float(scheduler.sigmas[step])
        if scheduler.config.invert_sigmas:
            return lambda x, x0: (x0 - x) * (1 / max(1 - s, 1e-3))
        return lambda x, x0: (x - x0) * (1 / max(s, 1e-3))
    if isinstance(scheduler, EulerDiscreteScheduler | LMSDiscreteScheduler):
        s = float(scheduler.sigmas[step])
        if kind == "epsilon":
            return lambda x, x0: (x - x0) * (1 / s)
        norm = (s * s + 1) ** 0.5  # v of x / norm, whose alpha is 1 / norm and sigma s / norm
        return lambda x, x0: (x * (1 / (norm * norm)) - x0) * (norm / s)
    if isinstance(scheduler, DDIMScheduler | PNDMScheduler):
        abar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
    elif isinstance(scheduler, IPNDMScheduler):
        kind, alpha, sigma = "v_prediction", float(scheduler.alphas[step]), float(scheduler.betas[step])
    else:
        s = float(scheduler.sigmas[step])
        flow = kind == "flow_prediction"
        alpha, sigma = (1 - s, s) if flow else (1 / (1 + s * s) ** 0.5, s / (1 + s * s) ** 0.5)
    if kind == "sample":
        return lambda x, x0: x0 * 1.0
    if kind == "flow_prediction":
        return lambda x, x0: (x - x0) * (1 / max(sigma, 1e-3))
    if kind == "v_prediction":
        return lambda x, x0: (x * alpha - x0) * (1 / sigma)
    return lambda x, x0: (x - x0 * alpha) * (1 / sigma)


def sample(
    scheduler: SchedulerMixin,
    x,
    unsteady,
    *,
    steps=25,
    mean=None,
    dtype=torch.float32,
    row_by_row=True,
    edit=None,
    **options,
):
    """A sampling loop as a pipeline has it, with the location-wise denoiser; every state, the first one included.

    edit: called as edit(step, m) on each model output. options: passed to ``step``, a generator where it takes one.
    """
    if "generator" not in inspect.signature(type(scheduler).step).parameters:
        options.pop("generator", None)
    set_steps(scheduler, steps)
    mean = 0.5 * torch.ones_like(x[:1]) if mean is None else mean
    x = (x * float(scheduler.init_noise_sigma)).to(dtype) if hasattr(scheduler, "init_noise_sigma") else x.to(dtype)
    states = [x.clone()]
    for k, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        output = output_of(scheduler, k)
        rows = [slice(i, i + 1) for i in range(len(x))] if row_by_row else [slice(None)]
        m = torch.cat([pointwise(x[row].float(), output, k, mean, unsteady[row]) for row in rows]).to(dtype)
        if edit is not None:
            m = edit(k, m)
        x = scheduler.step(m, t, x, return_dict=False, **options)[0]
        states.append(x.clone())
    return states


def weights(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def vae():
    return weights(
        lambda: AutoencoderKL(
            block_out_channels=[4, 8],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=2,
        )
    )


def _unet(**options):
    return weights(
        lambda: UNet2DConditionModel(
            layers_per_block=1,
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **options,
        )
    )


def _sd15(scheduler, cls=StableDiffusionPipeline):
    unet = _unet(block_out_channels=(4, 8), cross_attention_dim=8, norm_num_groups=2)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = cls(vae=vae(), unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts)
    prompt = {"prompt_embeds": randn(1, 7, 8, seed=1), "negative_prompt_embeds": randn(1, 7, 8, seed=2)}
    return pipe, prompt


def sd15(scheduler=None):
    pipe, prompt = _sd15(scheduler or DDIMScheduler(**SCALED, **NO_CLIP, set_alpha_to_one=False, steps_offset=1))
    return pipe, {**prompt, "height": 64, "width": 48, "output_type": "latent"}


def sd15_v():
    return sd15(SCHEDULERS["euler-v"]())


def sd15_img2img(strength=0.6):
    pipe, prompt = _sd15(DDIMScheduler(**SCALED, **NO_CLIP, steps_offset=1), StableDiffusionImg2ImgPipeline)
    return pipe, {
        **prompt,
        "image": randn(1, 3, 32, 32, seed=3).sigmoid(),
        "strength": strength,
        "output_type": "latent",
    }


def sdxl():
    unet = _unet(
        block_out_channels=(2, 4),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=1,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = SCHEDULERS["euler-eps"]()
    pipe = StableDiffusionXLPipeline(vae=vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)
    prompt = {
        "prompt_embeds": randn(1, 7, 64, seed=1),
        "negative_prompt_embeds": randn(1, 7, 64, seed=2),
        "pooled_prompt_embeds": randn(1, 32, seed=3),
        "negative_pooled_prompt_embeds": randn(1, 32, seed=4),
    }
    return pipe, {**prompt, "height": 48, "width": 64, "output_type": "latent"}


def dit(labels=(1, 2)):
    transformer = weights(
        lambda: DiTTransformer2DModel(
            sample_size=16,
            num_layers=1,
            patch_size=4,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
    )
    pipe = DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(**NO_CLIP))
    return pipe, {"class_labels": list(labels), "output_type": "np"}


def pixart():
    transformer = weights(
        lambda: PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=False,
        )
    )
    parts = dict.fromkeys(("tokenizer", "text_encoder"))
    pipe = PixArtSigmaPipeline(vae=vae(), transformer=transformer, scheduler=DPMSolverMultistepScheduler(), **parts)
    prompt = {
        "prompt_embeds": randn(1, 8, 32, seed=1),
        "prompt_attention_mask": torch.ones(1, 8),
        "negative_prompt": None,
        "negative_prompt_embeds": randn(1, 8, 32, seed=2),
        "negative_prompt_attention_mask": torch.ones(1, 8),
    }
    return pipe, {**prompt, "height": 32, "width": 32, "use_resolution_binning": False, "output_type": "latent"}


def sd3():
    transformer = weights(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        )
    )
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    scheduler = SCHEDULERS["flow-shift"]()
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **dict.fromkeys(names))
    prompt = {
        "prompt_embeds": randn(1, 6, 32, seed=1),
        "negative_prompt_embeds": randn(1, 6, 32, seed=2),
        "pooled_prompt_embeds": randn(1, 64, seed=3),
        "negative_pooled_prompt_embeds": randn(1, 64, seed=4),
    }
    return pipe, {**prompt, "height": 128, "width": 128, "output_type": "latent"}


def flux():
    """Packed latents: [B, 16 * 8, 16]."""
    transformer = weights(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=False,
        )
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = FluxPipeline(transformer=transformer, scheduler=scheduler, **parts)
    prompt = {"prompt_embeds": randn(1, 6, 32, seed=1), "pooled_prompt_embeds": randn(1, 32, seed=2)}
    return pipe, {**prompt, "height": 256, "width": 128, "output_type": "latent"}


def wan():
    """Video latents: [B, 16, 3, 16, 16]."""
    transformer = weights(
        lambda: WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=32, freq_dim=32, text_dim=16
        )
    )
    coder = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    parts = dict.fromkeys(("tokenizer", "text_encoder"))
    pipe = WanPipeline(
        vae=coder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=transformer, **parts
    )
    prompt = {"prompt_embeds": randn(1, 6, 16, seed=1), "negative_prompt_embeds": randn(1, 6, 16, seed=2)}
    return pipe, {**prompt, "height": 128, "width": 128, "num_frames": 9, "output_type": "latent"}


PIPELINES = {"sd15": sd15, "sd15-v": sd15_v, "sdxl": sdxl, "dit": dit, "pixart": pixart, "sd3": sd3, "flux": flux}


def run(pipe, kwargs, seed=0, **changes):
    """Call the pipeline quietly; its latents or images as a tensor."""
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 25, "generator": generator(seed), **kwargs, **changes}
    made = pipe(**given)[0]
    return torch.stack(made) if isinstance(made, list) else torch.as_tensor(made)
