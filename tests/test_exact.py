"""Worlds with known answers: the mixture against autograd and Monte Carlo, the editor against closed forms, the synthetic decoders."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import (
    ExactEditor,
    GaussianMixture,
    LinearCodec,
    Method,
    exact_model,
    four_classes,
    named_class,
    orthonormal,
    three_scales,
)
from diffprobe.adapters.synthetic import Kind, Synthetic, synthetic_kernel
from diffprobe.errors import UserError
from diffprobe.measures.drift import gaussian_drift
from diffprobe.model import EditSettings
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, transition

SD = VariancePreserving.scaled_linear()
PATHS: list[tuple[NoisePath, float]] = [(SD, 400.0), (VarianceExploding(), 1.5), (RectifiedFlow(), 0.6)]
MIXTURE = GaussianMixture(
    torch.tensor([[1.0, -1.0, 0.5], [-0.5, 2.0, 0.0]]), torch.tensor([[0.3, 0.1, 0.5], [0.2, 0.4, 0.6]]), torch.tensor([0.3, 0.7])
)
X = rng.normal((3,), "test", range(6)).double() * 1.3


@pytest.mark.parametrize(("path", "t"), PATHS)
def test_likelihood_and_posterior_are_those_of_the_noised_mixture(path: NoisePath, t: float) -> None:
    a, s = float(path.alpha(t)), float(path.sigma(t))
    cov = [(a**2 * v + s**2).diag().numpy() for v in MIXTURE.variances]
    joint = torch.stack(
        [
            torch.from_numpy(multivariate_normal(a * m.numpy(), c).logpdf(X.numpy())) + w.log()
            for m, c, w in zip(MIXTURE.means, cov, MIXTURE.weights, strict=True)
        ],
        1,
    )
    assert torch.allclose(MIXTURE.log_posterior(X, t, path), joint.log_softmax(1), atol=1e-10)


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize("cond", [None, torch.tensor([0, 1, -1, 1, 0, -1])])
def test_score_is_the_gradient_and_agrees_with_the_denoiser(path: NoisePath, t: float, cond: Tensor | None) -> None:
    x = X.clone().requires_grad_()
    each = MIXTURE.log_likelihoods(x, t, path)
    density = (each + MIXTURE.weights.log()).logsumexp(1)
    if cond is not None:
        density = torch.where(cond < 0, density, each.gather(1, cond.clamp(min=0)[:, None])[:, 0])
    (gradient,) = torch.autograd.grad(density.sum(), x)
    score = MIXTURE.score(X, t, path, cond)
    assert torch.allclose(score, gradient, atol=1e-10)
    a, s = path.alpha(t), path.sigma(t)
    assert torch.allclose((a * MIXTURE.denoiser(path)(X, t, cond) - X) / s**2, score, atol=1e-10)  # Tweedie


def test_denoiser_is_the_mean_of_what_could_have_been() -> None:
    """E[x_0 | x_t] by weighing samples of x_0 with their likelihood."""
    x0, _ = MIXTURE.sample(range(20_000))
    path, t, x = RectifiedFlow(), 0.5, torch.tensor([[0.4, 0.3, -0.2]], dtype=torch.float64)
    weights = (-(x - 0.5 * x0).square().sum(1) / (2 * 0.25)).softmax(0)
    assert torch.allclose(MIXTURE.denoiser(path)(x, t)[0], weights @ x0, atol=0.03)


def test_denoiser_at_the_ends_of_the_path() -> None:
    path = RectifiedFlow()
    assert torch.allclose(MIXTURE.denoiser(path)(X, 0.0), X)
    assert torch.allclose(MIXTURE.denoiser(path)(X, 1.0), (MIXTURE.weights @ MIXTURE.means).expand_as(X))
    assert torch.allclose(MIXTURE.denoiser(path)(X, 1.0, 1), MIXTURE.means[1].expand_as(X))


def test_denoiser_keeps_shape_and_dtype_and_takes_a_time_a_sample() -> None:
    denoiser = MIXTURE.denoiser(SD)
    image = X.float().reshape(6, 1, 3, 1)
    assert denoiser(image, 400).shape == image.shape
    assert denoiser(image, 400).dtype == torch.float32
    times = torch.tensor([1.0, 100.0, 200.0, 400.0, 700.0, 999.0])
    one_by_one = torch.cat([denoiser(X[i : i + 1], float(t)) for i, t in enumerate(times)])
    assert torch.equal(denoiser(X, times), one_by_one)


def test_sample_has_the_mixtures_moments_and_depends_on_the_seed_alone() -> None:
    x0, classes = MIXTURE.sample(range(8000))
    assert float((classes == 0).double().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 8000) ** 0.5)
    for k in (0, 1):
        members = x0[classes == k]
        se = (MIXTURE.variances[k] / len(members)).sqrt()
        assert bool(((members.mean(0) - MIXTURE.means[k]).abs() < 4 * se).all())
        assert torch.allclose(members.var(0), MIXTURE.variances[k], rtol=0.12)
    assert torch.equal(MIXTURE.sample([5, 3])[0], torch.stack([x0[5], x0[3]]))


def test_codec_inverts_and_its_trace_is_known() -> None:
    for codec in (exact_model("gaussian").codec, LinearCodec(rng.normal((12,), "test", range(48)), (3, 2, 2), (3, 4, 4))):
        assert isinstance(codec, LinearCodec)
        z = rng.normal(codec.latent, "test.z", range(3)).double()
        assert torch.allclose(codec.encode(codec.decode(z)), z, atol=1e-10)
        jacobian = torch.func.jacrev(codec.decode)(z[:1]).reshape(codec.matrix.shape)
        assert float(jacobian.square().sum()) == pytest.approx(float(codec.gains.sum()) * len(codec.matrix), rel=1e-6)
    assert torch.allclose(orthonormal(20, 6).T @ orthonormal(20, 6), torch.eye(6).double(), atol=1e-12)


def drift_of(method: Method, strength: float, steps: int, n: int) -> tuple[float, float]:
    """The mean square between images before and after the edit, and the effective sigma."""
    world, model = three_scales(), exact_model("gaussian")
    assert isinstance(model.codec, LinearCodec)
    assert model.denoiser is not None
    editor = ExactEditor(model.denoiser, model.codec, SD, named_class(1), method)
    z0 = world.sample(range(n))[0].reshape(n, 1, 8, 8)
    edited = editor.edit(z0, ["Make no change."] * n, range(n), EditSettings(strength, steps, 1.0))
    return float((edited.images - model.codec.decode(z0)).square().mean()), edited.level.sigma


@pytest.mark.parametrize("method", ["ode", "sample", "mean"])
def test_drift_of_the_editor_is_the_closed_form(method: Literal["ode", "sample", "mean"]) -> None:
    codec = exact_model("gaussian").codec
    assert isinstance(codec, LinearCodec)
    for strength in (0.3, 0.6):
        measured, sigma = drift_of(method, strength, 80, 500)
        # 8 of the directions carry nearly all of it: relative standard error about sqrt(2 / 500 / 8) = 2.2 %
        assert measured == pytest.approx(float(gaussian_drift(three_scales().variances[0], codec.gains, sigma**2, method)), rel=0.08)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_drift_of_the_editors_steps_converges_to_the_closed_form(eta: float) -> None:
    """The steps are linear in each direction: z' = c z_t + noise. No Monte Carlo, so the limit can be seen."""
    variances = three_scales().variances[0]
    gains = torch.ones(64, dtype=torch.float64) / 64
    errors = []
    for n in (50, 200, 800):
        path = VariancePreserving(SD.alphas_cumprod, end=-1.0)
        times = path.time(torch.logspace(0, -3, n, dtype=torch.float64)).tolist()
        carry, fresh = torch.ones(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
        for t, s in zip(times, (*times[1:], path.end), strict=True):
            a = path.alpha(t)
            gain = a * variances / (a**2 * variances + path.sigma(t) ** 2)
            part = transition(path, s, t)
            turned = (path.sigma(s) ** 2 - eta * part.variance).clamp(min=0).sqrt() / path.sigma(t)
            factor = turned + (path.alpha(s) - turned * a) * gain
            carry, fresh = factor * carry, factor**2 * fresh + eta * part.variance
        start, sigma = path.alpha(times[0]), float(path.ratio(times[0]))
        moved = (carry * start - 1) ** 2 * variances + (carry * path.sigma(times[0])) ** 2 + fresh
        exact = float(gaussian_drift(variances, gains, sigma**2, "sample" if eta else "ode"))
        errors.append(abs(float((gains * moved).sum()) / exact - 1))
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
    images = model.generator.generate([f"class {k}" for k in range(4)] * 5, range(20), 60, 1.0)
    assert images.shape == (20, 3, 8, 8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    posterior = world.log_posterior(model.codec.encode(images), 1, SD)
    assert posterior.argmax(1).tolist() == list(range(4)) * 5


def test_four_classes_have_nearly_unit_variance_and_two_scales() -> None:
    world = four_classes()
    assert torch.allclose(world.weights @ world.means, torch.zeros(16).double(), atol=1e-12)
    distances = torch.cdist(world.means, world.means)
    assert float(distances[0, 1]) < 0.6 * float(distances[0, 2])
    total = float((world.weights @ world.means.square()).sum() + 0.1 * 16)
    assert total / 16 == pytest.approx(1, abs=0.3)


def test_identity_of_worlds() -> None:
    digests = {exact_model(name).identity["weights"] for name in ("gmm", "gaussian")}
    assert len(digests) == 2
    assert exact_model("gmm").identity == exact_model("gmm").identity
    assert exact_model("gmm", RectifiedFlow()).path == RectifiedFlow()


def test_bad_input() -> None:
    with pytest.raises(UserError, match="did you mean 'gmm'"):
        exact_model("gmn")
    with pytest.raises(UserError, match="no prompt can ask for class 7"):
        named_class(4)(["class 7"])
    with pytest.raises(ValueError, match="above 0"):
        GaussianMixture(torch.zeros(2, 3), torch.zeros(2), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture(torch.zeros(2, 3), torch.ones(2), torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"means \[K, D\]"):
        GaussianMixture(torch.zeros(3), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"one of 0 \.\. 1"):
        MIXTURE.denoiser(SD)(X, 1, 2)
    with pytest.raises(ValueError, match="must be 192 x 64"):
        LinearCodec(torch.zeros(3, 3), (1, 8, 8), (3, 8, 8))
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
