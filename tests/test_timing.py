"""What a study will take: the pace of a model on this machine, and a forecast that says what it does not know, and why."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Cost
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Geometry
from diffprobe.runs.execute import plan
from diffprobe.runs.study import Study, preset
from diffprobe.runs.timing import Pace, calibrate, forecast


@dataclass(frozen=True, eq=False)
class Slow:
    """A denoiser that sleeps for each of its rows, and says how many there were."""

    each: float
    seen: list[int]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        self.seen.append(len(x))
        time.sleep(self.each * len(x))
        return x


def slow(each: float) -> Model:
    return replace(exact_model("gmm"), denoiser=Slow(each, []))


@pytest.mark.parametrize(("each", "rows"), [(0.002, 16), (0.1, 4), (0.6, 1)])
def test_a_pace_is_the_time_of_a_row(each: float, rows: int) -> None:
    """At the batch size where a row is quick, else with as many rows as half a second lets in."""
    model = slow(each)
    pace = calibrate(Rig(model, {}, 16))
    assert pace.evaluation == pytest.approx(each, rel=0.25)
    assert rows / 2 <= pace.rows <= rows
    assert isinstance(model.denoiser, Slow)
    assert model.denoiser.seen[0] == 1
    assert sum(model.denoiser.seen) * each < 3, "a few seconds"


def test_the_pace_of_the_embedded_model_foretells_its_evaluations() -> None:
    model = load("embedded", device="cpu")
    pace = calibrate(Rig(model, {}, 8))
    assert (pace.rows, pace.side, pace.device) == (8, 64, "cpu")
    assert pace.evaluation is not None
    assert pace.decoding is not None
    assert pace.encoding is not None
    assert model.denoiser is not None
    started = time.perf_counter()
    with torch.no_grad():
        for _ in range(4):
            model.denoiser(torch.zeros(8, 4, 16, 16), 500.0)
    assert (time.perf_counter() - started) / 32 == pytest.approx(pace.evaluation, rel=2), "of the same order on a machine that is busy"


def test_a_cost_takes_its_evaluations_and_its_decodings() -> None:
    pace = Pace(0.5, 0.25, None, 16, 64, "cpu")
    assert pace.seconds(Cost(samples=9, evaluations=10, decodings=4)) == 6
    assert pace.seconds(Cost()) == 0
    assert Pace(None, 0.25, None, 16, 64, "cpu").seconds(Cost(decodings=4)) == 1
    assert Pace(None, 0.25, None, 16, 64, "cpu").seconds(Cost(evaluations=1)) is None


def study(model: object, *probes: Any, **settings: Any) -> Study:
    return Study(model=str(model), probes=probes or preset((), "quick"), device="cpu", **settings)


def test_a_forecast_has_memory_and_time_of_every_probe() -> None:
    told = forecast(study("embedded"), suit=True)
    assert told.why == ()
    assert told.pace is not None
    assert told.memory is not None
    assert set(told.bytes) == {"drift", "consistency", "geometry", "interpolation", "speciation"}
    assert all(20 << 20 < size < 200 << 20 for size in told.bytes.values())
    assert told.bytes["geometry"] == max(told.bytes.values())
    for probe in told.probes:
        seconds = told.pace.seconds(sum((step.cell.cost() for step in plan([probe])), Cost()))
        assert seconds is not None
        assert seconds > 0


def test_a_model_that_is_not_here_has_counts_alone() -> None:
    told = forecast(study("owner/name"))
    assert (told.bytes, told.pace) == ({}, None)
    assert told.why[0].startswith("no memory and no time: 'owner/name' is neither a folder nor in the cache")


def test_a_model_whose_weights_are_missing_has_memory_and_no_time(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipelines("sd"), tmp_path / "sd"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    told = forecast(study(folder, Consistency()))
    assert told.bytes.keys() == {"consistency"}
    assert told.pace is None
    assert told.why == ("no time: the model is not all here: unet: its weights are missing: fetch them",)


def test_an_instrument_that_is_not_here_is_said() -> None:
    told = forecast(study("exact:gaussian", Drift(), embedders=("clip:owner/name",)))
    assert told.pace is not None
    assert told.why[0].startswith("the memory is without instruments: ")


def test_a_budget_is_forecast_as_the_model_is_asked_it(pipelines: Callable[[str], Path]) -> None:
    """An autoencoder alone is asked for geometry; a study of its own stays as it is."""
    folder = pipelines("sd") / "vae"
    assert [probe.name for probe in forecast(study(folder), suit=True).probes] == ["geometry"]
    assert [probe.name for probe in forecast(study(folder, Geometry(), Consistency())).probes] == ["geometry", "consistency"]


def test_what_does_not_fit_is_not_loaded(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    """A network of some terabytes, by its configuration."""
    folder = Path(shutil.copytree(pipelines("sd"), tmp_path / "sd"))
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [1 << 16, 1 << 17]}))
    told = forecast(study(folder, Consistency()))
    assert told.bytes["consistency"] > 1 << 40
    assert told.why == ("no time: the plan does not fit into the memory of this device",)


def test_what_a_model_cannot_be_asked_is_not_planned_for_a_budget_and_is_told_of_a_study(pipelines: Callable[[str], Path]) -> None:
    """A class-conditional pipeline does not know the words of the budget's prompts."""
    spec = str(pipelines("dit"))
    found = forecast(Study(model=spec, device="cpu", probes=preset([], "quick")), suit=True)
    assert [probe.name for probe in found.probes] == ["geometry"]
    assert set(found.bytes) == {"geometry"}
    refused = forecast(Study(model=spec, device="cpu", probes=(Drift(count=2),)))
    assert any("it will be refused: drift needs editor" in why for why in refused.why)
