"""Known answers of the drift probe: the study's synthetic decoders, and an exact editor."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from diffprobe.adapters.exact import LinearCodec, exact_model, three_scales
from diffprobe.adapters.synthetic import Kind, Scale, Synthetic, synthetic_kernel
from diffprobe.measures.drift import KernelFit, fit_kernel, gaussian_drift
from diffprobe.measures.similarity import mse
from diffprobe.model import EditSettings
from diffprobe.validate.check import Check

_SAMPLES = 600


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
