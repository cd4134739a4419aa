"""`embedded-pastel`: a LoRA of the base (Hu et al. 2022) tuned to one style, in the format of peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from zoo import latents, noising
from zoo.latents import Encoded
from zoo.loop import Job, Task, fit, is_first
from zoo.unet import build, captions, weights

COUNT = 4000
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]


def pastel(images: Tensor) -> Tensor:
    """Half way to the luminance, then lightened: images [n, 3, H, W] in 0..1."""
    luminance = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return 0.45 + 0.55 * (0.55 * images + 0.45 * luminance)


def prepare(work: Path, shared: Path) -> None:
    """Render and encode what `train` needs, once, before its processes start."""
    latents.styled(pastel, COUNT, work, shared)


def train(job: Job, rank: int = 8) -> None:
    """Train the adapters alone, and save them. They are few: there is nothing to go on from."""
    model = build().to(job.device)
    model.load_state_dict(weights(job.shared))
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="gaussian")
    model.add_adapter(config)
    data = latents.styled(pastel, COUNT, job.work, job.shared)
    task = Task(job.name, model, _loss(model, data, job.batch), lambda module: {}, learning_rate=1e-3, weight_decay=0.0, flat=0.4)
    final = fit(task, job.minutes, job.work)
    if is_first():
        layers = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(final).items()}
        about = config.to_dict()  # type: ignore[no-untyped-call]
        StableDiffusionPipeline.save_lora_weights(job.target, unet_lora_layers=layers, unet_lora_adapter_metadata=about)


def _loss(model: nn.Module, data: Encoded, batch: int) -> Callable[[torch.Generator], Tensor]:
    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (batch,), generator=draw)
        states = captions(data, rows, draw)
        return noising.error(model, noising.ask_epsilon(data["latents"][rows], draw), encoder_hidden_states=states)

    return loss
