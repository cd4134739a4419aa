"""The geometry in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.separation import FEWEST, Parting
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Group, sound

_MOST = 4


def sentences(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[str]:
    """What psi stands for here, what it tells apart and whether a plain rival does as well, and what cannot be trusted.

    Of several checkpoints all but the sentences on training speak of the last.
    """
    if found.latest:
        yield _meaning(found.latest[0], estimates)
    yield from _told(found)
    yield from _along(found)
    yield from _explained(found)
    yield from _guided(found, estimates)
    yield from _trained(found, estimates)
    yield from _mapped(found)
    yield from _doubts(found)


def _meaning(group: Group, estimates: Sequence[Estimate]) -> str:
    rows = group.rows
    size, directions = int(rows["latent_size"].iloc[0]), int(rows["directions"].iloc[0])
    psi = next((e for e in estimates if e.quantity == "psi" and e.facets == group.facets), None)
    gain = next((e for e in estimates if e.quantity == "gain" and e.facets == group.facets), None)
    told = f"ψ of {group.label} is {_range(psi)}" if psi is not None else f"ψ of {group.label} is not defined"
    if group.is_volume:
        return f"{told}: the exact log volume of a latent's {size} directions."
    if not directions:
        low, high = group.ranks
        kept = str(low) if low == high else f"{low} to {high}"
        return f"{told}: the log volume of the {kept} directions (of {size}) that the map does not flatten."
    rank = float(np.median(rows["effective_rank"].dropna())) if rows["effective_rank"].notna().any() else math.nan
    amount = f" {gain.value:.3g}" if gain is not None and gain.value is not None else ""
    return (
        f"{told}, projected on {directions} directions of a latent with {size:,} coordinates: it stands for the decoder's mean squared gain"
        f"{amount} and its effective rank (median {rank:.0f}), not for a volume."
    )


def _told(found: Evidence) -> Iterator[str]:
    """Each set that psi tells from the reference, with the better of the rivals beside it."""
    last, sets, sure = found.last, found.wanted.sets, 1 - found.wanted.level
    if found.latest and not any(one.set == sets[0] for one in found.latest):
        yield f"No sample of {sets[0]}{f' at “{last}”' if last else ''} counts, so that no set is told from it."
    yield from _few(found)
    own = [one for one in found.separations if one.measure == "psi" and one.outside.checkpoint == last]
    for one in own[:_MOST]:
        a, b = one.inside.label, one.outside.label
        at = "" if last is None else f" at “{last}”"
        where = f"ψ of {b} against {a}{at}: AUROC {one.auroc.value:.2f} [{one.auroc.lo:.2f}, {one.auroc.hi:.2f}]"
        if one.auroc.lo <= 0.5 <= one.auroc.hi:
            yield f"{where}: not told apart."
            continue
        side = "above" if one.auroc.value > 0.5 else "below"
        better = [(RIVALS[name], gain.interval.value, gain.p_adjusted) for name, gain in one.gains.items()]
        beaten = [name for name, gain, p in better if gain > 0 and p < sure]
        beats = [name for name, gain, p in better if gain < 0 and p < sure]
        as_well = [name for name, _, p in better if not p < sure]
        parts = [
            *([f"{_list(beaten)} told them apart less well"] if beaten else []),
            *([f"{_list(beats)} told them apart better"] if beats else []),
            *([f"against {_list(as_well)} there is no sure difference"] if as_well else []),
        ]
        yield f"{where}: it lies {side}{'; ' + ', '.join(parts) if parts else ''}."


def _few(found: Evidence) -> Iterator[str]:
    """The sets that have too few units to be told from another; prompts are fewer than samples."""
    sizes = {group.label: len(group.values("psi")) for group in found.latest}
    least = {label: size for label, size in sizes.items() if size < FEWEST}
    reference = next((one for one in found.latest if one.set == found.wanted.sets[0]), None)
    if reference is None or len({one.set for one in found.latest}) < 2:
        return
    if reference.label in least:
        yield f"{_size(reference.label, sizes)}: too few for another set to be told from it, which takes {FEWEST} on either side."
        return
    for label in list(least)[:_MOST]:
        yield f"{_size(label, sizes)}: too few to be told from {reference.set}, which takes {FEWEST} on either side."


def _size(label: str, sizes: dict[str, int]) -> str:
    return f"{label} has {sizes[label]} independent unit{'' if sizes[label] == 1 else 's'}"


def _along(found: Evidence) -> Iterator[str]:
    """From which step on psi tells the trajectories of generated sets apart, of all steps that are asked."""
    own: dict[tuple[str, str], list[Parting]] = {}
    for one in found.partings:
        if one.measure == "psi" and one.outside.checkpoint == found.last:
            own.setdefault((one.outside.label, one.inside.label), []).append(one)
    for (outside, inside), steps in list(own.items())[:_MOST]:
        of = f"ψ of {outside} against {inside} along their trajectories"
        first = next((one for one in steps if one.p_adjusted < 1 - found.wanted.level), None)
        if first is None:
            yield f"{of}: told apart at none of {len(steps)} steps (Holm's correction over them)."
            continue
        value, lo, hi = first.auroc
        yield (
            f"{of}: first told apart at step {first.step} (σ {first.sigma:.3g}), AUROC {value:.2f} [{lo:.2f}, {hi:.2f}]; "
            f"Holm's correction over {len(steps)} steps."
        )


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


def _guided(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[str]:
    for one in estimates:
        if one.quantity != "guidance_effect:psi" or one.facets.get("checkpoint") != found.last:
            continue
        if one.value is None or one.lo is None or one.hi is None:
            continue
        change = f"from {one.facets['from']:g} to {one.facets['to']:g} moves ψ of {one.facets['set']} by {_range(one, sign=True)}"
        sure = one.lo > 0 or one.hi < 0
        yield f"Guidance {change}{'' if sure else ': no sure change'}."


def _trained(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[str]:
    """From the first checkpoint to the last, the reference's psi and delta."""
    if not found.latest or found.last is None or found.last == found.wanted.checkpoints[0]:
        return
    group, names = found.latest[0], (found.wanted.checkpoints[0], found.last)
    for column, title in DESCRIPTORS.items():
        own = [e for e in estimates if e.quantity == column]
        first, last = (next((e for e in own if e.facets == {**group.facets, "checkpoint": name}), None) for name in names)
        if first is not None and last is not None:
            yield f"From “{names[0]}” to “{names[1]}” the {title} of {group.label} goes from {_range(first)} to {_range(last)}."


def _mapped(found: Evidence) -> Iterator[str]:
    """How much psi varies over each slice and each level of a field."""
    own = [one for one in found.surfaces if one[1] == found.last]
    for name, checkpoint, sigma, points in own[:_MOST]:
        values = points["psi"].dropna().to_numpy(np.float64)
        if len(values):
            at = ", ".join([*([f"σ {sigma:.3g}"] if sigma is not None else []), *([f"“{checkpoint}”"] if checkpoint else [])])
            low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
            yield f"ψ over {name}{' at ' + at if at else ''}: {middle:.4g} in the middle, from {low:.4g} to {high:.4g} over nine tenths."


def _doubts(found: Evidence) -> Iterator[str]:
    """Rounding in delta, rank that varies, projection error that is not small."""
    frame = sound(found.frame)
    if found.last is not None:
        frame = frame[frame["checkpoint"] == found.last]
    floor, delta = float(frame["delta_floor"].mean()), float(frame["delta"].mean())
    if delta > 0 and floor > 0:
        share = floor / delta
        if share > 0.05:
            yield f"{min(share, 1):.0%} of δ is rounding at this radius: take a larger `radius`, or read differences alone."
    for group in found.latest[:1]:
        if group.rows["rank"].nunique() > 1:
            low, high = group.ranks
            yield f"Between {low} and {high} singular values of {group.label} are above zero: ψ jumps where their number changes."
        spread, error = float(group.rows["psi"].std()), float(group.rows["psi_error"].median())
        if (group.rows["directions"] > 0).all() and error > 0.5 * spread > 0:
            yield (
                f"Other directions would move ψ by {error:.2g}, where samples of {group.label} differ by {spread:.2g}: comparisons with "
                "other projections need more `projections`, or a `precision`. Samples that share theirs are compared without that error."
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
