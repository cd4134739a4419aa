"""Tiny pipelines of diffusers' and transformers' real classes, with random weights, saved as any pipeline is."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffprobe.adapters.edm import ClassConditionalPipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_sd(path: Path) -> None:
    _stable(path, DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1))


def save_flow(path: Path) -> None:
    """A U-Net as a rectified flow, on a solver that steps flows; its betas mean nothing."""
    _stable(
        path,
        DPMSolverMultistepScheduler(
            **BETAS, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=1, steps_offset=1
        ),
    )


def save_edit(path: Path) -> None:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    _stable(path, scheduler, StableDiffusionInstructPix2PixPipeline, in_channels=8)


def save_edm(path: Path) -> None:
    torch.manual_seed(0)
    unet = _unet(16, encoder_hid_dim=2 * 3, encoder_hid_dim_type="text_proj")  # two tokens for each of three classes
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    ClassConditionalPipeline(unet, _vae(4), scheduler, id2label={0: "red star", 1: "blue star", 2: ""}).save_pretrained(path)


def save_lora(path: Path) -> None:
    """Adapters for the U-Net of `save_sd`, far from zero, so that they change what it makes."""
    torch.manual_seed(0)
    unet = _unet(16)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    unet.add_adapter(config)
    layers = {key: value.contiguous() for key, value in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(path, unet_lora_layers=layers)


def _stable(path: Path, scheduler: Any, kind: type = StableDiffusionPipeline, **more: Any) -> None:
    torch.manual_seed(0)
    parts = {"vae": _vae(4), "unet": _unet(16, **more), "text_encoder": CLIPTextModel(_text(16)), "tokenizer": tokenizer(path)}
    kind(**parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_pretrained(path)


def save_sdxl(path: Path) -> None:
    torch.manual_seed(0)
    unet = _unet(32, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16)
    StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=CLIPTextModel(_text(16)),
        text_encoder_2=CLIPTextModelWithProjection(_text(16)),
        tokenizer=tokenizer(path),
        tokenizer_2=tokenizer(path),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(path)


def save_sd3(path: Path) -> None:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, shift_factor=0.1, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(_text(16)),
        tokenizer=tokenizer(path),
        text_encoder_2=CLIPTextModelWithProjection(_text(16)),
        tokenizer_2=tokenizer(path),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(path)


def save_pixart(path: Path, side: int = 32, kind: type = PixArtAlphaPipeline) -> None:
    """A side of 32 latents, each of 8 pixels, has resolutions of its own, as the published ones have; a side of 16 has none."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=side,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=16,
        norm_num_groups=1,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    kind(
        tokenizer=unigrams(),
        text_encoder=T5EncoderModel(_t5()).eval(),
        vae=_vae(4, widths=(4, 4, 4, 8)),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(path)


def save_pixart_large(path: Path) -> None:
    """Whose network is told size and aspect, as that for 1,024 pixels is."""
    save_pixart(path, 128)


def save_sigma(path: Path) -> None:
    save_pixart(path, 16, PixArtSigmaPipeline)


def save_v2(path: Path) -> None:
    """Stable Diffusion 2: v prediction, linear attention blocks, heads by their width, a scheduler of pure noise."""
    scheduler = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    _stable(path, scheduler, use_linear_projection=True)


def save_flux(path: Path, distilled: bool = True) -> None:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    shifted = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if distilled else 1.0, **(shifted if distilled else {})),
        vae=_vae(4, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(_text(16)),
        tokenizer=tokenizer(path),
        text_encoder_2=T5EncoderModel(_t5()).eval(),
        tokenizer_2=unigrams(),
    ).save_pretrained(path)


def save_schnell(path: Path) -> None:
    save_flux(path, distilled=False)


def save_dit(path: Path) -> None:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8, num_embeds_ada_norm=1000
    )
    for layer in (transformer.proj_out_2, transformer.transformer_blocks[0].norm1.linear):
        torch.nn.init.normal_(layer.weight, std=0.3)
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    DiTPipeline(transformer, _vae(4), scheduler).save_pretrained(path)
    index = path / "model_index.json"  # saving forgets the names of classes, which the published one has
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"3": "red star, scarlet star", "7": "blue"}}))


def save_ddpm(path: Path) -> None:
    _pixels(DDPMPipeline, DDPMScheduler()).save_pretrained(path)


def save_ddim(path: Path) -> None:
    _pixels(DDIMPipeline, DDIMScheduler(clip_sample=False)).save_pretrained(path)


def save_vae(path: Path) -> None:
    torch.manual_seed(0)
    _vae(4, shift_factor=0.1, scaling_factor=0.5).save_pretrained(path)


def save_taesd(path: Path) -> None:
    torch.manual_seed(0)
    widths = (8, 8, 8)
    AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)
    ).save_pretrained(path)


def _pixels(kind: Any, scheduler: Any) -> Any:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return kind(unet=unet, scheduler=scheduler)


def _t5() -> T5Config:
    return T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")


def _vae(channels: int, widths: tuple[int, ...] = (8, 16), **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **more,
    ).eval()


def _unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        **more,
    )


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def unigrams() -> T5Tokenizer:
    """A T5 tokenizer of single letters."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=16)


def tokenizer(path: Path) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = path.parent / f"{path.name}-words"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16)
