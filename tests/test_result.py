"""Runs: started, resumed, extended, refused where they belong to something else, and read without model or images."""

import html
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from torch import Tensor

from diffprobe import worlds
from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.model import Model, Rig
from diffprobe.probes.speciation import Speciation
from diffprobe.report.numbers import shown
from diffprobe.report.theme import LIGHT
from diffprobe.runs.execute import Progress
from diffprobe.runs.result import Run, open_run, start
from tests.small import gaussian, small_drift

PROBE = small_drift()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(gaussian(), [PROBE], tmp_path_factory.mktemp("result") / "run")


@dataclass(frozen=True)
class Brightness:
    """The mean of each channel, as an instrument."""

    fingerprint: str = "brightness/1"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@dataclass(frozen=True)
class Narrow:
    """A codec for images of four channels."""

    def encode(self, images: Tensor) -> Tensor:
        raise RuntimeError("only 4 channels")

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_run_is_whole_and_says_what_it_is(run: Run) -> None:
    assert (run.done, run.planned, run.failures) == (5, 5, {})
    about = json.loads((run.path / "run.json").read_text())
    assert about["schema"] == 1
    assert about["model"]["name"] == "exact:gaussian"
    assert about["model"]["weights"].startswith("sha256:")
    assert about["probes"][0]["kind"] == "drift"
    assert about["probes"][0]["strengths"] == [0.3, 0.6]
    assert {"diffprobe", "torch"} <= about["versions"].keys()
    assert {path.name for path in run.path.iterdir()} == {"run.json", "plan.json", "cells", "media", "summary.json", "lock"}


def test_the_table_has_a_row_an_estimate_with_its_interval_and_n(run: Run) -> None:
    table = run.table
    assert {"probe", "quantity", "value", "lo", "hi", "n", "unit", "strength", "sigma"} <= set(table.columns)
    row = table[(table["quantity"] == "mse") & (table["strength"] == 0.6)].iloc[0]
    assert row["lo"] < row["value"] < row["hi"]
    assert row["n"] == 4
    assert row["value"] == pytest.approx(run.records("drift").query("requested_strength == 0.6")["mse"].mean())


def test_the_summary_on_disk_is_the_table_and_the_verdicts(run: Run) -> None:
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["schema"] == 1
    assert len(summary["estimates"]) == len(run.table)
    assert [item["quantity"] for item in summary["estimates"]] == run.table["quantity"].tolist()
    assert summary["verdicts"] == list(run.findings["drift"].verdicts)


def test_records_are_rows_of_the_main_cells_or_of_those_named(run: Run) -> None:
    assert run.records("drift").shape[0] == 4 * 2
    assert set(run.records("drift")["strength"]) == {0.3, 0.6}
    assert run.records("drift", "Originals")["image"].is_unique
    with pytest.raises(UserError, match="this run has no probe 'consistency': it has drift"):
        run.records("consistency")
    with pytest.raises(UserError, match="nothing of 'Edit' is measured yet; there is Originals"):
        run.records("drift", "Edit")


def test_opening_a_run_shows_the_same(run: Run) -> None:
    again = open_run(str(run.path))
    pd.testing.assert_frame_equal(again.table, run.table)
    assert again.probes == (PROBE,)


def test_the_same_call_measures_nothing_again(run: Run) -> None:
    before, told = files(run.path), list[Progress]()
    again = start(gaussian(), [PROBE], run.path, report=told.append)
    assert [state.planned for state in told] == [0]
    assert files(run.path) == before
    assert again.done == 5


def test_the_report_and_the_figures_are_files(run: Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html")
    assert "exact:gaussian" in page.read_text()
    with pytest.raises(UserError, match=r"cannot write to .*: a file of that name is in the way: choose another --out") as caught:
        run.report(page / "deeper.html")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_directory_without_a_run_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="holds no run"):
        open_run(tmp_path / path)


def with_model(model: Model) -> Rig:
    return Rig(model, {})


@pytest.mark.parametrize(
    ("rig", "told"),
    [
        (with_model(exact_model("gmm")), "belongs to another model: name is exact:gaussian there and exact:gmm here"),
        (
            with_model(replace(exact_model("gaussian"), identity={"weights": "sha256:0"})),
            r"another model: weights is sha256:\w+ there and sha256:0 here",
        ),
        (Rig(exact_model("gaussian"), {"brightness": Brightness()}), "another embedder: brightness is None there and brightness/1 here"),
    ],
)
def test_another_models_or_instruments_directory_is_refused_with_the_difference(run: Run, rig: Rig, told: str) -> None:
    before = files(run.path)
    for extend in (False, True):
        with pytest.raises(UserError, match=told) as caught:
            start(rig, [PROBE], run.path, extend=extend)
        assert "\n" not in str(caught.value)
    assert files(run.path) == before


def test_a_moved_model_is_the_same_model(run: Run) -> None:
    model = exact_model("gaussian")
    start(with_model(replace(model, identity={**model.identity, "source": "elsewhere"})), [PROBE], run.path)


def test_another_study_is_refused_with_the_difference(run: Run) -> None:
    before = files(run.path)
    with pytest.raises(UserError, match=r"another study \(drift's count is 4 there and 6 here\): choose another --out, or add --extend"):
        start(gaussian(), [small_drift(count=6)], run.path)
    assert files(run.path) == before


def test_extending_keeps_what_is_measured_and_adds_the_rest(tmp_path: Path) -> None:
    start(gaussian(), [small_drift(strengths=(0.3,))], tmp_path / "run")
    cells = files(tmp_path / "run" / "cells")
    created = open_run(tmp_path / "run").about["created"]
    told = list[Progress]()
    grown = start(gaussian(), [PROBE], tmp_path / "run", extend=True, report=told.append)
    after = files(tmp_path / "run" / "cells")
    assert (told[-1].planned, grown.planned, len(cells), len(after)) == (2, 5, 3, 5)
    assert after.items() >= cells.items()
    assert grown.about["created"] == created
    direct = start(gaussian(), [PROBE], tmp_path / "direct")
    pd.testing.assert_frame_equal(grown.table, direct.table)


def test_a_study_that_shrinks_shows_only_what_it_asks_for(tmp_path: Path) -> None:
    start(gaussian(), [PROBE], tmp_path / "run")
    shrunk = start(gaussian(), [small_drift(strengths=(0.6,))], tmp_path / "run", extend=True)
    assert (shrunk.done, shrunk.planned) == (3, 3)
    assert set(shrunk.records("drift")["strength"]) == {0.6}


def test_what_only_shapes_the_summary_measures_nothing_again(run: Run, tmp_path: Path) -> None:
    start(gaussian(), [PROBE], tmp_path)
    told = list[Progress]()
    wider = start(gaussian(), [small_drift(level=0.99)], tmp_path, extend=True, report=told.append)
    assert told[-1].planned == 0

    def width(of: Run) -> float:
        row = of.table.query("quantity == 'mse' and strength == 0.6").iloc[0]
        return float(row["hi"] - row["lo"])

    assert width(wider) > 1.1 * width(run)


def test_a_model_that_lacks_what_a_probe_needs_stops_before_anything_is_written(tmp_path: Path) -> None:
    bare = Model("bare", path=exact_model("gaussian").path)
    with pytest.raises(UserError, match="drift needs editor; 'bare' has none: drop the probe, or wrap the model with one"):
        start(with_model(bare), [PROBE], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_probe_comes_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the probe 'drift' comes twice"):
        start(gaussian(), [PROBE, small_drift(count=2)], tmp_path / "run")


def test_a_run_is_read_without_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are given relative to where the run was started; the report may be written elsewhere, and later."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for index, scene in enumerate(worlds.scenes(3, seed=0)):
        Image.fromarray(scene.image).save(f"images/{index}.png")
    probe = small_drift(images="images", count=None)
    done = start(gaussian(), [probe], "run")
    Path("images").rename("gone")
    monkeypatch.chdir("run")
    again = open_run(tmp_path / "run")
    assert (again.done, again.planned) == (5, 5)
    pd.testing.assert_frame_equal(again.table, done.table)
    with pytest.raises(UserError, match="no images at 'images'"):
        start(gaussian(), [probe], tmp_path / "run")


def test_images_that_are_added_or_changed_are_measured_and_the_others_kept(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    first, second = (Image.fromarray(scene.image) for scene in worlds.scenes(2, seed=0))
    first.save(folder / "a.png")
    start(gaussian(), [small_drift(images=str(folder), count=None)], tmp_path / "run")
    second.save(folder / "a.png")
    changed = start(gaussian(), [small_drift(images=str(folder), count=None)], tmp_path / "run")
    assert (changed.done, changed.planned, len(changed.store.done("drift"))) == (5, 5, 10)
    assert len(changed.records("drift", "Originals")) == 1


def test_a_run_in_which_everything_failed_can_be_read(tmp_path: Path) -> None:
    broken = with_model(replace(exact_model("gaussian"), codec=Narrow()))
    run = start(broken, [PROBE], tmp_path / "run")
    assert (run.done, run.planned, len(run.failures)) == (0, 5, 5)
    assert len(run.table) == 0
    assert run.findings["drift"].verdicts == ("Nothing is measured yet.",)
    assert "RuntimeError: only 4 channels" in run.report().read_text()
    assert run.figures() == []
    with pytest.raises(UserError, match="nothing of 'Edits' is measured yet; there is nothing"):
        run.records("drift")
    small = start(broken, [small_drift(strengths=(0.3,))], tmp_path / "run", extend=True)
    assert len(small.failures) == 3, "failures of cells that the study no longer has are not its failures"


def test_a_chart_is_an_altair_object_that_can_be_changed_and_saved(run: Run, tmp_path: Path) -> None:
    chart = run.chart("drift", "mse-over-strength")
    told = next(chart for chart in run.findings["drift"].charts if chart.name == "mse-over-strength")
    spec = chart.to_dict()
    (rows,) = spec["datasets"].values()
    assert [row["y"] for row in rows] == [row["value"] for row in told.rows]
    assert (spec["title"], spec["width"], spec["config"]["background"]) == (told.title, 560, LIGHT["surface"])
    chart.properties(title="Ours", width=300).save(tmp_path / "ours.svg")
    assert "Ours" in (tmp_path / "ours.svg").read_text()
    run.chart("drift", "budget").save(tmp_path / "budget.png")
    with Image.open(tmp_path / "budget.png") as image:
        assert image.width > 500


def test_a_chart_shares_its_colours_with_the_others_of_the_run(run: Run) -> None:
    domains = {
        layer["encoding"]["color"]["scale"]["domain"][0]
        for name in ("budget", "factors")
        for layer in run.chart("drift", name).to_dict()["layer"]
        if "color" in layer["encoding"]
    }
    assert len(domains) == 1


def test_a_chart_goes_by_its_own_name_or_by_that_of_its_file(tmp_path: Path) -> None:
    probe = Speciation(base="class 0", variants=("class 1",), samples=4, num_inference_steps=4, keep_images=0)
    run = start(Rig(exact_model("gmm"), {}), [probe], tmp_path / "run")
    assert (tmp_path / "run" / "figures" / "speciation-production-snr.svg") in run.figures()
    assert run.chart("speciation", "production-snr").to_dict() == run.chart("speciation", "production_snr").to_dict()


@pytest.mark.parametrize(
    ("probe", "name", "told"),
    [
        ("drift", "budgets", "unknown chart 'budgets': did you mean 'budget'"),
        ("drift", "", "unknown chart '': choose from budget, domains, factors, law-shares, laws, mse-over-strength"),
        ("drift", "law-shares", "nothing to draw in drift-law-shares: no row of it is measured"),
        ("geometry", "budget", "this run has no probe 'geometry': it has drift"),
    ],
)
def test_a_chart_that_there_is_not_is_one_line(run: Run, probe: str, name: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        run.chart(probe, name)
    assert "\n" not in str(caught.value)


def test_a_notebook_shows_the_main_numbers_and_the_verdicts(run: Run) -> None:
    page = run._repr_html_()
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)][1:]
    for row, card in zip(rows, run.findings["drift"].cards, strict=True):
        value, interval, unit, reason = shown(card.estimate)
        told = ["drift", card.title, f"{value} {unit}", interval or reason, str(card.estimate.n)]
        assert [html.unescape(cell) for cell in row] == told
    assert tuple(html.unescape(item) for item in re.findall("<li>(.*?)</li>", page)) == run.findings["drift"].verdicts
    assert "<b>exact:gaussian</b>: 5 of 5 cells measured, 0 failed" in page


def test_a_notebook_shows_names_as_text(tmp_path: Path) -> None:
    run = start(with_model(replace(exact_model("gaussian"), name="<img src=x>")), [PROBE], tmp_path / "run")
    assert "<img" not in run._repr_html_()
    assert "&lt;img src=x&gt;" in run._repr_html_()
