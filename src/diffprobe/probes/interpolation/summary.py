"""What the interpolation probe concludes, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from diffprobe.measures.stats import Estimate, Interval
from diffprobe.probes.base import Facets, Findings, Records, estimated
from diffprobe.probes.interpolation.bias import Law, Shared
from diffprobe.probes.interpolation.cards import cards
from diffprobe.probes.interpolation.degeneration import Fate
from diffprobe.probes.interpolation.evidence import Evidence, Eye, Mixed
from diffprobe.probes.interpolation.gallery import exhibits
from diffprobe.probes.interpolation.pictures import charts
from diffprobe.probes.interpolation.scores import Contest, Scored
from diffprobe.probes.interpolation.signatures import ERRORS, errors
from diffprobe.probes.interpolation.strata import Told
from diffprobe.probes.interpolation.tables import NAME, Wanted
from diffprobe.probes.interpolation.verdicts import sentences


def summarise(wanted: Wanted, records: Records) -> Findings:
    """Everything that the report shows of the interpolation; what is not measured yet is left out, what does not count is counted."""
    found = Evidence(wanted, records)
    if found.empty:
        return Findings((), verdicts=("Nothing is measured yet.",))
    headline = list(cards(found))
    estimates = [
        *(card.estimate for card in headline),
        *_inverted(found),
        *(one for part in found.shared for one in _shared(part)),
        *(one for law in found.laws for one in _law(law)),
        *(one for mixed in found.mixed for one in _mixed(found, mixed)),
        *(one for eye in found.eyes for one in _seen(eye)),
        *_fates(found),
        *_offsets(found),
        *_counted(found),
    ]
    return Findings(tuple(estimates), tuple(sentences(found)), tuple(headline), tuple(charts(found)), tuple(exhibits(found)))


def _told(quantity: str, told: Told, facets: Facets, unit: str = "") -> Estimate:
    return estimated(NAME, quantity, told.interval, told.n, facets, unit)


def _inverted(found: Evidence) -> Iterator[Estimate]:
    """The error of going there and back, and what betrays an inverted latent, with what pure noise has."""
    for name in ERRORS:
        for origin, group, told in errors(found.pools, name, found.wanted.level):
            yield _told(name, told, {"origin": origin} if group is None else {"origin": origin, "group": group})
    for one in found.traits:
        facets: dict[str, str | float | int | bool] = {"origin": one.origin, "noise": one.expected, "noise_scatter": one.scatter}
        if one.place is not None:
            facets["band" if one.statistic == "spectrum" else "channel"] = one.place
        yield _told(f"latent_{one.statistic}", one.found, facets)


def _shared(one: Shared) -> Iterator[Estimate]:
    """The shared power of latents in each group and over all, its parts and their shares, and the leak that the path foretells."""
    for group, misaligned in (("", one.mean), *one.groups.items()):
        facets: Facets = {"origin": one.origin, "group": group} if group else {"origin": one.origin}
        n = one.sizes[group] if group else one.n
        for name, interval in zip(("total", "global", "channel", "lowpass", "power"), misaligned, strict=True):
            yield estimated(NAME, "power" if name == "power" else f"shared_{name}", interval, n, facets)
        leak = one.leaks.get(group) if group else one.leak
        if leak is not None:
            yield estimated(NAME, "shared_leak", leak, n, facets)
    for name, share in one.shares.items():
        told = estimated(NAME, f"share_{name}", share, one.n, {"origin": one.origin})
        yield replace(told, reason="the latents surely share nothing that could be parted") if told.value is None else told


def _law(one: Law) -> Iterator[Estimate]:
    """The fit of the saturating law to the channel means of one group's centroids, and how well the law foretells them without a fit."""
    facets: Facets = {"group": one.group}
    yield estimated(NAME, "law_shared", one.found.shared, one.n, facets)
    for channel, interval in enumerate(one.found.offset):
        at: Facets = {**facets, "channel": channel}
        yield estimated(NAME, "law_offset", interval, one.n, at)
        for name, values in (("law_r2", one.found.r2), ("law_r2_foretold", one.found.r2_foretold)):
            yield estimated(NAME, name, Interval(float(values[channel]), math.nan, math.nan), one.n, at)


def _mixed(found: Evidence, mixed: Mixed) -> Iterator[Estimate]:
    """The means of every scheme and N: distances by each instrument, sharpness, and the channel offset in that of the images."""
    tables = {f"distance:{name}": found.distance_of(mixed, name) for name in found.embedders}
    tables |= {"sharpness": found.sharpness_of(mixed), "offset_gain": found.spread_of(mixed)}
    for quantity, table in tables.items():
        if table is not None:
            yield from _means(quantity, table, {"origin": mixed.origin, "kind": mixed.kind})


def _means(quantity: str, table: Scored, facets: Facets) -> Iterator[Estimate]:
    for scheme in table.schemes:
        for n in table.sizes(scheme):
            yield _told(quantity, table.mean(scheme, n), {**facets, "scheme": scheme, "n": n})


def _seen(eye: Eye) -> Iterator[Estimate]:
    """What distances are read by, every scheme against another, and the distances of sets."""
    name = eye.embedder
    for quantity, told in (("originals", eye.originals), ("fresh", eye.fresh)):
        if told is not None:
            yield _told(f"distance_{quantity}:{name}", told, {})
    for scheme in eye.distance.schemes:
        yield _told(f"distance_over_n:{name}", eye.distance.average(scheme), {"scheme": scheme})
    for contest in (*eye.contests, *eye.pairs):
        yield _told(f"distance_difference:{name}", contest.found, _against(contest))
    for fate in eye.fates:
        for n, told in fate.rises.items():
            yield _told(f"distance_rise:{name}", told, {"scheme": fate.scheme, "n": n, "than_n": fate.base})
    for one in eye.likenesses:
        facets: Facets = {"scheme": one.scheme, "n": one.size}
        yield estimated(NAME, f"kernel:{name}", one.kernel, one.n, facets)
        limit = estimated(NAME, f"frechet:{name}", one.frechet, one.n, facets)
        yield limit if one.reason is None else replace(limit, reason=one.reason)
        yield estimated(NAME, f"frechet_plain:{name}", Interval(one.plain, math.nan, math.nan), one.n, facets)


def _against(contest: Contest) -> Facets:
    """Holm's family is all schemes at all N against the one, or all pairs of schemes."""
    facets: dict[str, str | float | int | bool] = {"scheme": contest.scheme, "than": contest.than}
    facets |= {"family": "pairs over all N"} if contest.n is None else {"family": f"against {contest.than}", "n": contest.n}
    return facets | ({"p_adjusted": contest.p_adjusted} if math.isfinite(contest.p_adjusted) else {})


def _fates(found: Evidence) -> Iterator[Estimate]:
    """From which N on each scheme fails, in either way; the lower limit is the first N at which it may."""
    for eye in found.eyes:
        for fate in eye.fates:
            if fate.rises:
                yield _point(f"degeneration_n:{fate.scheme}", fate, "degenerates", {"embedder": eye.embedder})
    if found.fresh_sharpness is not None:
        yield _told("sharpness_fresh", found.fresh_sharpness, {})
    for fate in found.fates:
        if fate.sharp:
            yield _point(f"washout_n:{fate.scheme}", fate, "washes", {})


def _point(quantity: str, fate: Fate, way: str, facets: Facets) -> Estimate:
    point = fate.degenerates if way == "degenerates" else fate.washes
    told = fate.rises if way == "degenerates" else fate.sharp
    n, last = max(one.n for one in told.values()), max(told)
    if point.n is None:
        words = "degenerate" if way == "degenerates" else "wash out"
        return Estimate(NAME, quantity, None, None, None, n, "latents", facets, f"does not {words} up to N = {last}")
    return Estimate(NAME, quantity, float(point.n), float(point.earliest or point.n), float(point.n), n, "latents", facets)


def _offsets(found: Evidence) -> Iterator[Estimate]:
    for one in found.moved:
        yield _told(f"offset_{one.measure}", one.found, {"at": one.at, "offset": one.offset})
    for gap in found.apart:
        facets: dict[str, str | float | int | bool] = {"offset": gap.offset}
        facets |= {"p_adjusted": gap.p_adjusted} if math.isfinite(gap.p_adjusted) else {}
        yield _told(f"offset_difference_{gap.measure}", gap.found, facets)


def _counted(found: Evidence) -> Iterator[Estimate]:
    """How many rows there are of each kind, how many do not count, and why."""
    for name, rows in (("latents", found.inverted), ("mixtures", found.mixtures), ("offsets", found.offset)):
        if len(rows):
            yield Estimate(NAME, "samples", float(len(rows)), None, None, len(rows), "", {"of": name})
            for flag, number in rows["flag"].value_counts().items():
                yield Estimate(NAME, "flagged", float(number), None, None, len(rows), "", {"of": name, "flag": str(flag)})
