"""All pairs of two sets, a tile at a time: memory stays bounded whatever their sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffprobe.measures.sets.features import Array

#: Rows and columns of a tile: at most 8 MB, which stays in a processor's cache between the product and what reads it.
TILE = 1024


def unit_rows(x: Array) -> Array:
    """Rows [..., D] over their lengths. Raises ValueError where a row is zero."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            f"{int((lengths == 0).sum())} of {lengths.size} rows are zero and have no direction: leave them out, and count them"
        )
    return np.asarray(x / lengths)


def lifted(x: Array) -> Array:
    """Rows [n, D] to [n, D + 2]: with a one and their squared length, so that squared distances are one matrix product."""
    found = np.empty((len(x), x.shape[1] + 2))
    found[:, :-2] = x
    found[:, -2] = 1
    found[:, -1] = np.einsum("ij,ij->i", x, x)
    return found


def squared_distances(left: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.floating]:
    """|x - y|^2 [n, m] of two lifted sets, in their precision.

    The error is up to (D + 4) eps (|x| + |y|)^2, so centre the sets first; 0 may come as a small negative number.
    """
    turned = -2 * left
    turned[:, -2], turned[:, -1] = left[:, -1], 1
    return np.asarray(turned @ right.T)
