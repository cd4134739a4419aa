"""A finished run as a run of Weights & Biases: estimates in the summary, settings and identity in the config, figures, report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from diffprobe.errors import UserError
from diffprobe.export.base import Exported, Target, key_of, missing_of, settings_of
from diffprobe.export.tables import estimates
from diffprobe.export.tracked import files_of, headlines_of, metrics_of
from diffprobe.files import explained
from diffprobe.report.numbers import finite
from diffprobe.runs.result import Run


def to_wandb(run: Run, target: Target) -> Exported:
    """Log the run as WANDB_MODE, WANDB_PROJECT ("diffprobe" where it is not set), WANDB_ENTITY and WANDB_DIR say.

    All estimates are in the summary, null where they have no value; headline numbers, charts and the table of all estimates are
    logged besides, so that a workspace shows them. The same run in the same directory has the same id. Raises UserError, exit code 4,
    where W&B refuses.
    """
    import wandb

    folder = Path(os.environ.get("WANDB_DIR") or target.folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        # The machine that exports need not be the one that measured: run.json tells that one.
        alone = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "disable_git": True, "disable_code": True}
        settings = wandb.Settings(silent=True, console="off", **alone)
        project, name = os.environ.get("WANDB_PROJECT") or "diffprobe", run.path.resolve().name
        with wandb.init(project=project, id=key_of(run), name=name, dir=str(folder), resume="allow", settings=settings) as there:
            if there.disabled:
                return Exported("nothing is logged, since WANDB_MODE is disabled")
            _log(there, run)
            place = f"{there.settings.sync_dir}: `wandb sync` sends it" if there.offline else str(there.url)
    except wandb.errors.Error as error:
        told = " ".join(str(error).split())
        raise UserError(f"W&B refuses ({told}): log in with `wandb login`, or set WANDB_MODE=offline", exit_code=4) from error
    return Exported(place)


def _log(there: Any, run: Run) -> None:
    import wandb

    there.config.update({"incomplete": missing_of(run) or "no", **settings_of(run)}, allow_val_change=True)
    verdicts = {f"verdicts/{name}": "\n".join(findings.verdicts) for name, findings in run.findings.items()}
    there.summary.update({**metrics_of(run), **verdicts})
    table = estimates(run.estimates)
    rows = [list(row.values()) for row in table.to_pylist()]
    with files_of(run) as folder:
        figures = {f"figures/{file.stem}": wandb.Image(str(file)) for file in sorted((folder / "figures").glob("*.png"))}
        numbers = {name: finite(one.value) for name, one in headlines_of(run).items()}
        there.log({**numbers, **figures, "estimates": wandb.Table(columns=table.column_names, data=rows, allow_mixed_types=True)})
        for file in sorted(folder.glob("*.*")):
            there.save(shutil.copy(file, there.dir), base_path=there.dir, policy="now")
