"""Known answers of the consistency probe: sets of vectors whose score has a closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.measures.consistency import deviation, score, spread
from diffprobe.measures.sets import vendi_score
from diffprobe.validate.check import Check

_SETS, _CONCENTRATION = 2000, 20.0


def consistency() -> Iterator[Check]:
    """Sets of vectors whose score is known: fixed ones, and draws from von Mises and Fisher's distribution on the sphere."""
    turned = np.linalg.qr(rng.stream("validate.rotation", 0).normal(size=(32, 32)))[0]
    simplex = np.eye(8) - 1 / 8
    yield Check("equal images: score", score(np.tile(turned[0], (20, 1))).value, 100, 0)
    yield Check("regular simplex of 8: score against -100/7", score(simplex @ turned[:8]).value, -100 / 7, 1e-9)
    yield Check("two groups of orthogonal directions: Vendi score", float(vendi_score(np.repeat(turned[:2], 10, axis=0))), 2, 1e-9)
    yield Check("20 orthogonal images: Vendi score", float(vendi_score(turned[:20])), 20, 1e-9)
    truth = 100 * (1 / math.tanh(_CONCENTRATION) - 1 / _CONCENTRATION) ** 2  # for independent directions: the squared length of their mean
    sets = _fisher(_SETS, 20)
    scores = [score(part) for part in sets]
    values = np.array([found.value for found in scores])
    yield Check("concentrated directions, 20 a set: mean score against its closed form", float(values.mean()), truth, 0.003)
    few = float(np.mean([score(part).value for part in _fisher(_SETS, 5)]))
    yield Check("the same, 5 a set: unbiased for any number", few, truth, 0.003)
    covered = np.mean([found.lo <= truth <= found.hi for found in scores])
    yield Check("share of 95 % intervals that hold the truth", float(covered), 0.95, 0.025)
    expected = float(np.mean([deviation(20, spread(part)) ** 2 for part in sets])) ** 0.5
    yield Check("variance law: standard deviation of the score", expected, float(values.std(ddof=1)), 0.06)


def _fisher(count: int, size: int) -> NDArray[np.float64]:
    """Directions [count, size, 3] about an axis (Fisher 1953): the density grows with exp(kappa cos)."""
    draw = rng.stream("validate.fisher", size)
    u, turn = draw.random((count, size)), 2 * np.pi * draw.random((count, size))
    along = 1 + np.log(u + (1 - u) * math.exp(-2 * _CONCENTRATION)) / _CONCENTRATION
    across = np.sqrt(1 - along**2)
    return np.stack([across * np.cos(turn), across * np.sin(turn), along], -1)
