"""The units in which a run lost most against the base, and those in which it gained most, with their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Exhibit
from diffprobe.report.numbers import number, shown
from diffprobe.runs.comparison.contrast import Against
from diffprobe.runs.comparison.sides import Side
from diffprobe.runs.pairing import Pair

_WORST, _IMPROVED = 4, 2


@dataclass(frozen=True)
class Loss:
    """One unit in which `other` lost against the base in a headline quantity that has a better side, or gained where `improved`."""

    other: str
    probe: str
    quantity: str
    title: str
    per: str
    name: str
    base_value: float
    other_value: float
    difference: float
    unit: str
    improved: bool


def losses(found: Sequence[Against]) -> tuple[Loss, ...]:
    """For each headline quantity with a better side: the worst losses, then fewer of the largest gains; equal units are neither."""
    return tuple(loss for against in found for pair in _judged(against) for loss in _extremes(against, pair))


def exhibits(found: Sequence[Against], sides: Sequence[Side]) -> Iterator[Exhibit]:
    """A row of the gallery for each unit among the losses, its pictures in both runs side by side, and all its headline numbers."""
    folders = {side.name: (str(index), side.media) for index, side in enumerate(sides)}
    for against in found:
        pairs = _judged(against)
        extremes = [loss for pair in pairs for loss in _extremes(against, pair)]
        for improved in (False, True):
            chosen = dict.fromkeys(loss.name for loss in extremes if loss.improved == improved)
            for name in chosen:
                titles = [loss.title for loss in extremes if (loss.name, loss.improved) == (name, improved)]
                label = f"{'most improved' if improved else 'worst'} in {against.other}"
                pictures, contrast = _side_by_side(pairs, name, (sides[0].name, against.other), folders)
                numbers: dict[str, float | str] = {pair.base_comparable.title: told for pair in pairs if (told := _change(pair, name))}
                yield Exhibit(label, f"{name}, in {', '.join(titles)}", pictures, numbers, contrast=contrast)


def _judged(against: Against) -> list[Pair]:
    told = [(pair, pair.base_comparable) for pair in against.pairing.pairs]
    return [pair for pair, comparable in told if comparable.headline and comparable.better is not None]


def _extremes(against: Against, pair: Pair) -> Iterator[Loss]:
    told = pair.base_comparable
    gains = (pair.other - pair.base) * (1 if told.better == "higher" else -1)
    order = [int(i) for i in np.lexsort((np.array(pair.units), gains)) if np.isfinite(gains[i])]
    worst = [i for i in order if gains[i] < 0][:_WORST]
    best = [i for i in reversed(order) if gains[i] > 0][:_IMPROVED]
    for index in (*worst, *best):
        base, other = float(pair.base[index]), float(pair.other[index])
        yield Loss(
            other=against.other,
            probe=against.probe,
            quantity=told.quantity,
            title=told.title,
            per=told.per,
            name=pair.units[index],
            base_value=base,
            other_value=other,
            difference=other - base,
            unit=told.unit,
            improved=index not in worst,
        )


def _change(pair: Pair, name: str) -> str:
    """Both values of a unit and their difference; empty where it has none."""
    if name not in pair.units:
        return ""
    index = pair.units.index(name)
    base, other = float(pair.base[index]), float(pair.other[index])
    return change(base, other, pair.base_comparable.unit)


def change(base: float, other: float, unit: str) -> str:
    """Two values and their difference as text."""
    before, after = apart(base, other)
    sign = "+" if other > base else ""
    return f"{before} → {after} ({sign}{number(other - base)}{f' {unit}' if unit else ''})"


def apart(base: float, other: float) -> tuple[str, str]:
    """Two values with as many digits as it takes to tell them apart, three more than usual at most."""
    lo, hi = sorted((base, other))
    before, after = (shown(Estimate("", "", value, lo, hi, 1)).value for value in (base, other))
    return before, after


def _side_by_side(
    pairs: Sequence[Pair], name: str, runs: tuple[str, str], folders: Mapping[str, tuple[str, Path]]
) -> tuple[dict[str, str], bool]:
    """The pictures of a unit in both runs by what to call them; one that is the same file in both is shown once.

    A picture's path starts with the key of its run's folder.

    Also whether the last two show what each run made of a picture that both started from.
    """
    shown_in = next((pair for pair in pairs if name in pair.base_comparable.pictures and name in pair.other_comparable.pictures), None)
    if shown_in is None:
        return {}, False
    both = [dict(comparable.pictures[name]) for comparable in (shown_in.base_comparable, shown_in.other_comparable)]
    places = [folders[run] for run in runs]
    common = [
        role for role in both[0] if role in both[1] and _same([media / part[role] for (_, media), part in zip(places, both, strict=True)])
    ]
    found = {role: f"{places[0][0]}/{both[0][role]}" for role in common}
    for run, (key, _), part in zip(runs, places, both, strict=True):
        found |= {f"{run}: {role}": f"{key}/{path}" for role, path in part.items() if role not in common}
    return found, len(common) == 1 and all(len(part) == 2 for part in both)


def _same(files: Sequence[Path]) -> bool:
    first, second = files
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
