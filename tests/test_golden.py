"""Golden numbers for each version of each cell: numbers that change without a new version would be taken for finished work."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from diffprobe.adapters.load import load
from diffprobe.model import Rig
from diffprobe.probes.base import key
from diffprobe.probes.drift import Drift
from diffprobe.runs.execute import plan

GOLDEN = Path(__file__).parent / "golden"
PROBE = Drift(count=3, prompt_sets=("empty",), strengths=(0.4,))


def numbers() -> dict[str, dict[str, object]]:
    """The mean of every numeric column, by class and version of cell, on a model whose weights cannot change."""
    rig = Rig(load("exact:gaussian"), {})
    records: dict[str, pa.Table] = {}
    found: dict[str, dict[str, object]] = {}
    for step in plan([PROBE]):
        table = step.cell.measure(rig, *(records[key(cell)] for cell in step.cell.inputs()))
        records[step.key] = table
        means = table.to_pandas().mean(numeric_only=True).dropna()
        found[f"{type(step.cell).__name__} {step.cell.version}"] = {
            "key": step.key,
            **{str(name): float(mean) for name, mean in means.items()},
        }
    return found


def test_numbers_change_only_with_the_version_of_their_cell() -> None:
    golden, now = json.loads((GOLDEN / "drift.json").read_text()), numbers()
    assert golden.keys() == now.keys(), "a new version needs new golden numbers: python -m tests.test_golden"
    for name, values in golden.items():
        assert now[name].pop("key") == values.pop("key"), f"{name}: the identity of finished work changed"
        assert now[name] == pytest.approx(values, rel=1e-4, abs=1e-9), f"{name}: other numbers, so raise the cell's version"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "drift.json").write_text(json.dumps(numbers(), indent=1) + "\n")
