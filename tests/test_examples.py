"""The worked examples: each from its first step to its report with tiny settings, and what each measures against its closed form."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import diffprobe as dp
from diffprobe.measures.geometry import partition
from examples import digits_vae, fine_tuning, toy_diffusion
from examples.training import fit, perceptron


def test_a_network_has_its_weights_from_its_address() -> None:
    first, again, other = (perceptron((3, 400, 2), role) for role in ("a", "a", "b"))
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    assert float(next(first.parameters()).detach().std()) == pytest.approx(math.sqrt(2 / 3), rel=0.05)


def test_training_finds_the_minimum_and_a_longer_one_passes_through_the_same_networks() -> None:
    inputs, wanted = torch.linspace(-1, 1, 9)[:, None], torch.linspace(1, 5, 9)[:, None]

    def passed(steps: int) -> list[list[float]]:
        network = perceptron((1, 1), "examples.test")
        fitted = fit(network, lambda step: (network(inputs) - wanted).square().mean(), steps, 0.1)
        return [[float(part) for part in now.parameters()] for now in fitted]

    long = passed(500)
    assert long[-1] == pytest.approx([2, 3], abs=1e-3)
    assert long[:6] == passed(5)


def moments_of_the_posterior(x: Tensor, alpha: float, sigma: float, settings: toy_diffusion.Settings) -> Tensor:
    """log det of alpha Cov[x_0 | x_t]/sigma^2, from the definition: float64 [B]."""
    means, spread = toy_diffusion.points(settings.set), settings.spread**2
    total = alpha**2 * spread + sigma**2
    shares = (-(x[:, None] - alpha * means).square().sum(-1) / (2 * total)).softmax(-1)
    each = means + alpha * spread / total * (x[:, None] - alpha * means)
    centred = each - (shares[..., None] * each).sum(1, keepdim=True)
    covariance = torch.einsum("bk,bki,bkj->bij", shares, centred, centred) + spread * sigma**2 / total * torch.eye(2)
    volume: Tensor = torch.linalg.slogdet(alpha / sigma**2 * covariance).logabsdet
    return volume


def test_the_toy_runs_and_the_probe_finds_the_exact_denoisers_closed_form(tmp_path: Path) -> None:
    settings = toy_diffusion.Settings()
    run = toy_diffusion.main(["--out", str(tmp_path), "--steps", "3", "--size", "5"])
    assert (tmp_path / "learnt" / "report.html").is_file()
    rows = dp.open(tmp_path / "exact").records("geometry")
    assert len(rows) == len(run.records("geometry")) == 5 * 25
    path, x = toy_diffusion.noise_path(), torch.tensor(rows[["x", "y"]].to_numpy()).float().double()
    for sigma in sorted(set(rows["sigma"])):
        t, here = path.time(sigma), torch.tensor((rows["sigma"] == sigma).to_numpy())
        right = moments_of_the_posterior(x[here], float(path.alpha(t)), float(path.sigma(t)), settings)
        assert rows["psi"][here.numpy()].to_numpy() == pytest.approx(right.numpy(), abs=1e-3)
    agreement = pd.read_csv(tmp_path / "agreement.csv")
    assert agreement["sigma"].to_numpy() == pytest.approx(np.geomspace(0.02, 20, 50)[list(toy_diffusion.MOMENTS)[::-1]])
    assert (agreement["rmse"][1:] > 0.5).all()  # three steps teach nothing


def test_a_field_agrees_with_itself_and_not_with_a_shifted_one() -> None:
    x, y = np.meshgrid(np.linspace(-2.5, 2.5, 9), np.linspace(-2.5, 2.5, 9))
    rows = pd.DataFrame({"x": x.ravel(), "y": y.ravel(), "sigma": 0.4, "psi": x.ravel() ** 3 + y.ravel()})
    rows["sample"] = rows.index.astype(str)
    settings = toy_diffusion.Settings()
    (same,) = toy_diffusion.compare(settings, rows, rows)
    assert [same.rmse, same.rank, same.rmse_near] == pytest.approx([0, 1, 0])
    (off,) = toy_diffusion.compare(settings, rows.assign(psi=rows["psi"] + 0.5), rows)
    assert [off.rmse, off.rank, off.on_learnt - off.on] == pytest.approx([0.5, 1, 0.5])
    corner = ((rows["x"].abs() == 2.5) & (rows["y"].abs() == 2.5)).astype(float)
    (there,) = toy_diffusion.compare(settings, rows.assign(psi=rows["psi"] + corner), rows)
    assert there.on_learnt == there.on
    assert there.outside_learnt > there.outside  # no datum is in a corner


@pytest.mark.parametrize("predicts", ["epsilon", "v"])
def test_a_network_that_predicts_right_denoises_right(predicts: toy_diffusion.Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    path, network = toy_diffusion.noise_path(), toy_diffusion.Network(toy_diffusion.Settings(predicts=predicts))
    x0, noise, t = torch.tensor([[0.5, -1.0], [2.0, 0.1]]), torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), torch.tensor([10, 40])
    alpha, sigma = (level(t).float()[:, None] for level in (path.alpha, path.sigma))
    answer = noise if predicts == "epsilon" else alpha * noise - sigma * x0
    monkeypatch.setattr(network, "forward", lambda x, t: answer)
    torch.testing.assert_close(network.denoise(alpha * x0 + sigma * noise, t), x0, rtol=1e-5, atol=1e-4)


def test_the_points_are_standardised_and_an_unknown_set_is_refused() -> None:
    with toy_diffusion.SETS.open() as file:
        names = {row["dataset"] for row in csv.DictReader(file, delimiter="\t")}
    assert len(names) == 13
    for name in names:
        found = toy_diffusion.points(name)
        assert found.shape == (142, 2)
        assert torch.allclose(found.mean(0), torch.zeros(2).double())
        assert torch.allclose(found.var(0, correction=0), torch.ones(2).double())
    with pytest.raises(dp.UserError, match="no 'dinosaur'"):
        toy_diffusion.points("dinosaur")


def test_the_digits_run_and_psi_is_that_of_the_regions_affine_map(tmp_path: Path) -> None:
    arguments = ["--steps", "30", "--count", "4", "--checkpoints", "3", "--noise", "0.01"]
    run = digits_vae.main(["--out", str(tmp_path), *arguments])
    assert (tmp_path / "run" / "report.html").is_file()
    rows = run.records("geometry")
    assert set(rows["checkpoint"]) == {"step 10", "step 17", "step 30"}
    assert set(rows["set"]) == {"training", "held-out", "noise", "prior"}
    assert rows["psi"].notna().all()
    settings = digits_vae.Settings(steps=30, noise=0.01)
    network = digits_vae.train(settings, [30])[30].double()
    held_out = digits_vae.digits(held_out=True).images[:4].double()
    pixels = (held_out * 255).round() / 255  # as a file keeps them
    for index, latent in enumerate(network.posterior(pixels)[0]):
        found = rows[(rows["checkpoint"] == "step 30") & (rows["set"] == "held-out") & rows["sample"].str.endswith(f"{index:04}.png")]
        assert found["psi"].item() == pytest.approx(_scaling(network.decoder, latent), abs=1e-3)


def _scaling(decoder: nn.Sequential, latent: Tensor) -> float:
    """psi of the region that holds a latent, for three equal channels in [-1, 1]: its Jacobian from four planes' exact partitions."""
    square, axes = 1e-9 * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]), torch.eye(len(latent)).double()
    slopes = [partition(decoder, square, origin=latent, basis=axes[i : i + 2]).slopes for i in range(0, len(latent), 2)]
    assert {len(one) for one in slopes} == {1}
    return float(torch.linalg.svdvals(2 * math.sqrt(3) * torch.cat([one[0] for one in slopes], 1)).log().sum())


def test_the_digits_are_divided_once_and_for_all() -> None:
    learnt, held_out = digits_vae.digits(held_out=False), digits_vae.digits(held_out=True)
    assert (len(learnt.images), len(held_out.images)) == (1437, 360)
    assert float(learnt.images.min()) == 0
    assert float(learnt.images.max()) == 1
    both = torch.cat([learnt.images, held_out.images])
    assert len(torch.unique(both, dim=0)) == len(both)


def test_fine_tuning_runs_and_follows_what_is_tuned(tmp_path: Path) -> None:
    small = "--samples 1 --inference-steps 2 --strengths 0 1 --steps 0 2 --count 2 --pictures 8 --directions 2"
    style, world = fine_tuning.main(["--out", str(tmp_path), *small.split()])
    assert (tmp_path / "world" / "report.html").is_file()
    for run, names in ((style, ("strength 0", "strength 1")), (world, ("step 0", "step 2"))):
        rows = run.records("geometry")
        assert tuple(rows["checkpoint"].unique()) == names
        before, after = (rows[rows["checkpoint"] == name]["psi"].to_numpy() for name in names)
        assert np.abs(after - before).min() > 0.01
