"""Measure the cells of a plan that are not measured yet, here and in order."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from diffprobe.errors import UserError
from diffprobe.model import Memo, Rig
from diffprobe.probes.base import Cell, Probe, key
from diffprobe.runs.store import Store


@dataclass(frozen=True)
class Step:
    """A cell of a plan with the probe that wants it."""

    probe: str
    cell: Cell
    key: str


@dataclass(frozen=True)
class Progress:
    """How far a run has come: `done` of `planned`, of which `failed` failed, after `seconds`."""

    done: int
    planned: int
    failed: int
    seconds: float


def plan(probes: Iterable[Probe]) -> list[Step]:
    """Every cell once, each after the cells whose records it reads."""
    steps: dict[tuple[str, str], Step] = {}

    def add(probe: str, cell: Cell) -> None:
        identity = key(cell)
        if (probe, identity) not in steps:
            for needed in cell.inputs():
                add(probe, needed)
            steps[probe, identity] = Step(probe, cell, identity)

    for probe in probes:
        for cell in probe.plan():
            add(probe.name, cell)
    return list(steps.values())


def remaining(steps: Sequence[Step], store: Store) -> list[Step]:
    """What is planned and not measured."""
    present = {probe: store.done(probe) for probe in {step.probe for step in steps}}
    return [step for step in steps if step.key not in present[step.probe]]


def execute(steps: Sequence[Step], store: Store, rig: Rig, report: Callable[[Progress], None]) -> None:
    """Measure what remains; a cell that several probes want is measured once, its images and embeddings with it.

    A cell that fails is kept apart and the run goes on; the disk's refusals and the user's Ctrl-C end it.
    """
    todo = remaining(steps, store)
    tables, failed, started = Memo(), 0, time.monotonic()
    for index, step in enumerate(todo):
        report(Progress(index, len(todo), failed, time.monotonic() - started))
        if store.adopt(step.probe, step.cell):
            continue
        try:
            inputs = [_input(store, step.probe, cell, tables) for cell in step.cell.inputs()]
            table = step.cell.measure(rig, *inputs)
        except Exception as error:
            failed += 1
            store.fail(step.probe, step.cell, _told(error))
            continue
        tables.keep((step.probe, step.key), store.put(step.probe, step.cell, table))
    report(Progress(len(todo), len(todo), failed, time.monotonic() - started))


def _input(store: Store, probe: str, cell: Cell, tables: Memo) -> pa.Table:
    if not store.has(probe, key(cell)):
        raise UserError(f"its input {type(cell).__name__} {key(cell)} failed")
    return tables((probe, key(cell)), lambda: store.get(probe, cell))


def _told(error: Exception) -> str:
    """A user's error is one line; anything else keeps its trace for who mends it."""
    return str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).strip()
