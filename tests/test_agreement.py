"""Agreement of people: textbook numbers, an independent formula, counting by hand, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffprobe import rng
from diffprobe.measures.stats.agreement import cohen_kappa, fleiss_kappa, human_agreement
from diffprobe.measures.stats.intervals import wilson_interval

#: Fleiss 1971's setting: 10 units, 14 raters, 5 categories, with kappa 0.210.
RATINGS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def labels(table: list[list[int]]) -> tuple[list[str], list[str]]:
    cells = [("abc"[i], "abc"[j]) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [a for a, _ in cells], [b for _, b in cells]


def test_kappa_by_hand() -> None:
    assert cohen_kappa(*labels([[20, 5], [10, 15]])).value == pytest.approx(0.4)
    assert cohen_kappa(*labels([[5, 0], [0, 5]])).value == pytest.approx(1)
    assert cohen_kappa(*labels([[0, 5], [5, 0]])).value == pytest.approx(-1)
    assert cohen_kappa(*labels([[25, 25], [25, 25]])).value == pytest.approx(0, abs=1e-12)
    assert fleiss_kappa(RATINGS).value == pytest.approx(0.20993, abs=1e-5)


def test_kappas_error_is_that_of_fleiss_cohen_and_everitt() -> None:
    """Their equation 13 of 1969, cell by cell of the table."""
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    p = table / table.sum()
    rows, columns = p.sum(1), p.sum(0)
    observed, expected = np.trace(p), rows @ columns
    first = sum(p[i, i] * ((1 - expected) - (rows[i] + columns[i]) * (1 - observed)) ** 2 for i in range(3))
    second = (1 - observed) ** 2 * sum(p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(3) for j in range(3) if i != j)
    variance = (first + second - (observed * expected - 2 * expected + observed) ** 2) / (1 - expected) ** 4
    many = 400
    found = cohen_kappa(*labels((table * many).tolist()))
    assert (found.hi - found.lo) / 2 == pytest.approx(1.96 * math.sqrt(variance / (table.sum() * many)), rel=1e-3)


def test_two_raters_of_equal_habits_have_one_kappa() -> None:
    table = [[30, 7], [7, 12]]
    a, b = labels(table)
    counts = [[(x == k) + (y == k) for k in "ab"] for x, y in zip(a, b, strict=True)]
    assert fleiss_kappa(counts) == pytest.approx(tuple(cohen_kappa(a, b)), rel=1e-9)


def test_full_agreement_keeps_a_width() -> None:
    found = cohen_kappa(*labels([[20, 0], [0, 20]]))
    assert found.value == found.hi == 1
    assert 0.7 < found.lo < 0.95
    assert fleiss_kappa([[3, 0], [0, 3]] * 20) == pytest.approx(tuple(found))


def test_kappa_is_not_known_without_choice() -> None:
    for a, b in (("aaaa", "aaaa"), ("a", "b"), ("", "")):
        assert all(math.isnan(part) for part in cohen_kappa(a, b))
    assert all(math.isnan(part) for part in fleiss_kappa([[3, 0], [3, 0]]))
    assert all(math.isnan(part) for part in fleiss_kappa([[1, 0], [0, 1], [2, 1]]))


def test_units_that_one_left_out_do_not_count() -> None:
    a, b = labels([[20, 5], [10, 15]])
    assert cohen_kappa([*a, None, "a"], [*b, "b", None]) == cohen_kappa(a, b)
    assert fleiss_kappa([*RATINGS, [1, 0, 0, 0, 0], [0] * 5]) == fleiss_kappa(RATINGS)


def test_order_and_names_do_not_matter() -> None:
    a, b = labels([[20, 5, 1], [10, 15, 2], [0, 3, 9]])
    order = rng.stream("test.agreement").permutation(len(a))
    shuffled = cohen_kappa([a[i] for i in order], [b[i] for i in order])
    assert shuffled == pytest.approx(tuple(cohen_kappa(a, b)))
    assert cohen_kappa(b, a) == pytest.approx(tuple(cohen_kappa(a, b)))
    assert fleiss_kappa(np.array(RATINGS)[:, ::-1]) == pytest.approx(tuple(fleiss_kappa(RATINGS)))


CHOICES = [
    ("p1", "base", "ann"),
    ("p1", "base", "bob"),
    ("p1", "tuned", "cy"),
    ("p2", "tuned", "ann"),
    ("p2", "base", "bob"),
    ("p2", None, "cy"),
    ("p3", "tuned", "ann"),
    ("p4", "tuned", "bob"),
    ("p5", "base", "ann"),
    ("p6", None, "ann"),
    ("p7", "tuned", "cy"),
]
WINNER = {"p1": "base", "p2": "base", "p3": "base", "p4": None, "p6": "base", "p7": "tuned", "p8": "base"}


def test_votes_are_counted_by_hand() -> None:
    found = human_agreement(CHOICES, WINNER)
    assert (found.agreed, found.decided) == (2, 3)  # p1 and p7; p3 disagrees
    assert found.agreement == wilson_interval(2, 3)
    assert (found.ties, found.even, found.unmatched, found.unvoted) == (1, 1, 1, 2)  # p2; p4; p5; p6 and p8
    assert (found.annotators, found.votes, found.abstained) == (3, 9, 2)
    assert found.kappa == pytest.approx(tuple(fleiss_kappa([[2, 1], [1, 1]])))


def test_the_published_agreement_has_this_interval() -> None:
    choices = [(unit, "a" if unit < 94 else "b", f"person {person}") for unit in range(100) for person in range(3)]
    found = human_agreement(choices, dict.fromkeys(range(100), "a"))
    assert found.agreement == pytest.approx((0.94, 0.8752, 0.9722), abs=5e-5)
    assert found.kappa.value == pytest.approx(1)
    assert human_agreement(choices[::-1], dict.fromkeys(range(100), "a")) == found


def test_nobody_voted() -> None:
    found = human_agreement([], {"p1": "a"})
    assert all(math.isnan(part) for part in (*found.agreement, *found.kappa))
    assert (found.decided, found.unvoted, found.votes) == (0, 1, 0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="'ann' chose twice for 'p1'"):
        human_agreement([*CHOICES, ("p1", "base", "ann")], WINNER)
    with pytest.raises(ValueError, match="align them"):
        cohen_kappa("ab", "a")
    with pytest.raises(ValueError, match="0 or more"):
        fleiss_kappa([[2, -1]])
    with pytest.raises(ValueError, match="units, categories"):
        fleiss_kappa([2, 1])
