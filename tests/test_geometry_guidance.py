"""Guidance by geometry: the guide, its gradient, what it does to a denoiser, and how it is kept."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import diffprobe as dp
from diffprobe import rng
from diffprobe.controls.geometry_guidance import GeometryGuide, steered
from diffprobe.controls.guide_network import GuideNetwork
from diffprobe.paths import NoisePath, VarianceExploding
from diffprobe.sampling import Guidance, final, guided, start, trajectory
from tests.guides import PATHS, SHAPE, drawn, gaussian, told, untrained


@pytest.mark.parametrize("objective", ["mean", "top", "bottom"])
@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_is_that_of_the_score(path: NoisePath, objective: Any) -> None:
    """Central differences in x, in the path's own scale, against what `push` says in noise: -sigma grad R."""
    guide, t = untrained(objective=objective), float(path.time(1.7))
    guide.network.double()
    x = rng.normal(SHAPE, "test.guide.x", range(3)).double()
    size = math.hypot(float(path.alpha(t)), float(path.sigma(t)))
    along = rng.normal(SHAPE, "test.guide.along", range(3)).double()

    def score(at: Tensor) -> Tensor:
        logits = guide.network(at / size, torch.full((3,), math.log(1.7), dtype=torch.float64))
        chances = logits.log_softmax(1)
        by_kind: dict[str, Tensor] = {"mean": chances.exp() @ guide.centres.double(), "top": chances[:, -1], "bottom": chances[:, 0]}
        return by_kind[objective]

    slopes, exact = (score(x + 1e-5 * along) - score(x - 1e-5 * along)) / 2e-5, score(x)
    guide.network.float()
    push = guide.push((x / size).float(), 1.7).double()
    assert torch.allclose(-(push * along).flatten(1).sum(1) / float(path.sigma(t)), slopes, rtol=1e-3, atol=1e-5)
    assert torch.allclose(guide.score(x.float(), t, path).double(), exact, rtol=1e-4, atol=1e-5)
    assert float(slopes.abs().min()) > 1e-3


def test_scores_by_hand() -> None:
    """Bins of width 1 from -3, mean -0.5, deviation 1.2: middles from -2.5 to 1.5."""
    guide, x = untrained(), rng.normal(SHAPE, "test.guide.x", range(4))
    chances = guide.network(x, torch.zeros(4)).softmax(1)
    assert torch.allclose(guide.centres, (torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5]) + 0.5) / 1.2)
    assert torch.allclose(guide.score(x * 2**0.5, 1.0, VarianceExploding()), chances @ guide.centres, atol=1e-6)
    for objective, bin_ in (("top", -1), ("bottom", 0)):
        assert torch.allclose(untrained(objective=objective)._score(x, 1.0), chances[:, bin_].log(), atol=1e-5)
    assert torch.equal(guide._score(x, 1e4), guide._score(x, 80.0)), "beyond the levels that it knows, the nearest"


def test_rows_are_independent_and_may_have_levels_of_their_own() -> None:
    guide, x = untrained(), rng.normal(SHAPE, "test.guide.x", range(4))
    ratios = torch.tensor([0.1, 1.0, math.inf, 10.0])
    together = guide.push(x, ratios)
    for row, ratio in enumerate(ratios.tolist()):
        assert torch.allclose(together[row : row + 1], guide.push(x[row : row + 1], ratio), atol=1e-6)
    assert not together[2].any(), "pure noise"
    assert together[3].any()


def test_one_guide_means_the_same_on_every_path() -> None:
    """The same picture at the same sigma/alpha: one score, one change of noise; x0 moves by sigma^2/alpha grad_x R."""
    guide, u, ratio = untrained(), rng.normal(SHAPE, "test.guide.x", range(3)), 1.7

    def still(x: Tensor, t: Any, cond: Any = None) -> Tensor:
        return torch.zeros_like(x)

    moves = []
    for path in PATHS:
        t = float(path.time(ratio))
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        x = (math.hypot(alpha, sigma) * u).requires_grad_()
        (gradient,) = torch.autograd.grad(guide.score(x, t, path).sum(), x)
        moves.append(steered(still, path, guide, 0.7)(x.detach(), t))
        assert torch.allclose(moves[-1], 0.7 * sigma**2 / alpha * gradient, rtol=1e-4, atol=1e-6)
    assert torch.allclose(moves[0], moves[1], rtol=1e-4, atol=1e-6)
    assert torch.allclose(moves[0], moves[2], rtol=1e-4, atol=1e-6)


def test_a_steered_denoiser_can_itself_be_differentiated() -> None:
    """Second derivatives of the score, against differences of the first."""
    path, guide = PATHS[0], untrained()
    denoiser, _ = gaussian(path)
    moved, t = steered(denoiser, path, guide, 2.0), 400.0
    x, along = rng.normal(SHAPE, "test.guide.x", [0]), rng.normal(SHAPE, "test.guide.along", [0])
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((moved(point, t) * along).sum(), point)
    with torch.no_grad():
        slope = ((moved(x + 1e-3 * along, t) - moved(x - 1e-3 * along, t)) * along).sum() / 2e-3
    assert torch.allclose((gradient * along).sum(), slope, rtol=1e-2)
    (plain,) = torch.autograd.grad((denoiser(point, t) * along).sum(), point)
    assert not torch.allclose(plain, gradient, rtol=0.05)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_permission_for_gradients_is_needed_and_none_is_left(mode: Any) -> None:
    guide = untrained()
    with mode():
        x = rng.normal(SHAPE, "test.guide.x", range(2)) * 1.0
        push = guide.push(x, 1.0)
        assert not torch.is_grad_enabled()
    assert not push.requires_grad
    assert torch.equal(push, guide.push(rng.normal(SHAPE, "test.guide.x", range(2)), 1.0))
    assert all(part.grad is None and not part.requires_grad for part in guide.network.parameters())


@pytest.mark.parametrize("path", PATHS)
def test_strength_0_is_the_denoiser_and_guidance_may_stand_inside_or_around(path: NoisePath) -> None:
    denoiser, _ = gaussian(path)
    guide, cond = untrained(), torch.tensor([[True, False]]).expand(3, 2)
    assert steered(denoiser, path, guide, 0.0) is denoiser
    guidance, times = Guidance(2.0), path.levels(12)
    x = start(path, times[0], (16,), range(3)).reshape(3, *SHAPE)
    inside = guided(steered(denoiser, path, guide, 1.5), path, guidance)
    around = steered(guided(denoiser, path, guidance), path, guide, 1.5)
    with torch.no_grad():
        ends = [final(trajectory(one, path, x, times, cond=cond)) for one in (inside, around, guided(denoiser, path, guidance))]
    assert all(bool(end.isfinite().all()) for end in ends)
    assert torch.allclose(ends[0], ends[1], atol=1e-3)
    assert float((ends[0] - ends[2]).abs().max()) > 1e-2


def test_a_guide_is_kept_to_the_bit(tmp_path: Path) -> None:
    trained = untrained(labels={"target": "noised", "images": 240}, quality={"rank_correlation": 0.1})
    trained.save(tmp_path / "guide.safetensors")
    again = GeometryGuide.load(tmp_path / "guide.safetensors")
    x = drawn(5)
    assert torch.equal(again.score(x, 300.0, PATHS[0]), trained.score(x, 300.0, PATHS[0]))
    assert again.fingerprint == trained.fingerprint
    assert (again.edges, again.labels, again.quality, again.levels) == (trained.edges, trained.labels, trained.quality, trained.levels)
    assert replace(trained, objective="top").fingerprint != trained.fingerprint
    network = GuideNetwork(SHAPE, 5, 16)
    network.load_state_dict(trained.network.state_dict(), assign=True)
    network.head.bias = torch.nn.Parameter(network.head.bias.detach() + 1e-6)
    assert replace(trained, network=network).fingerprint != trained.fingerprint


def test_bad_guides_and_strengths(tmp_path: Path) -> None:
    guide, denoiser = untrained((4, 16, 16)), gaussian(PATHS[0])[0]
    for strength in (math.nan, math.inf):
        told("a strength is a finite number", lambda: steered(denoiser, PATHS[0], guide, strength))  # noqa: B023
    told("no denoiser with a noise path to be steered", lambda: steered(None, PATHS[0], guide, 1.0))
    told("no denoiser with a noise path to be steered", lambda: steered(denoiser, None, guide, 1.0))
    told(r"trained on latents \[4, 16, 16\], not \[1, 4, 4\]", lambda: steered(denoiser, PATHS[0], guide, 1.0)(drawn(2), 5.0))
    file = tmp_path / "guide.safetensors"
    told("cannot be read as a guide", lambda: GeometryGuide.load(file))
    file.write_bytes(b"nothing")
    told("cannot be read as a guide", lambda: GeometryGuide.load(file))
    save_file({"a": torch.zeros(1)}, file)
    told("is no geometry guide", lambda: GeometryGuide.load(file))
    save_file({"a": torch.zeros(1)}, file, metadata={"diffprobe.geometry_guide": guide._told()})
    told("is a damaged geometry guide", lambda: GeometryGuide.load(file))
    save_file({"a": torch.zeros(1)}, file, metadata={"diffprobe.geometry_guide": "[1]"})
    told("is a damaged geometry guide", lambda: GeometryGuide.load(file))
    told("unknown objective 'mode'", lambda: untrained(objective="mode"))
    told("5 bins have 6 edges, not 2", lambda: replace(guide, edges=(0.0, 1.0)))


def test_the_package_offers_it() -> None:
    for name in ("GeometryGuide", "GuideSettings", "LabelSettings", "apply_guide", "steered", "train_guide"):
        assert hasattr(dp.controls, name)
