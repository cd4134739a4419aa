"""What the command line shows: the plan, the progress, the main numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from diffprobe.adapters.catalogue import Entry
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Cost
from diffprobe.report.numbers import shown
from diffprobe.runs.compare import Comparison
from diffprobe.runs.comparison.wording import difference, interval, means, p_value
from diffprobe.runs.execute import Progress, Step, remaining
from diffprobe.runs.gate import GateResult
from diffprobe.runs.gating.ruling import word
from diffprobe.runs.memory import gibibytes
from diffprobe.runs.result import Run
from diffprobe.runs.store import Store
from diffprobe.runs.timing import Forecast

_EVERY = 10.0  # seconds between two lines where there is no terminal
_TODO = ("samples", "evaluations", "decodings", "on disk", "memory", "time")


def show_plan(out: Console, steps: Sequence[Step], told: Forecast, model: str, path: Path) -> None:
    """The plan of a run: its cells, and a probe's evaluations, bytes, planned memory and time, of what is still to do."""
    todo = remaining(steps, Store(path))
    kinds = Counter(f"{step.probe} {type(step.cell).__name__}" for step in steps)
    out.print(f"model {model}, directory {path}")
    for kind, number in kinds.items():
        out.print(f"  {number:>8,} cells  {kind}")
    out.print(f"  {len(steps):>8,} cells in all, {len(steps) - len(todo):,} of them measured already")
    costs = {probe.name: sum((step.cell.cost() for step in todo if step.probe == probe.name), Cost()) for probe in told.probes}
    table = Table("still to do", *_TODO, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cost in costs.items():
        seconds = told.pace.seconds(cost) if told.pace else None
        counts = (f"{count:,}" for count in (cost.samples, cost.evaluations, cost.decodings))
        memory = gibibytes(told.bytes[name]) if name in told.bytes else "?"
        table.add_row(name, *counts, _bytes(cost.bytes), memory, "?" if seconds is None else _time(seconds))
    out.print(table)
    _show_forecast(out, told, sum(costs.values(), Cost()))


def _show_forecast(out: Console, told: Forecast, total: Cost) -> None:
    """What the times and the memory of a plan rest on, and what of them is not known."""
    if told.bytes and told.memory is not None:
        most, has = max(told.bytes.values()), told.memory
        short = "" if most <= has else ": take a smaller batch_size, half precision or a larger device"
        out.print(f"planned memory: weights and the largest call, {gibibytes(most)} of the {gibibytes(has)} that this device has{short}")
    if told.pace is not None:
        pace = told.pace
        calls = (("evaluation", pace.evaluation), ("decoding", pace.decoding), ("encoding", pace.encoding))
        each = ", ".join(f"one {name} {1000 * seconds:.3g} ms" for name, seconds in calls if seconds is not None)
        at = f" at {pace.side} pixels" if pace.side else ""
        seconds = pace.seconds(total)
        whole = "no time in all: a call of it was not timed" if seconds is None else f"about {_time(seconds)} in all, without instruments"
        out.print(f"{whole}; measured on {pace.device}{at}, {pace.rows} rows together: {each or 'nothing'} a row")
    for line in told.why:
        out.print(line, markup=False)


@contextmanager
def progress(out: Console, planned: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a plain line every few seconds elsewhere."""
    if not out.is_terminal:
        yield _lines(out)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=out, transient=True) as bar:
        task = bar.add_task("measuring", total=planned)

        def told(state: Progress) -> None:
            failed = f" ({state.failed} failed)" if state.failed else ""
            bar.update(task, total=state.planned, completed=state.done, description=f"measuring{failed}")

        yield told


def show_numbers(out: Console, run: Run) -> None:
    """The main numbers with their intervals, then the verdicts."""
    table = Table("", "value", "interval", "n", box=None, pad_edge=False)
    for name, findings in run.findings.items():
        for card in findings.cards:
            table.add_row(f"{name}: {card.title}", _value(card.estimate), _interval(card.estimate), str(card.estimate.n))
    out.print(table)
    for findings in run.findings.values():
        for verdict in findings.verdicts:
            out.print(f"- {verdict}")


def show_comparison(out: Console, found: Comparison) -> None:
    """The verdicts, the main differences, and how many rows pair."""
    for verdict in found.verdicts:
        out.print(f"- {verdict}", markup=False)
    base, several = found.names[0], len(found.names) > 2
    other = "other" if several else found.names[1]
    table = Table("", base, other, "difference", "interval", "p (Holm)", "n", box=None, pad_edge=False)
    for row in found.rows:
        if row.headline:
            amount, name = shown(difference(row)), f"{row.other}: {row.title}" if several else row.title
            value = f"{amount.value} {amount.unit}".strip()
            cells = (name, *means(row), value, interval(row), p_value(row.p), f"{row.n:,}")
            table.add_row(*cells)
    out.print(table)
    for note in found.notes:
        out.print(note, markup=False)


def show_gate(out: Console, found: GateResult) -> None:
    """A line a rule, what else is to know, and the outcome of all."""
    for one in found.outcomes:
        out.print(f"{word(one.outcome):<13}{one.rule}", style="bold" if one.outcome == "fail" else None, markup=False, end=": ")
        out.print(one.sentence, markup=False)
    for note in found.notes:
        out.print(note, markup=False)
    out.print(f"outcome: {word(found.outcome)}", style="bold", markup=False)


def show_models(out: Console, entries: Sequence[Entry]) -> None:
    """The models by name: what they are and can do, how large they are and where they lie, or how to get them."""
    for entry in entries:
        size = "" if entry.megabytes is None else f", {entry.megabytes:.0f} MB"
        out.print(f"{entry.name}  ({entry.does}{size})", style="bold", markup=False)
        out.print(f"    {entry.told}", markup=False)
        if entry.place or entry.missing:
            out.print(f"    {entry.place or entry.missing}", soft_wrap=True, markup=False)


def _lines(out: Console) -> Callable[[Progress], None]:
    last = [time.monotonic()]

    def told(state: Progress) -> None:
        if time.monotonic() - last[0] > _EVERY or state.done == state.planned:
            last[0] = time.monotonic()
            out.print(f"{state.done} of {state.planned} cells, {state.failed} failed, {_time(state.seconds)}")

    return told


def _value(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} {estimate.unit}".strip() if estimate.value is not None else f"none: {estimate.reason}"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.lo is None or estimate.hi is None else f"{estimate.lo:.4g} to {estimate.hi:.4g}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
