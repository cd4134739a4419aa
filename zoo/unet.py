"""The text-conditioned denoisers on the autoencoder's latents, and the pipelines that they make: `embedded`, `-v`, `-flow`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from zoo import latents, noising
from zoo.data import HELD_OUT, TRAIN
from zoo.latents import Encoded
from zoo.loop import Job, Task, fit, is_first
from zoo.noising import Ask

DROPOUT = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


@dataclass(frozen=True)
class Kind:
    """How a text model is trained and sampled; all but the base begin with the base's weights."""

    ask: Ask
    scheduler: Callable[[], SchedulerMixin]
    learning_rate: float


KINDS = {
    "embedded": Kind(noising.ask_epsilon, noising.preserving, 1e-3),
    "embedded-v": Kind(noising.ask_v, lambda: noising.preserving("v_prediction"), 7e-4),
    "embedded-flow": Kind(noising.ask_flow, noising.flow, 7e-4),
}


def build(in_channels: int = 4, rows: int | None = None) -> UNet2DConditionModel:
    """3.4 million parameters; .32 GFLOP an evaluation, which two cores do in 2.8 ms. `rows`: one-hot rows in place of text states."""
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(48, 80, 96),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=2,  # diffusers reads this as the number of heads
        encoder_hid_dim=rows,
        encoder_hid_dim_type="text_proj" if rows else None,
    )
    model.set_attn_processor(AttnProcessor())  # eager attention trains faster here
    return model


def prepare(work: Path, shared: Path) -> None:
    """Render and encode what `train` needs, once, before its processes start."""
    for seed in (TRAIN, HELD_OUT):
        latents.scenes(seed, work, shared)


def train(job: Job) -> None:
    """Train a text model and save the whole pipeline."""
    kind, model = KINDS[job.name], build().to(job.device)
    if job.go_on:
        model.load_state_dict(weights(job.target))
    elif job.name != "embedded":
        model.load_state_dict(weights(job.shared))
    loss = _loss(model, kind.ask, latents.scenes(TRAIN, job.work, job.shared), job.batch)
    validate = _validate(kind.ask, latents.scenes(HELD_OUT, job.work, job.shared))
    final = fit(Task(job.name, model, loss, validate, kind.learning_rate, flat=0.4), job.minutes, job.work)
    if is_first():
        assemble(job.shared, job.target, final, kind.scheduler())


def weights(folder: Path) -> dict[str, Tensor]:
    """The network of a saved pipeline, float32 by name; every member but the base begins with the base's."""
    return {name: value.float() for name, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items()}


def assemble(
    shared: Path,
    target: Path,
    unet: nn.Module,
    scheduler: SchedulerMixin,
    kind: type = StableDiffusionPipeline,
    *,
    text: CLIPTextModel | None = None,
) -> None:
    """Save a genuine pipeline with the shared autoencoder, and the shared text encoder unless it has another."""
    kind(
        vae=AutoencoderKL.from_pretrained(shared / "vae"),
        text_encoder=text or CLIPTextModel.from_pretrained(shared / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(shared / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(target)
    config = target / "text_encoder" / "config.json"  # transformers loads what this says, diffusers float32: they must agree
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")


def _loss(model: nn.Module, ask: Ask, data: Encoded, batch: int) -> Callable[[torch.Generator], Tensor]:
    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (batch,), generator=draw)
        states = captions(data, rows, draw)
        return noising.error(model, ask(data["latents"][rows], draw), encoder_hidden_states=states)

    return loss


def captions(data: Encoded, rows: Tensor, draw: torch.Generator) -> Tensor:
    """Text states of the rows' captions, all as drawn or all full, some of them replaced by the empty one's."""
    caption = data["full" if torch.rand((), generator=draw) < 0.5 else "drawn"][rows]
    kept: Tensor = torch.where(torch.rand(len(rows), generator=draw) < DROPOUT, 0, caption)
    return data["states"][kept].float()


def _validate(ask: Ask, data: Encoded, n: int = 256) -> Callable[[nn.Module], dict[str, float]]:
    question = ask(data["latents"][:n], torch.Generator().manual_seed(7))
    return noising.validation(question, encoder_hidden_states=data["states"][data["full"][:n]].float())
