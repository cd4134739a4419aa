"""What a study will take, before it is run: memory a probe, and where the model is there the time that this device takes for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch

from diffprobe.adapters.load import load
from diffprobe.adapters.load import rig as rig_of
from diffprobe.adapters.outline import Outline, outline
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Cost, Probe
from diffprobe.runs.memory import foreseen, instruments, memory_of, planned, shapes
from diffprobe.runs.result import check, suited
from diffprobe.runs.study import Study

#: Seconds that each kind of call is timed for, its warm-up left out; and how often at most. A first call that takes so long is enough.
_SECONDS, _TIMES, _LONG = 0.5, 5, 5.0


class Pace(NamedTuple):
    """Seconds a row on one device: of a network evaluation, a decoding and an encoding, each None where the model has none.

    `rows` were in one call, at the model's native `side` in pixels (None where it does not say).
    """

    evaluation: float | None
    decoding: float | None
    encoding: float | None
    rows: int
    side: int | None
    device: str

    def seconds(self, cost: Cost) -> float | None:
        """The time of a cost, without instruments; None where something of it was not timed."""
        parts = ((cost.evaluations, self.evaluation), (cost.decodings, self.decoding))
        if any(count and each is None for count, each in parts):
            return None
        return sum(count * (each or 0) for count, each in parts)


@dataclass(frozen=True)
class Forecast:
    """What is known of a study before it is run: its probes as the model can be asked them, planned bytes by probe's name, and the pace.

    `why` says what is not known and why, a line each. `memory` is what the device has.
    """

    probes: tuple[Probe, ...]
    bytes: Mapping[str, int] = field(default_factory=dict)
    memory: int | None = None
    pace: Pace | None = None
    why: tuple[str, ...] = ()


def forecast(study: Study, *, suit: bool = False) -> Forecast:
    """What the one model of a study takes for its probes. `suit`: probes are changed to what the model can be asked, as a budget's are.

    Nothing is fetched but configuration files; the model is loaded where all of it is here and fits, to be timed for a few seconds.
    """
    options = LoadOptions(study.device, study.torch_dtype, study.revision, study.variant)
    try:
        device, _ = options.place()
        told = outline(study.model, options)
        probes = _suited(study.probes, told.model) if suit else study.probes
        plans = foreseen(told.model, probes, study.batch_size)
    except UserError as error:
        return Forecast(study.probes, why=(f"no memory and no time: {error}",))
    memory = memory_of(device)
    needed = {name: planned(each, device, memory) for name, each in plans.items()}
    if memory is not None and max(needed.values()) > memory:
        return Forecast(probes, needed, memory, why=("no time: the plan does not fit into the memory of this device",))
    try:
        worker, lacking = _rig(told, study)
    except UserError as error:
        return Forecast(probes, needed, memory, why=(f"no time: {error}",))
    if suit:  # the words of a budget, which only the model itself knows or not
        probes = suited(study.probes, worker)
    try:
        check(probes, worker)
    except UserError as error:
        lacking = (*lacking, f"it will be refused: {error}")
    held = instruments((*worker.embedders.values(), *worker.distances.values(), *worker.scorers.values()))
    kept = {probe.name: needed[probe.name] + held for probe in probes if probe.name in needed}
    return Forecast(probes, kept, memory, calibrate(worker), lacking)


def calibrate(rig: Rig) -> Pace:
    """The pace of a rig's model, in a few seconds: each kind of call once to warm up, then some times at the rig's batch size.

    Where one row takes long there are fewer rows in a call. The time is the median, the device waited for.
    """
    model, (shape, image) = rig.model, shapes(rig.model)
    with torch.no_grad():
        evaluation, rows = _evaluation(rig, shape)
        codec = model.codec
        if codec is None or not image:
            return Pace(evaluation, None, None, rows, None, model.device)
        decoding, few = _timed(rig, lambda n: codec.decode(torch.zeros(n, *shape, device=model.device)))
        encoding, _ = _timed(rig, lambda n: codec.encode(torch.zeros(n, *image)))
    return Pace(evaluation, decoding, encoding, few if evaluation is None else rows, image[-1], model.device)


def _evaluation(rig: Rig, shape: tuple[int, ...]) -> tuple[float | None, int]:
    denoiser, path, condition = rig.model.denoiser, rig.model.path, rig.model.condition
    if denoiser is None or path is None or not shape:
        return None, rig.batch_size
    t, blank = path.levels(3)[-1], dict[int, Any]()

    def evaluate(rows: int) -> object:
        if rows not in blank:  # prompts are encoded while it warms up: in a study they cost next to nothing
            blank[rows] = None if condition is None else condition([""] * rows)
        return denoiser(torch.zeros(rows, *shape, device=rig.model.device), t, blank[rows])

    return _timed(rig, evaluate)


def _timed(rig: Rig, call: Callable[[int], object]) -> tuple[float, int]:
    """Seconds a row, and the rows of a call: the batch, or as many as one row's time lets in."""
    first = _once(rig, lambda: call(1))
    single = first if first > _LONG else _once(rig, lambda: call(1))
    rows = max(1, min(rig.batch_size, int(_SECONDS / single)))
    taken = [single] if rows == 1 else []
    if rows > 1:
        _once(rig, lambda: call(rows))
    while len(taken) < _TIMES and sum(taken) < _SECONDS:
        taken.append(_once(rig, lambda: call(rows)))
    return median(taken) / rows, rows


def _once(rig: Rig, call: Callable[[], object]) -> float:
    _wait(rig.model)
    started = time.perf_counter()
    call()
    _wait(rig.model)
    return time.perf_counter() - started


def _wait(model: Model) -> None:
    if model.device.startswith("cuda"):
        torch.cuda.synchronize(model.device)


def _rig(told: Outline, study: Study) -> tuple[Rig, tuple[str, ...]]:
    """The model with its instruments, or without where one is not here, which is said. Raises UserError where the model is not here."""
    if told.missing:
        raise UserError(f"the model is not all here: {'; '.join(told.missing)}")
    model = load(
        study.model,
        device=study.device,
        torch_dtype=study.torch_dtype,
        revision=study.revision,
        variant=study.variant,
        local_files_only=True,
    )
    try:
        return rig_of(model, study.embedders, study.scorers, batch_size=study.batch_size), ()
    except UserError as error:
        return Rig(model, {}, study.batch_size), (f"the memory is without instruments: {error}",)


def _suited(probes: Iterable[Probe], model: Model) -> tuple[Probe, ...]:
    """Of a budget's probes those that the model can be asked, as it can be asked them; all where it can be asked none."""
    chosen = tuple(probes)
    fitted = tuple(probe.suited(model) for probe in chosen)
    return tuple(probe for probe in fitted if probe.needs <= model.capabilities | {"embedder"}) or chosen
