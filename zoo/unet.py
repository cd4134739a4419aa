"""The text-conditioned denoiser on the autoencoder's latents, and the pipeline that the three parts make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextModel, CLIPTokenizer

from zoo.clip import tokens
from zoo.data import HELD_OUT, TRAIN, Pool, floats, pool
from zoo.loop import Task, fit

PROCESSES = 2
DROPOUT = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


def build() -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=2,  # diffusers reads this as the number of heads
    )
    model.set_attn_processor(AttnProcessor())  # eager attention trains faster here
    return model


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise levels and spacing, so that strengths mean on this model what they mean there."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def train(minutes: float, work: Path, target: Path, n: int = 40_000) -> None:
    """Encode the pool once, train on PROCESSES processes, save the whole pipeline to `target`."""
    cache = work / "encoded.pt"
    if not cache.exists():
        torch.save({"train": _encode(pool(n, TRAIN, work), target), "held": _encode(pool(1000, HELD_OUT, work), target)}, cache)
    meeting = (work / "meeting").absolute()
    meeting.unlink(missing_ok=True)
    spawn(_worker, (minutes, work, target, f"file://{meeting}"), nprocs=PROCESSES)


def assemble(target: Path, unet: UNet2DConditionModel) -> None:
    """Save a genuine StableDiffusionPipeline; the small CLIP stays beside it in `clip/` for those who look at images."""
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(target / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(target / "clip"),
        tokenizer=CLIPTokenizer.from_pretrained(target / "tokenizer"),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(target)


@torch.no_grad()
def _encode(data: Pool, target: Path) -> dict[str, Tensor]:
    """Latents in the denoiser's scale, and text states of every caption as drawn, of the full one, and of the empty one."""
    vae = AutoencoderKL.from_pretrained(target / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(target / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(target / "tokenizer")

    def states(captions: list[str]) -> Tensor:
        return torch.cat([text(part)[0].bfloat16() for part in tokens(tokenizer, captions).split(500)])

    means = torch.cat([vae.encode(floats(part)).latent_dist.mean for part in data.images.split(200)])
    texts = {"drawn": states(data.captions), "full": states(data.full), "empty": states([""])}
    return {"latents": means * vae.config.scaling_factor, **texts}


def _worker(rank: int, minutes: float, work: Path, target: Path, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    data = torch.load(work / "encoded.pt", weights_only=True, mmap=True)
    model = build()
    task = Task("unet", model, _loss(model, data["train"]), _validate(data["held"]), learning_rate=8e-4, flat=0.4)
    final = fit(task, minutes, work)
    if rank == 0:
        assert isinstance(final, UNet2DConditionModel)
        assemble(target, final)
    dist.destroy_process_group()


def _alphas() -> Tensor:
    table: Tensor = scheduler().alphas_cumprod.float()
    return table


def _loss(model: nn.Module, data: dict[str, Tensor], batch: int = 64) -> Callable[[torch.Generator], Tensor]:
    abar = _alphas()
    snr = abar / (1 - abar)
    weight = (5 / snr).clamp(max=1).sqrt()  # a softened min-SNR-5 (Hang et al. 2023): low noise keeps some say

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (batch,), generator=draw)
        kind = "full" if torch.rand((), generator=draw) < 0.5 else "drawn"
        condition = data[kind][rows].float()
        condition[torch.rand(batch, generator=draw) < DROPOUT] = data["empty"][0].float()
        t = torch.randint(1000, (batch,), generator=draw)
        x0 = data["latents"][rows]
        noise = torch.randn(x0.shape, generator=draw)
        a, s = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(a * x0 + s * noise, t, condition).sample
        error: Tensor = (guess.float() - noise).square().mean((1, 2, 3))
        return (weight[t] * error).mean()

    return loss


def _validate(data: dict[str, Tensor]) -> Callable[[nn.Module], dict[str, float]]:
    abar = _alphas()
    draw = torch.Generator().manual_seed(7)
    x0, condition = data["latents"][:256], data["full"][:256].float()
    t = torch.randint(1000, (256,), generator=draw)
    noise = torch.randn(x0.shape, generator=draw)
    a, s = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)

    def validate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            guess = module(a * x0 + s * noise, t, condition).sample
        return {"eps_mse": float((guess - noise).square().mean())}

    return validate
