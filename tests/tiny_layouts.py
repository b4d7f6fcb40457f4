# SPDX-License-Identifier: MIT
"""Pipelines with random weights beside those of ``tiny``: other families, other layouts of their latents."""

import tiny
import torch
from diffusers import (
    AutoencoderOobleck,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LCMScheduler,
    LMSDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.models.modeling_utils import ModelMixin
from tiny import SCALED, randn

OFFSET = {**SCALED, "steps_offset": 1}
LATENT = {"output_type": "latent"}
TRAILING = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


def cogvideox(scheduler=CogVideoXDDIMScheduler):
    """[B, F, C, H, W] = [1, 3, 4, 16, 12]."""
    transformer = tiny.weights(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=12,
            sample_height=16,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=8,
        )
    )
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe = CogVideoXPipeline(transformer=transformer, scheduler=scheduler(**TRAILING), **parts)
    size = {"height": 128, "width": 96, "num_frames": 9}
    return pipe, {"prompt_embeds": randn(1, 8, 32, seed=1), **negative(8, 32), **size, **LATENT}


def negative(tokens, width):
    return {"negative_prompt_embeds": randn(1, tokens, width, seed=2)}


def cogvideox_dpm():
    return cogvideox(CogVideoXDPMScheduler)


def ltx():
    """Packed video: [B, 3 * 12 * 10, 8]."""
    transformer = tiny.weights(
        lambda: LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        )
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = LTXPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    masks = {"prompt_attention_mask": torch.ones(1, 6), "negative_prompt_attention_mask": torch.ones(1, 6)}
    size = {"height": 384, "width": 320, "num_frames": 17}
    return pipe, {"prompt_embeds": randn(1, 6, 32, seed=1), **negative(6, 32), **masks, **size, **LATENT}


def sana():
    transformer = tiny.weights(
        lambda: SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=16,
        )
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = SanaPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **parts)
    masks = {"prompt_attention_mask": torch.ones(1, 6), "negative_prompt_attention_mask": torch.ones(1, 6)}
    size = {"height": 512, "width": 512, "use_resolution_binning": False}
    prompt = {"prompt": None, "negative_prompt": None, "prompt_embeds": randn(1, 6, 8, seed=1)}
    return pipe, {**prompt, **negative(6, 8), **masks, **size, **LATENT}


def qwen_transformer(**options):
    return tiny.weights(
        lambda: QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            **options,
        )
    )


def qwen():
    """Packed: [B, 16 * 12, 16]."""
    transformer = qwen_transformer()
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = QwenImagePipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    long = torch.ones(1, 7, dtype=torch.long)
    masks = {"prompt_embeds_mask": long, "negative_prompt_embeds_mask": long}
    prompt = {"prompt_embeds": randn(1, 7, 16, seed=1), **negative(7, 16), **masks}
    return pipe, {**prompt, "true_cfg_scale": 2.0, "height": 256, "width": 192, **LATENT}


def wan_unipc():
    pipe, kwargs = tiny.wan()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return pipe, kwargs


def hunyuan():
    """[B, C, F, H, W] = [1, 4, 3, 16, 12]."""
    transformer = tiny.weights(
        lambda: HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = HunyuanVideoPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), **parts)
    mask = {"prompt_attention_mask": torch.ones(1, 6)}
    prompt = {"prompt_embeds": randn(1, 6, 16, seed=1), "pooled_prompt_embeds": randn(1, 8, seed=2), **mask}
    return pipe, {**prompt, "height": 128, "width": 96, "num_frames": 9, **LATENT}


def kandinsky5():
    """[B, F, H, W, C] = [1, 3, 16, 12, 4], stepped as a slice of the last axis."""
    transformer = tiny.weights(
        lambda: Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=8,
            time_dim=16,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
            visual_cond=True,
        )
    )
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = Kandinsky5T2VPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), **parts)
    lengths = torch.tensor([0, 6], dtype=torch.int32)
    prompt = {"prompt_embeds_qwen": randn(1, 6, 16, seed=1), "prompt_embeds_clip": randn(1, 8, seed=2)}
    size = {"height": 128, "width": 96, "num_frames": 9}
    return pipe, {**prompt, "prompt_cu_seqlens": lengths, "guidance_scale": 1.0, **size, **LATENT}


def stable_audio(scheduler=None):
    """[B, C, L] = [1, 4, 256]."""
    transformer = tiny.weights(
        lambda: StableAudioDiTModel(
            sample_size=256,
            in_channels=4,
            num_layers=1,
            attention_head_dim=4,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            out_channels=4,
            cross_attention_dim=8,
            time_proj_dim=8,
            global_states_input_dim=16,
            cross_attention_input_dim=8,
        )
    )
    coder = tiny.weights(
        lambda: AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        )
    )
    for module in coder.modules():  # else deepcopy refuses them
        if hasattr(module, "weight_g"):
            module.weight = module.weight.detach()
    projection = tiny.weights(lambda: StableAudioProjectionModel(8, 8, 0, 200))
    pipe = StableAudioPipeline(
        vae=coder,
        text_encoder=None,
        projection_model=projection,
        tokenizer=None,
        transformer=transformer,
        scheduler=scheduler or DPMSolverMultistepScheduler(**SCALED, **tiny.V),
    )
    masks = {"attention_mask": torch.ones(1, 6).long(), "negative_attention_mask": torch.ones(1, 6).long()}
    return pipe, {"prompt_embeds": randn(1, 6, 8, seed=1), **negative(6, 8), **masks, "output_type": "latent"}


class Nothing(ModelMixin):
    """In the place of Cosmos' safety checker, a package of its own, and of a text encoder that is asked its type."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))


def cosmos():
    """[B, C, F, H, W] = [1, 4, 3, 16, 12]; ``step`` is called twice an iteration, first with two rows."""
    transformer = tiny.weights(
        lambda: CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            mlp_ratio=2,
            text_embed_dim=16,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0),
            concat_padding_mask=False,
            extra_pos_embed_type="learnable",
        )
    )
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, prediction_type="epsilon")
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = CosmosTextToWorldPipeline(transformer=transformer, scheduler=scheduler, safety_checker=Nothing(), **parts)
    size = {"height": 128, "width": 96, "num_frames": 17}
    return pipe, {"prompt_embeds": randn(1, 6, 16, seed=1), **negative(6, 16), **size, **LATENT}


def ddpm():
    unet = tiny.weights(
        lambda: UNet2DModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=24,
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        )
    )
    return DDPMPipeline(unet, DDPMScheduler(clip_sample=False)), {"output_type": "np"}


def lcm():
    pipe, kwargs = tiny.sd15(LCMScheduler(**OFFSET, clip_sample=False))
    return pipe, {**kwargs, "num_inference_steps": 4}


def turbo():
    pipe, kwargs = tiny.sdxl()
    pipe.scheduler = EulerAncestralDiscreteScheduler(**OFFSET, timestep_spacing="trailing")
    return pipe, {**kwargs, "num_inference_steps": 4, "guidance_scale": 0.0}


def _sd15_with(scheduler):
    return lambda: tiny.sd15(scheduler())


PIPELINES = {
    **tiny.PIPELINES,
    "sd15-dpm": _sd15_with(lambda: DPMSolverMultistepScheduler(**OFFSET)),
    "sd15-unipc": _sd15_with(lambda: UniPCMultistepScheduler(**OFFSET)),
    "sd15-heun": _sd15_with(lambda: HeunDiscreteScheduler(**OFFSET)),
    "sd15-euler-a": _sd15_with(lambda: EulerAncestralDiscreteScheduler(**OFFSET)),
    "sd15-sample": _sd15_with(lambda: DDIMScheduler(**OFFSET, clip_sample=False, prediction_type="sample")),
    "sd15-lms": _sd15_with(lambda: LMSDiscreteScheduler(**OFFSET)),
    "ddpm": ddpm,
    "sana": sana,
    "qwen": qwen,
    "wan": tiny.wan,
    "wan-unipc": wan_unipc,
    "cogvideox": cogvideox,
    "cogvideox-dpm": cogvideox_dpm,
    "ltx": ltx,
    "hunyuan": hunyuan,
    "kandinsky5": kandinsky5,
    "cosmos": cosmos,
    "stable-audio": stable_audio,
}
FEW_STEPS = {"lcm": lcm, "turbo": turbo, "img2img": lambda: tiny.sd15_img2img(strength=0.3)}
"""With fewer than three predictions before T_c, or begun after it."""
