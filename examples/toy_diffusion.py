"""A diffusion model of points in the plane, described on a grid of noisy points, beside the exact denoiser of the same points.

`python -m examples.toy_diffusion --out runs/toy`; see examples/README.md for what came of it.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.spatial import Delaunay
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.mixtures import GaussianMixture
from diffprobe.adapters.published import digest_state
from diffprobe.model import Denoiser
from diffprobe.paths import VariancePreserving, like
from examples.training import fit, perceptron

SETS = Path(__file__).parent / "datasaurus-dozen.tsv"
LEVELS = 50
#: The study's five moments, after 6, 17, 28, 39 and 50 of 50 steps from noise to data.
MOMENTS = (44, 33, 22, 11, 0)
Array = npt.NDArray[np.float64]
Prediction = Literal["epsilon", "v"]
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


@dataclass(frozen=True)
class Settings:
    """What is learnt, and for how long. `spread`: the standard deviation of the noise that every data point is seen with."""

    set: str = "dino"
    predicts: Prediction = "epsilon"
    activation: str = "silu"
    steps: int = 15_000
    spread: float = 0.1
    width: int = 128
    depth: int = 4
    batch: int = 512
    seed: int = 0


class Agreement(NamedTuple):
    """How the learnt psi compares with the exact one over a grid at one sigma: root mean square error and rank correlation, twice.

    `near`: where 99 % of the noisy data are. The rest are means of psi, exact and learnt: `on` the data (nearer to a point than its
    own spread), `between` (elsewhere in the points' convex hull) and `outside`.
    """

    sigma: float
    rmse: float
    rank: float
    rmse_near: float
    rank_near: float
    on: float
    between: float
    outside: float
    on_learnt: float
    between_learnt: float
    outside_learnt: float


def noise_path() -> VariancePreserving:
    """Fifty levels whose sigma/alpha are evenly spaced in their logarithm, from .02 to 20."""
    return VariancePreserving(tuple(1 / (1 + ratio**2) for ratio in np.geomspace(0.02, 20, LEVELS).tolist()), offset=0, end=-1.0)


def points(name: str) -> Tensor:
    """One of the Datasaurus Dozen, 142 points [142, 2] of mean 0 and variance 1, float64."""
    with SETS.open() as file:
        rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file, delimiter="\t") if row["dataset"] == name]
    if not rows:
        raise dp.UserError(f"the Datasaurus Dozen has no '{name}': take one of those that {SETS.name} names in its first column")
    found = torch.tensor(rows, dtype=torch.float64)
    standard: Tensor = (found - found.mean(0)) / found.std(0, correction=0)
    return standard


def truth(settings: Settings) -> GaussianMixture:
    """The distribution that is learnt: each point equally likely, spread as a Gaussian."""
    means = points(settings.set)
    weights = torch.full((len(means),), 1 / len(means), dtype=torch.float64)
    return GaussianMixture(means, settings.spread**2 + 0 * weights, weights)


class Network(nn.Module):
    """A perceptron of x and the time, whose output is turned into E[x_0 | x_t]."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        widths, activation = (11, *(settings.width,) * settings.depth, 2), ACTIVATIONS[settings.activation]
        self.layers = perceptron(widths, f"examples.toy.{settings.seed}", activation)
        self.predicts, self.path = settings.predicts, noise_path()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise, or v = alpha noise - sigma x_0, in noisy points x [B, 2] at times t [B]."""
        place = 2 * t.to(x)[:, None] / (LEVELS - 1) - 1
        waves = place * (math.pi / 2) * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=x.dtype)
        output: Tensor = self.layers(torch.cat([x, place, waves.sin(), waves.cos()], -1))
        return output

    def denoise(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        """E[x_0 | x_t] for x [B, 2]; there is nothing to condition on."""
        alpha, sigma = like(self.path.alpha(t), x), like(self.path.sigma(t), x)
        output: Tensor = self(x, torch.as_tensor(t).expand(len(x)))
        return (x - sigma * output) / alpha if self.predicts == "epsilon" else alpha * x - sigma * output


def train(settings: Settings) -> Network:
    """The network that predicts, from noisy points at any of the levels, as `settings` say."""
    mixture, path, role = truth(settings), noise_path(), f"examples.toy.{settings.seed}.batch"
    alphas, sigmas = (level(torch.arange(LEVELS)).float()[:, None] for level in (path.alpha, path.sigma))
    network = Network(settings)

    def loss(step: int) -> Tensor:
        draw = rng.stream(role, step)
        chosen, t = (torch.from_numpy(draw.integers(most, size=settings.batch)) for most in (mixture.classes, LEVELS))
        spread, noise = torch.from_numpy(draw.standard_normal((2, settings.batch, 2), dtype=np.float32))
        x0 = mixture.means[chosen].float() + settings.spread * spread
        alpha, sigma = alphas[t], sigmas[t]
        wanted = noise if settings.predicts == "epsilon" else alpha * noise - sigma * x0
        return functional.mse_loss(network(alpha * x0 + sigma * noise, t), wanted)

    *_, trained = fit(network, loss, settings.steps, 2e-3)
    return trained


def as_model(name: str, denoiser: Denoiser, identity: str) -> dp.Model:
    """A denoiser of points as a model: it has neither prompts nor images."""
    return dp.Model(name, noise_path(), denoiser, condition=_nothing, identity={"weights": identity}, shape=(2,))


def learnt(settings: Settings, network: Network) -> dp.Model:
    """The trained network, known by its weights."""
    return as_model(f"toy ({settings.set}, {settings.predicts})", network.denoise, digest_state(network.state_dict()))


def exact(settings: Settings) -> dp.Model:
    """The denoiser that a perfect training would give, in closed form."""
    return as_model(f"exact ({settings.set})", truth(settings).denoiser(noise_path()), f"{settings.set}, spread {settings.spread}")


def compare(settings: Settings, learnt_rows: pd.DataFrame, exact_rows: pd.DataFrame) -> list[Agreement]:
    """The two fields of psi beside each other, level by level."""
    rows = learnt_rows.merge(exact_rows, on=["sample", "sigma", "x", "y"], suffixes=("", "_exact"))
    rows = rows.dropna(subset=["psi", "psi_exact"])
    return [_agreement(settings, float(str(sigma)), part) for sigma, part in rows.groupby("sigma")]


def _agreement(settings: Settings, sigma: float, rows: pd.DataFrame) -> Agreement:
    found, right, places = rows["psi"].to_numpy(), rows["psi_exact"].to_numpy(), _places(settings, sigma, rows[["x", "y"]].to_numpy())
    near = places["near"]
    means = [
        field[places[name]].mean() if places[name].any() else math.nan for field in (right, found) for name in ("on", "between", "outside")
    ]
    return Agreement(
        sigma, _distance(found, right), _rank(found, right), _distance(found[near], right[near]), _rank(found[near], right[near]), *means
    )


def _places(settings: Settings, sigma: float, x: Array) -> dict[str, npt.NDArray[np.bool_]]:
    """Which of x [n, 2] lie where, at a level: see `Agreement`."""
    path, mixture = noise_path(), truth(settings)
    t = float(path.time(sigma))  # alpha^2 + sigma^2 is 1, so that a grid's units are those of x
    density = mixture.log_density(torch.tensor(x), t, path).exp().numpy()
    highest = np.sort(density)[::-1]
    near = density >= highest[np.searchsorted(highest.cumsum() / highest.sum(), 0.99)]
    points_t = float(path.alpha(t)) * mixture.means.numpy()
    spread = math.hypot(float(path.alpha(t)) * settings.spread, float(path.sigma(t)))
    on = np.linalg.norm(x[:, None] - points_t, axis=-1).min(1) < spread
    hull = Delaunay(points_t).find_simplex(x) >= 0
    return {"near": near, "on": on, "between": hull & ~on, "outside": ~hull & ~on}


def _distance(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a - b).mean()))


def _rank(a: Array, b: Array) -> float:
    return float(spearmanr(a, b).statistic)


def _nothing(prompts: Sequence[str]) -> None:
    """No prompt says anything to this model."""


def main(arguments: list[str] | None = None) -> dp.Run:
    """Train, measure both, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"))
    parser.add_argument("--set", default="dino", help="which of the Datasaurus Dozen")
    parser.add_argument("--predicts", choices=get_args(Prediction), default="epsilon")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="silu")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--size", type=int, default=49, help="points along a side of the grid")
    parser.add_argument("--map", choices=("denoiser", "step"), default="denoiser", help="of E[x_0 | x_t], or of one step of 50")
    given = parser.parse_args(arguments)
    settings = Settings(given.set, given.predicts, given.activation, given.steps)
    field = dp.Field(tuple(noise_path().ratio(torch.tensor(MOMENTS)).tolist()), size=given.size, map=given.map, num_inference_steps=LEVELS)
    probe = dp.Geometry(sets=(), fields=(field,), dims=2)  # a plane has no more directions
    models = {"exact": exact(settings), "learnt": learnt(settings, train(settings))}
    runs = {name: dp.run(dp.rig(model, embedders=[]), [probe], out=given.out / name) for name, model in models.items()}
    table = pd.DataFrame(compare(settings, *(runs[name].records("geometry") for name in ("learnt", "exact"))))
    table.to_csv(given.out / "agreement.csv", index=False)
    print(table.round(2).to_string(index=False))
    runs["exact"].report()
    print(runs["learnt"].report())
    return runs["learnt"]


if __name__ == "__main__":
    main()
