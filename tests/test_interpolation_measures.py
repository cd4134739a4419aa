"""Mixing of latents: closed forms, an independent implementation, what an input must come back as, and what cannot be mixed."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.interpolation import MEANS, NORMS, Scheme, effective_number, interpolate, mix, mixing, slerp, split
from diffprobe.measures.interpolation.sphere import spherical_means

SHAPE = (3, 6, 5)
SIZE = math.prod(SHAPE)
OFFSETS = torch.tensor([0.3, -0.2, 0.5])[:, None, None]
LATENTS = rng.normal(SHAPE, "test.latents", range(5)) * torch.linspace(0.8, 1.3, 5)[:, None, None, None] + OFFSETS
WEIGHTS = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25], [0.2, 0.2, 0.2, 0.2, 0.2], [0.5, 0.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
SCHEMES = [Scheme(norm, mean) for norm, mean in product(NORMS, MEANS)]


def length(z: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(z.double().flatten(1), dim=1)
    return found


def parted(z: np.ndarray, mean: str, kept: int) -> np.ndarray:
    if mean == "lowpass":
        found = dctn(z, axes=(2, 3), norm="ortho")
        found[:, :, kept:], found[:, :, :, kept:] = 0, 0
        return np.asarray(idctn(found, axes=(2, 3), norm="ortho"))
    axes = {"global": (1, 2, 3), "channel": (2, 3)}
    return np.broadcast_to(z.mean(axes[mean], keepdims=True), z.shape) if mean in axes else np.zeros_like(z)


def mean_direction(e: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Buss and Fillmore's iteration in the space itself, one step of the gradient at a time."""
    p = e.reshape(len(e), -1) / np.linalg.norm(e.reshape(len(e), -1), axis=1)[:, None]
    q = w @ p / np.linalg.norm(w @ p)
    for _ in range(2000):
        angle = np.arccos(np.clip(p @ q, -1, 1))
        u = sum(w[i] * angle[i] / np.sin(angle[i]) * (p[i] - np.cos(angle[i]) * q) for i in range(len(p)) if angle[i] > 1e-9)
        size = np.linalg.norm(u)
        if size < 1e-13:
            break
        q = np.cos(size) * q + np.sin(size) * u / size
    return np.asarray(q.reshape(e.shape[1:]))


def reference(latents: Tensor, weights: Tensor, scheme: Scheme, scale: float, kept: int) -> np.ndarray:
    """The formulas as they are written, float64 throughout, one mixture."""
    z, w = latents.double().numpy(), weights.double().numpy()
    d = parted(z, scheme.mean, kept)
    e = z - d
    lengths = np.sqrt((e**2).sum((1, 2, 3)))
    m, mean, target = np.tensordot(w, e, 1), np.tensordot(w, d, 1), w @ lengths
    size, square, count = z[0].size, w @ w, len(w)
    if scheme.norm == "none":
        return np.asarray(mean + m)
    if scheme.norm == "fix":
        return np.asarray(mean + scale * size**0.5 * m / np.linalg.norm(m))
    if scheme.norm == "nin":
        return np.asarray(mean + target * m / np.linalg.norm(m))
    if scheme.norm == "slerp":
        return np.asarray(mean + target * mean_direction(e, w))
    if scheme.norm == "lol":
        mu = d.mean(0)
        return np.asarray(mu + (np.tensordot(w, z, 1) - mu) / square**0.5)
    free = {"none": 0, "global": 1, "channel": z.shape[1], "lowpass": z.shape[1] * kept**2}[scheme.mean]
    nominal, kappa = scale * (size - free) ** 0.5, (count * square - 1) / (count - 1)
    return np.asarray(mean + (nominal + kappa * (target - nominal)) * m / np.linalg.norm(m))


# Every scheme


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_mixture_is_what_its_formula_says(scheme: Scheme) -> None:
    found = mix(LATENTS, WEIGHTS, scheme, scale=1.4, kept=2)
    for latent, weights in zip(found.latents, WEIGHTS, strict=True):
        assert np.allclose(latent, reference(LATENTS, weights, scheme, 1.4, 2), atol=3e-6)
    e = split(LATENTS, scheme.mean, kept=2)[1].double()
    plain = length(torch.einsum("kn,nchw->kchw", WEIGHTS, e))
    assert torch.allclose(found.before, plain / (1.4 * SIZE**0.5), rtol=1e-6)
    noise = split(found.latents - (0 if scheme.norm != "lol" else split(LATENTS, scheme.mean, kept=2)[0].mean(0)), scheme.mean, kept=2)[1]
    assert torch.allclose(found.amplification, length(noise) / plain, rtol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_one_latent_comes_back_to_the_last_bit_or_not_at_all(scheme: Scheme, shift: float) -> None:
    z = LATENTS + shift
    found = mix(z, torch.eye(5), scheme, scale=1.4)
    assert torch.equal(found.latents, z) == scheme.reproduces == (scheme.norm != "fix")
    assert torch.equal(mix(z[:1], [[1.0]], scheme).latents, z[:1]) == scheme.reproduces
    if not scheme.reproduces:  # and then its noise has the nominal length, in its own direction
        d, e = split(z, scheme.mean)
        expected = d + e * (1.4 * SIZE**0.5 / length(e))[:, None, None, None]
        assert torch.allclose(found.latents.double(), expected, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_neither_order_nor_company_nor_type_changes_a_mixture(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mix(LATENTS, WEIGHTS, scheme).latents
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(mix(LATENTS[order], WEIGHTS[:, order], scheme).latents, found, atol=2e-6)
    alone = torch.stack([mix(LATENTS, row[None], scheme).latents[0] for row in WEIGHTS])
    assert torch.allclose(alone, found, atol=2e-6)
    monkeypatch.setattr(mixing, "CACHE", 8 * SIZE)  # two latents a group
    assert torch.allclose(torch.stack([mix(LATENTS, row[None], scheme).latents[0] for row in WEIGHTS]), alone, atol=2e-6)
    assert torch.equal(mix(list(LATENTS), WEIGHTS.tolist(), scheme).latents, found)
    assert torch.equal(mix(LATENTS.double(), WEIGHTS.float(), scheme).latents, mix(LATENTS, WEIGHTS.float(), scheme).latents)
    turned = LATENTS.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(mix(turned, WEIGHTS, scheme).latents, found)
    for dtype in (torch.float16, torch.bfloat16):
        half = LATENTS.to(dtype)
        assert torch.equal(mix(half, WEIGHTS, scheme).latents, mix(half.float(), WEIGHTS, scheme).latents)
    learning = LATENTS.clone().requires_grad_()
    assert not mix(learning, WEIGHTS, scheme).latents.requires_grad
    assert torch.equal(learning, LATENTS)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_units_and_a_common_part(scheme: Scheme) -> None:
    found = mix(LATENTS, WEIGHTS, scheme, scale=1.4).latents
    assert torch.allclose(mix(3 * LATENTS, WEIGHTS, scheme, scale=3 * 1.4).latents, 3 * found, atol=1e-5)
    free = scheme.norm not in {"fix", "blend"}
    assert torch.allclose(mix(3 * LATENTS, WEIGHTS, scheme, scale=1.4).latents, 3 * found, atol=1e-5) == free
    common = {"none": torch.zeros(1), "global": torch.ones(1), "channel": OFFSETS, "lowpass": torch.linspace(-1, 1, 5).cos()}[scheme.mean]
    common = common if scheme.mean != "lowpass" else split(common.expand(1, *SHAPE).contiguous(), "lowpass")[0][0]
    assert torch.allclose(mix(LATENTS + common, WEIGHTS, scheme, scale=1.4).latents, found + common, atol=1e-5)


@pytest.mark.parametrize("norm", ["fix", "nin", "slerp", "blend"])
@pytest.mark.parametrize("mean", ["global", "channel", "lowpass"])
def test_a_large_mean_takes_no_digits(norm: str, mean: str) -> None:
    """Mean 100, deviation 1: what float32 latents themselves have lost is 4e-6 an entry."""
    z = rng.normal((4, 32, 32), "test.large", range(16)) + 100
    z[3] += 50
    w = torch.from_numpy(rng.stream("test.weights").dirichlet(np.ones(16), 2))
    found = mix(z, w, Scheme(norm, mean)).latents
    for latent, weights in zip(found, w, strict=True):
        expected = reference(z, weights, Scheme(norm, mean), 1.0, 3)
        assert np.abs(latent.numpy() - expected).max() < 2e-4
        assert np.abs(latent.double().mean((1, 2)).numpy() - expected.mean((1, 2))).max() < 6e-5


# Lengths


@pytest.mark.parametrize("mean", MEANS)
def test_the_noise_has_the_length_that_is_promised(mean: str) -> None:
    _, e = split(LATENTS, mean)
    for norm, wanted in (("fix", torch.full((3,), 2 * SIZE**0.5)), ("nin", WEIGHTS @ length(e)), ("slerp", WEIGHTS @ length(e))):
        found = split(mix(LATENTS, WEIGHTS, Scheme(norm, mean), scale=2).latents, mean)[1]
        assert torch.allclose(length(found), wanted.double(), rtol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
def test_blend_goes_from_the_inputs_to_pure_noise(mean: str) -> None:
    """Exact at an input, the length of pure noise beside d at the centroid, and in proportion and without a jump between."""
    scheme, (_, e) = Scheme("blend", mean), split(LATENTS, mean)
    path = torch.linspace(0, 1, 201, dtype=torch.float64)
    weights = path[:, None] * torch.full((5,), 0.2, dtype=torch.float64) + (1 - path)[:, None] * torch.eye(5, dtype=torch.float64)[1]
    lengths = length(split(mix(LATENTS, weights, scheme, scale=1.4).latents, mean)[1])
    ideal = 1.4 * (SIZE - {"none": 0, "global": 1, "channel": 3, "lowpass": 27}[mean]) ** 0.5
    assert float(lengths[0]) == pytest.approx(float(length(e)[1]), rel=1e-6)
    assert float(lengths[-1]) == pytest.approx(ideal, rel=1e-6)
    kappa = (5 * weights.square().sum(1) - 1) / 4
    assert torch.allclose(lengths, ideal + kappa * (weights @ length(e) - ideal), rtol=1e-6)
    assert float(lengths.diff().abs().max()) < 0.03 * float((lengths[0] - lengths[-1]).abs() + 1)
    noise = rng.normal((3, 24, 20), "test.noise", range(400))
    shown = length(split(noise, mean)[1])
    centroid = mix(noise, torch.full((1, 400), 1 / 400), scheme).latents
    error = float(shown.std()) / 20
    assert float(length(split(centroid, mean)[1])) == pytest.approx(float(shown.mean()), abs=4 * error)


def test_lol_keeps_the_law_of_normal_latents() -> None:
    """Mean and variance of mixtures of latents with the mean mu and the variance 0.49 are theirs; plain sums have less variance."""
    mu, w = torch.tensor([2.0, -1.0])[:, None, None], torch.tensor([[0.6, 0.3, 0.1]])
    drawn = rng.normal((2, 4, 4), "test.lol", range(3000)).reshape(1000, 3, 2, 4, 4) * 0.7 + mu
    found = torch.cat([mix(z, w, Scheme("lol", "channel")).latents for z in drawn])
    means = found.mean((2, 3))
    error = 0.7 / (32 * 1000) ** 0.5
    assert torch.allclose(means.mean(0), mu.flatten(), atol=8 * error)
    inside = (found - means[:, :, None, None]).square().sum() / (1000 * 30)
    assert float(inside) == pytest.approx(0.49, rel=4 * (2 / (1000 * 30)) ** 0.5)
    centred = torch.cat([mix(z - mu, w, Scheme("lol", "none")).latents for z in drawn])
    assert float(centred.var()) == pytest.approx(0.49, rel=4 * (2 / (1000 * 32)) ** 0.5)
    assert float(torch.cat([mix(z - mu, w, Scheme("none", "none")).latents for z in drawn]).var()) < 0.49 * 0.5


def test_effective_number() -> None:
    assert effective_number(WEIGHTS).tolist() == pytest.approx([1 / 0.225, 5, 2])
    assert float(effective_number([1.0])) == 1
    assert float(effective_number(torch.full((7,), 1 / 7))) == pytest.approx(7)


# The sphere


def test_slerp_of_two_is_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    assert torch.allclose(slerp(a, b, 0.5), (a + b) / 2**0.5)
    assert torch.equal(slerp(a, b, 0), a)
    assert torch.allclose(slerp(a, b, 1), b)
    third = slerp(a, b, 1 / 3)
    assert torch.allclose(third, torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6), 0]))
    assert torch.allclose(slerp(a, 3 * a, 0.25), 1.5 * a)  # one direction: linear
    x, y = LATENTS[0], LATENTS[1]
    assert torch.equal(slerp(x, x, 0.3), x)
    assert slerp(x.half(), y.half(), 0.5).dtype == torch.float32


@pytest.mark.parametrize(("radius", "angle", "least", "most"), [(1.05, 2.8, 0.953, 1.101), (2.0, 2.2, 0.926, 2.162)])
def test_slerp_leaves_the_range_of_unequal_lengths_and_the_scheme_does_not(radius: float, angle: float, least: float, most: float) -> None:
    a, b = torch.zeros(1, 1, 2), radius * torch.tensor([[[math.cos(angle), math.sin(angle)]]])
    a[0, 0, 0] = 1
    path = torch.linspace(0, 1, 501)
    lengths = torch.stack([slerp(a, b, float(t)).norm() for t in path])
    assert (float(lengths.min()), float(lengths.max())) == pytest.approx((least, most), abs=1.2e-3)
    found = mix([a, b], torch.stack([1 - path, path], 1), Scheme("slerp", "none"))
    assert torch.allclose(length(found.latents), (1 + (radius - 1) * path).double(), atol=1e-6)


def test_the_scheme_of_two_has_the_direction_of_slerp_and_interpolates_the_length() -> None:
    x, y = LATENTS[0], LATENTS[1] - LATENTS[0]
    for t in (0.0, 0.1, 0.5, 0.83, 1.0):
        expected = slerp(x / x.norm(), y / y.norm(), t) * ((1 - t) * x.norm() + t * y.norm())
        assert torch.allclose(interpolate([x, y], [1 - t, t], "slerp", "none"), expected, atol=1e-6)


def test_the_mean_of_orthonormal_latents_is_their_sum() -> None:
    for count in (2, 3, 30):
        z = torch.eye(90)[:count].reshape(count, *SHAPE)
        found = interpolate(z, torch.full((count,), 1 / count), "slerp", "none")
        assert torch.allclose(found, z.sum(0) / count**0.5, atol=1e-6)


def test_spherical_means_have_no_gradient_however_wide_the_points_are() -> None:
    """Against Buss and Fillmore's own iteration too, where the points lie in half a sphere and the mean is one."""
    for seed in range(60):
        draws = rng.stream("test.sphere", seed)
        count, dim = int(draws.integers(2, 14)), int(draws.integers(3, 8))
        p = draws.standard_normal((count, dim))
        p[:, 0] = np.abs(p[:, 0]) + 0.05
        p /= np.linalg.norm(p, axis=1)[:, None]
        w = draws.dirichlet(np.ones(count), 3)
        q = spherical_means(p @ p.T, w) @ p
        assert np.allclose(np.linalg.norm(q, axis=1), 1)
        cosines = np.clip(q @ p.T, -1, 1)
        pull = w / np.sinc(np.arccos(cosines) / np.pi)
        assert np.abs(pull @ p - (pull * cosines).sum(1)[:, None] * q).max() < 1e-7
        assert np.allclose(q[0], mean_direction(p[:, :, None, None], w[0])[:, 0, 0], atol=1e-6)


def test_equal_latents_and_weights_of_zero_are_no_matter_to_the_sphere() -> None:
    z = torch.stack([LATENTS[0], LATENTS[0], LATENTS[1], torch.zeros(SHAPE)])
    doubled = interpolate(z, [0.2, 0.3, 0.5, 0], "slerp", "none")
    assert torch.allclose(doubled, interpolate(LATENTS[:2], [0.5, 0.5], "slerp", "none"), atol=1e-6)
    assert torch.allclose(interpolate(z[:2], [0.4, 0.6], "slerp", "none"), LATENTS[0], atol=1e-6)


# Parts


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("kept", [1, 2, 9])
def test_a_part_is_an_orthogonal_projection(mean: str, kept: int) -> None:
    d, e = split(LATENTS, mean, kept=kept)
    assert d.dtype == e.dtype == torch.float32
    assert torch.allclose(d + e, LATENTS, atol=1e-6)
    assert np.allclose(d, parted(LATENTS.double().numpy(), mean, kept), atol=1e-6)
    assert float((d.flatten(1) @ e.flatten(1).T).abs().max()) < 1e-4
    assert torch.allclose(split(d, mean, kept=kept)[0], d, atol=1e-6)
    if mean == "lowpass":
        assert torch.allclose(d, split(LATENTS, "channel")[0], atol=1e-6) == (kept == 1)
        assert (float(e.abs().max()) < 1e-5) == (kept == 9)


# Names


def test_a_scheme_reads_what_it_writes() -> None:
    for scheme in SCHEMES:
        assert Scheme.parse(str(scheme)) == scheme
    assert (str(Scheme()), str(Scheme("nin", "none"))) == ("nin/channel", "nin")
    assert Scheme.parse("nin/none") == Scheme.parse("nin") == Scheme("nin", "none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nim/channel", "unknown norm 'nim' of a scheme: did you mean 'nin'?"),
        ("nin/chanel", "unknown mean 'chanel' of a scheme: did you mean 'channel'?"),
        ("q", "unknown norm 'q' of a scheme: choose from none, fix, nin, slerp, lol, blend"),
        ("nin/", "unknown mean '' of a scheme: choose from none, global, channel, lowpass"),
    ],
)
def test_unknown_schemes_name_the_nearest(text: str, told: str) -> None:
    with pytest.raises(ValueError, match="unknown") as error:
        Scheme.parse(text)
    assert str(error.value) == told


# What cannot be mixed


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([0.5, 0.5], r"weights are \[5\], one a latent, or rows of them, one a mixture, not \[1, 2\]"),
        (0.5, r"weights are \[N\], .* not \[\]"),
        ([[[0.2] * 5]], r"mix takes weights \[K, N\]"),
        ([math.nan, 1, 0, 0, 0], "weights are not finite: set those"),
        ([1.2, -0.2, 0, 0, 0], "not negative, as -0.2 is: set it to 0"),
        ([0.0] * 5, "all 0: give one latent or more a weight"),
        ([0.3] * 5, "sum to one, not to 1.5: divide by their sum"),
        ([[0.2] * 5, [0.1] * 5], "sum to one, not to 0.5"),
    ],
)
def test_weights_of_no_mixture(weights: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        interpolate(LATENTS, weights)  # type: ignore[arg-type]


def test_weights_are_forgiven_what_rounding_does() -> None:
    exact = interpolate(LATENTS, [0.25, 0.25, 0.25, 0.25, 0])
    assert torch.allclose(interpolate(LATENTS, [0.25, 0.25, 0.25, 0.25, -9e-8]), exact, atol=1e-6)
    assert torch.allclose(interpolate(LATENTS, [0.25001, 0.25001, 0.25001, 0.25001, 0]), exact, atol=1e-6)
    assert mix(LATENTS, torch.zeros(0, 5), Scheme()).latents.shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("latents", "told"),
    [
        (LATENTS[0], r"floating tensor \[N, C, h, w\] with N >= 1, not torch.float32 \[3, 6, 5\]"),
        (LATENTS[:0], r"N >= 1"),
        (LATENTS.long(), r"not torch.int64"),
        ([LATENTS[0], LATENTS[0, :, :4]], r"latents of one shape can be mixed, not \[3, 4, 5\] and \[3, 6, 5\]"),
        ([], "not none at all"),
    ],
)
def test_latents_that_are_none(latents: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        interpolate(latents, [0.5, 0.5])
    with pytest.raises(ValueError, match=told):
        split(latents, "channel")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weights", [[0.2] * 5, [0.5, 0.5, 0, 0, 0]])
def test_latents_that_are_not_finite_are_named(scheme: Scheme, value: float, weights: list[float]) -> None:
    """Those without a weight too."""
    z = LATENTS.clone()
    z[3, 1, 2, 2], z[4, 0, 0, 0] = value, -value
    with pytest.raises(ValueError, match="latents 3, 4 of 5 are not finite, or overflow float32"):
        interpolate(z, weights, scheme.norm, scheme.mean)


@pytest.mark.parametrize("norm", ["fix", "nin", "slerp", "blend"])
def test_noise_that_cancels_cannot_be_normalised(norm: str) -> None:
    opposite = torch.stack([LATENTS[0], -LATENTS[0]])
    told = "lie opposite" if norm == "slerp" else "degenerate"
    with pytest.raises(ValueError, match=told):
        interpolate(opposite, [0.5, 0.5], norm, "none")
    three = torch.cat([LATENTS[:2], -LATENTS[:2].sum(0, keepdim=True)])
    with pytest.raises(ValueError, match=told):
        interpolate(*((opposite, [0.3, 0.7]) if norm == "slerp" else (three, [1 / 3] * 3)), norm, "none")
    for z, mean in ((torch.ones(5, *SHAPE) * 100.1, "channel"), (LATENTS, "lowpass")):  # nothing is left beside d
        with pytest.raises(ValueError, match=r"degenerate|is zero and has no direction"):
            interpolate(z, [0.2] * 5, norm, mean, kept=6)
    assert interpolate(opposite, [0.5, 0.5], "none", "none").abs().max() == 0


def test_what_else_is_told() -> None:
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale of pure noise is above 0"):
            interpolate(LATENTS, [0.2] * 5, scale=scale)
    with pytest.raises(ValueError, match="keeps 1 frequency or more a side, not 0"):
        interpolate(LATENTS, [0.2] * 5, mean="lowpass", kept=0)
    with pytest.raises(ValueError, match="one shape"):
        slerp(LATENTS[0], LATENTS[0, :, :4], 0.5)
    with pytest.raises(ValueError, match="zero latent has no direction"):
        slerp(LATENTS[0], torch.zeros(SHAPE), 0.5)
    with pytest.raises(ValueError, match="lie opposite one another"):
        slerp(LATENTS[0], -2 * LATENTS[0], 0.5)
    with pytest.raises(ValueError, match="latents 1 of 2 are not finite"):
        slerp(LATENTS[0], LATENTS[0] / 0, 0.5)
