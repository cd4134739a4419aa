"""`embedded-edm`: a class-conditional denoiser with Karras et al.'s preconditioning (2022); a class is a colour and a shape.

With sigma_data 1 the network's input is the variance-preserving x_t of the same noise-to-signal ratio, and its target is -v. So it begins
with the weights of `embedded-v`, its last layer negated, its clock fitted to the other's, its classes with the text states of their names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from diffprobe import worlds
from diffprobe.adapters.edm import ClassConditionalPipeline, class_tokens
from diffprobe.paths import VariancePreserving
from zoo import latents, noising
from zoo.clip import TOKENS
from zoo.data import HEADS, HELD_OUT, TRAIN
from zoo.latents import Encoded
from zoo.loop import Job, Task, fit, is_first
from zoo.unet import build, weights

PAIRS = [(shape, colour) for shape in worlds.SHAPES for colour in worlds.COLOURS if (shape, colour) not in worlds.RESERVED]
NAMES = (*(f"{colour} {shape}" for shape, colour in PAIRS), "")
NO_CLASS = len(PAIRS)
DROPOUT = 0.1  # share of the batch without a class


def prepare(work: Path, shared: Path) -> None:
    """Render and encode what `train` needs, once, before its processes start."""
    for seed in (TRAIN, HELD_OUT):
        latents.scenes(seed, work, shared)


def train(job: Job) -> None:
    """Train from the weights of `embedded-v`, and save the pipeline."""
    model = build(rows=TOKENS * len(NAMES))
    known = weights(job.target) if job.go_on else _begun(model, job.shared, job.target.with_name("embedded-v"))
    model.load_state_dict(known)
    model.to(job.device)
    data = [_coloured(latents.scenes(seed, job.work, job.shared)) for seed in (TRAIN, HELD_OUT)]
    task = Task(job.name, model, _loss(model, data[0], job.batch), _validate(data[1]), learning_rate=5e-4, flat=0.4)
    final = fit(task, job.minutes, job.work)
    if is_first():
        vae = AutoencoderKL.from_pretrained(job.shared / "vae")
        pipe = ClassConditionalPipeline(final, vae, noising.exploding(), id2label=dict(enumerate(NAMES)))
        pipe.to(dtype=torch.float16).save_pretrained(job.target)


def _shown(classes: Tensor) -> Tensor:
    return class_tokens(classes, len(NAMES), TOKENS).float()


def _begun(model: UNet2DConditionModel, shared: Path, velocity: Path) -> dict[str, Tensor]:
    """The weights of `embedded-v`, said in this network's terms."""
    known = weights(velocity)
    known["conv_out.weight"], known["conv_out.bias"] = -known["conv_out.weight"], -known["conv_out.bias"]
    states, rows = latents.texts([f"a {name}" if name else "" for name in NAMES], shared)
    known["encoder_hid_proj.weight"] = states[rows].float().transpose(0, 1).reshape(TOKENS * len(NAMES), -1).T.contiguous()
    known["encoder_hid_proj.bias"] = torch.zeros(128)
    clock = {name: value for name, value in known.items() if name.startswith("time_embedding.")}
    return known | _fitted_clock(model, clock)


def _fitted_clock(model: UNet2DConditionModel, clock: dict[str, Tensor], steps: int = 3000) -> dict[str, Tensor]:
    """A time embedding that says at log(sigma) / 4 what `clock` says at the time of that sigma on Stable Diffusion's path."""
    path = VariancePreserving(tuple(noising.preserving().alphas_cumprod.double().tolist()))
    model.load_state_dict(clock, strict=False)
    embedding, draw = model.time_embedding, torch.Generator().manual_seed(0)
    log_sigma = torch.linspace(-4.5, 3, 4096)
    with torch.no_grad():
        wanted = embedding(model.time_proj(path.time(log_sigma.exp()).clamp(0).float()))
    shown = model.time_proj(log_sigma / 4)
    for module in (embedding.linear_1, embedding.linear_2):
        module.reset_parameters()
    optimiser = torch.optim.Adam(embedding.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(shown), (512,), generator=draw)
        loss = (embedding(shown[rows]) - wanted[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    if is_first():
        print(f"clock: {1 - float(loss.detach()) / float(wanted.var(0).mean()):.4f} of the variance", flush=True)
    return {f"time_embedding.{name}": value.detach().clone() for name, value in embedding.state_dict().items()}


def _coloured(data: Encoded) -> Encoded:
    """The scenes whose class can be seen: black and white ones have none."""
    heads = list(HEADS)
    number = torch.full((len(worlds.SHAPES), len(worlds.COLOURS)), -1)
    for index, pair in enumerate(PAIRS):
        number[worlds.SHAPES.index(pair[0]), list(worlds.COLOURS).index(pair[1])] = index
    shape, colour, tone = (data["labels"][:, heads.index(head)] for head in ("shape", "colour", "tone"))
    seen = tone == 0
    return {"latents": data["latents"][seen], "classes": number[shape, colour][seen]}


def _loss(model: nn.Module, data: Encoded, batch: int) -> Callable[[torch.Generator], Tensor]:
    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(data["latents"]), (batch,), generator=draw)
        classes = torch.where(torch.rand(batch, generator=draw) < DROPOUT, NO_CLASS, data["classes"][rows])
        return noising.error(model, noising.ask_edm(data["latents"][rows], draw), encoder_hidden_states=_shown(classes))

    return loss


def _validate(data: Encoded, n: int = 256) -> Callable[[nn.Module], dict[str, float]]:
    question = noising.ask_edm(data["latents"][:n], torch.Generator().manual_seed(7))
    return noising.validation(question, encoder_hidden_states=_shown(data["classes"][:n]))
