"""Every interval of a summary holds the truth as often as it says: nominal 95 %, 93 to 97 % of 1,000 trials, in the promised regime."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.consistency import Consistency, score
from diffprobe.measures.stats import (
    auroc,
    cliffs_delta,
    cohen_kappa,
    fleiss_kappa,
    hedges_g,
    paired_auroc,
    paired_effect,
    rank_correlation,
    shift,
    spread_interval,
    variance_components,
    welch,
)
from diffprobe.measures.stats.intervals import Interval, bootstrap, mean_interval, mover, wilson_interval

Array = NDArray[np.float64]
Trial = Callable[[np.random.Generator, int], Interval | Consistency]
TRIALS = 1000


def coverage(trial: Trial, truth: float, name: str, trials: int = TRIALS) -> float:
    generator = rng.stream(f"test.cover.{name}")
    found = [trial(generator, index) for index in range(trials)]
    return float(np.mean([interval.lo <= truth <= interval.hi for interval in found]))


def ratio(values: Array, /, *, axis: int) -> Array:
    return np.asarray(values[..., 0].mean(axis) / values[..., 1].mean(axis))


def deviation(values: Array, /, *, axis: int) -> Array:
    return np.asarray(values.std(axis, ddof=1))


def groups(generator: np.random.Generator, sizes: list[int], rho: float) -> list[Array]:
    return [math.sqrt(rho) * generator.standard_normal() + math.sqrt(1 - rho) * generator.standard_normal(n) for n in sizes]


def rated(generator: np.random.Generator, n: int, raters: int, kappa: float) -> NDArray[np.int64]:
    """Labels [n, raters] from shares 0.5, 0.3, 0.2: any two agree beyond chance by kappa."""
    shares = [0.5, 0.3, 0.2]
    common, own = generator.choice(3, (n, 1), p=shares), generator.choice(3, (n, raters), p=shares)
    return np.asarray(np.where(generator.random((n, raters)) < math.sqrt(kappa), common, own))


def cone(generator: np.random.Generator, n: int) -> Array:
    """Embeddings about one direction, whose score scatters with the deviations 2.7, 1.8, 1.25 of 5, 10 and 20 images."""
    x = 0.133 * generator.standard_normal((n, 7))
    x[:, 0] += 1
    return x


def uneven(generator: np.random.Generator, n: int) -> Array:
    """As `cone`, but some images lie much farther out than others."""
    x = 0.0128 * np.exp(0.35 * generator.standard_normal((n, 1))) * generator.standard_normal((n, 512))
    x[:, 0] += 1
    return x


#: Their true scores: see the test.
CONE, UNEVEN = 90.19, 90.68


def d_z(effect: float, n: int) -> Trial:
    return lambda g, _: paired_effect(effect + g.standard_normal(n))


def correlation(sizes: list[int], rho: float) -> Trial:
    return lambda g, _: variance_components(groups(g, sizes, rho)).icc


def normal_spread(n: int) -> Trial:
    return lambda g, _: spread_interval(g.standard_normal(n))


def skewed_spread(n: int) -> Trial:
    return lambda g, _: spread_interval(g.gamma(3, size=n))


def ranks(rho: float, n: int) -> Trial:
    """A normal pair with correlation rho; its Spearman correlation is 6 / pi asin(rho / 2)."""

    def trial(generator: np.random.Generator, _: int) -> Interval:
        x, e = generator.standard_normal((2, n))
        return rank_correlation(x, rho * x + math.sqrt(1 - rho**2) * e)

    return trial


def cohen(kappa: float, n: int) -> Trial:
    return lambda g, _: cohen_kappa(*rated(g, n, 2, kappa).T.tolist())


def fleiss(kappa: float, n: int) -> Trial:
    return lambda g, _: fleiss_kappa((rated(g, n, 4, kappa)[:, :, None] == np.arange(3)).sum(1))


def above(y: Array, share: float, spread: float = 1) -> Array:
    """Values of which one is above a standard normal one with the probability `share`."""
    return np.asarray(spread * y + ss.norm.ppf(share) * math.sqrt(1 + spread**2))


def area(share: float, m: int, n: int, spread: float = 1) -> Trial:
    return lambda g, _: auroc(g.standard_normal(m), above(g.standard_normal(n), share, spread))


def tied(g: np.random.Generator, _: int) -> Interval:
    """Whole numbers from 0 to 2 inside and from 1 to 3 outside: one is above with the probability 6/9, equal with 2/9."""
    return auroc(g.integers(3, size=12), 1 + g.integers(3, size=20))


def areas(shares: tuple[float, float], rho: float, sizes: tuple[int, int]) -> Trial:
    """Two measures of the same units, which correlate by rho."""

    def trial(generator: np.random.Generator, _: int) -> Interval:
        (x, e), (y, d) = (generator.standard_normal((2, n)) for n in sizes)
        z, w = (rho * own + math.sqrt(1 - rho**2) * other for own, other in ((x, e), (y, d)))
        return paired_auroc(x, above(y, shares[0]), z, above(w, shares[1])).difference

    return trial


def consistency(n: int) -> Trial:
    return lambda g, _: score(cone(g, n))


CASES: dict[str, tuple[Trial, float]] = {
    "t, 10 normal": (lambda g, _: mean_interval(g.standard_normal(10)), 0),
    "bca, ratio of means, 50": (lambda g, i: bootstrap(np.exp(0.5 * g.standard_normal((50, 2))), ratio, replicates=600, seed=i), 1),
    "bca, deviation, 50": (lambda g, i: bootstrap(g.standard_normal(50), deviation, replicates=600, seed=i), 1),
    "bca, median, 50": (lambda g, i: bootstrap(g.standard_normal(50), np.median, replicates=600, seed=i), 0),
    "percentile, mean, 30": (lambda g, i: bootstrap(g.standard_normal(30), replicates=600, seed=i, method="percentile"), 0),
    "shift, 8": (lambda g, _: shift(g.standard_normal(8)), 0),
    "shift, 20 heavy tails": (lambda g, _: shift(g.standard_t(3, 20)), 0),
    "shift, 60": (lambda g, _: shift(g.standard_normal(60)), 0),
    **{f"d_z {d}, {n}": (d_z(d, n), d) for d in (0, -0.5, 1) for n in (20, 50)},
    "d_z of skewed differences, 50": (lambda g, _: paired_effect(g.exponential(size=50) - 0.7), 0.3),
    "Welch, 10 and 25": (lambda g, _: welch(3 * g.standard_normal(10), g.standard_normal(25))[0], 0),
    "Hedges' g 0.5, 20 and 40": (lambda g, _: hedges_g(g.standard_normal(20) + 0.5, g.standard_normal(40)), 0.5),
    "Hedges' g 1.5, 20": (lambda g, _: hedges_g(g.standard_normal(20) + 1.5, g.standard_normal(20)), 1.5),
    "Hedges' g, unequal variances": (
        lambda g, _: hedges_g(3 * g.standard_normal(20) + 1, g.standard_normal(50)),
        1 / math.sqrt((9 * 20 + 50) / 70),
    ),
    "Cliff's delta 0, 20": (lambda g, _: cliffs_delta(g.standard_normal(20), g.standard_normal(20)), 0),
    "Cliff's delta 0.71, 20 and 50": (
        lambda g, _: cliffs_delta(g.standard_normal(20) + 1.5, g.standard_normal(50)),
        2 * ss.norm.cdf(1.5 / math.sqrt(2)) - 1,
    ),
    "Cliff's delta, skewed": (lambda g, _: cliffs_delta(3 * g.exponential(size=25), g.exponential(size=25)), 0.5),
    **{f"intraclass correlation {rho}, balanced": (correlation([5] * 12, rho), rho) for rho in (0.1, 0.8)},
    **{f"intraclass correlation {rho}, unbalanced": (correlation([1, 2, 3, 20] * 4, rho), rho) for rho in (0.1, 0.8)},
    **{f"Cohen's kappa {k}, {n}": (cohen(k, n), k) for k in (0.2, 0.6, 0.9) for n in (30, 100)},
    **{f"Fleiss' kappa {k}, {n}": (fleiss(k, n), k) for k, n in ((0.6, 30), (0.9, 30), (0.2, 100), (0.6, 100))},
    **{f"spread, {n} normal": (normal_spread(n), 1) for n in (20, 100)},
    **{f"spread, {n} skewed": (skewed_spread(n), math.sqrt(3)) for n in (20, 100)},
    **{f"rank correlation {rho}, {n}": (ranks(rho, n), 6 / math.pi * math.asin(rho / 2)) for rho in (0, 0.5, 0.8) for n in (30, 100)},
    **{f"area {share}, {m} and {n}": (area(share, m, n), share) for share in (0.5, 0.8, 0.95) for m, n in ((12, 12), (15, 60), (50, 50))},
    "area 0.8, thrice the spread, 20 and 40": (area(0.8, 20, 40, 3), 0.8),
    "area of ties, 12 and 20": (tied, 7 / 9),
    **{
        f"areas {a} and {b}, correlated by {rho}, {m} and {n}": (areas((a, b), rho, (m, n)), a - b)
        for (a, b), rho, (m, n) in (
            ((0.5, 0.5), 0.5, (12, 12)),
            ((0.8, 0.8), 0.5, (12, 40)),
            ((0.8, 0.5), 0.5, (12, 12)),
            ((0.95, 0.8), 0.5, (30, 30)),
            ((0.95, 0.8), 0.9, (40, 30)),
        )
    },
    "difference of independent means": (
        lambda g, _: mover(mean_interval(2 * g.standard_normal(20) + 3), mean_interval(g.standard_normal(30) + 2), 1.5),
        0,
    ),
    "difference of skewed means": (
        lambda g, i: mover(
            bootstrap(g.exponential(size=30), replicates=600, seed=i), bootstrap(g.exponential(size=40), replicates=600, seed=i + TRIALS)
        ),
        0,
    ),
    **{f"consistency score, {n}": (consistency(n), CONE) for n in (10, 20, 50, 100)},
    "consistency score of uneven images, 50": (lambda g, _: score(uneven(g, 50)), UNEVEN),
}


@pytest.mark.parametrize("name", CASES)
def test_the_interval_covers(name: str) -> None:
    trial, truth = CASES[name]
    covered = coverage(trial, truth, name)
    assert 0.93 <= covered <= 0.97, f"{name}: {covered}"


@pytest.mark.parametrize(("share", "least"), [(0.95, 0.96), (0.99, 0.95)])
def test_areas_close_to_1_are_told_too_carefully_rather_than_too_boldly(share: float, least: float) -> None:
    """What few lost comparisons there are come in steps; half of all samples are separated perfectly at 0.99 and 12 + 12."""
    assert coverage(area(share, 40, 12), share, f"area {share}") >= least
    assert coverage(areas((share, share), 0.9, (12, 12)), 0, f"areas {share}", 300) >= 0.97


@pytest.mark.parametrize(("law", "n", "truth"), [(cone, 500_000, CONE), (uneven, 10_000, UNEVEN)])
def test_the_true_scores(law: Callable[[np.random.Generator, int], Array], n: int, truth: float) -> None:
    x = law(rng.stream("test.cover.truth"), n)
    total = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(0)
    assert 100 * (total @ total - n) / (n * (n - 1)) == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("n", [20, 100])
def test_wilsons_interval_covers_on_average_over_shares(n: int) -> None:
    """Exactly, by the binomial distribution; near 0 and 1 single shares fall short, as its docstring says."""
    intervals = [wilson_interval(successes, n) for successes in range(n + 1)]
    shares = np.linspace(0, 1, 2001)[1:-1]
    inside = np.array([[interval.lo <= share <= interval.hi for interval in intervals] for share in shares])
    exact = (ss.binom.pmf(np.arange(n + 1), n, shares[:, None]) * inside).sum(1)
    assert 0.945 <= exact.mean() <= 0.96
    assert exact[(shares > 3 / n) & (shares < 1 - 3 / n)].min() > 0.91
    assert exact.min() > 0.83


def test_the_mean_interval_of_another_level_covers_at_that_level() -> None:
    assert 0.88 <= coverage(lambda g, _: mean_interval(g.standard_normal(12), level=0.9), 0, "level") <= 0.92
