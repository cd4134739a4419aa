"""A finished run as a run of MLflow: estimates as metrics, settings and identity as params, report and figures as artifacts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any

from diffprobe.errors import UserError
from diffprobe.export.base import Exported, Target, key_of, missing_of, settings_of
from diffprobe.export.names import setting_names
from diffprobe.export.tracked import files_of, metrics_of, text_of
from diffprobe.runs.result import Run

_KEY = "diffprobe.key"  # the tag by which an earlier export of the same run is found
_METRICS, _PARAMS = 1000, 100  # MLflow's limits for one call
_PARAM, _TAG = 6000, 5000  # characters
_REMEDY = "set MLFLOW_TRACKING_URI to a server, or MLFLOW_TRACKING_URI=file:mlruns and MLFLOW_ALLOW_FILE_STORE=true for a folder"


def to_mlflow(run: Run, target: Target) -> Exported:
    """Log the run to the server or store of MLFLOW_TRACKING_URI, under the experiment of MLFLOW_EXPERIMENT_NAME, or "diffprobe".

    The same run in the same directory is the same run there, and is updated: a metric gets a new value only where it differs. What has
    no value, or no longer one, is NaN, MLflow's null. Raises UserError, exit code 4, where MLflow refuses or its store is not writable.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient()
        there = _run_there(client, run)
        identity = there.info.run_id
        _log_settings(client, identity, run)
        _log_metrics(client, identity, _changed(there.data.metrics, run))
        with files_of(run) as folder:
            client.log_artifacts(identity, str(folder))
        client.set_terminated(identity, "KILLED" if missing_of(run) else "FINISHED")
    except (MlflowException, OSError) as error:
        told = str(error).strip().partition("\n")[0]
        raise UserError(f"MLflow refuses ({told}): {_REMEDY}", exit_code=4) from error
    return Exported(f"run {identity} of experiment {there.info.experiment_id} at {client.tracking_uri}")


def _run_there(client: Any, run: Run) -> Any:
    """The run of an earlier export, or a new one."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "diffprobe")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not experiment:
        found = client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            raise UserError(f"MLflow's experiment '{name}' is deleted: restore it, or set MLFLOW_EXPERIMENT_NAME to another", exit_code=4)
        experiment = found.experiment_id if found else client.create_experiment(name)
    earlier = client.search_runs([experiment], filter_string=f"tags.`{_KEY}` = '{key_of(run)}'", max_results=1)
    return earlier[0] if earlier else client.create_run(experiment, tags={_KEY: key_of(run)}, run_name=run.path.resolve().name)


def _log_settings(client: Any, identity: str, run: Run) -> None:
    """Params cannot change once they are set: they hold only what the run's key is made of. What may change is a tag."""
    from mlflow.entities import Param, RunTag

    texts = {name: text_of(value)[:_PARAM] for name, value in setting_names(settings_of(run)).items()}
    params = [Param(name, value) for name, value in texts.items()]
    verdicts = {f"verdicts.{name}": "\n".join(findings.verdicts)[:_TAG] for name, findings in run.findings.items()}
    tags = {"diffprobe.path": str(run.path.resolve()), "diffprobe.incomplete": missing_of(run) or "no", **verdicts}
    for start in range(0, len(params), _PARAMS):
        client.log_batch(identity, params=params[start : start + _PARAMS])
    client.log_batch(identity, tags=[RunTag(name, value) for name, value in tags.items()])


def _changed(before: Mapping[str, float], run: Run) -> dict[str, float]:
    """The metrics whose value is another than there; NaN for those of ours that are no longer."""
    now = {name: math.nan if value is None else value for name, value in metrics_of(run).items()}
    ours = tuple(f"{probe}{part}/" for probe in run.findings for part in ("", "_lo", "_hi", "_n"))
    gone = {name: math.nan for name in before if name.startswith(ours) and name not in now}
    return {name: value for name, value in {**now, **gone}.items() if name not in before or not _same(before[name], value)}


def _log_metrics(client: Any, identity: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    found = [Metric(name, value, int(1000 * time.time()), 0) for name, value in metrics.items()]
    for start in range(0, len(found), _METRICS):
        client.log_batch(identity, metrics=found[start : start + _METRICS])


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
