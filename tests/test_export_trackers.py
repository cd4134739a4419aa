"""Trackers, each read back by its own means: every estimate, setting, verdict and file of the run is there, and only once."""

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb.proto.wandb_internal_pb2 import Record

from diffprobe.errors import UserError
from diffprobe.export import export
from diffprobe.export.base import key_of, settings_of
from diffprobe.export.names import setting_names
from diffprobe.export.tracked import headlines_of, metrics_of, reasons_of, text_of
from diffprobe.measures.stats import Estimate
from diffprobe.runs.result import Run, open_run
from tests.test_export import finished, unfinished
from tests.test_result import files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackers that write here alone."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def in_mlflow(experiment: str = "diffprobe") -> list[Any]:
    client = MlflowClient()
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def same(a: float | None, b: float) -> bool:
    return math.isnan(b) if a is None else a == b


def logged(folder: Path) -> list[Record]:
    """The records of a .wandb file: the blocks of a LevelDB log."""
    [path] = folder.glob("*.wandb")
    data, at, part, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind:  # 1 whole, 2 first, 3 middle, 4 last
            part = (b"" if kind in (1, 2) else part) + data[at + 7 : at + 7 + length]
        if kind in (1, 4):
            found.append(Record.FromString(part))
        at += 7 + length if kind else 7
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
    return found


def in_wandb(folder: Path) -> tuple[dict[str, Any], dict[str, Any], set[str], Record]:
    """Config, summary, names of files, and the record that begins the run."""
    wandb.teardown()  # until then a process beside this one may still be writing
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    saved: set[str] = set()
    begun = Record()
    for record in logged(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            begun = record
        for item in (*record.config.update, *record.run.config.update) if kind in ("config", "run") else ():
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update if kind == "summary" else record.history.item if kind == "history" else ():
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        saved |= {item.path for item in record.files.files} if kind == "files" else set()
    return config, summary, saved, begun


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def test_what_a_tracker_is_told(run: Run) -> None:
    found = metrics_of(run)
    mse = next(one for one in run.estimates if one.quantity == "mse" and not one.facets)
    assert [found[f"drift{part}/mse"] for part in ("", "_lo", "_hi", "_n")] == [mse.value, mse.lo, mse.hi, 4.0]
    assert sum(name.startswith("drift/") for name in found) == len(run.estimates)
    assert sum(value is None for value in found.values()) == len(reasons_of(run)) == sum(one.value is None for one in run.estimates) > 0
    assert found["drift/strength_budget"] is None
    assert "drift_lo/strength_budget" not in found
    assert reasons_of(run)["drift/strength_budget"].startswith("the mean drift at 0.3 may reach")
    assert [one.quantity for one in headlines_of(run).values()] == [card.estimate.quantity for card in run.findings["drift"].cards]


def test_mlflow_has_the_whole_run(run: Run, tmp_path: Path) -> None:
    before = files(run.path)
    done = export(run, "mlflow", out=tmp_path / "out")["mlflow"]
    [there] = in_mlflow()
    assert there.info.run_id in done.place
    assert (there.info.status, there.info.run_name) == ("FINISHED", "finished")
    told = metrics_of(run)
    assert there.data.metrics.keys() == told.keys()
    assert all(same(told[name], value) for name, value in there.data.metrics.items())
    assert there.data.params == {name: text_of(value) for name, value in setting_names(settings_of(run)).items()}
    assert there.data.params["drift.strengths"] == "[0.3, 0.6]"
    assert there.data.params["model.name"] == "exact:gaussian"
    assert there.data.tags["verdicts.drift"] == "\n".join(run.findings["drift"].verdicts)
    assert there.data.tags["diffprobe.incomplete"] == "no"
    client = MlflowClient()
    kept = {item.path for item in client.list_artifacts(there.info.run_id)}
    assert kept == {"report.html", "summary.md", "estimates.csv", "run.json", "figures"}
    assert "figures/drift-laws.png" in {item.path for item in client.list_artifacts(there.info.run_id, "figures")}
    assert files(run.path) == before


def test_mlflow_is_updated_not_doubled(run: Run, tmp_path: Path) -> None:
    """A run that was unfinished when it was exported first; what is no longer said is NaN then, and what is the same is logged once."""
    part = unfinished(run, tmp_path, left=3)
    export(part, "mlflow")
    [there] = in_mlflow()
    assert (there.info.status, there.data.tags["diffprobe.incomplete"]) == ("KILLED", "3 of 5 cells are measured")
    for file in (run.path / "cells" / "drift").iterdir():
        (part.path / "cells" / "drift" / file.name).write_bytes(file.read_bytes())
    whole = open_run(part.path)
    gone = metrics_of(part).keys() - metrics_of(whole).keys()
    assert gone
    export(whole, "mlflow")
    export(whole, "mlflow")
    [again] = in_mlflow()
    assert again.info.run_id == there.info.run_id
    assert (again.info.status, again.data.tags["diffprobe.incomplete"]) == ("FINISHED", "no")
    assert all(same(metrics_of(whole).get(name), value) for name, value in again.data.metrics.items())
    client = MlflowClient()
    first, last = metrics_of(part), metrics_of(whole)
    moved = {name for name, value in first.items() if last.get(name) != value}
    steady = first.keys() - moved
    assert {len(client.get_metric_history(again.info.run_id, name)) for name in moved} == {2}
    assert {len(client.get_metric_history(again.info.run_id, name)) for name in steady} == {1}


def test_mlflow_goes_to_the_experiment_that_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "releases")
    export(run, "mlflow")
    assert len(in_mlflow("releases")) == 1


def test_mlflow_without_a_store_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None named, one that is not allowed, and one where a file is in the way; then what the line says to set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name, value in (
        ("MLFLOW_TRACKING_URI", (tmp_path / "file" / "mlruns").as_uri()),
        ("MLFLOW_ALLOW_FILE_STORE", "false"),
        ("MLFLOW_TRACKING_URI", None),
    ):
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"^MLflow refuses \(\S.*\): set .*") as caught:
            export(run, "mlflow")
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    said = re.findall(r"(MLFLOW_\w+)=(\S+)", str(caught.value))
    assert len(said) == 2
    for name, value in said:
        monkeypatch.setenv(name, value)
    export(run, "mlflow")
    assert len(in_mlflow()) == 1
    assert (tmp_path / "mlruns").is_dir()


def test_mlflow_with_a_deleted_experiment_names_the_variable(run: Run) -> None:
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("diffprobe"))
    with pytest.raises(UserError, match=r"experiment 'diffprobe' is deleted: .* set MLFLOW_EXPERIMENT_NAME to another") as caught:
        export(run, "mlflow")
    assert caught.value.exit_code == 4


def test_wandb_has_the_whole_run(run: Run, tmp_path: Path) -> None:
    done = export(run, "wandb", out=tmp_path / "out")["wandb"]
    [folder] = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert done.place == f"{folder}: `wandb sync` sends it"
    config, summary, saved, begun = in_wandb(folder)
    assert (begun.run.run_id, begun.run.display_name, begun.run.project) == (key_of(run), "finished", "diffprobe")
    told = metrics_of(run)
    assert {name: summary[name] for name in told} == told
    assert summary["verdicts/drift"] == "\n".join(run.findings["drift"].verdicts)
    assert {name: config[name] for name in settings_of(run)} == settings_of(run)
    assert config["incomplete"] == "no"
    assert {"report.html", "estimates.csv", "summary.md", "run.json"} <= saved
    assert all((folder / "files" / name).stat().st_size for name in ("report.html", "estimates.csv", "summary.md", "run.json"))
    assert (folder / "files" / summary["figures/drift-laws/path"]).is_file()
    table = json.loads((folder / "files" / summary["estimates/path"]).read_text())
    assert len(table["data"]) == len(run.estimates)
    value, reason = table["columns"].index("value"), table["columns"].index("reason")
    assert [(row[value], row[reason]) for row in table["data"]] == [(one.value, one.reason) for one in run.estimates]


def test_wandb_keeps_the_id_and_marks_what_is_unfinished(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = unfinished(run, tmp_path)
    for name in ("first", "second"):
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / name))
        export(part, "wandb", out=tmp_path / "out")
    found = [in_wandb(folder) for folder in tmp_path.glob("*/wandb/offline-run-*")]
    assert len(found) == 2
    assert {begun.run.run_id for *_, begun in found} == {key_of(part)}
    assert {config["incomplete"] for config, *_ in found} == {"2 of 5 cells are measured"}


def test_wandb_that_is_disabled_or_refuses_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.teardown()  # it reads its variables once a process
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert export(run, "wandb", out=tmp_path)["wandb"].place == "nothing is logged, since WANDB_MODE is disabled"
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"W&B refuses \(.*\): log in with `wandb login`, or set WANDB_MODE=offline") as caught:
        export(run, "wandb", out=tmp_path)
    assert caught.value.exit_code == 4
    wandb.teardown()


@pytest.fixture(scope="module")
def board(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was exported twice."""
    out = tmp_path_factory.mktemp("board")
    for _ in range(2):
        done = export(run, "tensorboard", out=out)["tensorboard"]
    assert done.place == f"tensorboard --logdir {out / 'tensorboard'}"
    folder = out / "tensorboard" / f"finished-{key_of(run)}"
    assert set(folder.iterdir()) == set(done.files)
    return folder


def test_tensorboard_has_the_whole_run_once(run: Run, board: Path) -> None:
    found = events(board)
    told = metrics_of(run)
    scalars = {name: found.Scalars(name) for name in found.Tags()["scalars"]}
    assert scalars.keys() == told.keys()
    for name, value in told.items():
        [event] = scalars[name]
        assert math.isnan(event.value) if value is None else event.value == pytest.approx(value, rel=1e-6)
    assert "figures/drift-laws" in found.Tags()["images"]
    assert (board / "report.html").stat().st_size > 10_000
    texts = {name: found.Tensors(f"{name}/text_summary") for name in ("summary", "settings", "incomplete", "not measured")}
    assert {len(one) for one in texts.values()} == {1}
    text = {name: one[0].tensor_proto.string_val[0].decode() for name, one in texts.items()}
    assert text["incomplete"] == "no"
    assert "| drift.strengths | [0.3, 0.6] |" in text["settings"]
    assert "drift/strength_budget" in text["not measured"]
    assert "**drift**" in text["summary"]


def test_tensorboard_has_the_settings_as_hyperparameters(run: Run, board: Path) -> None:
    content = events(board).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.string_value for name, value in found.items()} == {
        name: text_of(value) for name, value in setting_names(settings_of(run)).items()
    }


def test_tensorboards_file_is_not_named_after_the_machine(board: Path) -> None:
    [path] = board.glob("events.*")
    assert re.fullmatch(r"events\.out\.tfevents\.\d+\.diffprobe", path.name)


def test_tensorboard_leaves_the_files_of_others(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard" / f"finished-{key_of(run)}"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.training").write_bytes(b"")
    export(run, "tensorboard", out=tmp_path)
    assert (folder / "events.out.tfevents.1.training").exists()


def test_estimates_of_all_kinds_are_taken_by_mlflow(run: Run) -> None:
    """Names that a file store would take for a folder and a file of the same name, and longer ones than it takes."""
    found = [Estimate("drift", "mse", 1.0, None, None, 1, "", {"prompt": p}) for p in ("a/b", "a/b/c", "..", "", "x" * 300, "é: 50 %")]
    changed = open_run(run.path)
    findings = changed.findings["drift"]
    changed.findings["drift"] = replace(findings, estimates=(*findings.estimates, *found))
    export(changed, "mlflow")
    [there] = in_mlflow()
    assert there.data.metrics.keys() == metrics_of(changed).keys()
