"""`embedded-edit`: an InstructPix2Pix pipeline (Brooks et al. 2023), trained on pairs of scenes with instructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline
from torch import Tensor, nn

from zoo import latents, noising
from zoo.data import HELD_OUT, TRAIN
from zoo.latents import Encoded
from zoo.loop import Job, Task, fit, is_first
from zoo.noising import Question
from zoo.unet import assemble, build, weights

DROPOUT = 0.05  # share of the batch without the instruction, without the image, and without both, each


def prepare(work: Path, shared: Path) -> None:
    """Render and encode what `train` needs, once, before its processes start."""
    for seed in (TRAIN, HELD_OUT):
        latents.scenes(seed, work, shared)
        latents.edits(seed, work, shared)


def train(job: Job) -> None:
    """Train from the base's weights, the four new input channels from zero, and save the whole pipeline."""
    model, known = build(in_channels=8).to(job.device), weights(job.target if job.go_on else job.shared)
    if not job.go_on:
        known["conv_in.weight"] = torch.cat([known["conv_in.weight"], torch.zeros_like(known["conv_in.weight"])], dim=1)
    model.load_state_dict(known)
    data = [_pairs(seed, job.work, job.shared) for seed in (TRAIN, HELD_OUT)]
    task = Task(job.name, model, _loss(model, data[0], job.batch), _validate(data[1]), learning_rate=1e-3, flat=0.4)
    final = fit(task, job.minutes, job.work)
    if is_first():
        assemble(job.shared, job.target, final, noising.preserving(), StableDiffusionInstructPix2PixPipeline)


def _pairs(seed: int, work: Path, shared: Path) -> Encoded:
    """`before` is not scaled, since the pipeline shows the network the autoencoder's own latents there."""
    scale = float(AutoencoderKL.load_config(shared / "vae")["scaling_factor"])
    before, after = latents.scenes(seed, work, shared)["latents"] / scale, latents.edits(seed, work, shared)
    return {"before": before, "after": after["latents"], "states": after["states"], "instruction": after["instruction"]}


def _loss(model: nn.Module, data: Encoded, batch: int) -> Callable[[torch.Generator], Tensor]:
    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["after"]), (batch,), generator=draw)
        chance = torch.rand(batch, generator=draw)
        told = torch.where(chance < 2 * DROPOUT, 0, data["instruction"][rows])
        shown = ((chance < DROPOUT) | (chance >= 3 * DROPOUT)).float().view(-1, 1, 1, 1) * data["before"][rows]
        question = noising.ask_epsilon(data["after"][rows], draw)
        return noising.error(model, _beside(question, shown), encoder_hidden_states=data["states"][told].float())

    return loss


def _validate(data: Encoded, n: int = 256) -> Callable[[nn.Module], dict[str, float]]:
    question = _beside(noising.ask_epsilon(data["after"][:n], torch.Generator().manual_seed(7)), data["before"][:n])
    return noising.validation(question, encoder_hidden_states=data["states"][data["instruction"][:n]].float())


def _beside(question: Question, shown: Tensor) -> Question:
    return question._replace(input=torch.cat([question.input, shown], dim=1))
