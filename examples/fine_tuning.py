"""The embedded model while it is fine-tuned: its denoiser to a style, its decoder to the pictures of another world.

`python -m examples.fine_tuning --out runs/tuning`; see examples/README.md for what came of it.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.published import digest_state
from diffprobe.worlds import foreign
from examples.training import fit

PROMPTS = (
    "a large red star on a teal background",
    "a small blue circle on a sunset background",
    "a medium yellow house on a snow background",
    "a large green tree on a plain background",
)


@dataclass(frozen=True)
class Tuning:
    """How the decoder is tuned, and on how many pictures of the world of handwriting."""

    pictures: int = 512
    batch: int = 8
    learning_rate: float = 2e-4
    seed: int = 1


def strengths(base: dp.Model, chosen: tuple[float, ...]) -> dp.Model:
    """The embedded model with the pastel LoRA at several strengths as its checkpoints; at 0 it is the model itself."""

    def at(strength: float) -> dp.Model:
        return dp.load(f"embedded+{strength:g}*embedded-pastel", device=base.device) if strength else base

    return replace(base, checkpoints={f"strength {strength:g}": partial(at, strength) for strength in chosen})


def tuned(base: dp.Model, tuning: Tuning, steps: tuple[int, ...]) -> dp.Model:
    """The embedded model with its decoder tuned to handwriting for so many `steps` as its checkpoints; the encoder stays as it is."""
    codec = base.codec
    assert isinstance(codec, VaeCodec)
    pictures = torch.stack([torch.from_numpy(one.image) for one in foreign(tuning.pictures, tuning.seed, kind="strokes")])
    x = pictures.permute(0, 3, 1, 2).float().to(base.device) / 255
    latents = torch.cat([codec.encode(part) for part in x.split(32)])
    vae = deepcopy(codec.vae).requires_grad_(False)
    vae.decoder.requires_grad_(True)

    def loss(step: int) -> Tensor:
        draw = rng.stream("examples.tuning.batch", tuning.seed, step)
        rows = torch.from_numpy(draw.integers(tuning.pictures, size=tuning.batch)).to(base.device)
        return functional.mse_loss(VaeCodec(vae, codec.device).decode(latents[rows]), x[rows])

    learning = enumerate(fit(vae, loss, max(steps), tuning.learning_rate))
    saved = {f"step {step}": _with_decoder(base, now) for step, now in learning if step in steps}
    identity = {**base.identity, "tuning": str(tuning)}  # it decides every checkpoint, however long the training goes on
    return replace(base, checkpoints={name: partial(_itself, model) for name, model in saved.items()}, identity=identity)


def _with_decoder(base: dp.Model, vae: nn.Module) -> dp.Model:
    """The model with this autoencoder as it is now, and nothing that the other one made: what it generated or edited is left out."""
    kept = deepcopy(vae).eval()
    identity = {**base.identity, "decoder": digest_state(kept.state_dict())}
    return replace(base, codec=VaeCodec(kept, torch.device(base.device)), editor=None, generator=None, identity=identity)


def _itself(model: dp.Model) -> dp.Model:
    return model


def main(arguments: list[str] | None = None) -> tuple[dp.Run, dp.Run]:
    """Measure the one, tune and measure the other, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--strengths", type=float, nargs="+", default=(0.0, 0.25, 0.5, 0.75, 1.0))
    parser.add_argument("--samples", type=int, default=2, help="seeds a prompt")
    parser.add_argument("--inference-steps", type=int, default=25)
    parser.add_argument("--steps", type=int, nargs="+", default=(0, 10, 30, 100, 300), help="moments of the decoder's tuning")
    parser.add_argument("--count", type=int, default=16, help="images of each world")
    parser.add_argument("--pictures", type=int, default=512, help="pictures of handwriting that the decoder is tuned on")
    parser.add_argument("--directions", type=int, default=24, help="of the image, on which Jacobians are projected")
    given = parser.parse_args(arguments)
    base = dp.load("embedded")
    style = strengths(base, tuple(given.strengths))
    drawn = dp.Generated(PROMPTS, samples=given.samples, num_inference_steps=given.inference_steps)
    asked = dp.Geometry(sets=(), generated=(drawn,), checkpoints=tuple(style.checkpoints), directions=given.directions)
    first = dp.run(dp.rig(style), [asked], out=given.out / "style")
    world = tuned(base, Tuning(given.pictures), tuple(given.steps))
    asked = dp.Geometry(sets=("world", "strokes"), count=given.count, checkpoints=tuple(world.checkpoints), directions=given.directions)
    second = dp.run(dp.rig(world), [asked], out=given.out / "world")
    print(first.report())
    print(second.report())
    return first, second


if __name__ == "__main__":
    main()
