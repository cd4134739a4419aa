"""What a geometry guide learns from and what it reaches; samples of known worlds follow it."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.controls.geometry_guidance import GeometryGuide, steered
from diffprobe.controls.guide_labels import Labels, LabelSettings, labelled, ladder
from diffprobe.controls.guide_training import GuideSettings, judged, train_guide
from diffprobe.errors import UserError
from diffprobe.measures.geometry import directions, jacobian_spectrum, local_scaling
from diffprobe.model import Model
from diffprobe.paths import NoisePath, VariancePreserving
from diffprobe.sampling import final, start, trajectory
from tests.guides import PATHS, SHAPE, Bent, drawn, gaussian, psi_of, told, untrained

SMALL = GuideSettings(LabelSettings(levels=5, directions=48, target="noised"), width=16, steps=150, seed=1)


@pytest.fixture(scope="module")
def bent() -> Model:
    denoiser, _ = gaussian(PATHS[0])
    return Model("bent", path=PATHS[0], denoiser=denoiser, codec=Bent(), shape=SHAPE, identity={"weights": "bent"})


@pytest.fixture(scope="module")
def trained(bent: Model) -> GeometryGuide:
    return train_guide(bent, latents=drawn(240), settings=SMALL)


def test_labels_are_psi_at_the_noised_latent(bent: Model) -> None:
    """Of all 48 outputs the projection leaves nothing out: psi is the sum of log sigmoid."""
    settings = LabelSettings(levels=3, directions=500, target="noised")
    labels = labelled(bent, drawn(20), settings)
    for level in range(3):
        z = labels.noised(torch.arange(20), level)
        assert torch.allclose(labels.psi[:, level], psi_of(z).double(), atol=1e-4)
        noise = rng.normal(SHAPE, f"guide.noise.0.{level}", range(20))
        ratio = labels.log_ratio[:, level].exp().reshape(-1, 1, 1, 1)
        alpha, sigma = (1 + ratio**2).rsqrt(), (1 + ratio**-2).rsqrt()
        assert torch.allclose(z.double(), alpha * drawn(20) + sigma * noise, atol=1e-5)
    clean = labelled(bent, drawn(20), replace(settings, target="clean"))
    assert torch.allclose(clean.psi, psi_of(drawn(20)).double()[:, None].expand(20, 3), atol=1e-4)
    assert torch.equal(clean.log_ratio, labels.log_ratio)
    few = labelled(bent, drawn(20), replace(settings, directions=7, direction_seed=3))
    spectrum = jacobian_spectrum(lambda z: 2 * Bent().decode(z) - 1, labels.noised(torch.arange(20), 1), directions(48, 7, 3))
    assert torch.allclose(few.psi[:, 1], local_scaling(spectrum), atol=1e-6)
    assert (settings.cost(100), replace(settings, target="clean").cost(100)) == (150_000, 50_000)


@pytest.mark.parametrize("path", [*PATHS, VariancePreserving.from_betas([0.1] * 50)])
def test_levels_are_drawn_from_the_paths_own(path: NoisePath) -> None:
    logs = ladder(path)
    known = {round(math.log(float(path.ratio(t))), 9) for t in path.levels(50) if math.isfinite(float(path.ratio(t)))}
    assert np.isfinite(logs).all()
    assert (np.diff(logs) < 0).all()
    if len(logs) == 50:
        assert {round(value, 9) for value in logs.tolist()} == known
    else:
        assert len(logs) in (999, 1000)
        assert logs.max() >= max(known) - 1e-9


def test_an_images_labels_do_not_depend_on_the_others(bent: Model) -> None:
    settings = LabelSettings(levels=2, directions=48, target="noised")
    many, few = labelled(bent, drawn(40), settings), labelled(bent, drawn(23), settings)
    assert torch.equal(many.log_ratio[:23], few.log_ratio)
    assert torch.allclose(many.psi[:23], few.psi, atol=1e-6)
    assert not torch.equal(labelled(bent, drawn(23), replace(settings, seed=1)).log_ratio, few.log_ratio)


def test_broken_labelling_goes_on(bent: Model, tmp_path: Path) -> None:
    settings, cache = LabelSettings(levels=2, directions=48, target="noised"), tmp_path / "kept" / "labels.safetensors"
    whole, asked, limit = labelled(bent, drawn(40), settings), [0], [10**6]

    class Failing(Bent):
        def decode(self, latents: Tensor) -> Tensor:
            asked[0] += 1
            if asked[0] > limit[0]:
                raise KeyboardInterrupt
            return super().decode(latents)

    failing = replace(bent, codec=Failing())
    labelled(failing, drawn(40), settings)
    calls, limit[0] = asked[0], asked[0] + asked[0] * 3 // 4
    with pytest.raises(KeyboardInterrupt):
        labelled(failing, drawn(40), settings, cache)
    asked[0], limit[0] = 0, 10**6
    assert torch.equal(labelled(failing, drawn(40), settings, cache).psi, whole.psi)
    assert 0 < asked[0] < calls, "what was measured before the break is not measured again"
    asked[0] = 0
    assert torch.equal(labelled(failing, drawn(40), settings, cache).psi, whole.psi)
    assert asked[0] == 0
    for other in (replace(settings, seed=5), replace(settings, directions=20)):
        with pytest.raises(UserError, match="holds the labels of other images"):
            labelled(bent, drawn(40), other, cache)
    cache.write_bytes(b"no labels")
    with pytest.raises(UserError, match="holds no labels that can be read"):
        labelled(bent, drawn(40), settings, cache)


def test_a_guide_learns_and_is_the_same_each_time(bent: Model, trained: GeometryGuide) -> None:
    short, before, state = replace(SMALL, steps=3), torch.get_rng_state(), repr(np.random.get_state())
    one, two = (train_guide(bent, latents=drawn(30), settings=short) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert train_guide(bent, latents=drawn(30), settings=replace(short, seed=2)).fingerprint != one.fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == state
    pictures = torch.cat([Bent().decode(part) for part in drawn(30).split(7)])
    assert train_guide(bent, pictures, short).edges == pytest.approx(one.edges, abs=1e-4)
    found = trained.quality
    assert found["balanced_accuracy_lo"] > 0.3 > 1 / 5
    assert found["rank_correlation"] > 0.8
    assert found["within_levels_lo"] > 0.6
    assert all(
        found[f"{name}_lo"] <= found[name] <= found[f"{name}_hi"] for name in ("balanced_accuracy", "rank_correlation", "within_levels")
    )
    assert (trained.labels["target"], trained.labels["images"], trained.labels["model"]) == ("noised", 240, "bent")
    assert trained.edges[0] < trained.centre < trained.edges[-1]


def test_a_guide_is_judged_on_what_it_says() -> None:
    """A network whose head is set to say the truth, one that says one bin, and labels that are the level's alone."""
    guide, rows = untrained(), torch.arange(40)
    network = guide.network
    logs = torch.from_numpy(rng.stream("test.guide.levels", 0).uniform(-2, 2, (40, 3)))
    blank = Labels(drawn(40), logs, torch.zeros(40, 3, dtype=torch.float64), LabelSettings(levels=3))
    parts = [network(blank.noised(rows, j), logs[:, j].float()).softmax(1) for j in range(3)]
    chances = torch.stack(parts, 1).detach()
    said = chances @ guide.centres
    middles = torch.tensor(guide.edges[:-1]).double() + 0.5
    right = judged(guide, blank._replace(psi=middles[chances.argmax(2)]), rows)
    assert right.balanced_accuracy.value == 1
    follows = judged(guide, blank._replace(psi=said.double()), rows)
    assert follows.rank_correlation.value == pytest.approx(1)
    assert follows.within_levels.value == pytest.approx(1)
    levelled = judged(guide, blank._replace(psi=-torch.floor(logs / 10) - logs), rows)
    assert abs(levelled.within_levels.value) < abs(levelled.rank_correlation.value) + 0.3
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]))
    dull = judged(guide, blank._replace(psi=middles[torch.arange(120).reshape(40, 3) % 5]), rows)
    assert dull.balanced_accuracy.value == pytest.approx(0.2), "one bin of five"
    assert dull.rank_correlation.value == 0


@pytest.fixture(scope="module")
def foreseeing(bent: Model) -> GeometryGuide:
    return train_guide(bent, latents=drawn(240), settings=replace(SMALL, labels=replace(SMALL.labels, target="clean")))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("which", ["trained", "foreseeing"])
def test_psi_of_samples_moves_with_the_strength(path: NoisePath, which: str, request: pytest.FixtureRequest) -> None:
    """Exact denoisers on three paths, the psi of whose decoder is known: paired samples, one guide for all paths."""
    guide: GeometryGuide = request.getfixturevalue(which)
    denoiser, _ = gaussian(path)
    times = path.levels(20)
    x = start(path, times[0], SHAPE, range(48))
    found = []
    for strength in (-2.0, -1.0, 0.0, 1.0, 2.0):
        with torch.no_grad():
            found.append(psi_of(final(trajectory(steered(denoiser, path, guide, strength), path, x, times))))
    means = [float(one.mean()) for one in found]
    assert means == sorted(means)
    assert all(float((after - before).mean()) > 4 * float((after - before).std()) / 48**0.5 for before, after in pairwise(found))


def test_bad_training(bent: Model) -> None:
    z, small = drawn(20), GuideSettings(LabelSettings(levels=2, directions=48, target="noised"), width=16, steps=1)
    told("needs a codec; bent has none", lambda: train_guide(replace(bent, codec=None), torch.zeros(20, 3, 4, 4), small))
    told("needs a codec; bent has none", lambda: train_guide(replace(bent, codec=None), latents=z, settings=small))
    told("needs a path; bent has none", lambda: train_guide(replace(bent, path=None), latents=z, settings=small))
    told("give one of the two", lambda: train_guide(bent, settings=small))
    told("give one of the two", lambda: train_guide(bent, z, latents=z, settings=small))
    told("20 images or more, not 19", lambda: train_guide(bent, latents=drawn(19), settings=small))
    told(r"these latents are \[1, 5, 4\], and bent's are \[1, 4, 4\]", lambda: train_guide(bent, latents=torch.zeros(20, 1, 5, 4)))
    told(r"latents \[n, C, h, w\], not \[20, 16\]", lambda: train_guide(replace(bent, shape=None), latents=torch.zeros(20, 16)))
    told("stretches alike everywhere", lambda: train_guide(exact_model("gmm"), latents=z, settings=small))
    told("psi is not finite|cannot be measured", lambda: train_guide(replace(bent, codec=Dead()), latents=z, settings=small))
    told("cannot be measured", lambda: train_guide(replace(bent, codec=Cut()), latents=z, settings=small))
    told("levels and directions are 1 or more", lambda: LabelSettings(levels=0))
    told("unknown target 'noisy'", lambda: LabelSettings(target="noisy"))  # type: ignore[arg-type]
    told("a guide needs 2 bins or more", lambda: GuideSettings(bins=1))
    told("from 0.05 to 0.5", lambda: GuideSettings(held_out=0.9))


class Dead(Bent):
    """nan wherever one looks."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents) * torch.nan


class Cut(Bent):
    """No gradient passes."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).detach()
