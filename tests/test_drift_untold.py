"""Drift of an editor that says nothing of noise levels and has no codec, such as a service: what is known of it, and what is null."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.wrapping import wrap
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, Model
from diffprobe.probes.base import Findings
from diffprobe.probes.drift import Drift
from diffprobe.runs.gate import gate
from diffprobe.runs.pairing import paired
from diffprobe.runs.result import Run, check, start
from tests.test_conformance import rig
from tests.test_drift import measured, of

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6)


def shifted(images: Tensor, prompts: list[str], seeds: list[int], settings: EditSettings) -> Tensor:
    """Every value moves by a tenth of the strength, towards the middle: a squared error of strength^2 / 100 in every image."""
    assert images.dtype == torch.float32
    assert len(images) == len(prompts) == len(seeds)
    return images + settings.strength / 10 * torch.where(images > 0.5, -1.0, 1.0)


def noisy(images: Tensor, prompts: list[str], seeds: list[int], settings: EditSettings) -> Tensor:
    """Noise of its own seed for each."""
    return (images + settings.strength / 10 * rng.normal(tuple(images.shape[1:]), "test.wrap", seeds)).clamp(0, 1)


@pytest.fixture(scope="module")
def service() -> Model:
    return wrap(editor=shifted, size=16, name="service")


@pytest.fixture(scope="module")
def records(service: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    return measured(service, probe_of(service), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def findings(service: Model, records: dict[str, pa.Table]) -> Findings:
    return probe_of(service).summarise(records)


def probe_of(model: Model) -> Drift:
    return Drift(count=5, prompt_sets=("empty", "null"), strengths=STRENGTHS).suited(model)


def test_an_editor_of_known_error_has_that_drift(findings: Findings) -> None:
    for strength in STRENGTHS:
        found = [e for e in of(findings, "mse", strength=strength) if "domain" not in e.facets]
        assert [e.value for e in found] == pytest.approx([strength**2 / 100] * 2, rel=1e-5)
    headline = {card.estimate.quantity: card.estimate.value for card in findings.cards}
    assert headline["k"] == pytest.approx(0.01, rel=1e-4)
    assert headline["strength_budget"] == 0.6
    assert any("support the law k strength² + c" in verdict for verdict in findings.verdicts)


def test_what_an_editor_does_not_say_is_null_with_its_reason(records: dict[str, pa.Table], findings: Findings) -> None:
    rows = records["Edits"]
    for name, kind in (
        ("steps", pa.int64()),
        ("t_start", pa.float64()),
        ("alpha", pa.float64()),
        ("sigma", pa.float64()),
        ("guided", pa.bool_()),
    ):
        assert rows[name].type == kind
        assert rows[name].null_count == len(rows)
    assert "DecoderNoise" not in records
    assert not {"latent", "gain", "mse"} & set(records["Originals"].column_names)
    assert not [e for e in findings.estimates if {"sigma", "steps"} & set(e.facets) or e.quantity.startswith(("codec_", "budget_"))]
    for law in ("steps", "noise variance", "nsr", "sigma", "saturating"):
        for quantity in ("kernel_k", "kernel_c", "kernel_r2", "kernel_share"):
            found = of(findings, quantity, law=law, metric="mse")
            assert len(found) == 2
            assert all(e.value is None and "does not say at which noise level" in str(e.reason) for e in found)
    assert any("does not say at which noise level a strength starts" in verdict for verdict in findings.verdicts)
    assert not [verdict for verdict in findings.verdicts if "autoencoder" in verdict or "nan" in verdict]


def test_charts_of_an_editor_run_over_strength(findings: Findings) -> None:
    laws = next(chart for chart in findings.charts if chart.name == "laws")
    assert laws.x.column == "strength"
    assert [row["strength"] for row in laws.rows] == list(STRENGTHS)
    assert [row["value"] for row in laws.curves if row["series"] == "strength^2"] == pytest.approx(
        [s**2 / 100 for s in STRENGTHS], rel=1e-3
    )
    assert {chart.x.column for chart in findings.charts} <= {"strength", "law", "domain"}


def test_a_run_of_a_service_reports_compares_and_resumes(service: Model, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(*given: Any) -> Tensor:
        calls.append(len(given[1]))
        return shifted(*given)

    model, probe = wrap(editor=counted, size=16, version="1"), Drift(count=3, prompt_sets=("empty",), strengths=(0.2, 0.4), budget=False)
    done = start(rig(model, 2), [probe], tmp_path / "run")
    assert (done.done, done.planned) == (3, 3)
    assert calls == [2, 1, 2, 1]
    assert done.report().read_text().count("does not say at which noise level") >= 1
    assert paired(done, done, "drift").rate == 1
    start(rig(model, 2), [probe], tmp_path / "run")
    assert len(calls) == 4
    with pytest.raises(UserError, match="belongs to another model: version is 1 there and 2 here"):
        start(rig(wrap(editor=counted, size=16, version="2")), [probe], tmp_path / "run")


def test_an_editor_cannot_change_what_it_is_compared_with(tmp_path: Path) -> None:
    def careless(images: Tensor, *_: Any) -> Tensor:
        return images.mul_(0.5)

    model = wrap(editor=careless, size=16)
    probe = Drift(count=2, prompt_sets=("empty",), strengths=(0.2, 0.4)).suited(model)
    rows = measured(model, probe, tmp_path)["Edits"].to_pandas()
    assert rows["mse"].min() > 0.01
    assert rows.groupby("image")["mse"].nunique().max() == 1


def test_images_that_are_none_are_flagged_one_by_one(tmp_path: Path) -> None:
    def broken(images: Tensor, prompts: list[str], seeds: list[int], settings: EditSettings) -> Tensor:
        images[seeds.index(42)], images[seeds.index(43)], images[seeds.index(44)] = torch.nan, 0.25, torch.inf
        return images

    model = wrap(editor=broken, size=16)
    rows = measured(model, Drift(count=5, prompt_sets=("empty",), strengths=(0.4,)).suited(model), tmp_path)["Edits"].to_pandas()
    assert rows["flag"].fillna("").tolist() == ["not finite", "constant", "not finite", "", ""]
    assert rows["mse"].isna().tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"budget": True}, "'service' does not say at which noise level its edits start, .* set budget to false"),
        ({"budget": False, "equal_start": True, "num_inference_steps": (15, 20)}, "set equal_start to false"),
    ],
)
def test_what_an_editor_cannot_be_asked_names_the_setting(service: Model, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check([Drift(**settings)], rig(service))


def test_a_pipeline_that_says_nothing_keeps_its_denoiser_from_inverting() -> None:
    """By hand such a model can be made, and wrapped it cannot: an inversion has no level to begin at."""
    model = replace(exact_model("gmm"), editor=wrap(editor=shifted, size=8).editor)
    with pytest.raises(UserError, match=r"where an inversion would have to begin: set editors to \['pipeline'\]"):
        check([Drift(editors=("pipeline", "ddim"), budget=False)], rig(model))
    fitted = Drift(editors=("pipeline", "ddim")).suited(model)
    assert (fitted.editors, fitted.budget) == (("pipeline",), False)


def test_no_more_steps_are_advised_where_steps_tell_nothing_apart(service: Model, tmp_path: Path) -> None:
    probe = Drift(count=3, prompt_sets=("empty",), strengths=(0.2, 0.4), budget=False, tolerance=1e-4)
    found = probe.summarise(measured(service, probe, tmp_path))
    assert "No law is selected: 2 distinct effective levels, a law is selected from 4: measure more strengths." in found.verdicts
    assert any(verdict.endswith("measure lower levels.") for verdict in found.verdicts)


def unchanged(images: Tensor, prompts: list[str], seeds: list[int], settings: EditSettings) -> Tensor:
    return images


def every_other(images: Tensor, prompts: list[str], seeds: list[int], settings: EditSettings) -> Tensor:
    """The images of odd seeds, and of the others what `shifted` makes."""
    kept = torch.tensor([seed % 2 == 1 for seed in seeds])[:, None, None, None]
    return torch.where(kept, images, shifted(images, prompts, seeds, settings))


def run_of(edit: Any, folder: Path) -> Run:
    probe = Drift(count=6, prompt_sets=("empty",), strengths=(0.2, 0.4, 0.6, 0.8), budget=False)
    return start(rig(wrap(editor=edit, size=16, name=edit.__name__)), [probe], folder / edit.__name__)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("unchanged")
    return {edit.__name__: run_of(edit, folder) for edit in (shifted, unchanged, every_other)}


def test_an_editor_that_changes_nothing_is_said_to(runs: dict[str, Run]) -> None:
    found = runs["unchanged"].findings["drift"]
    assert found.verdicts[0].endswith("the pipeline at strength 0.8 returns every image unchanged (6 images).")
    assert not [verdict for verdict in found.verdicts if "counts" in verdict or "nan" in verdict]
    cards = {card.estimate.quantity: card for card in found.cards}
    assert (cards["mse"].estimate.value, cards["k"].estimate.value) == (0, 0)
    assert cards["k"].note == "slope of the mean squared error on strength²; the error is the same at every strength"
    told = "every image came back unchanged, at an infinite ratio"
    assert {e.reason for e in found.estimates if e.quantity == "psnr"} == {told}
    assert cards["psnr"].estimate.reason == told
    (rule,) = gate(runs["unchanged"], None, ["drift.psnr >= 30"]).outcomes
    assert rule.sentence.endswith(f"{told}.")
    assert not next(chart for chart in found.charts if chart.name == "law-shares").rows


def test_a_likeness_of_only_the_changed_images_says_so(runs: dict[str, Run]) -> None:
    found = runs["every_other"].findings["drift"]
    assert "returns images at 21.9 dB from the original, over the 3 of 6 edits that changed anything (mean squared" in found.verdicts[0]
    card = next(card for card in found.cards if card.estimate.quantity == "psnr")
    assert card.note == "empty prompts, strength 0.8; images in [0, 1], over the 3 of 6 edits that changed anything"
    assert card.estimate.value == pytest.approx(-20 * math.log10(0.08))
    assert card.estimate.n == 3
    whole = runs["shifted"].findings["drift"]
    assert "over" not in whole.verdicts[0]
    assert next(card.note for card in whole.cards if card.estimate.quantity == "psnr") == "empty prompts, strength 0.8; images in [0, 1]"


def test_no_likeness_is_compared_where_some_are_infinite(runs: dict[str, Run]) -> None:
    """The changed half alone would be said to be equal to that half of the other run."""
    told = {name: {pair.base_comparable.quantity for pair in paired(runs["shifted"], runs[name], "drift").pairs} for name in runs}
    assert told["shifted"] - told["every_other"] == told["shifted"] - told["unchanged"] == {"psnr"}


def test_an_editor_that_ignores_strength_is_measured_once(tmp_path: Path) -> None:
    model = wrap(editor=shifted, size=8, strength_axis=False)
    fitted = Drift().suited(model)
    assert fitted.strengths == (1.0,)
    check([fitted], rig(model))
    found = replace(fitted, count=3, tolerance=0.001).summarise(measured(model, replace(fitted, count=3), tmp_path))
    assert "No law is selected: 1 distinct effective levels, a law is selected from 4." in found.verdicts
    (allowed,) = [verdict for verdict in found.verdicts if verdict.startswith("No measured strength")]
    assert allowed.endswith("over the tolerance of 0.001.")
    assert str(next(card.estimate.reason for card in found.cards if card.title == "strength budget")) in allowed
    assert not [verdict for verdict in found.verdicts if ": measure" in verdict or "more steps" in verdict]
    with pytest.raises(UserError, match="has no strength axis"):
        check([Drift(budget=False)], rig(model))
