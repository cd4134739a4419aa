"""What holds for every probe on every model: order, batch, resume, pickling, and that no global generator is read or moved."""

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.model import Model, Rig
from diffprobe.probes import PROBES
from diffprobe.probes.base import Cell, Probe, key
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Generated, Geometry, Slice
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.speciation import Push, Speciation
from diffprobe.runs.execute import Step, execute, plan
from diffprobe.runs.pairing import paired
from diffprobe.runs.result import check, start
from diffprobe.runs.store import Store
from diffprobe.runs.study import settings
from tests.small import Pixels

WORLDS = ("gaussian", "gmm", "identity", "hierarchical", "anisotropic@ve", "low-rank@flow", "relu")
MODELS = (*(f"exact:{world}" for world in WORLDS), "sd", "sdxl", "sd3", "flow", "edm", "edit", "sigma", "sd+lora")
SMALL: dict[str, Probe] = {
    "drift": Drift(count=5, prompt_sets=("null",), strengths=(0.4,), num_inference_steps=(5,), guidance_scale=(3.0,)),
    "consistency": Consistency(count=2, repetitions=3, num_inference_steps=4, guidance_scale=3.0),
    "geometry": Geometry(
        sets=("world", "noise"),
        count=2,
        priors=1,
        generated=(Generated(("class 0",), samples=2, num_inference_steps=3, guidance_scale=(3.0,), points=2),),
        slices=(Slice(("world:0", "noise:1", "world:2"), size=2),),
        directions=4,
        projections=2,
        dims=2,
    ),
    "interpolation": Interpolation(
        groups=("snow",),
        count=4,
        num_inference_steps=3,
        schemes=("fix", "nin/channel", "slerp"),
        sizes=(2,),
        draws=2,
        guidance_scale=3.0,
        offsets=(0.5,),
        offset_samples=2,
        replayed=1,
    ),
    "speciation": Speciation(
        base="", variants=("class 0",), samples=3, num_inference_steps=5, pushes=(Push(2.0, 0.2),), keep_images=1, snapshots=2
    ),
}


#: What a model cannot be asked: an editor of instructions draws nothing from a prompt, and PixArt edits nothing.
LACKING = {("edit", "consistency"), ("sigma", "drift")}


@pytest.fixture(scope="module", params=[(m, p) for m in MODELS for p in sorted(PROBES) if (m, p) not in LACKING], ids="-".join)
def asked(request: pytest.FixtureRequest, pipelines: Callable[[str], Path]) -> tuple[Model, Probe]:
    name, probe = request.param
    return loaded(name, pipelines), SMALL[probe]


@pytest.fixture
def model(asked: tuple[Model, Probe]) -> Model:
    return asked[0]


@pytest.fixture
def probe(asked: tuple[Model, Probe]) -> Probe:
    return asked[1]


def loaded(name: str, pipelines: Callable[[str], Path]) -> Model:
    return load(name if name.startswith("exact:") else "+".join(str(pipelines(part)) for part in name.split("+")))


def rig(model: Model, batch_size: int = 16) -> Rig:
    return Rig(model, {"pixels": Pixels()}, batch_size)


def run(steps: Iterable[Step], worker: Rig, folder: Path) -> dict[str, pa.Table]:
    """Each cell's record by its key."""
    steps, store = list(steps), Store(folder)
    with store.writing():
        execute(steps, store, worker, lambda state: None)
    assert not store.failures(), next(iter(store.failures().values()))["error"]
    return {step.key: store.get(step.probe, step.cell) for step in steps}


def parts(value: object) -> list[object]:
    """The numbers of a row: those of a list, or the one."""
    return value if isinstance(value, list) else [value]


def close(a: dict[str, pa.Table], b: dict[str, pa.Table], tolerance: float) -> None:
    """Equal records to a tolerance on their numbers, and to the letter elsewhere."""
    assert a.keys() == b.keys()
    for identity, table in a.items():
        for name in table.column_names:
            left, right = table[name].to_pylist(), b[identity][name].to_pylist()
            if name == "picture":
                continue
            if any(isinstance(part, float) for value in left for part in parts(value)):
                x, y = (np.array([np.nan if part is None else part for v in side for part in parts(v)], float) for side in (left, right))
                assert list(map(len, map(parts, left))) == list(map(len, map(parts, right))), name
                assert np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True), name
            else:
                assert left == right, name


def depth(cell: Cell) -> int:
    """How many cells must be measured before it, one after the other."""
    return 1 + max(map(depth, cell.inputs()), default=0)


@pytest.mark.parametrize("name", sorted(PROBES))
def test_cells_are_plain_values(name: str) -> None:
    for cell in SMALL[name].plan():
        again: Cell = pickle.loads(pickle.dumps(cell))
        assert again == cell
        assert key(again) == key(cell)
        assert len(repr(cell)) > 10


def test_the_same_cell_gives_the_same_bits(model: Model, probe: Probe, tmp_path: Path) -> None:
    steps = plan([probe.suited(model)])
    first, second = (run(steps, rig(model), tmp_path / name) for name in "ab")
    assert all(first[identity].equals(second[identity]) for identity in first)


def test_batches_change_nothing_beyond_rounding(model: Model, probe: Probe, tmp_path: Path) -> None:
    steps = plan([probe.suited(model)])
    one, many = (run(steps, rig(model, size), tmp_path / str(size)) for size in (2, 16))
    # Log odds divide float32's rounding by the variance of the step, and weigh predictions made from near pure noise.
    close(one, many, 2e-3 if probe.name == "speciation" else 1e-4)


def test_the_order_of_cells_changes_nothing(model: Model, probe: Probe, tmp_path: Path) -> None:
    """Another legal order, and a rig whose memory of neighbouring cells is empty."""
    steps = plan([probe.suited(model)])
    turned = steps[::-1]
    turned.sort(key=lambda step: depth(step.cell))
    forward, backward = run(steps, rig(model), tmp_path / "a"), run(turned, rig(model), tmp_path / "b")
    assert all(forward[identity].equals(backward[identity]) for identity in forward)


def test_a_run_resumes_where_it_stopped(model: Model, probe: Probe, tmp_path: Path) -> None:
    steps = plan([probe.suited(model)])
    whole, store = run(steps, rig(model), tmp_path / "whole"), Store(tmp_path / "parts")
    with store.writing():
        for part in (steps[: len(steps) // 2], steps):
            execute(part, store, rig(model), lambda state: None)
    assert all(store.get(step.probe, step.cell).equals(whole[step.key]) for step in steps)


def test_no_global_generator_is_read_or_moved(model: Model, probe: Probe, tmp_path: Path) -> None:
    steps = plan([probe.suited(model)])
    records = []
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        state, other = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
        records.append(run(steps, rig(model), tmp_path / name))
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], other)
    assert all(records[0][identity].equals(records[1][identity]) for identity in records[0])


def test_needs_name_real_capabilities(model: Model, probe: Probe) -> None:
    probe = probe.suited(model)
    assert probe.needs <= {"path", "denoiser", "codec", "condition", "editor", "generator", "embedder"}
    assert probe.needs <= rig(model).capabilities
    assert probe.cites
    assert probe.method
    assert probe.question.endswith("?")


def test_what_a_run_offers_for_comparison(model: Model, probe: Probe, tmp_path: Path) -> None:
    """Equal to itself in every unit; rows are named by columns that the records have, settings by those of the probe."""
    done = start(rig(model), [probe.suited(model)], tmp_path)
    pairing = paired(done, done, probe.name)
    assert pairing.rate == 1
    assert any(pair.base_comparable.headline for pair in pairing.pairs)
    assert all(pair.units and np.array_equal(pair.base, pair.other) for pair in pairing.pairs)
    assert probe.free <= set(settings(probe))
    assert done.findings[probe.name].estimates


@pytest.mark.parametrize(("name", "probe"), sorted(LACKING))
def test_what_a_model_lacks_is_told(name: str, probe: str, pipelines: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=f"{probe} needs .*drop the probe"):
        check([SMALL[probe]], rig(loaded(name, pipelines)))
