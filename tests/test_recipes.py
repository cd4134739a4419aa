"""The cookbook: every recipe has its place in the documentation, is told by the command, and is checked against what was published."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffprobe.adapters.exact import exact_model
from diffprobe.cookbook import markdown, recipes, reported
from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.runs.published import Verdict, check, flat, interval
from diffprobe.runs.recipes import Recipe, cookbook, planned, recipe
from diffprobe.runs.result import Run, start
from diffprobe.runs.sameness import same_model
from diffprobe.runs.study import Report, Study, parse_study
from diffprobe.runs.study import recipes as shipped
from diffprobe.validate import VALIDATIONS
from tests.small import gaussian, small_drift

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "recipes.md").read_text()
#: Figures and tables of each study, in the order of the page.
FIGURES = {
    "The Drift Kernel": (6, 7),
    "Semantic consistency": (2, 0),
    "What Secrets Do Your Manifolds Hold?": (28, 0),
    "Addressing degeneracies": (12, 0),
    "The entropic signature": (18, 0),
}
PROBE = {"kind": "drift", "count": 4, "prompt_sets": ["empty"], "strengths": [0.3, 0.6]}


def rows(study: str) -> dict[str, str]:
    """The experiments of a study with what the page has for each."""
    part = next(part for part in DOCUMENT.split("\n## ") if part.startswith(study))
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells[1:]}


@pytest.mark.parametrize("study", FIGURES)
def test_every_figure_and_table_of_a_study_has_its_place(study: str) -> None:
    figures, tables = FIGURES[study]
    expected = {f"figure {n}" for n in range(1, figures + 1)} | {f"table {n}" for n in range(1, tables + 1)}
    assert expected <= rows(study).keys()


def test_the_page_has_every_recipe_and_nothing_that_there_is_not() -> None:
    places = [place for study in FIGURES for place in rows(study).values()]
    named = {name for place in places for name in re.findall(r"`([^`]+)`", place)}
    assert shipped().keys() <= named
    for name in named - shipped().keys():
        if name.startswith("diffprobe validate "):
            assert name.removeprefix("diffprobe validate ") in VALIDATIONS
        elif name != "diffprobe compare --choices":
            assert (ROOT / name).is_file(), name
    assert all("`" in place or place.startswith("not done, because") for place in places)


def test_every_recipe_says_what_it_is_and_where_from() -> None:
    for one in cookbook():
        assert one.study.source, one.name
        assert 20 < len(one.headline) < 220, one.name
        assert one.study.reports or one.study.source.startswith(("this project", "no study")), one.name
        for place in one.study.stand_ins:
            assert "stand" in one.about, f"{one.name} does not say what stands in for {place}"


def test_a_headline_is_the_first_sentence() -> None:
    about = "Version 1.5 of it, 3 images. More."
    assert Recipe("x", Path("x"), about, study()).headline == "Version 1.5 of it, 3 images"
    assert Recipe("x", Path("x"), "Is it so? More.", study()).headline == "Is it so?"
    assert Recipe("x", Path("x"), "One sentence.", study()).headline == "One sentence"


def test_the_cost_of_a_recipe_is_that_of_its_plans() -> None:
    found = {one.model: one for one in planned(recipe("noop-ablation").study)}
    assert list(found) == ["sd15", "sd21", "sdxl", "ip2p"]
    assert found["sd15"].cost == found["sdxl"].cost
    # 2,400 edits of 1, 3, 4 and 6 steps, guided; of InstructPix2Pix 600 of 15, with three evaluations a step or two.
    assert found["sd15"].cost.evaluations == 600 * (1 + 3 + 4 + 6) * 2
    (alone,) = planned(recipe("speciation-edm2-sweep").study)
    assert alone.cells == 0
    assert "no reference images" in alone.reason


def study(*reports: dict[str, Any], **more: Any) -> Study:
    return parse_study({"model": "exact:gaussian", "embedders": [], "probes": [PROBE], "reports": list(reports), **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(gaussian(), [small_drift()], tmp_path_factory.mktemp("check") / "run")


def about(what: str = "error", **more: Any) -> dict[str, Any]:
    return {"what": what, "quantity": "drift.mse", "facets": {"prompt_set": "empty", "strength": 0.6}, **more}


def only(run: Run, asked: Study) -> Verdict:
    (found,) = check(run, asked)
    return found


def measured(run: Run) -> tuple[float, float, float]:
    found = next(e for e in run.estimates if e.quantity == "mse" and e.facets.get("strength") == 0.6 and "domain" not in e.facets)
    assert found.value is not None
    assert found.lo is not None
    assert found.hi is not None
    return found.value, found.lo, found.hi


def test_a_true_report_agrees_and_a_false_one_differs_by_its_gap(run: Run) -> None:
    value, lo, hi = measured(run)
    found = only(run, study(about(value=f"{value:.6f}")))
    assert (found.outcome, found.gap) == ("agree", 0)
    assert found.estimate is not None
    assert found.estimate.value == value
    far = only(run, study(about(value=2.0)))
    assert far.outcome == "differ"
    assert far.gap == pytest.approx(1.95 - hi)  # "2.0" means 1.95 to 2.05
    assert "published 1.95 to 2.05" in far.why
    below = only(run, study(about(value="0.000001")))
    assert below.outcome == "differ"
    assert below.gap == pytest.approx(lo - 1.5e-6)


def test_a_range_agrees_where_it_meets_the_interval(run: Run) -> None:
    _, lo, hi = measured(run)
    ends: list[dict[str, Any]] = [{"lo": hi - 1e-6}, {"lo": hi + 1e-6}, {"hi": lo + 1e-6}, {"hi": lo - 1e-6}]
    outcomes = [only(run, study(about(**one))).outcome for one in ends]
    assert outcomes == ["agree", "differ", "agree", "differ"]
    assert only(run, study(about(lo=0, hi=1))).outcome == "agree"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": "0.0710"}, (0.07095, 0.07105)),
        ({"value": 0.071}, (0.0705, 0.0715)),
        ({"value": 90}, (89.5, 90.5)),
        ({"value": 88.9, "plus_minus": 7.1, "spread": "sd", "n": 100}, (88.9 - 1.959964 * 0.71, 88.9 + 1.959964 * 0.71)),
        ({"value": 88.9, "plus_minus": 0.71, "spread": "se"}, (88.9 - 1.959964 * 0.71, 88.9 + 1.959964 * 0.71)),
        ({"value": 5, "plus_minus": 0.001, "spread": "se"}, (4.5, 5.5)),
        ({"lo": 1}, (1, math.inf)),
        ({"lo": 1, "hi": 2}, (1, 2)),
    ],
)
def test_the_published_interval(given: dict[str, Any], expected: tuple[float, float]) -> None:
    assert interval(Report(what="x", quantity="drift.mse", **given)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"probes": [{**PROBE, "guidance_scale": 3}]}, "its guidance_scale is [5.0], and the recipe's [3.0]"),
        ({"probes": [{**PROBE, "strengths": [0.3, 0.6, 0.9]}]}, "its strengths is [0.3, 0.6]"),
        ({"model": "exact:gmm"}, "the source of its model is exact:gaussian, and the recipe's exact:gmm"),
        ({"model": "stabilityai/some-model"}, "the source of its model is exact:gaussian, and the recipe's stabilityai/some-model"),
        ({"stand_ins": {"drift.images": "photographs"}}, "drift.images stands in for photographs"),
        ({"reports": [about(value=1, facets={"strength": 0.5})]}, "the run has no estimate drift.mse with strength 0.5"),
        ({"reports": [about(value=1, facets={"prompt_set": "empty"})]}, "the run has 2 estimates drift.mse with prompt_set empty"),
        ({"reports": [about(value=1, quantity="drift.lpips:alex")]}, "the run has no estimate drift.lpips:alex"),
        ({"reports": [{"what": "said in words", "note": "words"}]}, "words"),
        (
            {"probes": [{**PROBE, "guidance_scale": 3, "seeds": 7, "num_inference_steps": 20, "budget": False, "measured": 8}]},
            "2 more of its settings differ: seeds, budget",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(run: Run, changed: dict[str, Any], told: str) -> None:
    content = {"reports": [about(value=0.01)], **changed}
    found = only(run, study(*content.pop("reports"), **content))
    assert found.outcome == "not comparable"
    assert told in found.why


def test_pictures_and_thresholds_are_no_difference(run: Run) -> None:
    asked = study(about(lo=0), probes=[{**PROBE, "keep_images": 3, "tolerance": 0.5}])
    assert only(run, asked).outcome == "agree"


def test_other_data_are_taken_for_the_studys_own_and_it_is_said(run: Run, tmp_path: Path) -> None:
    asked = study(about(lo=0), stand_ins={"drift.images": "photographs"}, probes=[{**PROBE, "images": "rendered"}])
    found = only(run, asked)
    assert found.outcome == "agree"
    assert found.caveats == ("that drift.images is photographs is taken on trust",)


@pytest.mark.parametrize(
    ("facts", "outcome", "told"),
    [
        ({"scheduler": "DDIMScheduler, leading, epsilon"}, "agree", ""),
        (
            {"scheduler": "PNDMScheduler, leading"},
            "not comparable",
            "its pipeline samples with PNDMScheduler, and the study's with DDIMScheduler",
        ),
        ({}, "agree", "that its pipeline samples with DDIMScheduler is not recorded"),
    ],
)
def test_the_sampler_of_the_study(facts: dict[str, str], outcome: str, told: str, tmp_path: Path) -> None:
    path = start(gaussian(), [small_drift()], tmp_path / "run").path
    identity = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**identity, "facts": facts}))
    found = only(Run(path), study(about(lo=0), scheduler="DDIMScheduler"))
    assert found.outcome == outcome
    assert told == (found.why if outcome == "not comparable" else "; ".join(found.caveats))


def test_a_null_estimate_is_not_comparable_and_says_why(tmp_path: Path) -> None:
    strict = start(gaussian(), [small_drift(tolerance=1e-9)], tmp_path / "strict")
    found = only(strict, study({"what": "budget", "quantity": "drift.strength_budget", "lo": 0}))
    assert found.outcome == "not comparable"
    assert found.why.startswith("it could not be measured: ")


def test_a_run_that_is_not_whole_is_not_comparable(tmp_path: Path) -> None:
    half = start(gaussian(), [small_drift()], tmp_path / "half")
    next((half.path / "cells" / "drift").glob("*.parquet")).unlink()
    found = only(Run(half.path), study(about(lo=0)))
    assert (found.outcome, found.why) == ("not comparable", "1 of its 5 cells are not measured")


def test_an_instance_of_a_list_that_still_stands_in_is_told(tmp_path: Path) -> None:
    def geometry(*prompts: str) -> dict[str, Any]:
        drawn = [{"name": f"set {place}", "prompts": [text], "num_inference_steps": 2} for place, text in enumerate(prompts)]
        return {"kind": "geometry", "sets": [], "generated": drawn, "directions": 2}

    parsed = parse_study({"probes": [geometry("class 0", "class 1")]})
    found = start(Rig(exact_model("gmm"), {}), parsed.probes, tmp_path / "run")
    stands = {"stand_ins": {"geometry.generated.prompts": "captions"}, "model": "exact:gmm"}
    asked = [{"what": "psi", "quantity": "geometry.psi", "facets": {"set": "set 0"}, "lo": -1e9}]
    half = parse_study({"probes": [geometry("class 2", "class 1")], "reports": asked, **stands})
    assert only(found, half).why == "geometry.generated.prompts stands in for captions"
    own = parse_study({"probes": [geometry("class 2", "class 3")], "reports": asked, **stands})
    assert only(found, own).outcome == "agree"


def test_several_models_are_told_apart_by_source_or_name(run: Run) -> None:
    models = {"world": "exact:gaussian", "other": "exact:gmm"}
    asked = parse_study({"models": models, "probes": [PROBE], "reports": [about(lo=0, model=name) for name in models]})
    first, second = check(run, asked)
    assert (first.outcome, second.outcome, second.why) == ("agree", "not comparable", "there is no run of other")
    with pytest.raises(UserError, match="the study has no model 'third'"):
        check({"third": run}, asked)
    twice = parse_study({"models": {"a": "exact:gaussian", "b": "exact:gaussian"}, "probes": [PROBE]})
    with pytest.raises(UserError, match="could be any of the study's models"):
        check(run, twice)


@pytest.mark.parametrize(
    ("identity", "spec", "differs", "unproved"),
    [
        ({"source": "a/b", "commit": "1", "family": "X"}, "a/b", False, False),
        ({"source": "a/c", "commit": "1", "family": "X"}, "a/b", True, False),
        ({"source": "/data/b", "family": "X"}, "a/b", False, True),
        ({"source": "embedded", "family": "X"}, "a/b", True, False),
        ({"source": "embedded-pastel", "lora_source": "embedded-pastel", "family": "X"}, "embedded-pastel", False, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l", "lora_scale": "0.6"}, "a/b+0.6*l", False, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l", "lora_scale": "0.7"}, "a/b+0.6*l", True, False),
        ({"source": "a/b", "commit": "1", "family": "X"}, "a/b+0.6*l", True, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l"}, "a/b", True, False),
        ({"source": "/d/x.pkl", "unconditional": "/d/u.pkl", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl,vae=v", False, True),
        ({"source": "/d/y.pkl", "unconditional": "/d/u.pkl", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl", True, True),
        ({"source": "x.pkl", "unconditional": "zeros in place of a class", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl", True, False),
    ],
)
def test_the_same_model(identity: dict[str, str], spec: str, differs: bool, unproved: bool) -> None:
    found = same_model({**identity, "weights": "sha256:0"}, spec)
    assert (bool(found.differences), bool(found.unproved)) == (differs, unproved)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command prints."""

    def run_it(*arguments: Any) -> str:
        recipes(*arguments)
        return capsys.readouterr().out

    return run_it


def test_the_command_lists_and_shows(told: Callable[..., str]) -> None:
    listed = told(None, None, None)
    assert all(name in listed for name in shipped())
    shown = told("noop-ablation", None, None)
    for part in ("203 cells, 16,800 network evaluations", "stand-in: drift.images, where the study has", "0.1533 ± 0.0303 (sd), n 300"):
        assert part in shown
    assert "no plan: no reference images" in told("speciation-edm2-sweep", None, None)


def test_the_command_checks_a_run_of_a_study_file(run: Run, told: Callable[..., str], tmp_path: Path) -> None:
    value, *_ = measured(run)
    text = f"""# A study of ours. More of it.
source: "a paper | and more"
model: exact:gaussian
embedders: []
probes:
  - {json.dumps(PROBE)}
reports:
  - {{what: "true", quantity: drift.mse, facets: {{strength: 0.6}}, value: "{value:.6f}"}}
  - {{what: "false", quantity: drift.mse, facets: {{strength: 0.6}}, value: 2.0}}
  - {{what: "words", note: "said | in words"}}
"""
    file = tmp_path / "ours.yaml"
    file.write_text(text)
    shown = told(str(file), run.path, tmp_path / "check.json")
    assert "1 agree, 1 differ, 1 not comparable" in shown
    written = json.loads((tmp_path / "check.json").read_text())
    assert [one["outcome"] for one in written["verdicts"]] == ["agree", "differ", "not comparable"]
    assert written["verdicts"][0]["found"] == value
    assert written["verdicts"][2]["found"] is None
    told(str(file), run.path, tmp_path / "check.md")
    page = (tmp_path / "check.md").read_text()
    assert page.startswith("# ours against what was published")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert all(line.count("|") == 6 for line in lines)


def test_the_command_takes_the_folder_of_a_study_of_models(run: Run, told: Callable[..., str], tmp_path: Path) -> None:
    start(gaussian(), [small_drift()], tmp_path / "runs" / "the-first")
    file = tmp_path / "two.yaml"
    models = {"the first": "exact:gaussian", "second": "exact:gmm"}
    file.write_text(json.dumps({"models": models, "probes": [PROBE], "reports": [about(lo=0, model=name) for name in models]}))
    assert "1 agree, 0 differ, 1 not comparable" in told(str(file), tmp_path / "runs", None)
    with pytest.raises(UserError, match="holds no run of the first, second"):
        told(str(file), tmp_path, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, Path("run"), None), "--check compares a run with one recipe: name it"),
        (("noop-bench", None, Path("a.md")), "--out writes a check: give --check"),
        (("noop-bench", Path("run"), Path("a.txt")), "ends in .md or .json"),
        (("noop-bensh", None, None), "unknown study 'noop-bensh': did you mean 'noop-bench'?"),
        (("seeds", Path("run"), None), "'seeds' has no 'reports'"),
        (("guidance", Path("nowhere"), None), "holds no run"),
    ],
)
def test_what_the_command_refuses_is_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        recipes(*arguments)
    assert caught.value.exit_code == 2


def test_verdicts_are_json_and_markdown(run: Run) -> None:
    asked = study(about(lo=0), {"what": "words", "note": "in\nwords"})
    verdicts = check(run, asked)
    told = json.loads(json.dumps([flat(verdict) for verdict in verdicts], allow_nan=False))
    assert (told[0]["outcome"], told[0]["published_lo"], told[0]["published_hi"], told[0]["gap"]) == ("agree", 0, None, 0)
    assert "in words" in markdown(Recipe("x", Path("x"), "", asked), verdicts)
    assert reported(asked.reports[0]) == "at least 0"
