"""How far apart two sets of embeddings are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffprobe import rng

Array = npt.NDArray[np.floating]


def frechet_distance(a: Array, b: Array) -> float:
    """The squared Frechet distance of two sets [n, D] and [m, D], each taken as the Gaussian of its mean and covariance (ddof 1).

    |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), in float64 (Dowson and Landau 1982; Heusel et al. 2017).
    It is biased upwards by about c/n: see `frechet_limit`. Raises ValueError for fewer than two rows, or widths that differ.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two sets [n, D] of one width and two rows or more are needed, not {x.shape} and {y.shape}")
    # With S_a = A'A and S_b = B'B the last trace is the sum of the singular values of A B', which needs no matrix root.
    centred = [(part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (x, y)]
    roots: list[Array] = [np.linalg.qr(part)[1] for part in centred]
    spread = sum(float(np.square(root).sum()) for root in roots)
    shared = float(np.linalg.norm(roots[0] @ roots[1].T, ord="nuc"))
    return float(np.square(x.mean(0) - y.mean(0)).sum()) + max(spread - 2 * shared, 0.0)


def frechet_limit(a: Array, b: Array, *, sizes: int = 5, repeats: int = 20, seed: int = 0) -> float:
    """The Frechet distance for infinitely many samples of `a`, against the whole set `b`: a line in 1/n, read at 0.

    The line goes through the mean distances of random subsets of n/4 to n rows of `a` (Chong and Forsyth 2020). It may fall
    below 0 by chance where the sets are alike. Raises ValueError for fewer than 4 (D + 1) rows, where subsets lose their rank.
    """
    if len(a) < 4 * (a.shape[1] + 1):
        raise ValueError(f"{len(a)} rows are too few to extrapolate in {a.shape[1]} dimensions: give at least {4 * (a.shape[1] + 1)}")
    counts = np.linspace(len(a) / 4, len(a), sizes).round().astype(int)
    draw = rng.stream("sets.frechet_limit", seed)
    means = [np.mean([frechet_distance(a[draw.permutation(len(a))[:n]], b) for _ in range(repeats if n < len(a) else 1)]) for n in counts]
    return float(np.polyfit(1 / counts, means, 1)[1])
