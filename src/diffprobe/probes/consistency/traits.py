"""What of a prompt its consistency goes with: its length, its words, and what it says it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as ss

from diffprobe.measures.intervals import bootstrap
from diffprobe.measures.samples import welch
from diffprobe.measures.stats import Estimate, holm
from diffprobe.probes.base import estimated
from diffprobe.probes.consistency.prompts import has, words
from diffprobe.probes.consistency.scored import ImageSet

UNNAMED = "not named"
_FEWEST = 5  # prompts on either side of a comparison
Array = npt.NDArray[np.float64]


def traits(embedder: str, scored: Sequence[ImageSet], asked: Mapping[str, Mapping[str, str]], level: float) -> Iterator[Estimate]:
    """How the score goes with the number of words, and what sets the prompts with a feature apart from all others.

    Features are those of the prompts' file or set; where it has none, single words. p values are Holm's over all of an instrument's.
    """
    scores = {one.prompt: one.score.value for one in scored if one.score}
    prompts = [prompt for prompt in asked if prompt in scores]
    if len(prompts) < 2 * _FEWEST:
        return
    values = np.array([scores[prompt] for prompt in prompts])
    yield _length(embedder, prompts, values, level)
    found = []
    for feature, name, members in _groups(prompts, asked):
        among = np.array(members)
        if _FEWEST <= among.sum() <= len(among) - _FEWEST:
            found.append((feature, name, int(among.sum()), *welch(values[among], values[~among], level=level)))
    adjusted = holm([p for *_, p in found])
    for (feature, name, n, difference, p), own in zip(found, adjusted, strict=True):
        facets: dict[str, str | float | int | bool] = {"feature": feature, "level": name, "p": p, "p_adjusted": float(own)}
        yield estimated("consistency", f"scs_trait:{embedder}", difference, n, facets, "points")


def _groups(prompts: Sequence[str], asked: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str, list[bool]]]:
    """Each value of each feature, and which prompts have it."""
    names = list(dict.fromkeys(name for prompt in prompts for name in asked[prompt]))
    for name in names:
        column = [asked[prompt].get(name, "") for prompt in prompts]
        for value in sorted(set(column)):
            yield name, value or UNNAMED, [other == value for other in column]
    for word in () if names else words(prompts):
        yield "word", word, [has(prompt, word) for prompt in prompts]


def _length(embedder: str, prompts: Sequence[str], values: Array, level: float) -> Estimate:
    """Spearman's rank correlation of score and number of words."""
    pairs = np.stack([values, [len(prompt.split()) for prompt in prompts]], axis=1)
    quantity = f"scs_length:{embedder}"
    if np.ptp(pairs, axis=0).min() == 0:
        return Estimate("consistency", quantity, None, None, None, len(pairs), reason="all scores or all lengths are equal")
    return estimated("consistency", quantity, bootstrap(pairs, rank_correlation, level=level), len(pairs))


def rank_correlation(values: Array, /, *, axis: int) -> Array:
    """Spearman's correlation of the two columns of [R, units, 2]: [R]; 0 where a resample has one value alone."""
    ranks = ss.rankdata(values, axis=axis)
    x, y = np.moveaxis(ranks - ranks.mean(axis, keepdims=True), -1, 0)
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.asarray(np.divide((x * y).sum(-1), size, out=np.zeros_like(size), where=size > 0))
