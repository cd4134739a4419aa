"""What latents share and how mixing amplifies it: the law against simulated latents, coverage of every interval, signatures of noise."""

from __future__ import annotations

import math
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.interpolation import (
    Alignment,
    Amplified,
    Misalignment,
    Scheme,
    Signature,
    alignment,
    amplification,
    amplified,
    misalignment,
    mix,
    signature,
    split,
    white_noise,
)
from diffprobe.validate import VALIDATIONS

VALIDATION = sys.modules[VALIDATIONS["interpolation"].__module__]
OFFSET = torch.tensor([0.3, -0.2, 0.1, 0.4])[:, None, None]
SHARED = float(OFFSET.square().mean())
SHAPE = (4, 8, 8)


def latents(count: int, *, shape: tuple[int, int, int] = SHAPE, offset: float | Tensor = OFFSET, own: float = 0.0, seed: int = 0) -> Tensor:
    """White noise with an offset that all share, and one of each image and channel."""
    draws = rng.stream("test.bias", seed)
    z = draws.standard_normal((count, *shape)) + own * draws.standard_normal((count, shape[0], 1, 1))
    return torch.from_numpy(z).float() + offset


# The law


def test_the_law_of_the_study() -> None:
    """Channel 0 of 16,384 entries, of which four channels share the offsets .03, -.02, .01 and .04."""
    shared = (0.03**2 + 0.02**2 + 0.01**2 + 0.04**2) / 4
    found = 0.03 * amplification([8, 32, 64, 96, 256, 1000], shared)
    assert found.tolist() == pytest.approx([0.0846, 0.168, 0.234, 0.284, 0.440, 0.717], abs=6e-4)
    n = np.array([2.0, 50])
    assert amplification(n, shared).tolist() == pytest.approx(np.sqrt(n / (1 + n * shared)).tolist())
    assert amplification(n, 0.0).tolist() == pytest.approx(np.sqrt(n).tolist())
    assert float(amplification(1e12, shared)) == pytest.approx(shared**-0.5)
    assert amplification(1, 0.2, 1.7).tolist() == pytest.approx(1.7**-0.5)


@pytest.mark.parametrize("count", [8, 64, 256])
def test_simulated_latents_follow_it(count: int) -> None:
    """In expectation: the mean over repeats of a channel's mean, within four of its errors; "nin" has the mean length on top."""
    shape, d = (4, 32, 32), torch.tensor([0.06, -0.04, 0.02, 0.08])[:, None, None]
    shared, repeats = float(d.square().mean()), 24
    ones = torch.full((1, count), 1 / count)
    error = float(amplification(count, shared)) / math.sqrt(count * 1024 * repeats)
    seen: dict[str, list[Tensor]] = {"fix": [], "nin": [], "nin/channel": [], "fix/channel": [], "fix/global": []}
    for repeat in range(repeats):
        z = latents(count, shape=shape, offset=d, seed=repeat)
        for name, found in seen.items():
            found.append(mix(z, ones, Scheme.parse(name)).latents[0].mean((1, 2)))
    means = {name: torch.stack(found).double().mean(0) for name, found in seen.items()}
    law = float(amplification(count, shared)) * d.flatten().double()
    assert torch.allclose(means["fix"], law, atol=4 * error)
    assert torch.allclose(means["nin"], law * math.sqrt(1 + shared), atol=4 * error)
    for name in ("nin/channel", "fix/channel"):
        assert torch.allclose(means[name], d.flatten().double(), atol=4 / math.sqrt(count * 1024 * repeats))
    rest = d.flatten().double() - d.double().mean()  # a global mean leaves the differences of channels to be amplified
    left = d.double().mean() + float(amplification(count, float(rest.square().mean()))) * rest
    assert torch.allclose(means["fix/global"], left, atol=4 * error)


def test_weights_that_differ_count_as_their_effective_number() -> None:
    d, w = 0.2, torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]], dtype=torch.float64)
    n = float(1 / w.square().sum())
    found = [mix(latents(6, shape=(1, 32, 32), offset=d, seed=seed), w, Scheme("fix", "none")) for seed in range(40)]
    means = torch.stack([one.latents.double().mean() for one in found])
    alpha = float(amplification(n, d**2))
    assert float(means.mean()) == pytest.approx(alpha * d, abs=4 * alpha / math.sqrt(n * 1024 * 40))
    assert np.mean([float(one.amplification) for one in found]) == pytest.approx(alpha, rel=0.01)
    assert np.mean([float(one.before) for one in found]) == pytest.approx(1 / alpha, rel=0.01)


def test_a_shared_pattern_is_amplified_as_an_offset_is() -> None:
    """One of low frequency without a mean: b² is all that is shared. A low-pass leaves it as it is, means of channels do not touch it."""
    wave = 0.5 * torch.cos(math.pi * (torch.arange(24) + 0.5) / 24).expand(4, 24, 24)
    shared = float(wave.square().mean())
    ones = torch.full((1, 64), 1 / 64)
    seen: dict[str, list[float]] = {"fix": [], "fix/channel": [], "fix/lowpass": []}
    for seed in range(12):
        z = latents(64, shape=(4, 24, 24), offset=wave, seed=seed)
        for name, found in seen.items():
            mixed = mix(z, ones, Scheme.parse(name)).latents[0]
            found.append(float((mixed * wave).mean()) / shared)
    alpha = float(amplification(64, shared))
    error = alpha / math.sqrt(64 * 4 * 24 * 24 * 12 * shared)
    assert np.mean(seen["fix"]) == pytest.approx(alpha, abs=4 * error)
    assert np.mean(seen["fix/channel"]) == pytest.approx(alpha, abs=4 * error)
    assert np.mean(seen["fix/lowpass"]) == pytest.approx(1, abs=4 * error)


# What is shared


def test_an_alignment_has_the_inner_products() -> None:
    z = latents(7)
    found = alignment(z, scale=1.6)
    wide = z.double() / 1.6
    low = split(z, "lowpass")[0].double() / 1.6
    assert np.allclose(found.gram, torch.einsum("pchw,qchw->pq", wide, wide), rtol=1e-12)
    assert np.allclose(found.lowpass, torch.einsum("pchw,qchw->pq", low, low), rtol=1e-5)
    assert np.allclose(found.channels, wide.mean((2, 3)), atol=1e-8)
    assert (found.size, found.area) == (256, 64)
    assert np.allclose(alignment(z, kept=1).lowpass, 64 * alignment(z).channels @ alignment(z).channels.T, atol=1e-6)
    with pytest.raises(ValueError, match="latents 2 of 7 are not finite"):
        alignment(z.index_fill(0, torch.tensor(2), math.nan))


def test_what_is_shared_is_a_mean_over_pairs() -> None:
    z = latents(6)
    found = misalignment(alignment(z, kept=2))
    parts = {"total": z.double(), "lowpass": split(z, "lowpass", kept=2)[0].double()}
    parts |= {"global_": split(z, "global")[0].double(), "channel": split(z, "channel")[0].double()}
    for name, part in parts.items():
        pairs = [float((part[i] * part[j]).mean()) for i in range(6) for j in range(i)]
        assert getattr(found, name).value == pytest.approx(float(np.mean(pairs)), rel=1e-5)
    powers = z.double().square().mean((1, 2, 3))
    half = 2.570582 * float(powers.std()) / math.sqrt(6)
    assert found.power == pytest.approx((float(powers.mean()), float(powers.mean()) - half, float(powers.mean()) + half), rel=1e-5)


def test_what_is_not_shared_is_in_none_of_it() -> None:
    """Offsets of each image, ten times as large as what they share."""
    found = misalignment(alignment(latents(400, offset=0.05, own=0.5)))
    for part in found[:4]:
        assert part.lo < 0.05**2 < part.hi
        assert part.hi < 0.2 * 0.5**2
    assert found.power.value == pytest.approx(1 + 0.05**2 + 0.25, rel=0.05)


def test_a_narrower_level_and_too_few_images() -> None:
    seen = alignment(latents(9))
    wide, narrow = misalignment(seen), misalignment(seen, level=0.5)
    assert all(w.lo < n.lo < n.value < n.hi < w.hi for w, n in zip(wide, narrow, strict=True))
    two, one = (misalignment(alignment(latents(count))) for count in (2, 1))
    assert math.isfinite(two.total.value)
    assert math.isnan(two.total.lo)
    assert math.isnan(one.total.value)
    assert math.isfinite(one.power.value)


@cache
def covered(count: int, offset: float, own: float) -> dict[str, float]:
    trials = 400
    hits = dict.fromkeys(Misalignment._fields, 0)
    truth = dict.fromkeys(Misalignment._fields, offset**2) | {"power": 1 + offset**2 + own**2}
    for trial in range(trials):
        found = misalignment(alignment(latents(count, offset=offset, own=own, seed=trial)))
        for name, interval in found._asdict().items():
            hits[name] += interval.lo <= truth[name] <= interval.hi
    return {name: hit / trials for name, hit in hits.items()}


@pytest.mark.parametrize("count", [16, 64])
@pytest.mark.parametrize(("offset", "own"), [(0.1, 0.05), (0.1, 0.2), (0.3, 0.1)])
def test_intervals_of_what_is_shared_cover(count: int, offset: float, own: float) -> None:
    found = covered(count, offset, own)
    assert all(0.92 <= found[name] <= 0.98 for name in ("total", "global_", "power")), found
    assert 0.91 <= found["channel"] <= 0.98, found
    assert 0.92 <= found["lowpass"] <= 0.99, found


@pytest.mark.parametrize("own", [0.0, 0.1])
def test_where_nothing_is_shared_they_cover_in_excess(own: float) -> None:
    found = covered(16, 0.0, own)
    assert all(0.93 <= share <= 0.998 for share in found.values()), found


# Centroids of a pool


SIZES = (2, 4, 8, 16, 32, 64)


def test_centroids_of_all_images_are_one() -> None:
    z = latents(12)
    found = amplified(alignment(z, scale=1.3), (12, 16), draws=3)
    centroid = mix(z, torch.full((1, 12), 1 / 12), Scheme("fix", "none"), scale=1.3).latents[0] / 1.3
    assert np.allclose(found.observed[0], centroid.mean((1, 2)), atol=1e-6)
    assert np.isnan(found.observed[1]).all()
    assert np.isnan(found.lo[1]).all()
    assert np.isfinite(found.lo[0]).all()
    assert np.isfinite(found.foretold).all()
    assert math.isnan(found.shared.value)  # one size is no fit
    assert np.isnan(amplified(alignment(z), (20, 30), draws=3).r2).all()
    assert np.isnan(found.r2).all()


def test_the_law_is_foretold_and_found() -> None:
    """96 images: the fit, the law without a free parameter, and the root that knows no end."""
    seen = alignment(latents(96, own=0.1))
    found, power = amplified(seen, SIZES), misalignment(seen).power.value
    truth = amplification(SIZES, SHARED, 1 + SHARED + 0.01)[:, None] * OFFSET.flatten().numpy()
    assert found.sizes == SIZES
    assert np.abs(found.observed - truth).max() < 0.1
    assert np.abs(found.foretold / found.observed - 1).max() < 0.08
    assert np.allclose(found.root, np.sqrt(np.array(SIZES) / power)[:, None] * seen.channels.mean(0))
    assert found.root[-1, 3] > 2 * found.observed[-1, 3]
    assert found.r2.min() > 0.97
    assert found.r2_foretold.min() > 0.95
    assert found.shared.lo < SHARED < found.shared.hi
    assert np.allclose([one.value for one in found.offset], OFFSET.flatten(), atol=0.05)


def same(a: Amplified, b: Amplified) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in zip(a, b, strict=True))


def test_draws_have_an_address() -> None:
    seen = alignment(latents(20))
    first = amplified(seen, (2, 8), draws=20)
    assert same(amplified(seen, (2, 8), draws=20), first)
    assert same(amplified(seen, (2, 8, 8), draws=20), first)
    assert np.array_equal(amplified(seen, (8, 4), draws=20).observed[0], first.observed[1])
    assert not same(amplified(seen, (2, 8), draws=20, seed=1), first)
    assert (amplified(seen, (2, 8), draws=20, level=0.5).hi < first.hi).all()


def test_few_images_have_no_limits() -> None:
    found = amplified(alignment(latents(7)), (2, 4))
    assert np.isfinite(found.observed).all()
    assert np.isnan([found.lo, found.hi]).all()
    assert math.isfinite(found.shared.value)
    assert math.isnan(found.shared.lo)
    assert np.isfinite(amplified(alignment(latents(8)), (2, 4)).lo).all()


def test_intervals_of_centroids_cover() -> None:
    """The fitted b² and offsets, and what is observed: 95 % are wanted, and 80 pools of 32 images tell it to 2.5 points."""
    trials, own = 80, 0.1
    truth = amplification(SIZES[:5], SHARED, 1 + SHARED + own**2)[:, None] * OFFSET.flatten().numpy()
    shared, offsets, observed = 0, np.zeros(4), np.zeros(truth.shape)
    for trial in range(trials):
        found = amplified(alignment(latents(32, own=own, seed=1000 + trial)), SIZES[:5], draws=100)
        shared += found.shared.lo <= SHARED <= found.shared.hi
        offsets += [one.lo <= float(d) <= one.hi for one, d in zip(found.offset, OFFSET.flatten(), strict=True)]
        observed += (found.lo <= truth) & (truth <= found.hi)
    assert 0.90 <= shared / trials <= 0.99
    assert 0.90 <= offsets.mean() / trials <= 0.98
    assert 0.90 <= observed.mean(1).min() / trials <= observed.mean(1).max() / trials <= 0.99


@pytest.mark.parametrize(("sizes", "draws"), [((), 10), ((0, 2), 10), ((2,), 0)])
def test_centroids_of_nothing(sizes: tuple[int, ...], draws: int) -> None:
    with pytest.raises(ValueError, match="centroids are of 1 or more latents, drawn at least once"):
        amplified(alignment(latents(9)), sizes, draws=draws)


def test_an_alignment_may_be_rebuilt_with_fewer_images() -> None:
    """From rows that were stored, of which some were flagged."""
    z, kept = latents(12), np.array([0, 2, 3, 5, 7, 8, 9, 10, 11])
    whole = alignment(z)
    fewer = Alignment(whole.gram[np.ix_(kept, kept)], whole.lowpass[np.ix_(kept, kept)], whole.channels[kept], whole.size, whole.area)
    for one, other in zip(misalignment(fewer), misalignment(alignment(z[kept])), strict=True):
        assert one == pytest.approx(other, abs=1e-9)


# Signatures


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 5, 9), (1, 1, 64)])
def test_white_noise_scatters_as_it_should(shape: tuple[int, int, int]) -> None:
    """Means within 4.5 errors of what pure noise has, deviations within 6 % of the closed forms."""
    trials = 4000
    found, wanted = signature(1.7 * rng.normal(shape, "test.white", range(trials)), scale=1.7), white_noise(shape)
    centres = Signature(*map(torch.tensor, (1 - 0.25 / math.prod(shape), 0.0, 1 - 0.25 / (shape[1] * shape[2] - 1), 0.0, 0.0, 1.0)))
    for name, values in found._asdict().items():
        seen, sd = values.double(), getattr(wanted, name).double()
        valid = ~seen.isnan().any(0)
        assert bool(valid.all()) or name == "spectrum"
        gap = ((seen.mean(0) - getattr(centres, name)) / sd * math.sqrt(trials))[valid]
        assert float(gap.abs().max()) < (4.5 if name != "channel_std" else 6), name
        assert float((seen.std(0) / sd - 1)[valid].abs().max()) < 0.06, name


def test_deviations_of_white_noise() -> None:
    found = white_noise((4, 128, 128))
    assert float(found.norm) == pytest.approx(1 / math.sqrt(2 * 65536))
    assert float(found.channel_mean) == 1 / 128
    assert float(found.kurtosis) == pytest.approx(math.sqrt(24 / 65536), rel=0.001)
    assert float(found.correlation) == pytest.approx(1 / math.sqrt(2 * 65536), rel=0.01)
    assert found.spectrum.shape == (8,)
    assert white_noise((4, 128, 128), bins=5).spectrum.shape == (5,)
    for one, mean in zip(found, white_noise((4, 128, 128), 16), strict=True):
        assert torch.allclose(one, 4 * mean)


def test_what_is_no_noise_is_seen() -> None:
    shape = (2, 4, 32, 32)
    noise = rng.normal(shape[1:], "test.seen", range(2))
    wanted = white_noise(shape[1:])
    uniform = torch.from_numpy(rng.stream("test.uniform").random(shape)).float()
    assert signature(uniform).kurtosis.tolist() == pytest.approx([-1.2, -1.2], abs=0.05)
    smooth = signature(split(noise, "lowpass", kept=16)[0])
    assert float((smooth.correlation / wanted.correlation).min()) > 20
    assert smooth.spectrum[:, :3].min() > 0.5
    assert smooth.spectrum[:, -1].max() < 0.1
    moved = signature(noise + OFFSET)
    assert torch.allclose(moved.channel_mean, signature(noise).channel_mean + OFFSET.flatten(), atol=1e-6)
    for name in ("channel_std", "kurtosis", "correlation", "spectrum"):  # they do not see an offset
        assert torch.allclose(getattr(moved, name), getattr(signature(noise), name), atol=1e-5)
    assert torch.allclose(moved.norm.square(), signature(noise).norm.square() + SHARED, atol=0.02)
    i = torch.arange(32)
    board = (2.0 * ((i[:, None] + i) % 2) - 1).expand(1, 4, 32, 32)
    assert float(signature(board).correlation) == pytest.approx(-1 + 1 / 1023)
    assert signature(board).spectrum[0].tolist() == pytest.approx([0] * 7 + [1024 / counts(32, 8)[-1]], abs=1e-6)
    stripes = torch.cos(2 * math.pi * 5 * i / 32).expand(1, 4, 32, 32)  # 5 / 32 of a cycle: in the bin (4/32, 6/32], which is the third
    assert int(signature(stripes).spectrum[0].argmax()) == 2
    assert float(signature(stripes).spectrum[0, 2]) == pytest.approx(1024 / 2 / counts(32, 8)[2], rel=1e-5)


def counts(side: int, bins: int) -> list[int]:
    """How many frequencies lie in each bin."""
    f = np.abs(np.fft.fftfreq(side))
    radius = np.hypot(f[:, None], f).ravel()[1:]
    edges = np.arange(bins + 1) / (2 * bins)
    edges[-1] = 1
    return [int(((radius > low + 1e-9) & (radius <= high + 1e-9)).sum()) for low, high in pairwise(edges)]


def test_the_spectrum_holds_the_power_beside_the_means() -> None:
    z = latents(3, shape=(4, 10, 14))
    means = signature(z, bins=6)
    f = [np.abs(np.fft.fftfreq(side)) for side in (10, 14)]
    radius = np.hypot(f[0][:, None], f[1]).ravel()[1:]
    number = np.bincount(np.minimum(np.ceil(radius * 12 - 1e-9).astype(int) - 1, 5), minlength=6)
    spread = (z - z.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)) * 140
    assert torch.allclose((means.spectrum * torch.from_numpy(number)).sum(1).float(), spread, rtol=1e-5)


def test_rows_are_told_alone_and_in_their_units() -> None:
    z = latents(5)
    whole = signature(z)
    for name, values in whole._asdict().items():
        assert torch.allclose(torch.cat([getattr(signature(one[None]), name) for one in z]), values, rtol=1e-6, equal_nan=True), name
        assert torch.allclose(getattr(signature(8 * z.double(), scale=8), name), values, atol=1e-6, equal_nan=True), name
        assert values.dtype == torch.float32
    assert whole.spectrum.shape == (5, 8)
    assert torch.allclose(whole.norm, z.flatten(1).norm(dim=1) / 16)
    assert torch.allclose(whole.channel_std, z.std((2, 3)))


def test_what_has_no_signature() -> None:
    flat = signature(torch.ones(1, 2, 4, 4))
    assert flat.kurtosis.isnan().all()
    assert flat.correlation.isnan().all()
    assert flat.spectrum[0].isnan().tolist() == [count == 0 for count in counts(4, 8)]
    assert float(flat.norm) == 1
    single = signature(torch.ones(1, 2, 1, 1))
    assert single.spectrum.isnan().all()
    assert single.kurtosis.isnan().all()
    with pytest.raises(ValueError, match="at least 1 bin, not 0"):
        signature(latents(1), bins=0)
    with pytest.raises(ValueError, match="latents 1 of 2 are not finite"):
        signature(latents(2).index_fill(0, torch.tensor(1), math.inf))


# The known answers of `diffprobe validate`, of which tests/test_validate.py runs all


@pytest.mark.parametrize("part", ["_inputs", "_lengths", "_sphere", "_pool", "_signature"])
def test_the_known_answers_hold(part: str) -> None:
    checks = list(getattr(VALIDATION, part)())
    assert len(checks) > 3
    assert not [check for check in checks if not check.holds]


def test_a_law_that_does_not_saturate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VALIDATION, "amplification", lambda n, shared: np.sqrt(n))
    wrong = {check.what for check in VALIDATION._law() if not check.holds}
    assert {f"law, mean of channel 0 for n = {n}" for n in (32, 64, 96, 256, 1000)} <= wrong
    assert {f"{scheme}: the offset's factor in centroids of 192 latents" for scheme in ("fix", "nin")} <= wrong
    assert not [what for what in wrong if "nin/channel" in what]
