"""How alike the images of one prompt are: the semantic consistency score with its interval, and how many images it needs.

The score is 100 times the mean cosine over all pairs of one prompt's embeddings, 100 where all are equal (Bent 2024), and a
U-statistic: unbiased for every number of images. Everything here reads embeddings [R, D] of one prompt, in float64, and works on
dissimilarities 100 (1 - cosine), from centred unit vectors: those keep their digits where the images are nearly the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.stats.intervals import Array, Interval, bootstrap


class Consistency(NamedTuple):
    """What `score` found: SCS in points, its interval, and the score as published beside it."""

    value: float
    lo: float
    hi: float
    se: float  # standard error
    clipped: float  # with every negative cosine taken as 0, pair by pair
    lowest_cosine: float  # of all pairs, -1 to 1
    n: int


class Spread(NamedTuple):
    """Hoeffding's components of the score's variance, in points squared: Var(SCS_n) = (4 (n - 2) z1 + 2 z2) / (n (n - 1))."""

    z1: float  # the covariance of two pairs that share an image: how much the images differ in being typical
    z2: float  # the variance of one pair


class Repetition(NamedTuple):
    """One point of `repetition_curve`: the score of n of a prompt's images."""

    prompt: int  # index in the given sequence
    n: int
    mean: float  # over the drawn subsets; without a trend in n, since the score is unbiased
    lo: float  # 2.5 % of the subsets
    hi: float  # 97.5 %
    sd: float  # by the variance law: of n new images, not of a subset


def score(embeddings: ArrayLike, *, level: float = 0.95) -> Consistency:
    """The semantic consistency score of embeddings [R, D], in points, with its interval over images.

    Pairs share images, hence the error is the jackknife's over images (Arvesen 1969), or that of equally typical images where it is
    larger, and Student's t with R - 1 degrees. The limits are taken for log(100 - SCS) (delta method) and turned back, since the score
    is skewed near 100, and cut at 0, below which no true score lies. Good for 10 images or more; it falls short where a few images lie
    far out, and a failure that is rarer than one image in R is not in it. With fewer than 3 images `lo`, `hi`, `se` are nan; with a
    zero or not finite embedding everything but `n` is. Raises ValueError for fewer than 2 images.
    """
    gaps = _gaps(embeddings)
    n = len(gaps)
    rows = gaps.sum(1)
    apart = float(rows.sum()) / (n * (n - 1))
    value = 100 - apart
    if math.isnan(apart):
        return Consistency(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, n)
    cosines = 1 - gaps[np.triu_indices(n, 1)] / 100
    lowest = float(cosines.min())
    clipped = value if lowest >= 0 else 100 * float(np.maximum(cosines, 0).mean())
    if n < 3:
        return Consistency(value, math.nan, math.nan, math.nan, clipped, lowest, n)
    left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    # Two kinds of image, equally many, are equally typical: then the first component of the variance is 0 and the second is all there is.
    se = math.sqrt(max((n - 1) * float(left_out.var()), 2 * float((100 * cosines).var(ddof=1)) / (n * (n - 1))))
    reach = float(ss.t.ppf((1 + level) / 2, n - 1)) * se / apart if se > 0 else 0.0
    lo = max(100 - apart * math.exp(min(reach, 700.0)), min(value, 0.0))
    hi = max(100 - apart * math.exp(-reach), 0.0)
    return Consistency(value, lo, hi, se, clipped, lowest, n)


def typicality(embeddings: ArrayLike) -> Array:
    """The mean cosine [R] of each image to the others, -1 to 1: the largest is the most typical, the smallest the odd one out.

    Their mean is SCS / 100. All nan where an embedding is zero or not finite. Raises ValueError for fewer than 2 images.
    """
    gaps = _gaps(embeddings)
    means: Array = 1 - gaps.sum(1) / (100 * (len(gaps) - 1))
    return means


def spread(embeddings: ArrayLike) -> Spread:
    """Both components of the score's variance from embeddings [R, D], without bias: averages over distinct images only.

    With c = 100 cos, z1 = mean of c_ij c_ik - mean of c_ij c_kl and z2 = mean of c_ij^2 - mean of c_ij c_kl, indices all different,
    in closed form. z1 may fall below 0 by chance. Nan with fewer than 4 images, and where an embedding is zero or not finite.
    """
    gaps = _gaps(embeddings)
    n = len(gaps)
    if n < 4:
        return Spread(math.nan, math.nan)
    centred = gaps - gaps.sum() / (n * (n - 1))  # the components do not change, but their digits are kept
    np.fill_diagonal(centred, 0)
    rows = centred.sum(1)
    total, squares, shared = float(rows.sum()), float((centred**2).sum()), float((rows**2).sum())
    apart = (total**2 - 4 * shared + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
    return Spread((shared - squares) / (n * (n - 1) * (n - 2)) - apart, squares / (n * (n - 1)) - apart)


def deviation(n: int, components: Spread) -> float:
    """The standard deviation of the score of n images, in points (Hoeffding 1948, eq. 5.13); 0 where the components are negative."""
    return math.sqrt(max(4 * (n - 2) * components.z1 + 2 * components.z2, 0.0) / (n * (n - 1)))


def repetition_curve(
    embeddings: Iterable[ArrayLike], counts: Sequence[int] | None = None, *, draws: int = 200, seed: int = 0
) -> list[Repetition]:
    """How the score of each prompt settles with the number of images: embeddings [P, R, D] or a list of [R, D].

    For each n of `counts` (2 to R where not given; larger ones than a prompt has are left out) the band of `draws` subsets without
    replacement: the first n of `draws` random orders, which are the same for all prompts of R images. Near R the subsets are almost
    the whole, and at R the band has no width, so that it says nothing of new images: for planning take `sd` or `repetitions_for`.
    Nan for a prompt with a zero or not finite embedding; `sd` also with R < 4. Raises ValueError for a count under 2.
    """
    found = []
    for prompt, images in enumerate(embeddings):
        gaps = _gaps(images)
        wanted = [n for n in (range(2, len(gaps) + 1) if counts is None else counts) if n <= len(gaps)]
        if any(n < 2 for n in wanted):
            raise ValueError(f"a score needs 2 images or more: leave {[n for n in wanted if n < 2]} out of the counts")
        components, scores = spread(images), _prefix_scores(gaps, draws, seed)
        for n in wanted:
            lo, hi = np.quantile(scores[:, n - 2], [0.025, 0.975])
            found.append(Repetition(prompt, n, float(scores[:, n - 2].mean()), float(lo), float(hi), deviation(n, components)))
    return found


def repetitions_for(half_width: float, embeddings: Iterable[ArrayLike], *, level: float = 0.95) -> Interval:
    """How many images give a prompt of average spread an interval of `half_width` points to either side, with its own over prompts.

    By the variance law with the mean components of embeddings [P, R, D] (or a list of [R, D]): a single prompt's are too rough to
    plan with, and the largest of many is mostly luck. The limits move the mean variance between those of its bootstrap interval
    over prompts; nan with fewer than 2 prompts, and all nan where no prompt has 4 images.
    """
    parts = np.array([part for part in map(spread, embeddings) if math.isfinite(part.z2)]).reshape(-1, 2)
    if len(parts) == 0:
        return Interval(math.nan, math.nan, math.nan)
    average = Spread(*map(float, parts.mean(0)))
    n = images_for(half_width, average, level=level)
    variances = (4 * (n - 2) * parts[:, 0] + 2 * parts[:, 1]) / (n * (n - 1))
    if len(parts) < 2 or variances.mean() <= 0:
        return Interval(n, math.nan, math.nan)
    found = bootstrap(variances, level=level)
    scales = [max(end, 0.0) / found.value for end in (found.lo, found.hi)]
    return Interval(n, *(images_for(half_width, Spread(average.z1 * by, average.z2 * by), level=level) for by in scales))


def expected_half_width(n: int, components: Spread, *, level: float = 0.95) -> float:
    """Half the width of the interval that the score of n >= 2 images is expected to have, in points: t_(n - 1) sd(SCS_n).

    Negative components count as 0.
    """
    known = Spread(max(components.z1, 0.0), max(components.z2, 0.0))
    return float(ss.t.ppf((1 + level) / 2, n - 1)) * deviation(n, known)


def images_for(half_width: float, components: Spread, *, level: float = 0.95) -> int:
    """The smallest n >= 3 with t_(n - 1) sd(SCS_n) <= half_width, in points; negative components count as 0.

    Raises ValueError for a half-width <= 0 and for components that are not finite.
    """
    if not half_width > 0 or not all(map(math.isfinite, components)):
        raise ValueError(f"need a half-width > 0 and finite components, not {half_width} and {tuple(components)}")

    def enough(n: int) -> bool:
        return expected_half_width(n, components, level=level) <= half_width

    high = 3
    while not enough(high):
        high *= 2
    low = max(3, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _gaps(embeddings: ArrayLike) -> Array:
    """Dissimilarities 100 (1 - cos) [R, R] with a diagonal of 0; all nan where an embedding is zero or not finite."""
    x = np.asarray(embeddings, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"the consistency of a prompt needs embeddings [R, D] of 2 images or more, not {list(x.shape)}")
    if not np.isfinite(x).all() or not x.any(axis=1).all():
        return np.full((len(x), len(x)), math.nan)
    unit = x / np.abs(x).max(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    products = centred @ centred.T
    own = products.diagonal()
    gaps: Array = 100 * np.clip((own[:, None] + own) / 2 - products, 0, 2)
    np.fill_diagonal(gaps, 0)
    return gaps


def _prefix_scores(gaps: Array, draws: int, seed: int) -> Array:
    """The score of the first 2, 3, ... R images of each random order: [draws, R - 1]; each new image adds its row of pairs."""
    n = len(gaps)
    generator = rng.stream("consistency.repetitions", seed, n)
    found = np.empty((draws, n - 1))
    for draw in range(draws):
        order = generator.permutation(n)
        found[draw] = np.tril(gaps[np.ix_(order, order)]).sum(1).cumsum()[1:]
    sizes = np.arange(2, n + 1)
    return 100 - found / (sizes * (sizes - 1) / 2)
