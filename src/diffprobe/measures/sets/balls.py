"""Nearest neighbours, and who lies within reach of whom: exact, at nearly the price of float32.

Distances of all pairs are products of float32 matrices. Where their error could change the answer, and only there, they are taken
again from float64 products, and where that is not enough from differences. With precision eps a product's squared distance errs by
less than (D + 8) eps (|x| + |y|)^2; whoever lies within r of x has |y| <= |x| + r, so about the edge of a ball of x only a margin of
(D + 8) eps (2 |x| + r)^2 is in doubt (twice that covers those just outside).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffprobe.measures.sets.features import Array, spans
from diffprobe.measures.sets.pairs import TILE, lifted, squared_distances

Counts: TypeAlias = NDArray[np.int64]
Products: TypeAlias = NDArray[np.floating]
#: More neighbours than asked for are kept, so that the order among near equals can be settled in float64.
SPARE = 4
#: Numbers in one block of differences.
BLOCK = 2_000_000
#: Squared lengths under this share of the largest are lost in float32.
VANISHING = 1e-30
#: A ball's closed edge is this much wider, relatively, for the round-off of the radius itself.
EDGE = 1e-12


class Points(NamedTuple):
    """A set in common units: rows less `centre`, over `scale`, which keeps float32 from overflowing."""

    rows: NDArray[Any]  # as given
    centre: Array
    scale: float
    quick: NDArray[np.float32]  # lifted
    length: Array  # of each row [n]

    def exact(self, chosen: slice | Counts) -> Array:
        """Some rows in float64."""
        return np.asarray((self.rows[chosen] - self.centre) / self.scale)


def common(*sets: NDArray[Any]) -> list[Points]:
    """Finite sets [n, D] of one width in units of their own: about the first one's mean, the longest row of length 1."""
    centre = sets[0].mean(0, dtype=np.float64)
    lengths = [np.concatenate([np.linalg.norm(part[span] - centre, axis=1) for span in spans(len(part), TILE)]) for part in sets]
    scale = max(float(length.max()) for length in lengths) or 1.0
    found = []
    for part, length in zip(sets, lengths, strict=True):
        quick = np.empty((len(part), part.shape[1] + 2), np.float32)
        for span in spans(len(part), TILE):
            quick[span] = lifted((part[span] - centre) / scale)
        found.append(Points(part, centre, scale, quick, length / scale))
    return found


def nearest(points: Points, k: int) -> Array:
    """Squared distances [n, k], ascending, to the k nearest others of the set; n > k."""
    n = len(points.rows)
    found, kept = np.empty((n, k)), min(k + SPARE, n - 1)
    unsettled = _settle(points, np.arange(n), *_candidates(points, kept), found)
    for span in spans(len(unsettled), TILE):
        chosen = unsettled[span]
        for row in _settle(points, chosen, *_candidates_of(points, chosen, kept), found):
            others = np.delete(np.arange(n), row)
            found[row] = np.sort(differences(points, np.full(n - 1, row), points, others))[:k]
    return found


def differences(a: Points, rows: Counts, b: Points, others: Counts) -> Array:
    """Squared distances [p] of pairs without cancellation."""
    found = np.empty(len(rows))
    for span in spans(len(rows), max(1, BLOCK // len(a.centre))):
        apart = np.subtract(a.rows[rows[span]], b.rows[others[span]], dtype=np.float64)
        apart /= a.scale
        found[span] = np.einsum("ij,ij->i", apart, apart)
    return found


def occupancy(a: Points, b: Points, reach_a: Array, reach_b: Array) -> tuple[Counts, Counts, Counts]:
    """Who lies in whose closed balls, for squared radii [n, p] of a and [m, q] of b.

    Balls of a around each b [m, p]; members of b in each ball of a [n, p]; balls of b around each a [n, q].
    """
    around_b, held_a = np.zeros((len(b.rows), reach_a.shape[1]), np.int64), np.zeros(reach_a.shape, np.int64)
    around_a = np.zeros((len(a.rows), reach_b.shape[1]), np.int64)
    limits_a = [_limits(a, radii) for radii in reach_a.T]
    limits_b = [_limits(b, radii) for radii in reach_b.T]
    for rows in spans(len(a.rows), TILE):
        for columns in spans(len(b.rows), TILE):
            tile = squared_distances(a.quick[rows], b.quick[columns])
            for i, limits in enumerate(limits_a):
                inside = _inside(tile, limits, (a, b), (rows, columns))
                around_b[columns, i] += np.count_nonzero(inside, axis=0)
                held_a[rows, i] += np.count_nonzero(inside, axis=1)
            for i, limits in enumerate(limits_b):
                around_a[rows, i] += np.count_nonzero(_inside(tile.T, limits, (b, a), (columns, rows)), axis=0)
    return around_b, held_a, around_a


class _Limits(NamedTuple):
    """Squared radii [n]; a product's distance below `inner` is inside, one above `outer` outside: by float32, then by float64."""

    radii: Array
    quick: tuple[NDArray[np.float32], NDArray[np.float32]]
    exact: tuple[Array, Array]


def _limits(points: Points, radii: Array) -> _Limits:
    quick, exact = (_margin(points, radii, np.dtype(precision)) for precision in (np.float32, np.float64))
    return _Limits(radii, ((radii - quick).astype(np.float32), (radii + quick).astype(np.float32)), (radii - exact, radii + exact))


def _margin(points: Points, radii: Array, precision: np.dtype[Any], chosen: slice | Counts = slice(None)) -> Array:
    doubt = 2 * (len(points.centre) + 8) * float(np.finfo(precision).eps)
    return np.asarray(doubt * (2 * points.length[chosen] + np.sqrt(radii)) ** 2 + (VANISHING if precision == np.float32 else 0))


def _inside(tile: Products, limits: _Limits, sets: tuple[Points, Points], spots: tuple[slice, slice]) -> NDArray[np.bool_]:
    """Which members of a tile's columns lie in the balls of its rows."""
    inner, outer = (part[spots[0], None] for part in limits.quick)
    inside = tile <= outer
    doubtful = inside & (tile > inner)
    rows = np.flatnonzero(doubtful.any(1))
    if len(rows):
        columns = np.flatnonzero(doubtful[rows].any(0))
        inside[np.ix_(rows, columns)] = _inside_exactly(limits, sets, (spots[0].start + rows, spots[1].start + columns))
    return inside


def _inside_exactly(limits: _Limits, sets: tuple[Points, Points], places: tuple[Counts, Counts]) -> NDArray[np.bool_]:
    products = squared_distances(*(lifted(part.exact(chosen)) for part, chosen in zip(sets, places, strict=True)))
    inner, outer = (part[places[0], None] for part in limits.exact)
    inside = products <= outer
    rows, columns = np.nonzero(inside & (products > inner))
    apart = differences(sets[0], places[0][rows], sets[1], places[1][columns])
    inside[rows, columns] = apart <= limits.radii[places[0][rows]] * (1 + EDGE)
    return inside


def _settle(points: Points, rows: Counts, values: Products, places: Counts, found: Array) -> Counts:
    """Fills `found` [n, k] for some rows from their candidates [r, kept]; the rows that another point may yet be nearer to.

    `values` are the products' distances of the candidates, ascending: who is none of them has at least the last.
    """
    kept, k = values.shape[1], found.shape[1]
    apart = differences(points, np.repeat(rows, kept), points, places.ravel()).reshape(-1, kept)
    found[rows] = np.sort(apart, axis=1)[:, :k]
    if kept == len(points.rows) - 1:
        return rows[:0]
    last = found[rows, -1]
    unsure = (values[:, -1] <= last + _margin(points, last, values.dtype, rows)) & (last > 0)
    return np.asarray(rows[unsure])


def _candidates(points: Points, k: int) -> tuple[NDArray[np.float32], Counts]:
    """The k smallest float32 squared distances of each row to the others, ascending [n, k], and to whom; each tile serves twice."""
    n = len(points.rows)
    values, places = np.full((n, k), np.inf, np.float32), np.zeros((n, k), np.int64)
    for rows in spans(n, TILE):
        for columns in spans(n, TILE):
            if columns.start < rows.start:
                continue
            tile = squared_distances(points.quick[rows], points.quick[columns])
            if rows == columns:
                np.fill_diagonal(tile, np.inf)
            else:
                _keep(values[columns], places[columns], tile.T, rows.start)
            _keep(values[rows], places[rows], tile, columns.start)
    return values, places


def _keep(values: Products, places: Counts, tile: Products, start: int) -> None:
    """Takes into values [r, k] what is smaller in a tile [r, c], whose columns begin at `start`; in place."""
    if np.isinf(values[:, -1]).any():
        fresh, found = tile, np.broadcast_to(np.arange(start, start + tile.shape[1]), tile.shape)
    else:  # few beat the k-th of before
        rows, columns = _hits(tile < values[:, -1:])
        counts = np.bincount(rows, minlength=len(tile))
        order = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        fresh, found = np.full((len(tile), counts.max()), np.inf, tile.dtype), np.zeros((len(tile), counts.max()), np.int64)
        fresh[rows, order], found[rows, order] = tile[rows, columns], start + columns
    both, whom = np.concatenate([values, fresh], axis=1), np.concatenate([places, found], axis=1)
    best = np.argpartition(both, values.shape[1] - 1, axis=1)[:, : values.shape[1]]
    best = np.take_along_axis(best, np.argsort(np.take_along_axis(both, best, axis=1), axis=1), axis=1)
    values[:], places[:] = np.take_along_axis(both, best, axis=1), np.take_along_axis(whom, best, axis=1)


def _hits(mask: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """np.nonzero, rows ascending, ten times faster where hits are few: a flat search in the order of memory."""
    if mask.flags.c_contiguous:
        rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
        return rows, columns
    columns, rows = np.divmod(np.flatnonzero(mask.T), mask.shape[0])
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order]


def _candidates_of(points: Points, chosen: Counts, k: int) -> tuple[Array, Counts]:
    """`_candidates` of some rows, by float64: where many others are as near as float32 can see."""
    own, values, places = lifted(points.exact(chosen)), np.full((len(chosen), k), np.inf), np.zeros((len(chosen), k), np.int64)
    for columns in spans(len(points.rows), TILE):
        tile = squared_distances(own, lifted(points.exact(columns)))
        tile[chosen[:, None] == np.arange(columns.start, columns.stop)] = np.inf
        _keep(values, places, tile, columns.start)
    return values, places
