"""The headline numbers: estimates without facets, which a gate can name."""

from __future__ import annotations

from collections.abc import Iterator

from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Card, estimated
from diffprobe.probes.interpolation.evidence import Evidence, Eye
from diffprobe.probes.interpolation.signatures import errors
from diffprobe.probes.interpolation.tables import NAME, ORIGINS, plain


def cards(found: Evidence) -> Iterator[Card]:
    """How well inversion is undone, what latents share, where plain mixing fails, how near the best scheme stays, what an offset does."""
    for origin, group, told in errors(found.pools, "reconstruction_pixels", found.wanted.level):
        if origin == "images" and group is None:
            one = estimated(NAME, "inversion_error", told.interval, told.n)
            yield Card("error of inversion", one, "mean squared error of the pictures, there and back; images in [0, 1]")
    for shared in found.shared:
        if shared.origin == "images":
            one = estimated(NAME, "shared_power", shared.mean.total, shared.n)
            yield Card("shared power of inverted images", one, "mean product of two images' latents, in the power of noise; 0: independent")
    if found.eyes:
        yield from _mixing(found, found.eyes[0])
    for gap in found.apart[:1]:
        largest = max((one for one in found.apart if one.measure == gap.measure), key=lambda one: one.offset)
        one = estimated(NAME, "offset_effect", largest.found.interval, largest.found.n)
        yield Card("an offset on the noise", one, f"how much farther {largest.offset:g} moves a picture there than on the clean latent")


def _mixing(found: Evidence, eye: Eye) -> Iterator[Card]:
    """Where the first of the plain schemes to fail does so, and how near to its group the chosen scheme stays."""
    fates = [one for one in eye.fates if plain(one.scheme) and one.scheme != "none"]
    if fates:
        first = min(fates, key=lambda one: (one.fails or one.reaches + 1, one.scheme))
        value = None if first.fails is None else float(first.fails)
        reason = None if value is not None else f"does not fail up to N = {first.reaches}"
        n = max((told.n for told in (*first.rises.values(), *first.sharp.values())), default=0)
        one = Estimate(NAME, "plain_fails_n", value, None, None, n, "latents", {}, reason)
        note = f"N from which {first.scheme} {first.ways[0][1]}" if first.ways else f"{first.scheme} up to N = {first.reaches}"
        yield Card("plain mixing fails", one, note)
    scheme = eye.choice.scheme if eye.choice is not None else eye.distance.schemes[0]
    told = eye.distance.average(scheme)
    beside = "" if eye.originals is None else f"; {eye.originals.interval.value:.3g} for the images themselves"
    origin = "" if found.main is None or found.main.origin == "images" else f", {ORIGINS[found.main.origin]}"
    yield Card(
        f"distance of mixtures by {scheme}",
        estimated(NAME, "mixture_distance", told.interval, told.n),
        f"from the mean embedding of their group ({eye.embedder}), over all N{origin}{beside}",
    )
