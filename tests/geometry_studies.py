"""Small studies of geometry, with and without a run around them."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from diffprobe.model import Model, Rig
from diffprobe.probes.base import key
from diffprobe.probes.geometry import Geometry
from diffprobe.probes.geometry.cells import Samples
from diffprobe.runs.execute import plan
from diffprobe.runs.result import Run, start
from tests.small import Pixels


def measured(model: Model, probe: Geometry, batch_size: int = 16) -> pd.DataFrame:
    """The rows of a study, without a run around it."""
    rig = Rig(model, {"pixels": Pixels()}, batch_size)
    records: dict[str, pa.Table] = {}
    rows = []
    for step in plan([probe]):
        records[step.key] = step.cell.measure(rig, *(records[key(cell)] for cell in step.cell.inputs()))
        if isinstance(step.cell, Samples):
            rows.append(records[step.key].to_pandas())
    return pd.concat(rows, ignore_index=True)


def asked(model: Model, probe: Geometry, folder: Path) -> Run:
    return start(Rig(model, {"pixels": Pixels()}, 16), [probe], folder)
