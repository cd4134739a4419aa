"""In sentences: what inverted latents share, in which of their parts, where it comes from, and what law its growth follows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from diffprobe.measures.stats import Interval, mover
from diffprobe.probes.interpolation.bias import Shared
from diffprobe.probes.interpolation.evidence import Evidence
from diffprobe.probes.interpolation.tables import column, plain, spoken

#: How many times a centroid of N latents of power P has what they share, once it is brought to the length of noise.
LAW = "1/√(b² + (P − b²)/N)"
_FOLLOWS = 0.9  # R² from which the law is said to hold


def causes(found: Evidence) -> Iterator[str]:
    """Where the shared power lies, what the control and the last level say of its origin, and whether it grows by the law."""
    by_origin = {one.origin: one for one in found.shared}
    images = by_origin.get("images")
    if images is not None:
        yield _where(images)
    if images is not None and "generated" in by_origin:
        yield _control(images.mean.total, by_origin["generated"])
    yield from _controlled(found)
    yield from _leaked(found, by_origin.get("noised"))
    if images is None or images.mean.total.lo > 0:
        yield from _law(found)


def _where(images: Shared) -> str:
    total = images.mean.total
    if not total.lo > 0:
        return f"Inverted images share no power that {images.n} of them show: b² is {ranged(total)}, in the power of pure noise."
    shares = {name: _percent(share) for name, share in images.shares.items()}
    leak = f"; {shares['leak']} is what the last level leaves of the channels' means" if "leak" in shares else ""
    return (
        f"Inverted images share b² = {ranged(total)} of the power of pure noise: {shares['channel']} of it lies in channel means, "
        f"{shares['lowpass']} in the lowest frequencies, these included{leak}."
    )


def _control(images: Interval, control: Shared) -> str:
    """Images of independent noise have no class to be misaligned with."""
    total = control.mean.total
    begins = f"Images that the model drew itself, of independent noise, come back from encoding and inversion with b² = {ranged(total)}"
    gap = mover(total, images)
    if not total.lo > 0:
        shown = f"that way adds nothing that {control.n} of them show" if gap.hi < 0 else f"{control.n} of them do not tell its part"
        return f"{begins}: {shown}."
    if gap.hi < 0:
        return f"{begins}, {ranged(gap, sign=True)} against real images: that way adds as much, and the rest is the images' own."
    return f"{begins}, no less than real images do: it is that way that adds it."


def _controlled(found: Evidence) -> Iterator[str]:
    """Whether mixtures of the model's own images do what those of real ones do, by the plain scheme that they fail by first."""
    own = next((one for one in found.mixed if one.origin == "generated" and one.kind == "centroid"), None)
    failing = [one for one in found.fates if plain(one.scheme) and one.degenerates.n is not None]
    if own is None or own is found.main or not failing or not found.embedders:
        return
    table, first = found.distance_of(own, found.embedders[0]), min(failing, key=lambda one: one.degenerates.n or 0)
    sizes = table.sizes(first.scheme, first.base) if table is not None and first.scheme in table.schemes else []
    if table is None or len(sizes) < 2:
        return
    rise, n = table.rise(first.scheme, sizes[-1], sizes[0]).interval, sizes[-1]
    told = f"the distance at N = {n} is {ranged(rise, sign=True)} over N = {sizes[0]} by {spoken(first.scheme)}"
    if rise.lo > found.wanted.margin:
        yield f"Mixtures of the model's own images, inverted, degenerate too: {told}."
    else:
        yield f"Mixtures of the model's own images, inverted, do not surely degenerate: {told}."


def _leaked(found: Evidence, noised: Shared | None) -> Iterator[str]:
    """What noising forwards alone makes latents share, beside what the path foretells."""
    alpha = last_signal(found)
    if alpha is None:
        return
    if alpha == 0:
        yield "The noisiest level is pure noise (α = 0): nothing of an image is left in it."
        return
    left = f"The noisiest level keeps α = {alpha:.3g} of an image"
    if noised is None:
        yield f"{left}; how much that makes latents share is seen where images are noised forwards (origin `noised`)."
        return
    total = noised.mean.total
    foretold = "" if noised.leak is None else f", of which their channel means foretell {ranged(noised.leak)}"
    if total.lo > 0:
        yield f"{left}: by noise alone, without inversion, latents share b² = {ranged(total)}{foretold}."
    else:
        yield f"{left}, which makes latents share nothing that {noised.n} of them show: b² = {ranged(total)}{foretold}."


def _law(found: Evidence) -> Iterator[str]:
    """R² of the channel that is amplified most, in every group."""
    told = []
    for one in found.laws:
        last = np.abs(one.found.observed[-1])
        if np.isfinite(last).any():
            told.append(float(one.found.r2_foretold[int(np.nanargmax(last))]))
    told = [one for one in told if math.isfinite(one)]
    if not told:
        return
    low, high = min(told), max(told)
    between = f"R² {low:.2f} to {high:.2f} over {len(told)} groups" if f"{low:.2f}" != f"{high:.2f}" else f"R² {high:.2f}"
    sizes = [size for one in found.laws for size in one.found.sizes]
    which = f"the channel means of centroids of {min(sizes)} to {max(sizes)} latents"
    if low >= _FOLLOWS:
        yield f"Brought to the length of noise, {which} grow by the law {LAW} with nothing fitted ({between}, the channel that grows most)."
    else:
        yield f"The law {LAW} does not foretell {which} everywhere ({between}, the channel that grows most)."


def last_signal(found: Evidence) -> float | None:
    """α of the noisiest level, the share of an image that is left there; None where nothing is inverted."""
    known = column(found.inverted, "alpha_T") if len(found.inverted) else np.zeros(0)
    known = known[np.isfinite(known)]
    return float(known[0]) if len(known) else None


def ranged(one: Interval, *, sign: bool = False) -> str:
    """A number with its interval, where it has one."""
    style = "+.3g" if sign else ".3g"
    told = f"{one.value:{style}}"
    return told if math.isnan(one.lo) or math.isnan(one.hi) else f"{told} [{one.lo:{style}}, {one.hi:{style}}]"


def _percent(one: Interval) -> str:
    return f"{one.value:.0%}" if math.isnan(one.lo) else f"{one.value:.0%} [{one.lo:.0%}, {one.hi:.0%}]"
