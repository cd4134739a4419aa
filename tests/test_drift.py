"""The drift probe whole: against closed forms, its plan, its settings, what it counts, and what it concludes."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import LinearCodec, exact_model, three_scales
from diffprobe.errors import UserError
from diffprobe.images import Rendered
from diffprobe.measures.drift import gaussian_drift
from diffprobe.measures.stats import Estimate
from diffprobe.model import Edited, EditSettings, Level, Model, Rig
from diffprobe.probes.base import Findings, canonical, key
from diffprobe.probes.drift import Drift
from diffprobe.probes.drift.cells import DecoderNoise, Edits, Originals, equal_start
from diffprobe.probes.drift.looks import linear
from diffprobe.probes.drift.prompts import PROMPT_SETS
from diffprobe.runs.execute import execute, plan
from diffprobe.runs.store import Store

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6)


def measured(model: Model, probe: Drift, folder: Path) -> dict[str, pa.Table]:
    """The records of a probe on a model without instruments."""
    store, steps = Store(folder), plan([probe])
    with store.writing():
        execute(steps, store, Rig(model, {}), lambda state: None)
    assert not store.failures(), next(iter(store.failures().values()))["error"]
    return store.records("drift", [step.key for step in steps])


def of(findings: Findings, quantity: str, **facets: object) -> list[Estimate]:
    return [e for e in findings.estimates if e.quantity == quantity and all(e.facets.get(name) == value for name, value in facets.items())]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    return measured(
        exact_model("gaussian"), Drift(count=20, prompt_sets=("null", "empty"), strengths=STRENGTHS), tmp_path_factory.mktemp("run")
    )


@pytest.fixture(scope="module")
def findings(records: dict[str, pa.Table]) -> Findings:
    return Drift(count=20, prompt_sets=("null", "empty"), strengths=STRENGTHS).summarise(records)


def test_on_a_gaussian_world_the_whole_cell_meets_the_closed_form() -> None:
    """Images drawn from the world itself, through Originals and Edits: the mean of `move` is the law of the exact editor."""
    model, world, n = exact_model("gaussian"), three_scales(), 600
    codec = model.codec
    assert isinstance(codec, LinearCodec)
    images = codec.decode(world.sample(range(n))[0].float().reshape(-1, *codec.latent))
    originals = Originals(tuple(Rendered(0, i) for i in range(n)), None, None, keep=False)
    rig = Rig(model, {}, batch_size=200)
    rig.memo.keep(("drift.images", originals), (images, [None] * n))
    first = originals.measure(rig)
    assert np.median(first["mse"].to_pylist()) < 1e-12  # a linear codec has no floor, but where a comparison clips
    assert np.mean(first["gain"].to_pylist()) == pytest.approx(float(codec.gains.sum()) / 64, rel=0.15)
    for strength in (0.3, 0.6):
        cell = Edits(originals, "empty", "", "", strength, 100, None, 1.0, tuple(range(n)), budget=True)
        rows = cell.measure(rig, first).to_pandas()
        sigma = rows["sigma"].iloc[0]
        truth = float(gaussian_drift(world.variances[0], codec.gains, sigma**2, "ode"))
        assert rows["move"].mean() == pytest.approx(truth, rel=0.08)
        assert rows["linear"].to_numpy() == pytest.approx(rows["move"].to_numpy(), rel=1e-3)  # a linear decoder has no curvature
        noise = DecoderNoise(originals, strength, 100, None, tuple(range(n))).measure(rig, first).to_pandas()
        assert noise["decoder_only"].mean() == pytest.approx(sigma**2 * float(codec.gains.sum()), rel=0.05)


def test_the_budget_adds_up_in_every_row(records: dict[str, pa.Table]) -> None:
    rows = records["Edits"].to_pandas()
    assert np.abs(rows["total"] - rows["floor"] - rows["move"] - rows["cross"]).max() < 1e-7


def test_an_identity_editor_shows_the_codec_and_no_law(tmp_path: Path) -> None:
    probe = Drift(count=12, prompt_sets=("empty",), strengths=STRENGTHS)
    tables = measured(exact_model("identity"), probe, tmp_path)
    rows = tables["Edits"].to_pandas()
    assert rows["total"].to_numpy() == pytest.approx(rows["floor"].to_numpy())
    assert float(rows["move"].abs().max()) == 0
    found = probe.summarise(tables)
    (slope,) = of(found, "kernel_k", metric="mse", law="strength^2", prompt_set="empty")
    assert slope.value == pytest.approx(0, abs=1e-12)
    (r2,) = of(found, "kernel_r2", metric="mse", law="strength^2", prompt_set="empty")
    assert r2.value is None
    assert r2.reason
    assert any("every law fits a constant" in sentence for sentence in found.verdicts)


def test_the_gaussian_world_saturates_and_the_summary_says_so(findings: Findings) -> None:
    shares = {str(e.facets["law"]): e.value for e in of(findings, "kernel_share", metric="mse", prompt_set="null")}
    assert max(shares, key=lambda name: shares[name] or 0) in {"saturating", "noise variance"}
    assert any("saturating" in sentence or "noise variance" in sentence for sentence in findings.verdicts)


def test_prompts_that_do_nothing_differ_in_nothing(findings: Findings) -> None:
    """The exact editor reads no prompt: null and empty give the same images, seed by seed."""
    differences = of(findings, "mse_difference", prompt_set="empty")
    assert len(differences) == len(STRENGTHS)
    assert all(e.value == 0 and e.facets["p_holm"] == 1 for e in differences)


def test_headlines_carry_no_facets_and_intervals_hold_their_value(findings: Findings) -> None:
    assert {card.estimate.quantity for card in findings.cards} >= {"mse", "psnr", "k", "codec_share", "strength_budget"}
    assert not any(card.estimate.facets for card in findings.cards)
    for e in findings.estimates:
        assert (e.value is None) == (e.reason is not None)
        if e.value is not None and e.lo is not None and e.hi is not None and not e.quantity.startswith("kernel_"):
            assert e.lo <= e.value <= e.hi, e


def test_every_original_is_encoded_once(records: dict[str, pa.Table]) -> None:
    assert len(records["Originals"]) == 20
    assert len(records["Edits"]) == 20 * 4 * len(STRENGTHS)
    assert len(records["DecoderNoise"]) == 20 * len(STRENGTHS)


class _Broken:
    """An editor whose pictures come back in a known bad shape: one not finite, one constant, the others as they were."""

    size, strength_axis = 8, True

    def __init__(self, model: Model) -> None:
        assert model.codec is not None
        self.codec = model.codec

    def level(self, strength: float, num_inference_steps: int) -> Level:
        return Level(round(strength * num_inference_steps), 500.0 * strength, 0.9, strength)

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        images = self.codec.decode(latents).clone()
        for place, seed in enumerate(seeds):
            if seed == 42:
                images[place] = math.nan
            if seed == 43:
                images[place] = 0.25
        return Edited(images, latents, self.level(settings.strength, settings.num_inference_steps), False)


def test_samples_that_do_not_count_are_null_counted_and_named(tmp_path: Path) -> None:
    model = exact_model("gaussian")
    probe = Drift(count=6, prompt_sets=("empty",), strengths=STRENGTHS)
    tables = measured(replace(model, editor=_Broken(model)), probe, tmp_path)
    rows = tables["Edits"].to_pandas().sort_values(["requested_strength", "seed"])
    first = rows[rows["requested_strength"] == 0.1]
    assert first["flag"].fillna("").tolist() == ["not finite", "constant", "", "", "", ""]
    assert first["mse"].isna().tolist() == [True, True, False, False, False, False]
    found = probe.summarise(tables)
    assert {(str(e.facets["flag"]), e.value) for e in of(found, "flagged", of="edits")} == {("not finite", 5.0), ("constant", 5.0)}
    (mean,) = [e for e in of(found, "mse", strength=0.1) if "domain" not in e.facets]
    assert mean.n == 4


def test_an_unreadable_image_is_flagged_and_the_others_count(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray((np.indices((20, 20)).sum(0) * (i + 3)).astype(np.uint8)).save(folder / f"{i}.png")
    whole = (folder / "1.png").read_bytes()
    probe = Drift(images=str(folder), prompt_sets=("empty",), strengths=(0.4,))
    steps = plan([probe])
    (folder / "1.png").write_bytes(whole[:-40])  # changed after the plan
    store = Store(tmp_path / "run")
    with store.writing():
        execute(steps, store, Rig(exact_model("gaussian"), {}), lambda state: None)
    rows = store.records("drift", [step.key for step in steps])["Edits"].to_pandas()
    assert rows["mse"].isna().tolist() == [False, True, False]
    assert "1.png" in rows["flag"][1]


def test_a_subset_of_what_is_planned_still_summarises(records: dict[str, pa.Table]) -> None:
    probe = Drift(count=20, prompt_sets=("null", "empty"), strengths=STRENGTHS)
    assert probe.summarise({}).verdicts == ("Nothing is measured yet.",)
    some = {**records, "Edits": records["Edits"].slice(0, 16)}
    assert of(probe.summarise(some), "mse", strength=0.1)
    assert of(probe.summarise({name: records[name] for name in ("Originals", "Edits")}), "mse", strength=0.1)


def test_a_plan_is_pure_ordered_and_keyed_by_content() -> None:
    probe = Drift(count=40, prompt_sets=("null", "copy"), strengths=(0.2, 0.4))
    cells = list(probe.plan())
    assert [key(cell) for cell in cells] == [key(cell) for cell in probe.plan()]
    assert len({key(cell) for cell in cells}) == len(cells) == 3 * (1 + 2 * (1 + 6))
    assert all(pickle.loads(pickle.dumps(cell)) == cell for cell in cells)
    assert canonical(cells[0]).startswith("{")


def test_whole_numbers_and_decimals_are_one_setting() -> None:
    whole, decimal = Drift(count=2, guidance_scale=(5,), strengths=(1,)), Drift(count=2, guidance_scale=(5.0,), strengths=(1.0,))
    assert [step.key for step in plan([whole])] == [step.key for step in plan([decimal])]
    assert all(isinstance(value, float) for value in (*whole.guidance_scale, *whole.strengths))


def test_what_shapes_only_the_plan_or_the_summary_recomputes_nothing() -> None:
    probe = Drift(count=32, strengths=(0.2, 0.4))
    keys = {step.key for step in plan([probe])}
    for grown in (
        replace(probe, count=48),
        replace(probe, strengths=(0.2, 0.4, 0.6)),
        replace(probe, prompt_sets=("null", "copy", "empty", "identity")),
    ):
        assert keys < {step.key for step in plan([grown])}
    for judged in (replace(probe, tolerance=0.1), replace(probe, level=0.9)):
        assert keys == {step.key for step in plan([judged])}


def test_equal_start_keeps_the_noise_level_over_numbers_of_steps(tmp_path: Path) -> None:
    """At a fixed strength more steps start noisier; at an equal start they do not."""
    model = exact_model("gaussian")
    rig = Rig(model, {})
    assert model.editor is not None
    goal = model.editor.level(0.4, 15).sigma
    for steps in (20, 50, 100):
        found = model.editor.level(equal_start(rig, 0.4, steps, 15), steps).sigma
        neighbours = [model.editor.level((k + 0.5) / steps, steps).sigma for k in range(1, steps)]
        assert abs(math.log(found / goal)) == min(abs(math.log(sigma / goal)) for sigma in neighbours)
    assert equal_start(rig, 0.4, 15, 15) == equal_start(rig, 0.4, 15, None) == 0.4
    probe = Drift(count=4, prompt_sets=("empty",), strengths=(0.4,), num_inference_steps=(15, 100), equal_start=True, budget=True)
    rows = measured(model, probe, tmp_path)["Edits"].to_pandas()
    sigma = rows.groupby("num_inference_steps")["sigma"].first()
    assert sigma[100] == pytest.approx(sigma[15], rel=0.05)


def test_ablations_are_crossed_and_seen_apart(tmp_path: Path) -> None:
    probe = Drift(count=8, prompt_sets=("empty",), strengths=(0.2, 0.4), guidance_scale=(1.0, 5.0), resolution=(8, 16), seeds=(1, 2))
    model = exact_model("identity")
    found = probe.summarise(measured(model, replace(probe, resolution=(8,)), tmp_path))
    assert {(e.facets["guidance_scale"], e.facets["strength"]) for e in of(found, "mse") if "guidance_scale" in e.facets} == {
        (1.0, 0.2), (1.0, 0.4), (5.0, 0.2), (5.0, 0.4)
    }  # fmt: skip
    assert len(plan([probe])) == 2 * (1 + 2 * 2 * (1 + 2))


def test_the_linear_part_is_the_derivative() -> None:
    """Against the exact derivative of a curved decoder, and independent of the size of the change."""

    class Curved:
        def encode(self, images: Tensor) -> Tensor:
            return images

        def decode(self, latents: Tensor) -> Tensor:
            return torch.tanh(latents * 0.7) * 0.5

    rig = Rig(Model("curved", codec=Curved()), {})
    z, d = (rng.normal((2, 4, 4), f"test.{name}", range(5)) for name in "zd")
    exact = ((0.35 / torch.cosh(0.7 * z) ** 2) * d).double().square().flatten(1).mean(1)
    assert torch.allclose(linear(rig, z, d), exact, rtol=1e-3)
    assert torch.allclose(linear(rig, z, 1e-5 * d) * 1e10, exact, rtol=1e-3)
    assert bool((linear(rig, z, 0 * d) == 0).all())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strengths": (0.0,)}, "strength 0.0 is outside"),
        ({"strengths": (1.2,)}, "strength 1.2 is outside"),
        ({"strengths": (math.nan,)}, "strength nan is outside"),
        ({"strengths": (0.05,)}, "runs no step of 15: use a strength of at least 0.067, or at least 20 num_inference_steps"),
        ({"strengths": ()}, "at least one value in 'strengths'"),
        ({"strengths": (0.4, 0.4)}, "names a value twice"),
        ({"prompt_sets": ("nul",)}, "did you mean 'null'"),
        ({"num_inference_steps": (0,)}, "at least 1"),
        ({"guidance_scale": (-1.0,)}, "guidance_scale must be"),
        ({"resolution": (100,)}, "multiple of 8"),
        ({"count": 0}, "count must be"),
        ({"level": 1.0}, "level must lie"),
        ({"tolerance": 0.0}, "tolerance above 0"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_fix(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        Drift(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images at 'nowhere': give a folder"):
        list(Drift(images="nowhere").plan())


def test_a_model_without_a_strength_axis_is_refused() -> None:
    class Unaware(_Broken):
        strength_axis = False

    model = exact_model("gaussian")
    with pytest.raises(UserError, match="has no strength axis"):
        Drift().check(replace(model, editor=Unaware(model)))


def test_captions_are_asked_for_only_where_they_are_known(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    probe = Drift(images=str(tmp_path), prompt_sets=("caption",), strengths=(0.4,))
    with pytest.raises(UserError, match="no caption"):
        list(probe.plan())


def test_the_published_prompts_are_literal() -> None:
    assert PROMPT_SETS["null"] == ("Make no change.", "Identity.", "Do nothing.")
    assert len(PROMPT_SETS["copy"]) == 3
    assert all(prompt.endswith(".") for name in ("null", "copy", "identity") for prompt in PROMPT_SETS[name] if prompt)


def test_records_have_the_fixed_columns(records: dict[str, pa.Table]) -> None:
    fixed = {"image", "domain", "prompt", "prompt_set", "seed", "strength", "steps", "t_start", "sigma", "guidance_scale", "flag"}
    assert fixed <= set(records["Edits"].column_names)


def test_a_start_from_pure_noise_is_measured_and_left_out_of_the_laws(tmp_path: Path) -> None:
    """Strength 1 on a flow starts where alpha is 0: there is a drift, and no noise-to-signal ratio."""
    probe = Drift(count=4, prompt_sets=("empty",), strengths=(0.4, 0.6, 0.8, 1.0))
    found = probe.summarise(measured(exact_model("gmm@flow"), probe, tmp_path)).estimates
    (drift,) = [e for e in found if e.quantity == "mse" and e.facets.get("strength") == 1.0 and "domain" not in e.facets]
    assert drift.value is not None
    assert "sigma" not in drift.facets
    assert all(np.isfinite(value) for e in found for value in e.facets.values() if isinstance(value, float))
    assert {e.n for e in found if e.quantity == "kernel_k"} == {4}


@pytest.mark.parametrize(("strength", "beyond"), [(0.4, True), (1.0, False)])
def test_nothing_lies_beyond_strength_one(tmp_path: Path, strength: float, beyond: bool) -> None:
    probe = Drift(count=4, prompt_sets=("empty",), strengths=(strength,), tolerance=1.0)
    verdicts = probe.summarise(measured(exact_model("identity"), probe, tmp_path)).verdicts
    (kept,) = [verdict for verdict in verdicts if verdict.startswith("Every measured strength keeps")]
    assert ("may do so too" in kept) == beyond
