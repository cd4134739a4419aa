"""`embedded-edit`: an InstructPix2Pix pipeline (Brooks et al. 2023), trained on pairs of scenes with instructions.

The text encoder is trained along: the CLIP's has only ever read captions, and the first words of an instruction blind it
to a colour that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from zoo import latents, noising
from zoo.clip import tokens
from zoo.data import HELD_OUT, TRAIN, edit_pool
from zoo.latents import COUNTS, Encoded
from zoo.loop import Job, Task, fit, is_first
from zoo.noising import Question
from zoo.unet import assemble, build, weights

DROPOUT = 0.05  # share of the batch without the instruction, without the image, and without both, each


class Instructed(nn.Module):
    """The denoiser and the text encoder that reads it its instructions, token ids [B, 24]."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, shown: Tensor, time: Tensor, ids: Tensor) -> object:
        return self.unet(shown, time, encoder_hidden_states=self.text(ids)[0])


def prepare(work: Path, shared: Path) -> None:
    """Render and encode what `train` needs, once, before its processes start."""
    for seed in (TRAIN, HELD_OUT):
        latents.scenes(seed, work, shared)
        latents.edits(seed, work, shared)


def train(job: Job) -> None:
    """Train from the base's weights, the four new input channels from zero, and save the whole pipeline."""
    begin = job.target if job.go_on else job.shared
    unet, known = build(in_channels=8), weights(begin)
    if not job.go_on:
        known["conv_in.weight"] = torch.cat([known["conv_in.weight"], torch.zeros_like(known["conv_in.weight"])], dim=1)
    unet.load_state_dict(known)
    text = CLIPTextModel.from_pretrained(begin / "text_encoder", dtype=torch.float32, attn_implementation="eager")
    model = Instructed(unet, text).to(job.device)
    data = [_pairs(seed, job.work, job.shared) for seed in (TRAIN, HELD_OUT)]
    task = Task(job.name, model, _loss(model, data[0], job.batch), _validate(data[1]), learning_rate=7e-4, flat=0.4)
    final = fit(task, job.minutes, job.work)
    if is_first():
        assert isinstance(final, Instructed)
        assemble(job.shared, job.target, final.unet, noising.preserving(), StableDiffusionInstructPix2PixPipeline, text=final.text)


def _pairs(seed: int, work: Path, shared: Path) -> Encoded:
    """`before` is not scaled, since the pipeline shows the network the autoencoder's own latents there; `ids` of the instructions."""
    scale = float(AutoencoderKL.load_config(shared / "vae")["scaling_factor"])
    before, after = latents.scenes(seed, work, shared)["latents"] / scale, latents.edits(seed, work, shared)["latents"]
    tokenizer = CLIPTokenizer.from_pretrained(shared / "tokenizer")
    return {"before": before, "after": after, "ids": tokens(tokenizer, ["", *edit_pool(COUNTS[seed], seed, work).instructions])}


def _loss(model: nn.Module, data: Encoded, batch: int) -> Callable[[torch.Generator], Tensor]:
    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["after"]), (batch,), generator=draw)
        chance = torch.rand(batch, generator=draw)
        ids = data["ids"][torch.where(chance < 2 * DROPOUT, 0, rows + 1)]
        shown = ((chance < DROPOUT) | (chance >= 3 * DROPOUT)).float().view(-1, 1, 1, 1) * data["before"][rows]
        return noising.error(model, _beside(noising.ask_epsilon(data["after"][rows], draw), shown), ids=ids)

    return loss


def _validate(data: Encoded, n: int = 256) -> Callable[[nn.Module], dict[str, float]]:
    question = _beside(noising.ask_epsilon(data["after"][:n], torch.Generator().manual_seed(7)), data["before"][:n])
    return noising.validation(question, ids=data["ids"][1 : n + 1])


def _beside(question: Question, shown: Tensor) -> Question:
    return question._replace(input=torch.cat([question.input, shown], dim=1))
