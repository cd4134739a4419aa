"""The charts of a comparison: all differences without their units, each with it, and the units behind the headline ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from diffprobe.probes.base import Axis, Chart
from diffprobe.report.numbers import label, number
from diffprobe.runs.comparison.contrast import Against, Row
from diffprobe.runs.comparison.wording import many
from diffprobe.runs.pairing import Pair

_POINTS = 500  # of a scatter
_FEWEST = 8  # units that a histogram needs
_BINS = 18
_SERIES = 8
_LINES = 30  # of a chart of words
_RUN = Axis("run", "Run")


def charts(rows: Sequence[Row], found: Sequence[Against], base: str) -> Iterator[Chart]:
    """The charts of one probe: `rows` and `found` are those of all runs in it."""
    rest: dict[str, list[Row]] = {}
    for row in rows:
        if not row.headline and row.difference is not None:
            rest.setdefault(row.quantity, []).append(row)
    titles = {row.title for row in rows if row.headline}
    single = [row for others in rest.values() if _layout(others) == (None, []) for row in others if row.title not in titles]
    yield from _forest([*(row for row in rows if row.headline), *single], base)
    headline = [(against, pair) for against in found for pair in against.pairing.pairs if pair.base_comparable.headline]
    for quantity in dict.fromkeys(pair.base_comparable.quantity for _, pair in headline):
        chosen = [(against.other, pair) for against, pair in headline if pair.base_comparable.quantity == quantity]
        yield from _units(chosen, base)
    for others in rest.values():
        if all(row.outcome == "equal" for row in others):
            continue
        chart = _by_facets(others, base)
        if chart is not None:
            yield chart


def _forest(rows: Sequence[Row], base: str) -> Iterator[Chart]:
    """Quantities of any unit on the one axis that they share."""
    chosen = [row for row in rows if row.effect_size is not None]
    if not chosen:
        return
    lines = tuple(
        {"quantity": row.title, "effect": row.effect_size, "lo": row.effect_lo, "hi": row.effect_hi, "run": row.other, "n": row.n}
        for row in chosen
    )
    yield Chart(
        "differences",
        "How large the differences are",
        f"Mean difference from {base} over the standard deviation of the differences (d_z): how far the runs are apart, whatever the unit. "
        "Right of the dashed line a quantity is higher than in the base.",
        "interval",
        lines,
        Axis("quantity", "quantity"),
        Axis("effect", "difference, d_z"),
        "lo",
        "hi",
        _runs(rows),
        guide="zero",
    )


def _units(chosen: Sequence[tuple[str, Pair]], base: str) -> Iterator[Chart]:
    """One headline quantity: its units in the base against those in the other runs, and how their differences spread."""
    told = chosen[0][1].base_comparable
    unit = f" ({told.unit})" if told.unit else ""
    several = len(chosen) > 1
    points = tuple(row for other, pair in chosen for row in _points(other, pair, _POINTS // len(chosen)))
    if len(points) > 2:
        drawn, total = len(points), sum(len(pair.units) for _, pair in chosen)
        few = f" {drawn:,} of {total:,} are drawn." if drawn < total else ""
        yield Chart(
            f"{told.quantity}-units",
            f"{_start(told.per)} by {told.per}: {told.title}",
            f"One point {'an' if told.per[0] in 'aeiou' else 'a'} {told.per}. On the dashed line both runs are equal.{few}",
            "scatter",
            points,
            Axis("base", f"{base}{unit}"),
            Axis("other", f"{'the other runs' if several else chosen[0][0]}{unit}"),
            series=_RUN if several else None,
            guide="diagonal",
        )
    if min(len(pair.units) for _, pair in chosen) >= _FEWEST:
        yield Chart(
            f"{told.quantity}-spread",
            f"How far {many(told.per, 2)} differ in {told.title}",
            f"So many {many(told.per, 2)} by the other run minus {base}.",
            "stack",
            tuple(_bins(chosen, base)),
            Axis("difference", f"difference{unit}"),
            Axis("units", many(told.per, 2)),
            series=Axis("run", "Higher in" if told.better is None else "Better in"),
            facet=Axis("against", "Runs") if several else None,
        )


def _points(other: str, pair: Pair, most: int) -> Iterator[dict[str, Any]]:
    """The units of a pair, or so many of them, evenly through the values of the base."""
    order = np.argsort(pair.base, kind="stable").tolist()
    places = dict.fromkeys(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int).tolist())
    for index in sorted(order[place] for place in places):
        yield {
            "base": float(pair.base[index]),
            "other": float(pair.other[index]),
            "run": other,
            pair.base_comparable.per: pair.units[index],
        }


def _bins(chosen: Sequence[tuple[str, Pair]], base: str) -> Iterator[dict[str, Any]]:
    """A histogram of the differences with an edge at 0, each unit in the name of the run that it speaks for; empty bins are there too."""
    differences = {other: pair.other - pair.base for other, pair in chosen}
    longest = max(differences.values(), key=len)
    width = _width(max(float(np.ptp(np.append(d, 0.0))) for d in differences.values()), min(_BINS, round(2 * math.sqrt(len(longest)))))
    places = {other: np.floor(d / width).astype(int) for other, d in differences.items()}
    every = np.concatenate(list(places.values()))
    for other, pair in chosen:
        higher, lower = (base, other) if pair.base_comparable.better == "lower" else (other, base)
        sides = np.where(differences[other] == 0, "equal", np.where(differences[other] > 0, higher, lower))
        counted = Counter(zip(places[other].tolist(), sides.tolist(), strict=True))
        for at in range(int(every.min()), int(every.max()) + 1):
            for side in (other, base, *(["equal"] if "equal" in sides else [])):
                yield {"difference": _round((at + 0.5) * width), "units": counted[at, side], "run": side, "against": f"{other} − {base}"}


def _width(span: float, bins: int) -> float:
    """A round width with which about so many bins hold the span."""
    if span <= 0:
        return 1.0
    raw = span / bins
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9))


def _round(value: float) -> float:
    return float(f"{value:.10g}")


def _by_facets(rows: Sequence[Row], base: str) -> Chart | None:
    """One quantity in its own unit over what varies: along a number where there is one, else a line for each of its rows."""
    along, others = _layout(rows)
    if along is None and not others:
        return None
    several = len({row.other for row in rows}) > 1
    told = [_told(row, others, several and along is not None) for row in rows]
    names = list(dict.fromkeys(told))
    limit = min(len(names), _SERIES if along else _LINES)
    few = f" The first {limit} of {len(names)}; all are in the table." if limit < len(names) else ""
    series = None
    if several or (along and others):
        series = Axis("what", ", ".join([*(["Run"] if several else []), *(others if along else [])]))
    unit = f" ({rows[0].unit})" if rows[0].unit else ""
    return Chart(
        f"{rows[0].quantity}-facets",
        f"Difference in {rows[0].quantity}",
        f"Mean difference from {base}, paired by {rows[0].per}.{few}",
        "interval",
        tuple(_line(row, name, along) for row, name in zip(rows, told, strict=True) if name in names[:limit]),
        Axis("at", along or ", ".join(others)),
        Axis("difference", f"difference{unit}"),
        "lo",
        "hi",
        series,
        guide="zero",
    )


def _layout(rows: Sequence[Row]) -> tuple[str | None, list[str]]:
    """Of the facets that vary, the number with the most values, and the others."""
    names = dict.fromkeys(name for row in rows for name in row.facets)
    varying = [name for name in names if len({str(row.facets.get(name)) for row in rows}) > 1]
    numeric = [name for name in varying if all(_is_number(row.facets.get(name)) for row in rows)]
    along = max(numeric, key=lambda name: len({row.facets[name] for row in rows}), default=None)
    return along, [name for name in varying if name != along]


def _told(row: Row, names: Sequence[str], with_run: bool) -> str:
    """The facets of a row as text: numbers with their name."""
    values = [(name, row.facets.get(name, "—")) for name in names]
    return ", ".join([*([row.other] if with_run else []), *(f"{n} {label(v)}" if _is_number(v) else label(v) for n, v in values)])


def _line(row: Row, name: str, along: str | None) -> dict[str, Any]:
    return {
        "at": f"{along} {label(row.facets[along])}" if along else name,
        "difference": row.difference,
        "lo": row.lo,
        "hi": row.hi,
        "what": name if along else row.other,
        "p (Holm)": None if row.p is None else number(row.p),
        "n": row.n,
    }


def _runs(rows: Sequence[Row]) -> Axis | None:
    return _RUN if len({row.other for row in rows}) > 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
