"""Editing by inversion: it begins where the deployed pipeline begins, and what it changes is seen by the drift probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.inversion import METHODS, Inversion, InversionEditor, invert, replay
from diffprobe.model import Edited, EditSettings, Level, Rig
from diffprobe.paths import VariancePreserving
from diffprobe.probes.base import Findings
from diffprobe.probes.drift import Drift
from diffprobe.probes.drift.cells import DecoderNoise, Edits
from diffprobe.runs.execute import plan
from diffprobe.runs.result import check
from tests.test_climb import apart
from tests.test_drift import measured, of
from tests.test_inversion import data

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.6)
SETTINGS = EditSettings(0.6, 12, 1.0)


@pytest.mark.parametrize("name", ["exact:gmm", "exact:gmm@ve", "exact:gmm@flow", "sd", "sdxl", "sd3", "flow", "edm"])
def test_it_begins_where_the_pipeline_begins(name: str, pipelines: Callable[[str], Path]) -> None:
    model = load(name if name.startswith("exact:") else str(pipelines(name)), device="cpu")
    assert model.editor is not None
    assert model.path is not None
    ours = InversionEditor(model)
    assert ours.strength_axis
    assert ours.size == model.editor.size
    for strength, steps in ((0.05, 15), (0.1, 15), (0.5, 15), (0.58, 50), (1.0, 15)):
        level = ours.level(strength, steps)
        assert level == model.editor.level(strength, steps)
        assert ours._start(strength, steps)[1] == (model.path.levels(steps)[-level.steps :] if level.steps else ())


class _Spaced:
    """An editor whose scheduler visits levels of its own."""

    size, strength_axis = 8, True

    def __init__(self, level: Level) -> None:
        self.at = level

    def level(self, strength: float, num_inference_steps: int) -> Level:
        return self.at

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        raise NotImplementedError


def test_a_scheduler_with_other_levels_is_met_at_its_first() -> None:
    """The start is the pipeline's own; below it come those of the path's levels that lie below."""
    model = exact_model("gmm")
    path = model.path
    assert isinstance(path, VariancePreserving)
    level, times = InversionEditor(replace(model, editor=_Spaced(Level(4, 444.0, 0.7, 1.0))))._start(0.4, 10)
    assert float(path.ratio(times[0])) == pytest.approx(1.0)
    assert times[1:] == tuple(t for t in path.levels(10) if path.ratio(t) < 1)
    found = InversionEditor(replace(model, editor=_Spaced(Level(4, 444.0, 0.7, 1.0)))).level(0.4, 10)
    assert found == level._replace(steps=len(times))


def test_a_model_without_an_editor_has_the_levels_of_its_path() -> None:
    model = exact_model("gmm")
    assert model.editor is not None
    ours = InversionEditor(replace(model, editor=None))
    assert [ours.level(strength, 15) for strength in (0.05, 0.3, 1.0)] == [
        model.editor.level(strength, 15) for strength in (0.05, 0.3, 1.0)
    ]
    assert ours.size == model.editor.size == 8


@pytest.mark.parametrize("method", ["ddim", "fixed-point", "negative-prompt"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_an_edit_is_the_climb_and_the_way_back(method: str, scale: float) -> None:
    model = exact_model("gmm")
    assert model.path is not None
    assert model.codec is not None
    z, prompts, settings = data(model, 5), ["class 1"] * 5, EditSettings(0.6, 12, scale, "class 0")
    done = InversionEditor(model, Inversion(method)).edit(z, prompts, range(5), settings)
    climbs = scale if method == "fixed-point" else 1.0  # by the very steps that come down
    how, times = Inversion(method, 12, climbs, "class 0"), model.path.levels(12)[-7:]
    latents = invert(model, z, prompts, how, times=times).latents
    expected = replay(model, latents, prompts, how, guidance_scale=scale, times=times)
    assert done.latents is not None
    assert torch.equal(done.latents, expected)
    assert torch.equal(done.images, model.codec.decode(expected))
    assert done.guided == (scale > 1 and method != "negative-prompt")
    assert done.level.steps == 7


def test_up_to_scale_one_there_is_no_guidance_as_deployed() -> None:
    model = exact_model("gmm")
    z, ours = data(model, 3), InversionEditor(model)
    found = [ours.edit(z, ["class 1"] * 3, range(3), replace(SETTINGS, guidance_scale=scale)) for scale in (0.0, 0.5, 1.0)]
    assert all(torch.equal(one.images, found[2].images) and not one.guided for one in found)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_edit_that_settles_changes_nothing_and_reads_no_seed(scale: float) -> None:
    model = exact_model("gmm")
    z, settings = data(model, 5), replace(SETTINGS, guidance_scale=scale)
    settled = InversionEditor(model, Inversion("fixed-point", iterations=20))
    one, other = (settled.edit(z, ["class 1"] * 5, seeds, settings).latents for seeds in (range(5), range(50, 55)))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    assert apart(one, z) < 1e-4
    plain = InversionEditor(model).edit(z, ["class 1"] * 5, range(5), settings).latents
    assert plain is not None
    assert apart(plain, z) > 1e-3


def test_null_text_tunes_for_the_guidance_of_the_edit(pipelines: Callable[[str], Path]) -> None:
    model = load(str(pipelines("sd")), device="cpu")
    z, settings = 0.5 * rng.normal((4, 8, 8), "test", [0, 1]), EditSettings(0.9, 5, 6.0)
    found = {
        name: InversionEditor(model, Inversion(name, iterations=3)).edit(z, ["a", "b"], (0, 1), settings).latents
        for name in ("ddim", "null-text")
    }
    errors = {name: float((latents - z).square().mean()) for name, latents in found.items() if latents is not None}
    assert errors["null-text"] < errors["ddim"]
    with pytest.raises(UserError, match="at guidance_scale 1 that is nothing"):
        InversionEditor(model, Inversion("null-text")).edit(z, ["a", "b"], (0, 1), SETTINGS)


def test_what_cannot_be_edited_is_told() -> None:
    model = exact_model("gmm")
    z = data(model, 1)
    with pytest.raises(UserError, match="runs no step of 12: raise either"):
        InversionEditor(model).edit(z, [""], (0,), replace(SETTINGS, strength=0.05))
    with pytest.raises(UserError, match="editing needs a codec, and exact:gmm has none"):
        InversionEditor(replace(model, codec=None)).edit(z, [""], (0,), SETTINGS)
    with pytest.raises(UserError, match="has no editor, and no codec and shape"):
        _ = InversionEditor(replace(model, editor=None, shape=None)).size
    with pytest.raises(UserError, match="inversion needs a path"):
        InversionEditor(replace(model, path=None)).level(0.5, 10)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    return measured(exact_model("gmm"), _study(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def findings(records: dict[str, pa.Table]) -> Findings:
    return _study().summarise(records)


def _study(*editors: str) -> Drift:
    return Drift(
        count=10, prompt_sets=("empty",), editors=editors or ("pipeline", "ddim", "fixed-point"), strengths=STRENGTHS, seeds=(1, 2)
    )


def test_editors_are_crossed_and_draw_no_seed_twice(records: dict[str, pa.Table]) -> None:
    rows = records["Edits"].to_pandas()
    assert rows.groupby("editor")["seed"].count().to_dict() == {"pipeline": 100, "ddim": 50, "fixed-point": 50}
    levels = rows.groupby(["requested_strength", "editor"])[["sigma", "steps", "strength", "alpha"]].first().unstack()
    assert all(levels[column].nunique(axis=1).eq(1).all() for column in ("sigma", "steps", "strength", "alpha"))
    assert len(records["DecoderNoise"]) == 100
    assert np.abs(rows["total"] - rows["floor"] - rows["move"] - rows["cross"]).max() < 1e-7


def test_an_inversion_drifts_less_than_noise_and_the_verdict_says_so(findings: Findings) -> None:
    assert {e.facets["editor"] for e in of(findings, "mse", strength=0.6) if "editor" in e.facets} == {"pipeline", "ddim", "fixed-point"}
    for editor in ("ddim", "fixed-point"):
        (less,) = of(findings, "mse_difference", editor=editor, strength=0.6)
        assert less.facets["than_editor"] == "pipeline"
        assert less.hi is not None
        assert less.hi < 0
        told = f"Inverting the image ({editor}) instead of adding noise, from the same level and image by image: less drift at strength 0.6"
        assert any(verdict.startswith(told) for verdict in findings.verdicts)
    assert any(verdict.startswith("By inverting the image (ddim) the ") for verdict in findings.verdicts)
    assert "editor" in next(chart for chart in findings.charts if chart.name == "mse-over-strength").series.title  # type: ignore[union-attr]
    assert of(findings, "contraction", strength=0.6)


def test_without_noise_there_is_no_share_of_it(tmp_path: Path) -> None:
    """An inversion as the main setting keeps the parts and the alignment, and is not set against noise that nobody added."""
    probe = replace(_study("ddim"), seeds=(1,))
    assert not any(isinstance(step.cell, DecoderNoise) for step in plan([probe]))
    found = probe.summarise(measured(exact_model("gmm"), probe, tmp_path))
    assert of(found, "alignment", strength=0.6)
    assert of(found, "budget_move", strength=0.6)
    assert not [e for name in ("contraction", "decoder", "budget_decoder_only", "variance_share") for e in of(found, name)]
    assert any("the inversion by ddim at strength 0.6 returns" in verdict for verdict in found.verdicts)
    assert any(verdict.startswith("What it moves in the latent at strength 0.6 is amplified") for verdict in found.verdicts)
    assert not any("noise it was given" in verdict for verdict in found.verdicts)
    (chart,) = [chart for chart in found.charts if chart.name == "factors"]
    assert {row["series"] for row in chart.rows} == {"alignment"}
    assert "contraction" not in chart.caption


def test_a_model_without_an_editor_is_measured_by_inversion(tmp_path: Path) -> None:
    model, probe = replace(exact_model("gmm"), editor=None), Drift(count=3, prompt_sets=("empty",), editors=("ddim",), strengths=(0.4,))
    check([probe], Rig(model, {}))
    rows = measured(model, probe, tmp_path / "a")["Edits"].to_pandas()
    whole = measured(exact_model("gmm"), probe, tmp_path / "b")["Edits"].to_pandas()
    assert rows["mse"].tolist() == whole["mse"].tolist()
    both = replace(probe, editors=("pipeline", "ddim"))
    assert both.suited(model) == probe
    with pytest.raises(UserError, match="drift needs editor; 'exact:gmm' has none"):
        check([both], Rig(model, {}))


def test_a_model_without_a_denoiser_keeps_its_pipeline() -> None:
    model, probe = replace(exact_model("gmm"), denoiser=None), Drift(editors=("pipeline", *METHODS), guidance_scale=(5.0,))
    assert probe.needs == {"codec", "editor", "denoiser", "path", "condition"}
    assert probe.suited(model) == replace(probe, editors=("pipeline",))
    with pytest.raises(UserError, match="drift needs denoiser; 'exact:gmm' has none"):
        check([probe], Rig(model, {}))


def test_what_cannot_be_inverted_is_told_by_the_probe_first() -> None:
    with pytest.raises(UserError, match="conditions are bool, which has none: use 'ddim'"):
        Drift(editors=("null-text",)).check(exact_model("gmm"))
    fast = replace(exact_model("gmm"), identity={"distilled": "LCMScheduler"})
    with pytest.raises(UserError, match="cannot be inverted: LCMScheduler leaps to data"):
        Drift(editors=("ddim",)).check(fast)
    Drift().check(fast)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"editors": ("dim",)}, "unknown editor 'dim': did you mean 'ddim'"),
        ({"editors": ()}, "at least one value in 'editors'"),
        ({"editors": ("ddim", "ddim")}, "names a value twice"),
        ({"editors": ("null-text",), "guidance_scale": (1.0, 5.0)}, "raise guidance_scale above 1"),
    ],
)
def test_bad_editors_are_one_line(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Drift(**settings)  # type: ignore[arg-type]


def test_defaults_are_the_pipeline_alone() -> None:
    cells = [step.cell for step in plan([Drift(count=2)])]
    assert {cell.editor for cell in cells if isinstance(cell, Edits)} == {"pipeline"}
    assert all(Drift.preset(size).editors == ("pipeline",) for size in ("quick", "standard", "paper"))


def test_what_an_inversion_costs_is_counted() -> None:
    steps = [step.cell for step in plan([Drift(count=2, prompt_sets=("empty",), strengths=(0.4,), editors=("pipeline", *METHODS))])]
    costs = {cell.editor: cell.cost().evaluations for cell in steps if isinstance(cell, Edits)}
    assert costs == {"pipeline": 24, "ddim": 36, "fixed-point": 168, "null-text": 420, "negative-prompt": 36}


@pytest.mark.parametrize("name", ["embedded", "embedded-v", "embedded-flow", "embedded-edm"])
def test_the_embedded_family_is_swept(name: str, tmp_path: Path) -> None:
    model = load(name)
    probe = Drift(
        count=2, prompt_sets=("null",), editors=("pipeline", "ddim"), strengths=(0.4, 0.8), num_inference_steps=(5,), budget=False
    )
    rows = measured(model, probe, tmp_path)["Edits"].to_pandas()
    assert rows["flag"].isna().all()
    assert (rows.groupby(["requested_strength", "editor"])["sigma"].first().unstack().nunique(axis=1) == 1).all()
