"""Golden numbers for each version of each cell: numbers that change without a new version would be taken for finished work."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diffprobe.adapters.load import load
from diffprobe.model import Embedder, Rig
from diffprobe.probes.base import Probe, key
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Field, Generated, Geometry, Slice
from diffprobe.probes.geometry.cells import Samples
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.interpolation.inversions import Inversions
from diffprobe.probes.interpolation.mixtures import Mixtures
from diffprobe.probes.speciation import Speciation
from diffprobe.runs.execute import plan
from tests.small import Pixels

GOLDEN = Path(__file__).parent / "golden"
PROBES: dict[str, tuple[Probe, dict[str, Embedder]]] = {
    "drift": (Drift(count=3, prompt_sets=("empty",), strengths=(0.4,)), {}),
    "consistency": (Consistency(("anything", "class 1"), repetitions=3, num_inference_steps=10), {"pixels": Pixels()}),
    "geometry": (
        Geometry(
            sets=("world", "noise"),
            count=3,
            priors=2,
            generated=(Generated(("class 0",), num_inference_steps=4, guidance_scale=(3.0,)),),
            slices=(Slice(("world:0", "world:1", "noise:0"), size=3),),
            fields=(Field((1.0,), size=3),),
            directions=8,
        ),
        {"pixels": Pixels()},
    ),
    "interpolation": (
        Interpolation(
            groups=("snow",),
            count=4,
            num_inference_steps=10,
            schemes=("fix", "blend/channel", "slerp", "lol/lowpass"),
            sizes=(2,),
            draws=2,
            guidance_scale=2.0,
            offsets=(0.5,),
            offset_samples=2,
            replayed=2,
        ),
        {"pixels": Pixels()},
    ),
    "speciation": (Speciation(base="class 0", variants=("class 1",), samples=3, num_inference_steps=10, keep_images=1), {}),
}


def numbers(name: str) -> dict[str, dict[str, object]]:
    """The mean of every column of numbers or vectors, by class and version of cell, on a model whose weights cannot change."""
    probe, embedders = PROBES[name]
    rig = Rig(load({"drift": "exact:gaussian", "geometry": "exact:relu"}.get(name, "exact:gmm")), embedders)
    records: dict[str, pa.Table] = {}
    found: dict[str, dict[str, object]] = {}
    for step in plan([probe]):
        table = step.cell.measure(rig, *(records[key(cell)] for cell in step.cell.inputs()))
        records[step.key] = table
        frame = table.to_pandas()
        vectors = {str(column): float(np.nanmean(np.stack(frame[column].to_list()))) for column in frame if _numbers(frame[column].iloc[0])}
        place = ""
        if isinstance(step.cell, Samples):
            place = type(step.cell.place).__name__
        elif isinstance(step.cell, Inversions):
            place = step.cell.origin
        elif isinstance(step.cell, Mixtures):
            place = f"{step.cell.scheme} {step.cell.kind}"
        found[f"{type(step.cell).__name__} {step.cell.version} {place}".strip()] = {
            "key": step.key,
            **{str(column): float(mean) for column, mean in frame.mean(numeric_only=True).dropna().items()},
            **vectors,
        }
    return found


def _numbers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


@pytest.mark.parametrize("name", sorted(PROBES))
def test_numbers_change_only_with_the_version_of_their_cell(name: str) -> None:
    golden, now = json.loads((GOLDEN / f"{name}.json").read_text()), numbers(name)
    assert golden.keys() == now.keys(), "a new version needs new golden numbers: python -m tests.test_golden"
    for cell, values in golden.items():
        assert now[cell].pop("key") == values.pop("key"), f"{cell}: the identity of finished work changed"
        assert now[cell] == pytest.approx(values, rel=1e-4, abs=1e-9), f"{cell}: other numbers, so raise the cell's version"


if __name__ == "__main__":
    for name in PROBES:
        (GOLDEN / f"{name}.json").write_text(json.dumps(numbers(name), indent=1) + "\n")
