"""Worlds as models: the editor against closed forms on every path, prompts and generation, names; the synthetic decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.decoders import LowRankCodec, local_geometry
from diffprobe.adapters.exact import (
    PATHS,
    WORLDS,
    ExactEditor,
    LinearCodec,
    World,
    as_model,
    exact_model,
    exact_world,
    four_classes,
    named_classes,
    three_groups,
    three_scales,
)
from diffprobe.adapters.mixtures import isotropic
from diffprobe.adapters.piecewise import PiecewiseLinearCodec
from diffprobe.adapters.synthetic import Kind, Synthetic, synthetic_kernel
from diffprobe.errors import UserError
from diffprobe.measures.drift import gaussian_drift
from diffprobe.model import EditSettings, GenerateSettings
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, transition

SD = VariancePreserving.scaled_linear()


def stepped_drift(path: NoisePath, times: Sequence[float], variances: Tensor, gains: Tensor, eta: float) -> float:
    """The expected drift of the editor's own steps: they are linear in each direction of a Gaussian, z' = carry z_t + noise."""
    carry, fresh = torch.ones_like(variances), torch.zeros_like(variances)
    for t, s in zip(times, (*times[1:], path.end), strict=True):
        a = path.alpha(t)
        gain = a * variances / (a**2 * variances + path.sigma(t) ** 2)
        part = transition(path, s, t)
        turned = (path.sigma(s) ** 2 - eta * part.variance).clamp(min=0).sqrt() / path.sigma(t)
        factor = turned + (path.alpha(s) - turned * a) * gain
        carry, fresh = factor * carry, factor**2 * fresh + eta * part.variance
    moved = (carry * path.alpha(times[0]) - 1) ** 2 * variances + (carry * path.sigma(times[0])) ** 2 + fresh
    return float((gains * moved).sum())


@pytest.mark.parametrize("method", ["ode", "sample", "mean"])
@pytest.mark.parametrize("name", ["gaussian", "gaussian@ve", "gaussian@flow", "low-rank", "low-rank@flow"])
def test_drift_of_the_editor_is_what_its_steps_must_give(name: str, method: Literal["ode", "sample", "mean"]) -> None:
    world, path = exact_world(name), exact_model(name).path
    codec, variances = world.codec, world.mixture.variances[0]
    assert isinstance(codec, LinearCodec | LowRankCodec)
    assert path is not None
    editor = ExactEditor(world.mixture.denoiser(path), codec, path, named_classes(world.mixture), method)
    z0 = world.mixture.sample(range(500))[0].reshape(500, *codec.latent)
    for strength in (0.3, 0.6):
        edited = editor.edit(z0, ["Make no change."] * 500, range(500), EditSettings(strength, 80, 1.0))
        measured = float((edited.images - codec.decode(z0)).square().mean())
        if method == "mean":
            exact = float(gaussian_drift(variances, codec.gains, edited.level.sigma**2, method))
        else:
            exact = stepped_drift(path, path.levels(80)[-edited.level.steps :], variances, codec.gains, float(method == "sample"))
        # 8 of the directions carry nearly all of it: relative standard error about sqrt(2 / 500 / 8) = 2.2 %
        assert measured == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("path", [VariancePreserving(SD.alphas_cumprod, end=-1.0), VarianceExploding(), RectifiedFlow()])
def test_drift_of_the_editors_steps_converges_to_the_closed_form(path: NoisePath, eta: float) -> None:
    """No Monte Carlo, so the limit can be seen."""
    variances = three_scales().variances[0]
    gains = torch.ones(64, dtype=torch.float64) / 64
    errors = []
    for n in (50, 200, 800):
        times = path.time(torch.logspace(0, -3, n, dtype=torch.float64)).tolist()
        exact = float(gaussian_drift(variances, gains, float(path.ratio(times[0])) ** 2, "sample" if eta else "ode"))
        errors.append(abs(stepped_drift(path, times, variances, gains, eta) / exact - 1))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01


def test_small_noise_and_saturation_of_the_closed_form() -> None:
    variances, gains = three_scales().variances[0], torch.full((64,), 1 / 64)
    n = 1e-8
    assert float(gaussian_drift(variances, gains, n, "ode")) == pytest.approx(n, rel=1e-3)
    assert float(gaussian_drift(variances, gains, n, "sample")) == pytest.approx(2 * n, rel=1e-3)
    assert float(gaussian_drift(variances, gains, 1e12, "ode")) == pytest.approx(2 * float((gains * variances).sum()), rel=1e-3)


def test_toy_drift_at_the_published_strength() -> None:
    """64 directions of equal gain 1/64, strength .4 of 100 steps (t = 391): the decoder alone would give 1.268."""
    sigma = float(SD.ratio(SD.levels(100)[60]))
    assert sigma**2 == pytest.approx(1.268, abs=0.05)
    drift = float(gaussian_drift(three_scales().variances[0], torch.full((64,), 1 / 64), sigma**2, "ode"))
    assert drift == pytest.approx(0.1083, rel=0.05)


def test_an_editor_that_changes_nothing() -> None:
    model = exact_model("identity")
    assert model.editor is not None
    assert model.codec is not None
    z = rng.normal((1, 8, 8), "test", range(2))
    for strength in (0.1, 0.9):
        edited = model.editor.edit(z, ["x", "y"], [0, 1], EditSettings(strength, 15, 5.0))
        assert edited.latents is z
        assert torch.equal(edited.images, model.codec.decode(z))
        assert edited.level.steps == int(15 * strength)
        assert not edited.guided


@pytest.mark.parametrize("name", ["gmm", "gaussian"])
def test_edits_depend_on_seed_and_sample_alone(name: str) -> None:
    model = exact_model(name)
    assert isinstance(model.codec, LinearCodec)
    assert model.editor is not None
    z = rng.normal(model.codec.latent, "test", range(3))
    settings = EditSettings(0.6, 10, 4.0, "class 0")
    prompts = ["class 0", "nothing", "a class 0 thing"]
    whole = model.editor.edit(z, prompts, [7, 8, 9], settings)
    alone = [model.editor.edit(z[i : i + 1], [prompts[i]], [7 + i], settings) for i in (0, 1, 2)]
    assert whole.latents is not None
    assert whole.guided
    for i, one in enumerate(alone):
        assert one.latents is not None
        assert torch.equal(whole.latents[i], one.latents[0])
        assert torch.allclose(whole.images[i], one.images[0], atol=1e-6)


def test_level_of_the_editor_is_the_deployed_one() -> None:
    editor = exact_model("gaussian").editor
    assert editor is not None
    assert editor.level(0.05, 15) == (0, None, 1.0, 0.0)
    steps, t, alpha, sigma = editor.level(0.4, 15)
    assert (steps, t) == (6, 331)
    assert (alpha**2, sigma**2) == pytest.approx((0.5383, 0.8576), abs=5e-5)
    z = rng.normal((1, 8, 8), "test", [0])
    assert editor.edit(z, [""], [0], EditSettings(0.05, 15, 1.0)).latents is z


def test_named_classes_are_generated() -> None:
    model, world = exact_model("gmm"), four_classes()
    assert model.generator is not None
    assert model.codec is not None
    images = model.generator.generate([f"class {k}" for k in range(4)] * 5, range(20), GenerateSettings(60, 1.0))
    assert images.shape == (20, 3, 8, 8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    posterior = world.log_posterior(model.codec.encode(images), 1, SD)
    assert posterior.argmax(1).tolist() == list(range(4)) * 5


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("name", ["hierarchical", "relu"])
def test_what_a_prompt_asks_for_is_generated_on_every_path(name: str, path: str) -> None:
    """Decided by the exact posterior at the data; a group's samples are spread over its classes."""
    model, world = exact_model(f"{name}@{path}"), exact_world(name).mixture
    assert model.generator is not None
    assert model.codec is not None
    assert model.path is not None

    def classes(prompts: list[str]) -> list[int]:
        images = model.generator.generate(prompts, range(len(prompts)), GenerateSettings(60, 1.0))  # type: ignore[union-attr]
        latents = model.codec.encode(images)  # type: ignore[union-attr]
        return world.log_posterior(latents, 0.01, RectifiedFlow()).argmax(1).tolist()

    asked = list(range(world.classes)) * 3
    assert classes([f"class {k}" for k in asked]) == asked
    if world.groups:
        drawn = classes(["a picture of group 1"] * 40)
        assert {world.parents[k] for k in drawn} == {1}
        assert len(set(drawn)) == 3
    assert len(set(classes(["anything"] * 60))) == world.classes


def test_a_negative_prompt_and_a_size_mean_what_they_say() -> None:
    """Guidance away from the class's own neighbour; no negative prompt is the empty one; scale 1 heeds none."""
    model = exact_model("gmm")
    assert model.generator is not None
    prompts, seeds = ["class 0"] * 4, range(4)

    def images(scale: float, negative: str | None, *sides: int) -> Tensor:
        return model.generator.generate(prompts, seeds, GenerateSettings(20, scale, negative, *sides))  # type: ignore[union-attr]

    assert torch.equal(images(3.0, None), images(3.0, ""))
    assert torch.equal(images(1.0, None), images(1.0, "class 1"))
    assert torch.equal(images(3.0, None), images(3.0, None, 8, 8))
    assert torch.allclose(images(3.0, "class 0"), images(1.0, None), atol=1e-5), "away from what is asked for: nothing is left of guidance"
    away, free = images(3.0, "class 1"), images(1.0, None)
    assert model.codec is not None
    shift = model.codec.encode(away - free + 0.5).flatten(1).mean(0).double()
    means = four_classes().means
    assert float(shift @ (means[0] - means[1])) > 0.5
    alone = model.generator.generate(["class 0"], [2], GenerateSettings(20, 3.0, "class 1"))
    assert torch.allclose(away[2:3], alone, atol=1e-6)
    for sides in ((16, 8), (8, 16), (0, 8)):
        with pytest.raises(UserError, match=f"are 8 x 8 pixels, not {sides[0]} x {sides[1]}: leave height and width out"):
            images(3.0, None, *sides)
    with pytest.raises(UserError, match="not 8 x 9"):
        model.generator.generate(["class 0"], [0], GenerateSettings(20, 1.0, width=9))


def test_prompts_allow_classes_and_groups() -> None:
    condition = named_classes(three_groups())
    found = condition(["class 4", "group 1", "nothing", "class 0 of group 2", "classes 3, groups 1, class x"])
    assert found.dtype == torch.bool
    assert [torch.arange(9)[row].tolist() for row in found] == [[4], [3, 4, 5], list(range(9)), [0], list(range(9))]
    assert condition([]).shape == (0, 9)
    assert bool(named_classes(four_classes())(["group 7"]).all()), "a world without groups reads nothing into the word"


def test_levels_of_the_editor_on_the_other_paths() -> None:
    """VE: alpha 1 and EDM's grid from 80 to .002. Flow: alpha = 1 - t, where full strength has no signal left at all."""
    ve, flow = exact_model("gaussian@ve").editor, exact_model("gaussian@flow").editor
    assert ve is not None
    assert flow is not None
    assert ve.level(1.0, 15) == pytest.approx((15, 80, 1, 80))
    t = ((5 * 80 ** (1 / 7) + 9 * 0.002 ** (1 / 7)) / 14) ** 7  # the last 6 of 15 times start 9 intervals in
    assert ve.level(0.4, 15) == pytest.approx((6, t, 1, t))
    t = (6 + 8 * 0.001) / 14
    assert flow.level(0.5, 15) == pytest.approx((7, t, 1 - t, t / (1 - t)))
    assert flow.level(1.0, 15) == (15, 1.0, 0.0, float("inf"))
    for editor in (ve, flow):
        z = rng.normal((1, 8, 8), "test", [0])
        edited = editor.edit(z, [""], [0], EditSettings(1.0, 15, 1.0))
        assert bool(edited.images.isfinite().all())
        assert editor.edit(z, [""], [0], EditSettings(0.05, 15, 1.0)).latents is z


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_latents_have_unit_variance_at_most_nearly(name: str) -> None:
    """So that pure noise is where a variance-preserving path begins."""
    mixture = exact_world(name).mixture
    assert torch.allclose(mixture.weights @ mixture.means, torch.zeros(mixture.means.shape[1]).double(), atol=1e-12)
    total = float((mixture.weights @ (mixture.variances + mixture.means.square())).mean())
    if mixture.classes > 1:
        assert total == pytest.approx(1, abs=0.35)
    else:
        assert float(mixture.variances.max()) == 1


def test_four_classes_have_two_scales() -> None:
    distances = torch.cdist(four_classes().means, four_classes().means)
    assert float(distances[0, 1]) < 0.6 * float(distances[0, 2])


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_every_world_is_a_whole_model_on_every_path(name: str, path: str) -> None:
    model = exact_model(f"{name}@{path}")
    assert model.capabilities == {"path", "denoiser", "codec", "condition", "editor", "generator"}
    assert type(model.path) is type(PATHS[path]())
    assert model.name == (f"exact:{name}" if path == "vp" else f"exact:{name}@{path}")
    latents = exact_world(name).mixture.sample(range(2))[0]
    assert local_geometry(exact_world(name).codec, latents).psi.isfinite().all()


def test_codecs_of_the_worlds() -> None:
    assert isinstance(exact_world("low-rank").codec, LowRankCodec)
    assert isinstance(exact_world("relu").codec, PiecewiseLinearCodec)
    assert local_geometry(exact_world("gmm").codec, torch.zeros(1, 1, 4, 4)).trace.tolist() == pytest.approx([0.25 * 16])
    x0 = exact_world("relu").mixture.sample(range(50))[0]
    assert len(exact_world("relu").codec.singular_values(x0).round(decimals=9).unique(dim=0)) > 40, "one region holds most samples"


KNOWN = {
    "gmm": "sha256:4995e94a3e0240f4f64d60cbd670532de302c5d2b2d84c6d66dae7cee9978d94",
    "gaussian": "sha256:816228bdabacf08b43890db1e169a1f39e75501be770539508dda80fc8ee383e",
}


def test_identity_of_worlds() -> None:
    for name, digest in KNOWN.items():
        assert exact_model(name).identity == {"source": f"exact:{name}", "weights": digest}
        assert exact_model(f"{name}@vp").identity == exact_model(name).identity
    assert exact_model("identity").identity["weights"] == KNOWN["gaussian"]
    assert len({exact_model(name).identity["weights"] for name in WORLDS}) == len(WORLDS) - 1
    assert exact_model("relu").identity == exact_model("relu").identity
    given, named = exact_model("gmm", RectifiedFlow()), exact_model("gmm@flow")
    assert given.path == named.path == RectifiedFlow()
    assert given.identity["path"] == named.identity["path"]
    assert exact_model("gmm", RectifiedFlow(shift=3.0)).identity["path"] != given.identity["path"]


def test_a_world_of_ones_own() -> None:
    world = World(isotropic(12, 3, separation=4.0, variance=0.1), PiecewiseLinearCodec.random((3, 2, 2), (3, 4, 4), (10,)))
    model = as_model(world, VarianceExploding(), "mine")
    assert (model.name, model.identity["source"]) == ("mine", "mine")
    assert model.editor is not None
    assert model.editor.size == 4
    assert model.generator is not None
    assert model.generator.generate(["class 2"], [0], GenerateSettings(10, 1.0)).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="does not fill"):
        World(isotropic(11, 3, separation=4.0, variance=0.1), world.codec)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="unknown exact world 'gmn': did you mean 'gmm'"):
        exact_model("gmn@ve")
    with pytest.raises(UserError, match="did you mean 'hierarchical'"):
        exact_world("heirarchical")
    with pytest.raises(UserError, match="unknown noise path 'flw': did you mean 'flow'"):
        exact_model("gmm@flw")
    with pytest.raises(UserError, match="unknown noise path '': choose from flow, ve, vp"):
        exact_model("gmm@")
    with pytest.raises(UserError, match="leave one of them out"):
        exact_model("gmm@ve", RectifiedFlow())
    with pytest.raises(UserError, match="class 0 to class 3: no prompt can ask for class 7"):
        named_classes(four_classes())(["class 7"])
    with pytest.raises(UserError, match="group 0 to group 2: no prompt can ask for group 3"):
        named_classes(three_groups())(["group 3"])
    with pytest.raises(UserError, match="synthetic decoder"):
        synthetic_kernel("lineer")  # type: ignore[arg-type]


SMALL = Synthetic(dim=128, trials=200)


def fitted(kind: Kind, settings: Synthetic = SMALL) -> tuple[float, float, float]:
    """Slope in sigma^2, intercept, and the trace that theory compares the slope with."""
    found = synthetic_kernel(kind, settings)
    x, y = torch.from_numpy(found.sigmas) ** 2, torch.from_numpy(found.mean)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean()), found.trace


@pytest.mark.parametrize("scale", ["std", "variance"])
def test_drift_of_a_linear_decoder_is_its_trace(scale: str) -> None:
    settings = Synthetic(dim=128, trials=200, scale="std" if scale == "std" else "variance")
    slope, intercept, trace = fitted("linear", settings)
    assert trace == pytest.approx(128 if scale == "std" else 128**1.5, rel=0.05)
    assert slope == pytest.approx(trace, rel=0.03)
    assert abs(intercept) < 0.01 * trace * 0.16


def test_curved_decoder_stays_below_the_linear_one() -> None:
    slope, intercept, trace = fitted("curved")
    assert 0.2 * trace < slope < 0.35 * trace  # 276 of 1,024 at full size
    assert 0 < intercept < 0.1 * slope * 0.16


def test_edit_bias_is_a_floor_only_when_one_side_has_it() -> None:
    slope, intercept, trace = fitted("edit-fixed")
    assert slope == pytest.approx(trace, rel=0.05)
    assert intercept == pytest.approx(0.25 * 128, rel=0.03)  # b^2 D
    both = fitted("edit")
    assert both[0] > 1.3 * trace
    assert both[1] < 0.2 * intercept


def test_random_edit_strength_is_flat_and_scattered() -> None:
    found = synthetic_kernel("edit-random", Synthetic(dim=128, trials=400))
    assert found.mean.max() / found.mean.min() < 1.4
    assert float((found.std / found.mean).mean()) > 0.7
    assert found.mean.mean() == pytest.approx(128 * (2.5**2 / 3) + found.trace * float((found.sigmas**2).mean()), rel=0.06)


def test_synthetic_kernels_repeat_and_differ_by_seed() -> None:
    small = Synthetic(dim=16, trials=5, sigmas=(0.1, 0.2))
    again = synthetic_kernel("curved", small)
    assert (synthetic_kernel("curved", small).mean == again.mean).all()
    assert (synthetic_kernel("curved", Synthetic(16, 5, (0.1, 0.2), seed=1)).mean != again.mean).all()
    assert again.mean.shape == again.std.shape == again.sigmas.shape == (2,)
