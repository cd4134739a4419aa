"""Differences of set scores, pair by pair: against paired means, the published interval and scores, and their level in simulations."""

import numpy as np
import pytest
import scipy.stats as ss

from diffprobe.measures.sets import frechet_interval, neighbour_scores
from diffprobe.measures.sets.contrasts import (
    Scored,
    contrast,
    frechet_scored,
    mean_scored,
    neighbours_scored,
    scored_interval,
    share_interval,
)
from diffprobe.measures.stats import mean_interval
from diffprobe.measures.stats.intervals import score_limits


def test_a_contrast_is_that_of_paired_means_and_of_the_published_interval() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 40, 3))
    reals = draw.normal(size=(60, 3))
    means = contrast(mean_scored(a[:, 0]), mean_scored(b[:, 0]))
    assert means[:3] == pytest.approx(mean_interval(a[:, 0] - b[:, 0]))
    published, single = frechet_interval(a, reals), scored_interval(frechet_scored(a, reals))
    assert single.value == published.value
    assert single.hi - single.value == pytest.approx(published.hi - published.value, rel=0.05)
    scores, known = neighbours_scored(a, reals), neighbour_scores(reals, a)
    assert (scores.precision.value, scores.recall.value) == known.precision_recall[:2]
    assert (scores.density.value, scores.coverage.value) == pytest.approx(known.density_coverage[:2])
    assert contrast(scores.recall, scores.recall)[1:] == (0, 0, 1)
    assert share_interval(scores.recall, 60).hi <= 1
    with pytest.raises(ValueError, match="the same units"):
        contrast(frechet_scored(a, reals), frechet_scored(b[:30], reals))
    assert np.isnan(contrast(neighbours_scored(a[:4], reals).recall, neighbours_scored(b[:4], reals).recall).p)


def test_contrasts_keep_their_level() -> None:
    """Pairs of one law: differences of 0 are rejected no more often than stated; a known difference is covered."""
    draw, wide = np.random.default_rng(1), 1.3
    rejected, covered, runs = np.zeros(3), 0, 80
    for _ in range(runs):
        shared, *own = draw.normal(size=(3, 120, 4))
        a, b = (wide * (0.8 * shared + 0.6 * part) for part in own)
        reals = draw.normal(size=(200, 4))
        pairs = [(frechet_scored(x, reals), neighbours_scored(x, reals)) for x in (a, b)]
        tests = [(pairs[0][0], pairs[1][0]), (pairs[0][1].precision, pairs[1][1].precision), (pairs[0][1].recall, pairs[1][1].recall)]
        rejected += [contrast(x, y).p < 0.05 for x, y in tests]
        found = contrast(pairs[0][0], frechet_scored(shared, reals))
        covered += found.lo <= 4 * (wide - 1) ** 2 <= found.hi
    assert (rejected <= 0.12 * runs).all()
    assert covered >= 0.87 * runs


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_all_or_none_has_wilsons_interval_though_its_neighbours_move(value: float) -> None:
    moved = np.linspace(-1, 1, 12)
    lo, hi = score_limits(value, 12, float(ss.t.ppf(0.975, 11)))
    found = share_interval(Scored(value, moved, np.empty(0), np.empty(0)), 12)
    assert (found.lo, found.hi) == pytest.approx((lo, hi))
    assert 0 <= found.lo < found.hi <= 1
