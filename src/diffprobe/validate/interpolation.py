"""Known answers of the interpolation probe: what mixtures must be, the law by which a shared bias is amplified, and noise itself.

Allowances of what is sampled are four of its own standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.interpolation import (
    MEANS,
    Scheme,
    alignment,
    amplification,
    amplified,
    effective_number,
    interpolate,
    misalignment,
    mix,
    signature,
    slerp,
    split,
    white_noise,
)
from diffprobe.validate.check import Check

ERRORS = 4.0
#: Rounding of float32.
ROUNDING = 1e-6
#: The latents of the study's law: 4 channels of 64 x 64 with offsets that all share, b = .0274.
SHAPE, OFFSET = (4, 64, 64), (0.03, -0.02, 0.01, 0.04)
SIZE, AREA = 4 * 64 * 64, 64 * 64
SHARED = sum(one**2 for one in OFFSET) / len(OFFSET)
_WEIGHTS = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]], dtype=torch.float64)


def interpolation() -> Iterator[Check]:
    """Inputs that come back, lengths, the sphere, the law and its simulation, what is shared, and the signature of pure noise."""
    yield from _inputs()
    yield from _lengths()
    yield from _sphere()
    yield from _law()
    yield from _pool()
    yield from _signature()


def _inputs() -> Iterator[Check]:
    """All the weight on one latent."""
    z = _latents("inputs", 5, 0.3)
    for norm in ("none", "nin", "slerp", "lol", "blend"):
        worst = max(float((mix(z, torch.eye(5), Scheme(norm, mean)).latents - z).abs().max()) for mean in MEANS)
        yield Check(f"{norm}: one latent with all the weight comes back, largest difference", worst, 0, 0)
    found = mix(z, torch.eye(5), Scheme("fix", "channel")).latents[1]
    yield Check("fix: one latent with all the weight, length of its noise", _length(found, "channel"), SIZE**0.5, ROUNDING)


def _lengths() -> Iterator[Check]:
    z = _latents("lengths", 5, 0.3) * torch.linspace(0.8, 1.3, 5)[:, None, None, None]
    lengths = torch.tensor([_length(one, "channel") for one in z], dtype=torch.float64)
    inputs = float(_WEIGHTS[0] @ lengths)
    kappa, nominal = (5 / float(effective_number(_WEIGHTS)) - 1) / 4, (SIZE - 4) ** 0.5
    for norm, truth in (("fix", SIZE**0.5), ("nin", inputs), ("slerp", inputs), ("blend", nominal + kappa * (inputs - nominal))):
        found = interpolate(z, _WEIGHTS[0], norm, "channel")
        yield Check(f"{norm}: length of a mixture's noise", _length(found, "channel"), truth, ROUNDING)
    plain = interpolate(z, _WEIGHTS[0], "none", "none")
    yield Check(
        "none: a mixture's mean is that of the means", float(plain.mean()), float(_WEIGHTS[0] @ z.double().mean((1, 2, 3))), ROUNDING
    )
    drawn = rng.normal((4, 16, 16), "validate.interpolation.lol", range(100)).view(20, 5, 4, 16, 16)
    mixed = torch.cat([mix(0.7 * one, _WEIGHTS, Scheme("lol", "none")).latents for one in drawn])
    yield Check("lol: variance of mixtures of latents with variance 0.49", float(mixed.var()), 0.49, ERRORS * (2 / mixed.numel()) ** 0.5)
    buried = rng.normal(SHAPE, "validate.interpolation.buried", range(8)) + 100
    found = interpolate(buried, np.full(8, 1 / 8), "nin", "channel")
    truth = float(torch.linalg.vector_norm(split(buried, "channel")[1].double().flatten(1), dim=1).mean())
    yield Check("nin/channel: length of noise on a mean of 100", _length(found, "channel"), truth, ROUNDING)


def _sphere() -> Iterator[Check]:
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([math.cos(1.2), math.sin(1.2), 0])
    yield Check("slerp: angle at t = 0.3 of 1.2", float(slerp(a, b, 0.3)[:2].acos()[0]), 0.36, ROUNDING)
    two = interpolate(torch.stack([a, b]).reshape(2, 1, 1, 3), [0.7, 0.3], "slerp", "none").flatten()
    yield Check("mean on the sphere of two: slerp, cosine", float(two @ slerp(a, b, 0.3)), 1, ROUNDING)
    many = torch.eye(30).reshape(30, 1, 5, 6)
    found = interpolate(many, np.full(30, 1 / 30), "slerp", "none")
    yield Check("mean on the sphere of 30 orthonormal latents: each entry", float(found.max()), 30**-0.5, ROUNDING)
    z = _latents("sphere", 10, 0.0)
    q, p = (
        x.double().flatten(1) / torch.linalg.vector_norm(x.double().flatten(1), dim=1, keepdim=True)
        for x in (interpolate(z, np.full(10, 0.1), "slerp", "none")[None], z)
    )
    angles = (p @ q[0]).acos()
    pull = (angles / angles.sin() / 10) @ p
    yield Check(
        "mean on the sphere of 10: no pull is left, cosine of the pull with it",
        float(pull @ q[0] / torch.linalg.vector_norm(pull)),
        1,
        1e-9,
    )


def _law() -> Iterator[Check]:
    """Channel 0 of centroids of n latents: by formula, and simulated."""
    for n, known in ((8, 0.0846), (32, 0.168), (64, 0.234), (96, 0.284), (256, 0.440), (1000, 0.717)):
        yield Check(f"law, mean of channel 0 for n = {n}", OFFSET[0] * float(amplification(n, SHARED)), known, 0.003)
    yield Check("law without end: amplification is 1/b", float(amplification(1e12, SHARED)), SHARED**-0.5, ROUNDING)
    repeats = 8
    for n in (8, 64, 192):
        ones = torch.full((1, n), 1 / n, dtype=torch.float64)
        drawn = [_latents(f"law.{n}.{repeat}", n) for repeat in range(repeats)]
        alpha = float(amplification(n, SHARED))
        for scheme, truth in (("fix", alpha), ("nin", alpha * (1 + SHARED) ** 0.5), ("nin/channel", 1.0)):
            means = torch.cat([mix(z, ones, Scheme.parse(scheme)).latents.double().mean((2, 3)) for z in drawn])
            offset = torch.tensor(OFFSET, dtype=torch.float64)
            found = float((means @ offset).mean() / offset.square().sum())
            error = (1 if "/" in scheme else alpha) / (n * AREA * repeats * float(offset.square().sum())) ** 0.5
            yield Check(f"{scheme}: the offset's factor in centroids of {n} latents", found, truth, ERRORS * error / truth)


def _pool() -> Iterator[Check]:
    """What 96 images share: four offsets, and nothing of the one that each has for itself."""
    offset, own = np.array([0.3, -0.2, 0.1, 0.4]), 0.1
    draws = rng.stream("validate.interpolation.pool")
    z = torch.from_numpy(draws.standard_normal((96, 4, 16, 16)) + (offset + own * draws.standard_normal((96, 4)))[:, :, None, None])
    shared, seen = float((offset**2).mean()), alignment(z)
    found = misalignment(seen)
    for name, truth in (("total", shared), ("channel", shared), ("lowpass", shared), ("global_", float(offset.mean() ** 2))):
        interval = getattr(found, name)
        error = (interval.hi - interval.lo) / (2 * 1.985)
        yield Check(f"power that images share, {name.rstrip('_')}", interval.value, truth, ERRORS * error / truth)
    told = amplified(seen, (2, 4, 8, 16, 32, 64))
    error = (told.shared.hi - told.shared.lo) / (2 * 2.131)
    yield Check("law fitted to centroids: shared power", told.shared.value, shared, ERRORS * error / shared)
    for channel in (0, 3):
        one = told.offset[channel]
        error = (one.hi - one.lo) / (2 * 2.131)
        yield Check(f"law fitted to centroids: offset of channel {channel}", one.value, offset[channel], ERRORS * error / offset[channel])
    yield Check("law fitted to centroids: least R²", float(told.r2.min()), 1, 0.03)


def _signature() -> Iterator[Check]:
    count, shape = 1000, (4, 16, 16)
    found, wanted = signature(rng.normal(shape, "validate.interpolation.noise", range(count))), white_noise(shape)
    for name in ("norm", "channel_mean", "channel_std", "kurtosis", "correlation", "spectrum"):
        values = getattr(found, name).double().reshape(count, -1)
        ratio = float((values.std(0) / getattr(wanted, name).double()).mean())
        allowed = ERRORS / (2 * count) ** 0.5
        yield Check(f"pure noise: deviation of {name.replace('_', ' ')} over its closed form", ratio, 1, allowed)
    uniform = torch.from_numpy(rng.stream("validate.interpolation.uniform").random((1, 4, 64, 64)))
    error = float(white_noise(SHAPE).kurtosis)
    yield Check("uniform entries: kurtosis", float(signature(uniform).kurtosis), -1.2, ERRORS * error / 1.2)
    i = torch.arange(64)
    board = (2.0 * ((i[:, None] + i) % 2) - 1).expand(1, *SHAPE)
    yield Check("a chequerboard: correlation of neighbours", float(signature(board).correlation), -1, 2 / AREA)


def _latents(name: str, count: int, offset: float | None = None) -> Tensor:
    """White noise with the study's offsets, or with one of all channels."""
    shift = torch.tensor(OFFSET)[:, None, None] if offset is None else offset
    return rng.normal(SHAPE, f"validate.interpolation.{name}", range(count)) + shift


def _length(latent: Tensor, mean: str) -> float:
    return float(torch.linalg.vector_norm(split(latent[None], mean)[1].double()))
