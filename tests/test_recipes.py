"""The cookbook: every recipe has its place in the documentation, is told by the command, and is checked against what was published."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest

from diffprobe.adapters.load import DISTANCES, EMBEDDERS
from diffprobe.adapters.lpips import TRUNKS
from diffprobe.cookbook import markdown, recipes, reported
from diffprobe.errors import UserError
from diffprobe.running import slug as written
from diffprobe.runs.published import check, flat, interval
from diffprobe.runs.recipes import Recipe, cookbook, planned, recipe
from diffprobe.runs.result import Run, start
from diffprobe.runs.study import Report, slug
from diffprobe.runs.study import recipes as shipped
from diffprobe.validate import VALIDATIONS
from tests.checked import PROBE, about, only, study
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


def test_every_instrument_and_sampler_of_a_recipe_is_one() -> None:
    for one in cookbook():
        for name in one.study.embedders:
            kind, _, which = name.partition(":")
            assert kind in (EMBEDDERS | DISTANCES), one.name
            assert kind not in DISTANCES or which in TRUNKS, one.name
        assert one.study.scheduler is None or hasattr(diffusers, one.study.scheduler), one.name


def test_no_seed_of_a_benchmark_is_ours() -> None:
    for name in ("noop-ablation", "noop-bench", "guidance", "steps", "steps-equal-strength", "resolution", "inversion"):
        (probe,) = recipe(name).study.probes
        assert (probe.seeds, probe.same_seed) == ((42,), True), name


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(gaussian(), [small_drift()], tmp_path_factory.mktemp("check") / "run")


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


def test_a_range_agrees_where_it_holds_the_interval(run: Run) -> None:
    _, lo, hi = measured(run)
    ends: list[dict[str, Any]] = [
        {"lo": lo - 1e-6},
        {"lo": hi - 1e-6},
        {"lo": hi + 1e-6},
        {"hi": hi + 1e-6},
        {"hi": lo + 1e-6},
        {"hi": lo - 1e-6},
    ]
    found = [only(run, study(about(**one))) for one in ends]
    assert [one.outcome for one in found] == ["agree", "not comparable", "differ"] * 2
    assert found[1].why.endswith("the interval reaches beyond the range: undecided")
    assert found[1].gap is None
    assert found[2].gap == pytest.approx(1e-6)
    assert only(run, study(about(lo=0, hi=1))).outcome == "agree"
    assert only(run, study(about(lo=(lo + hi) / 2, hi=1))).outcome == "not comparable"


def test_two_intervals_that_just_overlap_differ(run: Run) -> None:
    """Two means of equal error differ where they are more than the root of 2 half-widths apart, and their intervals overlap up to 2."""
    value, _, hi = measured(run)
    half = hi - value
    spread: dict[str, Any] = {"plus_minus": half / 1.959964, "spread": "se"}
    for far, outcome in ((1.3, "agree"), (1.5, "differ"), (2.1, "differ")):
        found = only(run, study(about(value=f"{value + far * half:.9f}", **spread)))
        assert found.outcome == outcome
        assert found.gap == pytest.approx(max(far - math.sqrt(2), 0) * half, rel=1e-4)
    assert only(run, study(about(value=f"{value + 0.99 * half:.9f}"))).outcome == "agree"
    assert only(run, study(about(value=f"{value + 1.01 * half:.9f}"))).outcome == "differ"


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


def test_a_null_estimate_is_not_comparable_and_says_why(tmp_path: Path) -> None:
    strict = start(gaussian(), [small_drift(tolerance=1e-9)], tmp_path / "strict")
    found = only(strict, study({"what": "budget", "quantity": "drift.strength_budget", "lo": 0}))
    assert found.outcome == "not comparable"
    assert found.why.startswith("it could not be measured: ")


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
    assert "delete their lines under 'stand_ins'" in shown
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


def test_a_file_that_is_no_text_and_a_run_that_is_none_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(UserError, match="is no valid YAML"):
        recipes(str(tmp_path / "binary.yaml"), None, None)
    content = json.loads((run.path / "run.json").read_text())
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "plan.json").write_text("{}")
    (odd / "run.json").write_text(json.dumps({**content, "probes": 5}))
    with pytest.raises(UserError, match=r"run.json is damaged \('probes' is not what a run writes\)"):
        recipes("noop-ablation", odd, None)


def test_the_directory_of_a_model_is_the_same_everywhere() -> None:
    for name in ("the first", "a/b+0.6*c", "x:y,z=.pkl", *recipe("noop-ablation").study.models):
        assert slug(name) == written(name)


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
