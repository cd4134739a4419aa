"""The geometry in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Group

_SURE = 0.05
_MOST = 4


def sentences(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[str]:
    """What psi stands for here, what it tells apart and whether a plain rival does as well, and what cannot be trusted."""
    if found.latest:
        yield _meaning(found.latest[0], estimates)
    yield from _told(found)
    yield from _explained(found)
    yield from _guided(estimates)
    yield from _trained(found, estimates)
    yield from _mapped(found)
    yield from _doubts(found)


def _meaning(group: Group, estimates: Sequence[Estimate]) -> str:
    rows = group.rows
    size, directions = int(rows["latent_size"].iloc[0]), int(rows["directions"].iloc[0])
    psi = next((e for e in estimates if e.quantity == "psi" and e.facets == group.facets), None)
    gain = next((e for e in estimates if e.quantity == "gain" and e.facets == group.facets), None)
    told = f"ψ of {group.label} is {_range(psi)}" if psi is not None else f"ψ of {group.label} is not defined"
    if not directions:
        return f"{told}: the exact log volume of a latent's {size} directions."
    if directions >= size:
        return f"{told}, the log volume of a latent's {size} directions up to a constant of the projection."
    rank = float(np.median(rows["effective_rank"].dropna())) if rows["effective_rank"].notna().any() else math.nan
    amount = f" {gain.value:.3g}" if gain is not None and gain.value is not None else ""
    return (
        f"{told}, projected on {directions} directions of a latent with {size:,} coordinates: it stands for the decoder's mean squared gain"
        f"{amount} and its effective rank (median {rank:.0f}), not for a volume."
    )


def _told(found: Evidence) -> Iterator[str]:
    """Each set that psi tells from the reference, with the better of the rivals beside it."""
    last = found.last
    own = [one for one in found.separations if one.measure == "psi" and one.outside.checkpoint == last]
    for one in own[:_MOST]:
        a, b = one.inside.label, one.outside.label
        at = "" if last is None else f" at “{last}”"
        where = f"ψ of {b} against {a}{at}: AUROC {one.auroc.value:.2f} [{one.auroc.lo:.2f}, {one.auroc.hi:.2f}]"
        if one.auroc.lo <= 0.5 <= one.auroc.hi:
            yield f"{where}: not told apart."
            continue
        side = "above" if one.auroc.value > 0.5 else "below"
        better = [(RIVALS[name], gain, p) for name, (gain, p) in one.gains.items()]
        beaten = [name for name, gain, p in better if gain.value > 0 and p < _SURE]
        beats = [name for name, gain, p in better if gain.value < 0 and p < _SURE]
        as_well = [name for name, _, p in better if not p < _SURE]
        parts = [
            *([f"better than by {_list(beaten)}"] if beaten else []),
            *([f"no better than by {_list(as_well)}"] if as_well else []),
            *([f"worse than by {_list(beats)}"] if beats else []),
        ]
        yield f"{where}: it lies {side}{', told ' + ', '.join(parts) if parts else ''}."


def _explained(found: Evidence) -> Iterator[str]:
    """The strongest sure correlation with a rival in the reference set."""
    if not found.latest:
        return
    own = [one for one in found.trends if one.group is found.latest[0] and one.descriptor == "psi" and one.other in RIVALS]
    sure = [one for one in own if one.interval.lo * one.interval.hi > 0]
    if sure:
        one = max(sure, key=lambda trend: abs(trend.interval.value))
        value, lo, hi = one.interval
        yield f"In {one.group.label} ψ goes with the {RIVALS[one.other]}: rank correlation {value:.2f} [{lo:.2f}, {hi:.2f}]."


def _guided(estimates: Sequence[Estimate]) -> Iterator[str]:
    for one in estimates:
        if one.quantity != "guidance_effect:psi" or one.value is None or one.lo is None or one.hi is None:
            continue
        change = f"from {one.facets['from']:g} to {one.facets['to']:g} moves ψ of {one.facets['set']} by {_range(one, sign=True)}"
        sure = one.lo > 0 or one.hi < 0
        yield f"Guidance {change}{'' if sure else ': no sure change'}."


def _trained(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[str]:
    """From the first checkpoint to the last, the reference's psi and delta."""
    names = found.wanted.checkpoints
    if len(names) < 2 or not found.groups:
        return
    first = found.groups[0].set
    for column, title in DESCRIPTORS.items():
        ends = [
            next(
                (e for e in estimates if e.quantity == column and e.facets.get("set") == first and e.facets.get("checkpoint") == name), None
            )
            for name in (names[0], names[-1])
        ]
        if ends[0] is not None and ends[1] is not None:
            yield f"From “{names[0]}” to “{names[-1]}” the {title} of {first} goes from {_range(ends[0])} to {_range(ends[1])}."


def _mapped(found: Evidence) -> Iterator[str]:
    """How much psi varies over each slice and each level of a field."""
    for name, checkpoint, sigma, points in found.surfaces[:_MOST]:
        values = points["psi"].dropna().to_numpy(np.float64)
        if len(values):
            at = ", ".join([*([f"σ {sigma:.3g}"] if sigma is not None else []), *([f"“{checkpoint}”"] if checkpoint else [])])
            low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
            yield f"ψ over {name}{' at ' + at if at else ''}: {middle:.4g} in the middle, from {low:.4g} to {high:.4g} over nine tenths."


def _doubts(found: Evidence) -> Iterator[str]:
    """Rounding in delta, rank that varies, projection error that is not small."""
    frame = found.frame[found.frame["flag"].isna()]
    floor, delta = float(frame["delta_floor"].mean()), float(frame["delta"].mean())
    if delta > 0 and floor > 0:
        share = floor / delta
        if share > 0.05:
            yield f"{min(share, 1):.0%} of δ is rounding at this radius: take a larger `radius`, or read differences alone."
    for group in found.latest[:1]:
        if group.rows["rank"].nunique() > 1:
            low, high = int(group.rows["rank"].min()), int(group.rows["rank"].max())
            yield f"Between {low} and {high} singular values of {group.label} are above zero: ψ jumps where their number changes."
        spread, error = group.values("psi").std(), group.values("psi_error")
        if len(error) and spread > 0 and float(np.median(error)) > 0.5 * spread:
            yield (
                f"The projection alone moves ψ by {float(np.median(error)):.2g}, half as much as samples of {group.label} differ or more: "
                "take more `projections`, or set a `precision`."
            )
    flagged = found.frame["flag"].notna().sum()
    if flagged:
        yield f"{flagged} of {len(found.frame)} samples do not count: {', '.join(map(str, found.frame['flag'].dropna().unique()))}."


def _range(one: Estimate, *, sign: bool = False) -> str:
    if one.value is None:
        return "not defined"
    style = "+.3g" if sign else ".4g"
    told = f"{one.value:{style}}"
    return told if one.lo is None or one.hi is None else f"{told} [{one.lo:{style}}, {one.hi:{style}}]"


def _list(names: Sequence[str]) -> str:
    return " and ".join(f"the {name}" for name in names)
