"""Known answers: each probe's mathematics against worlds whose truth is exact, as `diffprobe validate` prints it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.adapters.exact import LinearCodec, exact_model, three_scales
from diffprobe.adapters.synthetic import Kind, Scale, Synthetic, synthetic_kernel
from diffprobe.measures.consistency import deviation, score, spread
from diffprobe.measures.drift import KernelFit, fit_kernel, gaussian_drift
from diffprobe.measures.sets import vendi_score
from diffprobe.measures.similarity import mse
from diffprobe.model import EditSettings

_SAMPLES = 600
_SETS, _CONCENTRATION = 2000, 20.0


@dataclass(frozen=True)
class Check:
    """One answer: what was measured, what is true, and how far apart they may be, relative to the truth."""

    what: str
    measured: float
    truth: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.measured - self.truth) <= self.tolerance * abs(self.truth)

    @property
    def allowed(self) -> str:
        return f"{self.tolerance:.1%}"


def drift() -> Iterator[Check]:
    """The synthetic decoders of the drift study against theory and its table, and the exact editor against closed forms."""
    for scale in ("std", "variance"):
        fit, trace, _ = _fit("linear", scale)
        yield Check(f"linear decoder ({scale}): slope against Tr(A A^T)", fit.k, trace, 0.03)
        yield Check(f"linear decoder ({scale}): R²", fit.r2, 1.0, 0.001)
    yield from _table()
    yield from _flat()
    yield from _gaussian()


def _fit(kind: Kind, scale: Scale = "std") -> tuple[KernelFit, float, float]:
    """The fit on sigma squared, Tr(A A^T), and the mean coefficient of variation over the trials."""
    found = synthetic_kernel(kind, Synthetic(scale=scale))
    return fit_kernel(found.sigmas, found.mean, "quadratic"), found.trace, float((found.std / found.mean).mean())


def _table() -> Iterator[Check]:
    """Slopes, intercepts and R² by kind and convention, as an independent simulation of the study's decoders gave them."""
    known: tuple[tuple[Kind, Scale, float, float | None, float], ...] = (
        ("curved", "std", 274, None, 0.9989),
        ("curved", "variance", 3170, 60, 0.948),
        ("edit", "std", 1739, 25, 0.987),
        ("edit", "variance", 33480, None, 0.9999),
        ("edit-fixed", "std", 1031, 256, 0.9995),
    )
    for kind, scale, k, c, r2 in known:
        fit, _, _ = _fit(kind, scale)
        yield Check(f"{kind} decoder ({scale}): slope", fit.k, k, 0.05)
        yield Check(f"{kind} decoder ({scale}): R²", fit.r2, r2, 0.005)
        if c is not None:
            yield Check(f"{kind} decoder ({scale}): intercept", fit.c, c, 0.1)


def _flat() -> Iterator[Check]:
    """A bias of random strength b on the edited side drowns the slope: the floor is E b² D, with b uniform on 0 to 2.5."""
    fit, _, spread = _fit("edit-random")
    yield Check("edit decoder of random strength: intercept against E b² D", fit.c, 1024 * 2.5**2 / 3, 0.15)
    yield Check("edit decoder of random strength: coefficient of variation", spread, (4 / 5) ** 0.5, 0.2)


def _gaussian() -> Iterator[Check]:
    """The deployed loop with an exact denoiser, on Gaussian latents and a linear decoder."""
    model, world = exact_model("gaussian"), three_scales()
    codec, editor = model.codec, model.editor
    assert isinstance(codec, LinearCodec)
    assert editor is not None
    seeds = range(_SAMPLES)
    latents = world.sample(seeds)[0].float().reshape(-1, *codec.latent)
    images = codec.decode(latents)
    for strength in (0.2, 0.4, 0.8):
        with torch.no_grad():
            edited = editor.edit(latents, [""] * _SAMPLES, seeds, EditSettings(strength, 100, 1.0))
        truth = float(gaussian_drift(world.variances[0], codec.gains, edited.level.sigma**2, "ode"))
        yield Check(
            f"exact editor at strength {strength}: drift against its closed form", float(mse(images, edited.images).mean()), truth, 0.08
        )


def consistency() -> Iterator[Check]:
    """Sets of vectors whose score is known: fixed ones, and draws from von Mises and Fisher's distribution on the sphere."""
    turned = np.linalg.qr(rng.stream("validate.rotation", 0).normal(size=(32, 32)))[0]
    simplex = np.eye(8) - 1 / 8
    yield Check("equal images: score", score(np.tile(turned[0], (20, 1))).value, 100, 0)
    yield Check("regular simplex of 8: score against -100/7", score(simplex @ turned[:8]).value, -100 / 7, 1e-9)
    yield Check("two groups of orthogonal directions: Vendi score", float(vendi_score(np.repeat(turned[:2], 10, axis=0))), 2, 1e-9)
    yield Check("20 orthogonal images: Vendi score", float(vendi_score(turned[:20])), 20, 1e-9)
    truth = 100 * (1 / math.tanh(_CONCENTRATION) - 1 / _CONCENTRATION) ** 2  # for independent directions: the squared length of their mean
    sets = _fisher(_SETS, 20)
    scores = [score(part) for part in sets]
    values = np.array([found.value for found in scores])
    yield Check("concentrated directions, 20 a set: mean score against its closed form", float(values.mean()), truth, 0.003)
    few = float(np.mean([score(part).value for part in _fisher(_SETS, 5)]))
    yield Check("the same, 5 a set: unbiased for any number", few, truth, 0.003)
    covered = np.mean([found.lo <= truth <= found.hi for found in scores])
    yield Check("share of 95 % intervals that hold the truth", float(covered), 0.95, 0.025)
    expected = float(np.mean([deviation(20, spread(part)) ** 2 for part in sets])) ** 0.5
    yield Check("variance law: standard deviation of the score", expected, float(values.std(ddof=1)), 0.06)


def _fisher(count: int, size: int) -> NDArray[np.float64]:
    """Directions [count, size, 3] about an axis (Fisher 1953): the density grows with exp(kappa cos)."""
    draw = rng.stream("validate.fisher", size)
    u, turn = draw.random((count, size)), 2 * np.pi * draw.random((count, size))
    along = 1 + np.log(u + (1 - u) * math.exp(-2 * _CONCENTRATION)) / _CONCENTRATION
    across = np.sqrt(1 - along**2)
    return np.stack([across * np.cos(turn), across * np.sin(turn), along], -1)


VALIDATIONS: dict[str, Callable[[], Iterator[Check]]] = {"drift": drift, "consistency": consistency}
