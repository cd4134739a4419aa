"""The geometry probe: its cells against worlds whose Jacobians are exact, and what it concludes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.decoders import LinearCodec, LowRankCodec, local_geometry, orthonormal
from diffprobe.adapters.exact import as_model, exact_model, exact_world
from diffprobe.errors import UserError
from diffprobe.images import Rendered, load
from diffprobe.measures.geometry import projection_offset
from diffprobe.model import Model, Rig
from diffprobe.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.probes.base import Findings
from diffprobe.probes.geometry import Field, Generated, Geometry, Slice
from diffprobe.probes.geometry.cells import Samples
from diffprobe.probes.geometry.places import plane
from diffprobe.report.charts import domains, spec
from diffprobe.runs.execute import plan
from diffprobe.runs.pairing import cause, paired
from diffprobe.runs.pairing import check as compatible
from diffprobe.runs.result import Run, check, start
from diffprobe.sampling import final, trajectory
from diffprobe.sampling import start as noise_at
from tests.geometry_studies import asked, measured
from tests.small import Pixels


@pytest.mark.parametrize("world", ["gmm", "low-rank", "relu"])
def test_a_small_latent_is_described_exactly(world: str) -> None:
    """psi, nu, rank and trace of the exact Jacobian; images in [-1, 1] double it, which adds log 2 a direction to psi."""
    model, codec = exact_model(f"exact:{world}".removeprefix("exact:")), exact_world(world).codec
    rows = measured(model, Geometry(sets=("world",), count=5, directions=100))
    latents = codec.encode(load([Rendered(2024, index) for index in range(5)], 8))
    truth, rank = local_geometry(codec, latents), codec.singular_values(latents).shape[1]
    assert (rows["directions"] == 0).all()
    assert (rows["rank"] == rank).all()
    np.testing.assert_allclose(rows["psi"], truth.psi + rank * math.log(2), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows["nu"], truth.nu, rtol=1e-4)
    np.testing.assert_allclose(rows["trace"], 4 * truth.trace, rtol=1e-4)
    assert (rows["psi_error"] == 0).all()
    assert (rows["output_size"] == 192).all()


def test_a_projection_is_off_by_its_known_constant() -> None:
    """16 coordinates through 15 directions are projected; through 16 or more exact: a wide linear decoder seen by more than its rank."""
    codec = LinearCodec(orthonormal(768, 256) * 0.5, (1, 16, 16), (3, 16, 16))
    model = Model("linear", codec=codec, shape=codec.latent)
    directions = (*range(3),)
    rows = measured(model, Geometry(sets=("noise",), count=2, directions=200, projections=len(directions)))
    assert (rows["directions"] == 200).all()
    assert np.ptp(rows["psi"]) < 1e-3  # one linear map, one projection: nothing between samples
    # Orthonormal columns of gain 1 (outputs doubled): W U of 200 x 256, whose Gram has the law of 200 columns seen through 256 of 768.
    offset = projection_offset(200, 256, 768)
    assert rows["psi"].mean() == pytest.approx(offset.mean, abs=4 * offset.std)
    np.testing.assert_allclose(rows["trace"], 256, rtol=0.1)


def test_more_projections_until_the_precision_is_reached() -> None:
    model = exact_model("relu")
    one = measured(model, Geometry(sets=("world",), count=4, directions=6))
    precise = measured(model, Geometry(sets=("world",), count=4, directions=6, precision=0.12))
    assert (one["projections"] == 1).all()
    assert (precise["projections"] > 1).all()
    done = (precise["psi_error"] <= 0.12 * 1.2) | (precise["projections"] == 16)  # the law is asked once, at the first projection
    assert done.all()
    assert (precise["psi_error"] < one["psi_error"]).all()


def test_where_no_law_holds_the_scatter_of_half_of_the_projections_says_how_many_it_takes() -> None:
    """A decoder of rank 24 seen through 40 directions: the effective rank is below them."""
    codec = LowRankCodec.random((1, 8, 8), (3, 8, 8), [1.0] * 24)
    model = Model("low rank", codec=codec, shape=codec.latent)
    plain = measured(model, Geometry(sets=("noise",), count=2, directions=40))
    half, precise = (measured(model, Geometry(sets=("noise",), count=2, directions=40, precision=wanted)) for wanted in (5.0, 0.01))
    assert plain["psi_error"].isna().all()
    assert (plain["rank"] == 24).all()
    assert (half["projections"] == 8).all()
    assert (precise["projections"] == 16).all()  # as many as there are: the precision is not to be had
    offset = projection_offset(24, 40, 192)  # the rank's columns are what 40 directions see
    np.testing.assert_allclose(precise["psi"], offset.mean + 24 * math.log(2), atol=offset.std)
    np.testing.assert_allclose(precise["psi_error"], offset.std / 4, rtol=0.6)


def test_the_error_of_one_projection_is_the_scatter_of_many() -> None:
    """The law's standard deviation against psi over sixteen seeds of the projection."""
    codec = LinearCodec(orthonormal(768, 256) * 0.5, (1, 16, 16), (3, 16, 16))
    model = Model("linear", codec=codec, shape=codec.latent)
    probes = [Geometry(sets=("noise",), count=1, directions=24, projection_seed=seed) for seed in range(40)]
    rows = pd.concat([measured(model, probe) for probe in probes])
    assert rows["psi"].std() == pytest.approx(rows["psi_error"].mean(), rel=0.35)


def test_a_relu_decoders_complexity_grows_with_the_radius() -> None:
    rows = {radius: measured(exact_model("relu"), Geometry(sets=("world",), count=6, radius=radius)) for radius in (0.01, 0.1, 1.0)}
    means = [rows[radius]["delta"].mean() for radius in (0.01, 0.1, 1.0)]
    assert means == sorted(means)
    assert means[-1] > 5
    assert (rows[1.0]["units"] == 64).all()
    assert rows[1.0]["delta_floor"].dropna().tolist() == [0.0]


@pytest.mark.parametrize("path", [VariancePreserving.scaled_linear(), VarianceExploding(), RectifiedFlow()])
def test_trajectories_end_where_the_sampler_does(path: Any) -> None:
    """The last state of each is the sampler's own; states on the way are of unit scale whatever the path."""
    model = as_model(exact_world("relu"), path, "relu")
    probe = Geometry(sets=(), generated=(Generated(("class 1",), samples=3, num_inference_steps=6, guidance_scale=(1.0,), points=3),))
    (cell,) = [step.cell for step in plan([probe])]
    assert isinstance(cell, Samples)
    taken = cell.place.take(Rig(model, {}), model)
    assert list(taken.columns["step"]) == [0] * 3 + [3] * 3 + [6] * 3
    assert list(taken.columns["seed"]) == [0, 1, 2] * 3
    times = path.levels(6)
    assert model.denoiser is not None
    assert model.condition is not None
    x = noise_at(path, times[0], (1, 4, 4), (0, 1, 2), "geometry.start")
    with torch.no_grad():
        ended = final(trajectory(model.denoiser, path, x, times, cond=model.condition(["class 1"] * 3)))
    scale = (path.alpha(path.end) ** 2 + path.sigma(path.end) ** 2).sqrt()
    torch.testing.assert_close(taken.latents[6:], (ended / scale).float())
    assert 0.3 < float(taken.latents[:3].std()) < 2


def test_guidance_is_a_group_of_its_own_and_its_effect_is_paired(tmp_path: Path) -> None:
    probe = Geometry(
        sets=("world",), count=6, generated=(Generated(("class 0",), samples=8, num_inference_steps=5, guidance_scale=(1.0, 4.0)),)
    )
    run = asked(exact_model("relu"), probe, tmp_path)
    rows = run.records("geometry")
    low, high = (rows[rows["guidance_scale"] == scale].sort_values("seed")["psi"].to_numpy() for scale in (1.0, 4.0))
    effect = next(e for e in run.estimates if e.quantity == "guidance_effect:psi")
    assert effect.n == 8
    assert effect.value == pytest.approx((high - low).mean())


def test_a_slice_goes_through_its_anchors(tmp_path: Path) -> None:
    """The plane's coordinates of the anchors give the anchors back, and the grid covers them with its margin."""
    points = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    origin, basis, at = plane(points)
    torch.testing.assert_close(origin + at @ basis, points)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64), atol=1e-12, rtol=0)
    run = asked(exact_model("relu"), Geometry(sets=(), slices=(Slice(("world:0", "world:3", "noise:1"), size=17, margin=0.5),)), tmp_path)
    rows, corners = run.records("geometry"), run.records("geometry", "Anchors")
    assert len(rows) == 17**2
    for axis in "xy":
        low, high = corners[axis].min(), corners[axis].max()
        assert rows[axis].min() == pytest.approx(low - 0.25 * (high - low))
        assert rows[axis].max() == pytest.approx(high + 0.25 * (high - low))
    assert rows["picture"].notna().sum() == 81
    maps = [chart for chart in run.findings["geometry"].charts if chart.kind == "map"]
    assert {chart.name for chart in maps} == {"map_slice_psi", "map_slice_nu", "map_slice_delta"}
    assert len(maps[0].rows) == 17**2
    assert len(maps[0].curves) == 3


def test_large_maps_are_shown_coarser_and_kept_whole(tmp_path: Path) -> None:
    through = Slice(("world:0", "world:1", "world:2"), size=50)
    run = asked(exact_model("relu"), Geometry(sets=(), slices=(through,), keep_images=0), tmp_path)
    chart = next(chart for chart in run.findings["geometry"].charts if chart.name == "map_slice_psi")
    assert len(run.records("geometry")) == 2500
    assert len(chart.rows) == 625
    shown = spec(chart, domains([chart]))
    assert shown["layer"][0]["mark"]["type"] == "rect"


@pytest.mark.parametrize("world", ["gaussian@vp", "gaussian@ve", "gaussian@flow"])
def test_a_gaussians_denoiser_shrinks_each_direction_as_it_must(world: str) -> None:
    """The Jacobian of E[x_0 | x_t] is alpha v/(alpha^2 v + sigma^2) in each direction, everywhere."""
    model, variances = exact_model(world), exact_world(world).mixture.variances[0]
    sigmas = (0.3, 2.0)
    rows = measured(model, Geometry(sets=(), fields=(Field(sigmas, size=3),)))
    assert model.path is not None
    for sigma in sigmas:
        t = float(model.path.time(sigma))
        a, s = model.path.alpha(t), model.path.sigma(t)
        truth = float((a * variances / (a**2 * variances + s**2)).log().sum())
        here = rows[np.isclose(rows["sigma"], sigma, rtol=1e-3)]
        assert len(here) == 9
        np.testing.assert_allclose(here["psi"], truth, rtol=1e-4)


def test_a_step_of_the_field_is_the_samplers() -> None:
    """x_s = A x + B D(x) of the deterministic step, on the Gaussian: the same in every direction of one variance."""
    model, variances = exact_model("gaussian"), exact_world("gaussian").mixture.variances[0]
    path, steps = model.path, 10
    assert path is not None
    t, s = path.levels(steps)[4:6]
    rows = measured(model, Geometry(sets=(), fields=(Field((float(path.ratio(t)),), size=2, map="step", num_inference_steps=steps),)))
    a, b, sa, sb = path.alpha(t), path.alpha(s), path.sigma(t), path.sigma(s)
    gain = sb / sa + (b - sb / sa * a) * a * variances / (a**2 * variances + sa**2)
    np.testing.assert_allclose(rows["psi"], float(gain.log().sum()), rtol=1e-4, atol=1e-3)


def test_the_chain_from_noise_to_image_is_differentiated_whole() -> None:
    """On the Gaussian the chain is linear; its Jacobian by autograd of the chain, latent by latent."""
    model = exact_model("gmm")
    rows = measured(model, Geometry(sets=(), priors=2, prior_steps=4))
    assert model.denoiser is not None
    assert model.path is not None
    assert model.codec is not None
    times = model.path.levels(4)
    z = rng.normal((1, 4, 4), "geometry.prior", (0, 1))
    scale = (model.path.alpha(times[0]) ** 2 + model.path.sigma(times[0]) ** 2).sqrt()

    def chain(x: Tensor) -> Tensor:
        assert model.denoiser is not None
        assert model.path is not None
        assert model.codec is not None
        return 2 * model.codec.decode(final(trajectory(model.denoiser, model.path, scale * x[None], times))) - 1

    for index in range(2):
        whole = torch.autograd.functional.jacobian(chain, z[index]).reshape(192, 16)
        values = torch.linalg.svdvals(whole.double())
        assert rows["psi"][index] == pytest.approx(float(values.log().sum()), rel=1e-3, abs=1e-2)


@dataclass(frozen=True, eq=False)
class Broken:
    """A linear codec whose decoder fails in some way on some latents."""

    inner: LinearCodec
    how: Callable[[Tensor, Tensor], Tensor]

    def encode(self, images: Tensor) -> Tensor:
        return self.inner.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.how(self.inner.decode(latents), latents)


def broken(how: Callable[[Tensor, Tensor], Tensor]) -> Model:
    codec = LinearCodec(orthonormal(192, 16) * 0.5, (1, 4, 4), (3, 8, 8))
    return Model("broken", codec=Broken(codec, how), shape=(1, 4, 4))


def test_one_bad_latent_is_flagged_and_spoils_no_other(tmp_path: Path) -> None:
    def spoil(images: Tensor, latents: Tensor) -> Tensor:
        bad = (latents.flatten(1)[:, 0] > latents.flatten(1)[:, 1])[:, None, None, None]
        return torch.where(bad, images * torch.nan, images)

    run = asked(broken(spoil), Geometry(sets=("noise",), count=8), tmp_path)
    rows = run.records("geometry")
    assert set(rows["flag"].dropna()) == {"not finite"}
    assert 0 < rows["flag"].notna().sum() < 8
    assert rows.loc[rows["flag"].notna(), "psi"].isna().all()
    np.testing.assert_allclose(rows.loc[rows["flag"].isna(), "psi"], 0, atol=1e-4)  # orthonormal columns of .5, doubled
    assert any("do not count" in verdict for verdict in run.findings["geometry"].verdicts)


def test_a_dead_decoder_is_told_and_not_averaged(tmp_path: Path) -> None:
    run = asked(broken(lambda images, _: images * 0), Geometry(sets=("noise",), count=3), tmp_path)
    assert set(run.records("geometry")["flag"]) == {"dead: every derivative is 0"}
    assert not [e for e in run.estimates if e.quantity == "psi"]
    assert next(e for e in run.estimates if e.quantity == "flagged").value == 3


def test_a_decoder_without_a_gradient_fails_its_cells_with_the_remedy(tmp_path: Path) -> None:
    def detached(images: Tensor, latents: Tensor) -> Tensor:
        return images.detach()

    run = asked(broken(detached), Geometry(sets=("noise",), count=3, priors=2), tmp_path)
    assert run.done == 0
    for failure in run.failures.values():
        assert failure["error"].startswith("the map cannot be described: ")
        assert "\n" not in failure["error"]
    assert run.findings["geometry"] == Findings((), verdicts=("Nothing is measured yet.",))
    assert run.report().is_file()


def scaled(gain: float) -> Model:
    codec = LinearCodec(orthonormal(192, 16) * gain, (1, 4, 4), (3, 8, 8))
    return Model(f"gain {gain}", codec=codec, shape=(1, 4, 4))


def test_checkpoints_are_measured_in_their_order(tmp_path: Path) -> None:
    """psi of an isometry of gain g is 16 log 2 g; the chart has every checkpoint, the verdict the first and the last."""
    gains = {"step 1": 0.25, "step 10": 0.5, "step 100": 2.0}
    model = replace(scaled(2.0), checkpoints={name: partial(scaled, gain) for name, gain in gains.items()})
    run = asked(model, Geometry(sets=("world", "noise"), count=4, checkpoints=tuple(gains)), tmp_path)
    found = {e.facets["checkpoint"]: e.value for e in run.estimates if e.quantity == "psi" and e.facets["set"] == "world"}
    assert list(found) == list(gains)
    for name, gain in gains.items():
        assert found[name] == pytest.approx(16 * math.log(2 * gain), abs=1e-3)
    chart = next(chart for chart in run.findings["geometry"].charts if chart.name == "training_psi")
    assert [row["checkpoint"] for row in chart.rows if row["set"] == "world"] == [1, 2, 3]
    assert any("From “step 1” to “step 100”" in verdict for verdict in run.findings["geometry"].verdicts)


def test_a_checkpoint_that_is_not_there_is_refused_by_name() -> None:
    model = replace(scaled(1.0), checkpoints={"step 10": lambda: scaled(0.5)})
    with pytest.raises(UserError, match="unknown checkpoint 'step 1': did you mean 'step 10'"):
        check([Geometry(sets=("noise",), checkpoints=("step 1",))], Rig(model, {}))
    with pytest.raises(UserError, match="has no checkpoints"):
        check([Geometry(sets=("noise",), checkpoints=("step 1",))], Rig(scaled(1.0), {}))


def test_a_checkpoint_of_other_weights_is_another_run(tmp_path: Path) -> None:
    """A run knows its checkpoints by their weights, so that a changed one is refused and nothing old is taken for new."""

    def at(gain: float) -> Model:
        return replace(scaled(gain), identity={"weights": f"{gain}"})

    probe = Geometry(sets=("noise",), count=2, checkpoints=("a",))
    asked(replace(scaled(2.0), checkpoints={"a": partial(at, 0.5)}), probe, tmp_path)
    with pytest.raises(UserError, match=r"checkpoint a is \w+ there and \w+ here"):
        asked(replace(scaled(2.0), checkpoints={"a": partial(at, 5.0)}), probe, tmp_path)
    rows = asked(replace(scaled(2.0), checkpoints={"a": partial(at, 0.5)}), probe, tmp_path).records("geometry")
    assert set(rows["weights"]) == {"0.5"}


def test_a_checkpoint_of_another_shape_fails_its_cells_with_the_reason(tmp_path: Path) -> None:
    other = Model("other", codec=LinearCodec(orthonormal(192, 64), (1, 8, 8), (3, 8, 8)), shape=(1, 8, 8))
    run = asked(replace(scaled(1.0), checkpoints={"a": lambda: other}), Geometry(sets=("noise",), count=2, checkpoints=("a",)), tmp_path)
    (failure,) = run.failures.values()
    assert failure["error"] == (
        "the checkpoint 'a' of 'gain 1.0' has latents of shape (1, 8, 8), not (1, 4, 4): it must be the same model at another moment"
    )


def test_psi_of_other_projections_is_not_compared(tmp_path: Path) -> None:
    """Neither where the setting differs, nor where one model is projected and the other is described exactly."""
    small, large = exact_model("relu"), exact_model("gaussian")
    one, four = Geometry(sets=("noise",), count=3, directions=30), Geometry(sets=("noise",), count=3, directions=30, projections=4)
    runs = [asked(small, one, tmp_path / "a"), asked(small, four, tmp_path / "b"), asked(large, one, tmp_path / "c")]
    with pytest.raises(UserError, match="geometry's projections is 1"):
        compatible(runs[0], runs[1])
    assert paired(runs[0], runs[2], "geometry").common == 0
    assert "latent_size is 16 in" in cause(runs[0], runs[2], "geometry", ())
    assert paired(runs[0], runs[0], "geometry").rate == 1


def test_sets_that_differ_are_told_apart_and_rivals_stand_beside(tmp_path: Path) -> None:
    """Noise has other latents than scenes; where the decoder is linear psi can tell nothing, and the report says so."""
    run = asked(exact_model("relu"), Geometry(sets=("world", "noise"), count=12), tmp_path / "relu")
    table = run.table
    for measure in ("psi", "nu", "delta", "error", "sharpness"):
        assert len(table[table["quantity"] == f"auroc:{measure}"]) == 1
    assert float(table.loc[table["quantity"] == "auroc:sharpness", "value"].iloc[0]) in (0, 1)
    flat = asked(exact_model("gmm"), Geometry(sets=("world", "noise"), count=12), tmp_path / "gmm")
    psi = next(e for e in flat.estimates if e.quantity == "auroc:psi")
    assert psi.lo is not None
    assert psi.hi is not None
    assert psi.lo < 0.5 < psi.hi or psi.value == 0.5


def test_a_report_is_made_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are known by their words, also once their folders are out of sight."""
    for name, image in zip(("left", "right"), load([Rendered(2024, 0), Rendered(2024, 1)], 8), strict=True):
        (tmp_path / name).mkdir()
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / name / "one.png")
    monkeypatch.chdir(tmp_path)
    run = asked(exact_model("relu"), Geometry(sets=("left", "right")), tmp_path / "run")
    assert {e.facets["set"] for e in run.estimates if e.quantity == "psi"} == {"left", "right"}
    monkeypatch.chdir("/")
    again = Run(tmp_path / "run")
    assert again.estimates == run.estimates


def test_level_sets_hold_equal_numbers_and_scores(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Brightness:
        fingerprint: str = "brightness/1"

        def __call__(self, images: Tensor) -> Tensor:
            return images.flatten(1).mean(1)

    rig = Rig(exact_model("relu"), {"pixels": Pixels()}, 16, scorers={"brightness": Brightness()})
    run = start(rig, [Geometry(sets=("world",), count=40, level_sets=4)], tmp_path)
    found = [e for e in run.estimates if e.quantity.startswith("level_set:")]
    assert {e.quantity for e in found} == {"level_set:Vendi score (pixels)", "level_set:brightness", "level_set:sharpness"}
    assert {e.n for e in found} == {10}
    vendi = [e for e in found if "Vendi" in e.quantity and e.facets["descriptor"] == "psi"]
    assert [e.facets["bin"] for e in vendi] == [1, 2, 3, 4]
    assert [e.facets["centre"] for e in vendi] == sorted(e.facets["centre"] for e in vendi)
    assert next(e for e in run.estimates if e.quantity == "correlation:psi:brightness").n == 40


def test_populations_are_the_images_domains(tmp_path: Path) -> None:
    run = asked(exact_model("relu"), Geometry(sets=("world",), count=60), tmp_path)
    rows = run.records("geometry")
    names = {e.facets["population"] for e in run.estimates if e.quantity == "population:psi"}
    counts = rows["population"].value_counts()
    assert names == {name for name, count in counts.items() if count >= 6}
    assert names


def test_extremes_stand_in_the_gallery(tmp_path: Path) -> None:
    run = asked(exact_model("relu"), Geometry(sets=("world",), count=14), tmp_path)
    rows = run.records("geometry")
    shown = next(one for one in run.findings["geometry"].gallery if one.label.startswith("world: by local scaling"))
    assert len(shown.pictures) == 8
    assert shown.numbers["lowest"] == pytest.approx(rows["psi"].min())
    assert shown.numbers["highest"] == pytest.approx(rows["psi"].max())
