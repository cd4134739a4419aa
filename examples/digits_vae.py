"""A variational autoencoder of handwritten digits learns, and its decoder is described at checkpoints of the training.

`python -m examples.digits_vae --out runs/digits`; see examples/README.md for what came of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.published import digest_state
from examples.training import fit, perceptron

SIDE, HELD_OUT = 8, 360
SPREAD = 0.1  # of the decoder's Gaussian: with it the loss is a bound on the likelihood


@dataclass(frozen=True)
class Settings:
    """What is learnt, and for how long. `noise` is the standard deviation of what is added to the training images, once for each."""

    steps: int = 15_000
    noise: float = 0.0
    beta: float = 1.0
    latent: int = 8
    width: int = 128
    depth: int = 5
    batch: int = 128
    seed: int = 0


class Digits(NamedTuple):
    """Images [n, 64] in [0, 1], float32, and the digit that each shows [n]."""

    images: Tensor
    labels: Tensor


class Autoencoder(nn.Module):
    """Two ReLU networks of `depth` hidden layers, so that the decoder is piecewise linear: its Jacobian is constant within a region."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        hidden, role = (settings.width,) * settings.depth, f"examples.digits.{settings.seed}"
        self.encoder = perceptron((SIDE**2, *hidden, 2 * settings.latent), f"{role}.encoder")
        self.decoder = perceptron((settings.latent, *hidden, SIDE**2), f"{role}.decoder")

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log variance of q(z | x), [B, latent] each."""
        mean, log_variance = self.encoder(x - 0.5).chunk(2, -1)
        return mean, log_variance.clamp(-12, 12)


@dataclass(frozen=True, eq=False)
class DigitCodec:
    """Grey images [B, 3, 8, 8], the mean of whose channels is encoded; latents [B, latent, 1, 1]; three equal channels decoded."""

    network: Autoencoder

    def encode(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network.posterior(images.mean(1).flatten(1))[0][..., None, None]

    def decode(self, latents: Tensor) -> Tensor:
        grey: Tensor = self.network.decoder(latents.flatten(1))
        return grey.reshape(-1, 1, SIDE, SIDE).expand(-1, 3, -1, -1)


def digits(held_out: bool) -> Digits:
    """The digits to learn from (1,437), or those held out (360); the division is that of an address."""
    found = load_digits()
    order = rng.stream("examples.digits.split").permutation(len(found.images))
    chosen = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    images = torch.from_numpy(found.images[chosen] / 16).float().flatten(1)
    return Digits(images, torch.from_numpy(found.target[chosen]))


def train(settings: Settings, wanted: list[int]) -> dict[int, Autoencoder]:
    """The autoencoder after each of the `wanted` numbers of steps."""
    clean, role = digits(held_out=False).images, f"examples.digits.{settings.seed}"
    data = clean + settings.noise * rng.normal(clean.shape, f"{role}.noise", [0])[0]
    network = Autoencoder(settings)

    def loss(step: int) -> Tensor:
        draw = rng.stream(f"{role}.batch", step)
        x = data[torch.from_numpy(draw.integers(len(data), size=settings.batch))]
        mean, log_variance = network.posterior(x)
        noise = torch.from_numpy(draw.standard_normal(mean.shape, dtype=np.float32))
        error = (network.decoder(mean + (log_variance / 2).exp() * noise) - x).square().sum(1) / (2 * SPREAD**2)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        bound: Tensor = (error + settings.beta * divergence).mean() / SIDE**2
        return bound

    return {step: deepcopy(now) for step, now in enumerate(fit(network, loss, settings.steps)) if step in wanted}


def as_model(network: Autoencoder, settings: Settings, at: Mapping[str, Autoencoder]) -> dp.Model:
    """The decoder and encoder as a model, with its checkpoints."""
    return dp.Model(
        name=f"digits (noise {settings.noise:g}, beta {settings.beta:g})",
        codec=DigitCodec(network.eval().requires_grad_(False)),
        identity={"weights": digest_state(network.state_dict())},
        shape=(settings.latent, 1, 1),
        checkpoints={name: partial(as_model, one, settings, {}) for name, one in at.items()},
    )


def save(chosen: Digits, count: int, folder: Path) -> str:
    """Write the first `count` images into one folder a digit; returns the folder. Files that are there are written again."""
    for index, (image, label) in enumerate(zip(chosen.images[:count], chosen.labels.tolist(), strict=False)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = (image.reshape(SIDE, SIDE) * 255).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{index:04}.png")
    return str(folder)


def logarithmic(last: int, count: int) -> list[int]:
    """About `count` numbers of steps from 10 to `last`, evenly spaced in their logarithm."""
    return sorted({round(step) for step in np.geomspace(min(10, last), last, count).tolist()})


def main(arguments: list[str] | None = None) -> dp.Run:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the noise that is added to the training images")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the divergence from the prior")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--count", type=int, default=100, help="images of each set")
    parser.add_argument("--checkpoints", type=int, default=12)
    given = parser.parse_args(arguments)
    settings, steps = Settings(given.steps, given.noise, given.beta), logarithmic(given.steps, given.checkpoints)
    saved = train(settings, steps)
    named = {f"step {step}": network for step, network in saved.items()}
    sets = [f"{name}={save(digits(name == 'held-out'), given.count, given.out / name)}" for name in ("training", "held-out")]
    probe = dp.Geometry(sets=(*sets, "noise"), count=given.count, priors=given.count, checkpoints=tuple(named))
    run = dp.run(dp.rig(as_model(saved[steps[-1]], settings, named), embedders=[]), [probe], out=given.out / "run")
    print(run.report())
    return run


if __name__ == "__main__":
    main()
