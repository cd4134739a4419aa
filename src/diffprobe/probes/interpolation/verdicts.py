"""The interpolation in sentences: what a reader who reads nothing else should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from diffprobe.measures.interpolation import Scheme
from diffprobe.probes.interpolation.degeneration import Choice, Fate
from diffprobe.probes.interpolation.evidence import Evidence, Eye
from diffprobe.probes.interpolation.origins import causes, last_signal, ranged
from diffprobe.probes.interpolation.signatures import STATISTICS, Trait, errors
from diffprobe.probes.interpolation.tables import DISTANCE, ORIGINS, plain, spoken

_MOST = 3
#: What a scheme takes out before it brings a mixture to the length of noise.
_TAKEN = {
    "global": ("A common mean", "cures", "does not cure"),
    "channel": ("Channel means", "cure", "do not cure"),
    "lowpass": ("Low frequencies", "cure", "do not cure"),
}


def sentences(found: Evidence) -> Iterator[str]:
    """Which scheme is for this model and where plain ones fail, why, how well images are inverted, and what cannot be trusted."""
    yield from _chosen(found)
    yield from _plain(found)
    yield from _cured(found)
    yield from causes(found)
    yield from _inverted(found)
    yield from _offsets(found)
    yield from _doubts(found)


def _chosen(found: Evidence) -> Iterator[str]:
    if found.main is None:
        return
    if not found.eyes:
        why = "No instrument looked at the mixtures: name one under `embedders`" if len(found.main.rows) else "No mixture counts"
        yield f"{why}, without which no scheme can be chosen."
        return
    eye = found.eyes[0]
    picked, reach = eye.choice, max((one.reaches for one in eye.fates), default=0)
    if picked is None:
        yield from (_holding(one) for one in eye.fates if not plain(one.scheme) and one.fails is None)
        return
    if picked.fails is not None:
        yield f"No scheme holds up to N = {reach} on this model; {spoken(picked.scheme)} does so longest, below N = {picked.fails}."
        return
    told, fate = eye.distance.average(picked.scheme), next(one for one in eye.fates if one.scheme == picked.scheme)
    surely = "surely " if _open(fate) else ""
    of = "" if found.main.origin == "images" else f" ({ORIGINS[found.main.origin]})"
    yield (
        f"For this model mix by {spoken(picked.scheme)}: up to N = {reach} its mixtures{of} do not {surely}leave their group or wash out, "
        f"at a mean cosine distance of {ranged(told.interval)} from it{_beside(eye)}{_tied(picked, told.n)}."
    )
    yield from _bland(eye, picked)
    yield from _variety(eye, picked)


def _holding(one: Fate) -> str:
    return f"{spoken(one.scheme)} holds up to N = {one.reaches}{_change(one)}."


def _bland(eye: Eye, picked: Choice) -> Iterator[str]:
    """The scheme that lies nearest of all because nothing is left in its pictures."""
    nearest = eye.distance.best(eye.distance.schemes)
    fate = next((one for one in eye.fates if one.scheme == nearest), None)
    if fate is not None and fate.washes.n is not None and nearest not in picked.tied:
        told = f"{spoken(fate.scheme)} lies nearer still ({ranged(eye.distance.average(fate.scheme).interval)})"
        yield f"{told[0].upper()}{told[1:]}, but by bland pictures: they wash out from N = {fate.washes.n}."


def _variety(eye: Eye, picked: Choice) -> Iterator[str]:
    """Whether its mixtures of the most latents are surely less like the images as a set than those of the fewest."""
    own = sorted((one for one in eye.likenesses if one.scheme == picked.scheme and one.size > 1), key=lambda one: one.size)
    if len(own) > 1 and own[-1].kernel.lo > own[0].kernel.hi:
        first, last = own[0], own[-1]
        yield (
            f"As a set its mixtures become less like the images: the kernel distance is {ranged(last.kernel)} at N = {last.size} and "
            f"{ranged(first.kernel)} at N = {first.size}, which a distance from their mean does not see."
        )


def _beside(eye: Eye) -> str:
    lines = {"the images themselves": eye.originals, "what it makes of fresh noise": eye.fresh}
    told = [f"{name}: {ranged(one.interval)}" for name, one in lines.items() if one is not None]
    return f" ({'; '.join(told)})" if told else ""


def _tied(picked: Choice, draws: int) -> str:
    """What else would do, and why it is not chosen."""
    gives, others = Scheme.parse(picked.scheme).reproduces, [one for one in picked.tied if one != picked.scheme]
    if not others:
        return ""
    why = ["which gives no single image back" if gives and not Scheme.parse(one).reproduces else "less simple" for one in others]
    told = [f"{spoken(one)} ({reason})" for one, reason in zip(others, why, strict=True)]
    told = told if len(told) <= _MOST else [*told[: _MOST - 1], f"{len(told) - _MOST + 1} more"]
    return f"; as far as {draws} draws tell, {_list(told)} {'is' if len(others) == 1 else 'are'} no farther"


def _plain(found: Evidence) -> Iterator[str]:
    """From which N the schemes fail that leave what latents share where it is; where one does not, what is different here."""
    own = [one for one in found.fates if plain(one.scheme)]
    failing = [one for one in own if one.fails is not None]
    if failing:
        yield f"Of the plain schemes {'; '.join(map(_failure, failing))}."
    yield from _bar(found)
    holding = [one for one in own if one.fails is None]
    if holding:
        told = [f"{spoken(one.scheme)}{_change(one)}" for one in holding]
        reach = min(one.reaches for one in holding)
        surely = "surely " if any(one.degenerates.earliest is not None for one in holding) else ""
        yield f"Up to N = {reach} plain mixing does not {surely}degenerate on this model by {_list(told)}{_different(found)}."


def _bar(found: Evidence) -> Iterator[str]:
    """What washed out is measured by, where the model itself does not reach the images' sharpness."""
    fresh = found.fresh_sharpness
    if fresh is not None and fresh.interval.value < 1 and any(one.washes.n is not None for one in found.fates):
        told = f"What this model makes of fresh noise has {ranged(fresh.interval)} of the images' sharpness"
        yield f"{told}: what is below half of that is called washed out."


def _failure(one: Fate) -> str:
    """In the way in which it fails first."""
    n, way = one.ways[0]
    told = f"{spoken(one.scheme)} {way}"
    if way == "degenerates":
        return f"{told} from N = {n} (its distance rises by {ranged(one.rises[n].interval)} over N = {one.base})"
    if way == "washes out":
        return f"{told} from N = {n} (its sharpness is {ranged(one.sharp[n].interval)} of the images')"
    if way == "leaves its group":
        distance = ranged(one.means[n].interval)
        return f"{told} from N = {n} (its distance is {distance}, where the nearest scheme has {one.nearest:.3g} at its smallest N)"
    return f"{told} that counts from N = {n} for most draws"


def _change(one: Fate) -> str:
    """How far it has moved at its largest N."""
    if not one.rises:
        return f" (sharpness {ranged(one.sharp[max(one.sharp)].interval)} of the images')" if one.sharp else ""
    n = max(one.rises)
    return f" (its distance at N = {n} is {ranged(one.rises[n].interval, sign=True)} over N = {one.base})"


def _different(found: Evidence) -> str:
    """Why it may not degenerate: what latents share, how long they are, and how much of the images the last level leaves."""
    told = []
    for one in found.shared:
        if one.origin == "images":
            told += [f"its latents share b² = {ranged(one.mean.total)} of the power of noise", f"have a power of {ranged(one.mean.power)}"]
    alpha = last_signal(found)
    told += [] if alpha is None else [f"{'and ' if told else ''}its noisiest level keeps α = {alpha:.3g} of an image"]
    return f": {', '.join(told)}" if told else ""


def _cured(found: Evidence) -> Iterator[str]:
    """Whether what plain schemes fail of goes with what is set apart; or whether that is what fails."""
    apart = [one for one in found.fates if not plain(one.scheme)]
    if not any(one.fails is not None for one in found.fates if plain(one.scheme) and one.scheme != "none"):
        failing = [one for one in apart if one.fails is not None]
        if failing and any(one.fails is None for one in found.fates if plain(one.scheme)):
            yield f"What is set apart does harm here: {'; '.join(map(_failure, failing))}."
        return
    for mean, told in _TAKEN.items():
        own = [one for one in apart if Scheme.parse(one.scheme).mean == mean]
        held = [one for one in own if one.fails is None]
        if held:
            sure = [one for one in held if not _open(one)]
            names = _list([f"{one.scheme}{_change(one)}" for one in sure or held])
            holds = f"hold{'s' if len(sure) == 1 else ''}" if sure else "not surely failing"
            begins = f"{told[0]} set apart {told[1] if sure else 'may cure'} it"
            yield f"{begins}: {names} {holds} up to N = {min(one.reaches for one in sure or held)}{_gain(found, (sure or held)[0])}."
        elif own:
            yield f"{told[0]} set apart {told[2]} it: {'; '.join(map(_failure, own))}{_gain(found, own[0])}."


def _open(one: Fate) -> bool:
    """Whether the intervals leave it open that it fails."""
    return one.degenerates.earliest is not None or one.washes.earliest is not None


def _gain(found: Evidence, one: Fate) -> str:
    """What the scheme makes of the common offset at its largest N, beside the plain scheme of its norm."""
    table, other = found.spread, Scheme.parse(one.scheme).norm
    if table is None or not {one.scheme, other} <= set(table.schemes):
        return ""
    sizes = [n for n in table.sizes(one.scheme) if n in table.sizes(other)]
    if not sizes:
        return ""
    ours, theirs = (table.mean(name, sizes[-1]).interval for name in (one.scheme, other))
    beside = f"where {other} has {ranged(theirs)}"
    return f"; at N = {sizes[-1]} latents mixed by {one.scheme} have {ranged(ours)} times the images' common channel offset, {beside}"


def _inverted(found: Evidence) -> Iterator[str]:
    level = found.wanted.level
    means = {
        name: next((told for origin, group, told in errors(found.pools, name, level) if origin == "images" and group is None), None)
        for name in ("reconstruction_pixels", "reconstruction")
    }
    pixels, latents = means.values()
    if pixels is not None:
        beside = "" if latents is None else f" (of the latents: {ranged(latents.interval)})"
        yield f"Inverted and drawn again, {pixels.n} images come back with a mean squared error of {ranged(pixels.interval)}{beside}."
    own = [one for one in found.traits if one.origin == "images"]
    if not own:
        return
    worst = _worst(own)
    if not worst:
        yield "Nothing that is looked at betrays an inverted image: its latent is pure noise by length, moments, neighbours and spectrum."
        return
    yield f"An inverted image is betrayed by its latent: {'; '.join(map(_trait, worst))}."


def _worst(own: Sequence[Trait]) -> list[Trait]:
    """The places that are farthest from pure noise, one a statistic, where a single latent's own scatter does not hide them."""
    found: dict[str, Trait] = {}
    for one in sorted(own, key=lambda one: -one.distance if math.isfinite(one.distance) else 0.0):
        if one.sure and one.distance > 1:
            found.setdefault(one.statistic, one)
    return list(found.values())[:_MOST]


def _trait(one: Trait) -> str:
    name = STATISTICS[one.statistic][0]
    if one.statistic == "spectrum":
        name = "power in the lowest frequencies" if one.place == 0 else f"power in band {(one.place or 0) + 1} of the frequencies"
    elif one.place is not None:
        name = f"{name} ({one.place})"
    return f"{name} {ranged(one.found.interval)}, where noise has {one.expected:g} ± {one.scatter:.2g}"


def _offsets(found: Evidence) -> Iterator[str]:
    """The largest offset by the first measure."""
    if not found.apart:
        return
    name = found.apart[0].measure
    gap = max((one for one in found.apart if one.measure == name), key=lambda one: one.offset)
    sides = {one.at: one.found.interval for one in found.moved if one.measure == name and one.offset == gap.offset}
    what = f"cosine distance, {name.removeprefix(DISTANCE)}" if name.startswith(DISTANCE) else f"mean squared change {name} its place"
    sure = gap.p_adjusted < 1 - found.wanted.level
    yield (
        f"The same offset of {gap.offset:g} moves a picture by {ranged(sides['noise'])} on the noise and by {ranged(sides['data'])} on the "
        f"clean latent ({what}): a difference of {ranged(gap.found.interval, sign=True)}{'' if sure else ', which is not sure'}."
    )


def _doubts(found: Evidence) -> Iterator[str]:
    """Instruments that disagree, draws that overlap, and what does not count."""
    picks = {eye.embedder: eye.choice.scheme for eye in found.eyes if eye.choice is not None}
    if len(set(picks.values())) > 1:
        yield f"The instruments do not agree on the scheme: {'; '.join(f'{spoken(scheme)} by {name}' for name, scheme in picks.items())}."
    small = _overlapping(found)
    if small is not None:
        n, pool = small
        yield (
            f"At N = {n} and more, mixtures of {pool} images have more than half of them in common: numbers there speak of these images, "
            f"and a pool of {2 * max(found.wanted.sizes)} would say more."
        )
    fates = [one for one in found.fates if one.washes.n is None and one.washes.earliest is not None and one.fails is None]
    if fates:
        told = _list([f"{spoken(one.scheme)} at N = {one.washes.earliest}" for one in fates[:_MOST]])
        keeps = "keeps" if len(fates) == 1 else "keep"
        yield f"It is not sure that {told} {keeps} {fates[0].bar:.0%} of the images' sharpness: more draws would tell."
    for name, rows in (("latents", found.inverted), ("mixtures", found.mixtures), ("offsets", found.offset)):
        flagged = int(rows["flag"].notna().sum()) if len(rows) else 0
        if flagged:
            yield f"{flagged} of {len(rows)} {name} do not count: {', '.join(map(str, rows['flag'].dropna().unique()))}."


def _overlapping(found: Evidence) -> tuple[int, int] | None:
    """The first N of more than half of the smallest pool that is mixed, and its size."""
    if found.main is None:
        return None
    pools = [len(pool.rows) for pool in found.pools if pool.origin == found.main.origin and len(pool.rows)]
    sizes = sorted(int(n) for n in found.main.rows["n"].unique())
    n = next((n for n in sizes if pools and 2 * n > min(pools) and n > 1), None)
    return None if n is None else (n, min(pools))


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
