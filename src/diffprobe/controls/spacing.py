"""Where the frames of a morph stand on its way, so that neighbours are equally far apart, and what "far" is.

A way goes from corner to corner, one leg each: place 1.5 is the middle of the second leg.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffprobe.errors import unknown
from diffprobe.model import Rig
from diffprobe.probes.looks import resized

PIXELS = "pixels"
ROUNDS = 2  # of looking closer where the frames change most
_SEEN = 256  # pixels a side at which two frames are compared: what is finer is no part of how far they are apart

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ruler:
    """What is kept of frames [B, 3, H, W], and how far two batches of that are apart, [B]: lengths, which add up along a line."""

    see: Callable[[Tensor], Tensor]
    apart: Callable[[Tensor, Tensor], Tensor]


def ruler(rig: Rig, name: str = PIXELS) -> Ruler:
    """What measures how far frames are apart: "pixels", or an instrument of the rig by name. Raises UserError for another.

    "pixels" is the root mean squared difference; an embedder's is the angle between features, in radians; LPIPS, a sum of squares,
    counts by its root. Pixels and LPIPS see frames at most 256 pixels wide.
    """
    if name == PIXELS:
        return Ruler(_small, lambda a, b: (a - b).double().square().flatten(1).mean(1).sqrt())
    if name in rig.embedders:
        return Ruler(rig.embedders[name], _angle)
    if name in rig.distances:
        return Ruler(_small, lambda a, b: _roots(rig, name, a, b))
    raise unknown("instrument for the spacing", name, [PIXELS, *rig.embedders, *rig.distances])


def evenly(look: Callable[[Array], Tensor], apart: Callable[[Tensor, Tensor], Tensor], steps: int, legs: int) -> tuple[Array, Tensor]:
    """The places of so many steps that look equally long, corners among them; and how long equal ones look [steps].

    What `look` sees of the frames at equal places says where they change most; as many more are looked at there, and between the
    places known by then the length is taken to grow evenly.
    """
    places = equal(allotted(steps, [1.0] * legs))
    seen = look(places)
    before = lengths = apart(seen[:-1], seen[1:])
    for _ in range(ROUNDS):
        halves = [2 * count for count in allotted(steps, by_leg(places, lengths.numpy(), legs))]
        closer = np.setdiff1d(even(places, lengths.numpy(), halves)[1::2], places)
        if not len(closer):
            break
        seen, places = torch.cat([seen, look(closer)]), np.concatenate([places, closer])
        order = np.argsort(places, kind="stable")
        seen, places = seen[torch.from_numpy(order)], places[order]
        lengths = apart(seen[:-1], seen[1:])
    return even(places, lengths.numpy(), allotted(steps, by_leg(places, lengths.numpy(), legs))), before


def weights(places: Array, corners: Sequence[int]) -> Tensor:
    """The weights [P, N] of the images at places on a way over these corners, float64: linear between two of them."""
    leg = np.minimum(places.astype(int), len(corners) - 2)
    on = places - leg
    found = np.zeros((len(places), max(corners) + 1))
    found[np.arange(len(places)), np.take(corners, leg)] = 1 - on
    found[np.arange(len(places)), np.take(corners, leg + 1)] += on
    return torch.from_numpy(found)


def equal(steps: Sequence[int]) -> Array:
    """The places of so many equal steps on each leg, from 0 to len(steps), both ends and every corner among them."""
    parts = [leg + np.arange(count) / count for leg, count in enumerate(steps)]
    return np.concatenate([*parts, [float(len(steps))]])


def even(places: Array, lengths: Array, steps: Sequence[int]) -> Array:
    """Places of so many steps on each leg, of equal length where `lengths` [P - 1] lie between `places` [P], corners among them.

    Between two places the length is taken to grow evenly; a leg without length gets equal steps.
    """
    parts: list[npt.ArrayLike] = []
    for leg, count in enumerate(steps):
        on = (places >= leg) & (places <= leg + 1)
        grown = np.concatenate([[0.0], np.cumsum(lengths[on[:-1] & on[1:]])])
        inner = np.arange(1, count) / count
        parts.append([float(leg)])
        parts.append(np.interp(inner * grown[-1], grown, places[on]) if grown[-1] > 0 else leg + inner)
    return np.concatenate([*parts, [float(len(steps))]])


def allotted(steps: int, shares: Sequence[float]) -> list[int]:
    """So many steps for legs of these lengths: in proportion, at least one each; alike where all lengths are 0."""
    total = float(sum(shares))
    exact = [steps * (share / total if total > 0 else 1 / len(shares)) for share in shares]
    counts = [max(1, int(part)) for part in exact]
    while sum(counts) < steps:  # one by one, to the leg that lacks most of its share
        counts[max(range(len(counts)), key=lambda leg: exact[leg] - counts[leg])] += 1
    while sum(counts) > steps:
        counts[max((leg for leg, count in enumerate(counts) if count > 1), key=lambda leg: counts[leg] - exact[leg])] -= 1
    return counts


def by_leg(places: Array, lengths: Array, legs: int) -> list[float]:
    """The length of each leg."""
    return [float(lengths[(places[:-1] >= leg) & (places[1:] <= leg + 1)].sum()) for leg in range(legs)]


def _roots(rig: Rig, name: str, a: Tensor, b: Tensor) -> Tensor:
    """The roots of a distance, which grows with the square of a small change, a batch of the rig at a time."""
    pairs = zip(a.split(rig.batch_size), b.split(rig.batch_size), strict=True)
    return torch.cat([rig.distances[name](*pair) for pair in pairs]).double().cpu().clamp(min=0).sqrt()


def _small(frames: Tensor) -> Tensor:
    return resized(frames, _SEEN) if max(frames.shape[-2:]) > _SEEN else frames


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles between rows, accurate near 0, where a cosine is not."""
    a, b = (torch.nn.functional.normalize(part.double(), dim=1) for part in (a, b))
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1))
