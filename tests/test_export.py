"""Exports: tidy tables that read back equal, names that trackers take, figures, and the command."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from diffprobe.errors import UserError
from diffprobe.export import EXPORTERS, Target, export
from diffprobe.export.base import key_of, missing_of
from diffprobe.export.names import LONGEST, distinct, metric_names, setting_names
from diffprobe.export.tables import estimates
from diffprobe.exporting import export_run
from diffprobe.measures.stats import Estimate
from diffprobe.runs.result import Run, open_run, start
from tests.small import gaussian, small_drift
from tests.test_result import files


def finished(folder: Path) -> Run:
    """A drift run of 5 cells in the Gaussian world; its strength budget and others are null, with reasons."""
    return start(gaussian(), [small_drift()], folder / "finished")


def unfinished(run: Run, folder: Path, left: int = 2) -> Run:
    """A copy of the run with so many of its cells measured."""
    shutil.copytree(run.path, folder / "unfinished")
    keys = [key for keys in run.plan.values() for key in keys]
    for key in keys[left:]:
        (folder / "unfinished" / "cells" / "drift" / f"{key}.parquet").unlink()
    return open_run(folder / "unfinished")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("export"))


def estimate(quantity: str, value: float | None = 1.0, reason: str | None = None, **facets: str | float | int | bool) -> Estimate:
    return Estimate("drift", quantity, value, None, None, 3, "", facets, reason)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_estimates_read_back_to_the_bit(run: Run, tmp_path: Path) -> None:
    export(run, ["csv", "parquet"], out=tmp_path)
    kept = pq.read_table(tmp_path / "estimates.parquet").to_pylist()
    assert len(kept) == len(run.estimates) > 50
    for row, text, one in zip(kept, rows(tmp_path / "estimates.csv"), run.estimates, strict=True):
        for name in ("probe", "quantity", "value", "lo", "hi", "n", "unit", "reason"):
            assert row[name] == getattr(one, name)
            assert text[name] == "" or type(row[name])(text[name]) == row[name]
        assert {name: row[name] for name in one.facets} == dict(one.facets)
    assert list(kept[0])[:8] == ["probe", "quantity", "value", "lo", "hi", "n", "unit", "reason"]


def test_what_is_not_measured_is_null_with_its_reason(run: Run, tmp_path: Path) -> None:
    export(run, ["csv", "parquet"], out=tmp_path)
    null = [one for one in run.estimates if one.value is None]
    assert null
    for found in (pq.read_table(tmp_path / "estimates.parquet").to_pylist(), rows(tmp_path / "estimates.csv")):
        without = [row for row in found if row["value"] in (None, "")]
        assert [(row["quantity"], row["reason"]) for row in without] == [(one.quantity, one.reason) for one in null]


def test_a_facet_may_be_called_as_a_column_and_may_be_of_several_types() -> None:
    found = estimates([estimate("a", n=2, level="all"), estimate("b", n=4, level=0.5), estimate("c", share=1), estimate("d", share=0.5)])
    assert found["n"].to_pylist() == [3, 3, 3, 3]
    assert found["facet_n"].to_pylist() == [2, 4, None, None]
    assert found["level"].to_pylist() == ["all", "0.5", None, None]
    assert found["share"].to_pylist() == [None, None, 1.0, 0.5]


def test_no_estimates_are_a_table_with_its_columns() -> None:
    assert estimates([]).schema.names == ["probe", "quantity", "value", "lo", "hi", "n", "unit", "reason"]
    assert estimates([]).schema.field("value").type == pa.float64()


def test_records_keep_lists_and_paths_and_leave_vectors_out_of_csv(run: Run, tmp_path: Path) -> None:
    done = export(run, ["csv", "parquet"], out=tmp_path)
    measured = run.tables("drift")
    assert {f"records-drift-{name}.parquet" for name in measured} == {file.name for file in done["parquet"].files} - {"estimates.parquet"}
    for name, table in measured.items():
        assert pq.read_table(tmp_path / f"records-drift-{name}.parquet").to_pylist() == table.to_pylist()
    text, kept = rows(tmp_path / "records-drift-Originals.csv"), measured["Originals"].to_pylist()
    assert set(kept[0]) - set(text[0]) == {"latent"}
    assert done["csv"].notes == ("records-drift-Originals.csv is without latent: --to parquet has them",)
    assert [json.loads(row["shape"]) for row in text] == [row["shape"] for row in kept]
    assert [row["picture"] for row in text] == [row["picture"] for row in kept]
    assert (run.path / "media" / text[0]["picture"]).is_file()


def test_figures_are_written_where_asked_and_nowhere_else(run: Run, tmp_path: Path) -> None:
    before = files(run.path)
    done = export(run, "figures", out=tmp_path)["figures"]
    assert {file.suffix for file in done.files} == {".svg", ".png"}
    assert {file.parent for file in done.files} == {tmp_path / "figures"}
    for file in done.files[1::2]:
        with Image.open(file) as picture:
            assert (picture.format, picture.width > 500) == ("PNG", True)
    assert files(run.path) == before


def test_names_hold_the_facets_that_tell_estimates_apart() -> None:
    found = [
        estimate("mse"),
        estimate("mse", editor="ddim", strength=0.1, sigma=0.2612),
        estimate("mse", editor="ddim", strength=0.25, sigma=0.7),
        estimate("mse", editor="ddim", strength=0.25, sigma=0.7, domain="at night"),
        estimate("k", p_holm=0.03),
    ]
    assert metric_names(found) == [
        "drift/mse",
        "drift/mse__strength_0p1",
        "drift/mse__strength_0p25",
        "drift/mse__strength_0p25__domain_at_night",
        "drift/k",
    ]


def test_what_a_result_is_changes_no_name() -> None:
    """Two models measured alike have the same names: the p value and the sigma of a strength are left out."""
    first, second = ([estimate("k", strength=s, p=p + s) for s in (0.1, 0.2)] for p in (0.01, 0.5))
    assert metric_names(first) == metric_names(second)


def test_every_name_is_once_and_in_letters_that_trackers_take() -> None:
    prompts = ["a cat", "A cat", "a.cat", "a/cat", "猫", "犬", "", "a " + "very " * 90 + "long cat", "a " + "very " * 90 + "long dog"]
    found = [estimate(quantity, prompt=prompt) for prompt in prompts for quantity in ("scs:clip:/my models/x", "x")]
    found += [estimate("x", at=value) for value in (-1, 1, 1e-7, True)]
    names = metric_names(found)
    assert len({name.casefold() for name in names}) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/") for name in names)
    assert all(name.count("/") == 1 and len(name) <= LONGEST for name in names)
    assert metric_names(found[::-1]) == names[::-1]
    assert distinct([("a", "1"), ("a", "1")])[0] != distinct([("a", "1"), ("a", "1")])[1]


def test_settings_are_flat_under_names_that_trackers_take() -> None:
    found = setting_names({"model": {"name": "embedded"}, "embedders": {"clip:/m x": "1", "clip:/m?x": "2"}, "drift": {"strengths": [0.1]}})
    assert found["model.name"] == "embedded"
    assert found["drift.strengths"] == [0.1]
    assert len(found) == 4
    assert all(name.startswith("embedders.clip_m_x_") for name, value in found.items() if value in ("1", "2"))


def test_a_run_has_a_key_of_its_own(run: Run, tmp_path: Path) -> None:
    assert key_of(run) == key_of(open_run(run.path))
    assert key_of(unfinished(run, tmp_path)) != key_of(run)


def test_an_unfinished_run_is_exported_with_what_there_is(run: Run, tmp_path: Path) -> None:
    part = unfinished(run, tmp_path)
    assert missing_of(run) == ""
    assert missing_of(part) == "2 of 5 cells are measured"
    export(part, ["csv", "parquet"], out=tmp_path / "out")
    assert len(rows(tmp_path / "out" / "estimates.csv")) == len(part.estimates)


def test_a_run_in_which_nothing_is_measured_can_be_exported(run: Run, tmp_path: Path) -> None:
    done = export(unfinished(run, tmp_path, left=0), ["csv", "parquet", "figures", "card"], out=tmp_path / "out")
    assert [file.name for file in done["csv"].files] == ["estimates.csv"]
    assert rows(tmp_path / "out" / "estimates.csv") == []
    assert done["figures"].notes == ("there is no chart to draw yet",)
    assert "**Incomplete:** 0 of 5 cells are measured." in done["card"].files[0].read_text()
    assert len(done["card"].files) == 1


def command(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(export_run)
    found = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_the_command_says_where_and_what_is_lacking(run: Run, tmp_path: Path) -> None:
    part = unfinished(run, tmp_path)
    told = command(part.path, "--to", "csv", "--to", "card")
    assert f"csv: {len(part.tables('drift')) + 1} files in {part.path / 'export'}\n" in told
    assert f"card: {part.path / 'export' / 'model-card.md'}\n" in told
    assert told.endswith("incomplete: 2 of 5 cells are measured; the exports say so\n")
    assert "incomplete" not in command(run.path, "--to", "csv", "--out", tmp_path / "whole")


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, diffprobe.exporting; print(sorted({'torch', 'pandas', 'pyarrow', 'huggingface_hub', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("kinds", "card", "told"),
    [
        (["csv", "parket"], None, "unknown export 'parket': did you mean 'parquet'?"),
        ([], None, "say what to export to: card, csv, parquet, figures, mlflow, wandb, tensorboard"),
        (["csv"], "README.md", "--card is for --to card: add that, or leave --card out"),
        (["csv", "card"], "missing.md", "no file at 'missing.md': give a Markdown file that exists"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(run: Run, tmp_path: Path, kinds: list[str], card: str | None, told: str) -> None:
    with pytest.raises(UserError) as caught:
        export(run, kinds, out=tmp_path / "out", card=card)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["mlflow", "wandb", "tensorboard"])
def test_a_tracker_without_its_package_names_the_extra(run: Run, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=rf"{kind} is not installed: pip install 'diffprobe\[{kind}\]'") as caught:
        export(run, ["csv", kind], out=tmp_path / "out")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["card", "csv", "parquet", "figures", "tensorboard"])
def test_a_folder_that_cannot_be_written_to_is_one_line(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*: a file of that name is in the way: choose another --out") as caught:
        EXPORTERS[kind](run, Target(tmp_path / "file" / "out"))
    assert caught.value.exit_code == 4
